"""Makes docs/results.md, every method of the comparison on public networks, and docs/fitted.md, fitted thresholds.

Each experiment is one run of `msat-det compare` and takes up to hours on a laptop. The pages are made from the run
directories alone, so that the runs may be made one at a time and in any order.
"""

import argparse
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from msat_det.base.config import Config
from msat_det.base.errors import InputError
from msat_det.base.settings import PROJECT
from msat_det.report.comparison import Comparison, markdown, read_comparison, table
from msat_det.report.directory import RunDirectory
from msat_det.run.arguments import Parser, load_config
from msat_det.run.compare import compare
from msat_det.run.terminal import once

RUNS = "runs/results"
METHODS = "p-norm,channel-norm,spike-norm,rmp,tsc,opt,calibration,burst,constant"
DETECTION = f"--sim.record 8,16,32,64 --data.limit 64 --methods {METHODS},msat,msat-normalised"
VARIANTS = "msat,msat-paper,msat-normalised,dtt-only,det-only,msat-confidence"
CLASSIFICATION = f"--methods {METHODS},{VARIANTS}"
# Name of a configuration in configs/real → heading, and what the command sets beside the configuration.
RESULTS = {
    "resnet20_cifar100": ("ResNet-20, CIFAR-100", CLASSIFICATION),
    "squeezenet_imagenet": ("SqueezeNet 1.0, ImageNet", CLASSIFICATION),
    "ssd_mobilenet_coco": ("SSD-MobileNetV1, COCO", DETECTION),
    "yolo_nano_coco": ("YOLOv3-Nano, COCO", DETECTION),
}
FITTED = {
    "ssd_mobilenet_coco_fit": ("SSD-MobileNetV1, COCO", ""),
    "yolo_nano_coco_fit": ("YOLOv3-Nano, COCO", ""),
    "yolo_nano_coco_linear_fit": ("YOLOv3-Nano, COCO, spikes alone on its linear bottlenecks too", ""),
    "resnet20_cifar100_fit": ("ResNet-20, CIFAR-100", ""),
    "squeezenet_imagenet_fit": ("SqueezeNet 1.0, ImageNet", ""),
    "ssd_mobilenet_coco_ablation": ("What each part brings: SSD-MobileNetV1, COCO, T = 4", ""),
    "resnet20_cifar100_ablation": ("What each part brings: ResNet-20, CIFAR-100, T = 4", ""),
}
EXPERIMENTS = RESULTS | FITTED
# The pages: their first words, and the experiments on them.
PAGES = {
    "results.md": (
        """\
# Every method on four networks

`python tools/make_results.py` makes this page from the runs whose commands stand above the tables. No network is
trained again; thresholds come from calibration images, which are not evaluated. All figures were measured here but
those that are marked as the paper's. The CSV files hold both accuracies and all costs at every t.
""",
        RESULTS,
    ),
    "fitted.md": (
        """\
# Fitted thresholds at few timesteps

`python tools/make_results.py` makes this page too. Methods that need T, the fits among them, are made anew for each t;
what they say of more than one t is each network's own. A fit sees calibration images alone, 16 of them unless its
entry says otherwise.
""",
        FITTED,
    ),
}
SECTION = """
## {heading}

    {command}

{facts}

{body}
![accuracy over operations]({folder}/{name}.png)

All figures: [{name}.csv]({folder}/{name}.csv).
"""


@once
def main(argv: list[str]) -> None:
    """Run the chosen experiments, or none with --from, and write the pages of all whose run directories are there."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="NAME,NAME", help=f"experiments to run; of {', '.join(EXPERIMENTS)}")
    parser.add_argument("--from", dest="source", metavar="DIR", help=f"run nothing, read DIR/NAME instead of {RUNS}")
    parser.add_argument("--out", default=PROJECT / "docs", type=Path, metavar="DIR", help="where the pages go")
    arguments = parser.parse_args(argv)
    names = arguments.only.split(",") if arguments.only else list(EXPERIMENTS)
    for name in names:
        if name not in EXPERIMENTS:
            raise InputError(f"no experiment {name}: --only takes {', '.join(EXPERIMENTS)}")
    runs = Path(arguments.source or RUNS)
    for name in [] if arguments.source else names:
        compare(configuration(name, runs))
    for page, (introduction, experiments) in PAGES.items():
        write_page(arguments.out / page, introduction, experiments, runs)


def configuration(name: str, runs: Path) -> Config:
    """What an experiment runs; its run directory is in ``runs``."""
    words = ["--cfg", str(PROJECT / f"configs/real/{name}.yaml"), *EXPERIMENTS[name][1].split()]
    return load_config([*words, "--out", str(runs / name)])


def write_page(page: Path, introduction: str, experiments: dict[str, tuple[str, str]], runs: Path) -> None:
    """The page, unless no experiment of it was run, and in a folder of its name their figures as CSV and pictures."""
    folder = page.with_suffix("")
    parts = [introduction]
    for name, (heading, words) in experiments.items():
        if not (runs / name / "summary.json").is_file():
            print(f"{name}: no finished run in {runs / name}, left out of {page}", file=sys.stderr)
            continue
        comparison = read_comparison(runs / name)
        require_same(comparison.config, configuration(name, runs), runs / name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.csv").write_text(table(comparison), "utf-8")
        RunDirectory(runs / name).write_pareto(comparison.rows, comparison.title)
        shutil.copyfile(runs / name / "pareto.png", folder / f"{name}.png")
        command = " ".join(f"msat-det compare --cfg configs/real/{name}.yaml --out {RUNS}/{name} {words}".split())
        values = {"heading": heading, "command": command, "folder": folder.name, "name": name}
        parts.append(SECTION.format(**values, facts=facts(comparison), body=markdown(comparison)))
    if len(parts) > 1:
        page.write_text("".join(parts), "utf-8")


def facts(comparison: Comparison) -> str:
    """What was run, in a sentence."""
    calib = comparison.config.calib
    folder = "/".join(filter(None, (Path(calib.root).name, calib.split)))
    return (
        f"{comparison.title}; thresholds from {calib.limit or 'all'} images of {folder}; "
        f"seed {comparison.facts['seed']}, commit {comparison.facts['commit']}."
    )


def require_same(found: Config, wanted: Config, run: Path) -> None:
    """Raise InputError unless the run directory holds what the experiment would run now."""
    for section, keys in {
        "": ("methods", "seed"),
        "sim": ("record",),
        "model": ("name",),
        "data": ("kind", "split", "limit"),
        "calib": ("kind", "split", "skip", "limit"),
    }.items():
        for key in keys:
            values = [getattr(getattr(config, section) if section else config, key) for config in (found, wanted)]
            if values[0] != values[1]:
                raise InputError(f"{run} was run with other {'.'.join(filter(None, (section, key)))}: run it again")


if __name__ == "__main__":
    sys.exit(main())
