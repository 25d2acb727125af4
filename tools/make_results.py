"""Makes the pages of docs/results, one a network: every method of the comparison, fitted thresholds, both codings.

Each experiment is one run of `msat-det compare` and takes up to hours on a laptop. The pages are made from the run
directories, so that the runs may be made one at a time and in any order; a section whose run is not there stays as it
is on the page.
"""

import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from msat_det.base.checks import present
from msat_det.base.config import Config
from msat_det.base.errors import InputError
from msat_det.base.files import write_whole
from msat_det.base.settings import PATH_KEYS, PROJECT, dotted
from msat_det.report.comparison import Comparison, markdown, read_comparison, table
from msat_det.report.curves import draw_pareto
from msat_det.report.directory import RunDirectory
from msat_det.run.arguments import Parser, load_config
from msat_det.run.compare import compare
from msat_det.run.resume import FREE
from msat_det.run.terminal import once

RUNS = "runs/results"
METHODS = "p-norm,channel-norm,spike-norm,rmp,tsc,opt,calibration,burst,constant"
DETECTION = f"--sim.record 8,16,32,64 --data.limit 64 --methods {METHODS},msat,msat-normalised"
VARIANTS = "msat,msat-paper,msat-normalised,dtt-only,det-only,msat-confidence"
CLASSIFICATION = f"--methods {METHODS},{VARIANTS}"
CODINGS = (
    "--methods delta-1,delta-2,delta-3,delta-3-w8,dcgs,dcgs-halves,h-mt,ltb,adafire,msat-fit-energy,delta-fit,"
    "delta-fit-anytime,int8 --sim.record 1,2,4,8,16 --bootstrap.against int8 --bootstrap.draws 200"
)
HELD_OUT = "--data.held_out true"
ON_ALL = "Delta coding on all 128 images, calibration images among them"
DELTA = "--methods delta-2,delta-3,delta-fit,int8 --sim.record 1,2 --bootstrap.against int8 --bootstrap.draws 200"
ON_HELD_OUT = "Delta coding, held-out images"
RATE = "--methods if-signed-b7,msat-fit --sim.record 4,8,16,32"
BOTH, EVERY = "Both codings, one to sixteen timesteps", "Every method, rate coding"
FITS, PARTS = "Fitted thresholds at few timesteps", "What each part brings, T = 4"


def delta_of(name: str) -> dict[str, tuple[str, str]]:
    """Delta coding of a detector, on held-out images and on all."""
    return {f"{name}:delta": (ON_HELD_OUT, f"{DELTA} {HELD_OUT}"), f"{name}:all": (ON_ALL, DELTA)}


def own_detector(name: str) -> dict[str, tuple[str, str]]:
    """Delta coding of a detector, and beside it a threshold that stands still and a fitted one, on all images."""
    return delta_of(name) | {f"{name}:rate": ("Threshold at rest and fitted, all 128 images", RATE)}


# A page → its title and experiments: the name of a configuration in configs/real, or of an experiment with it →
# heading, and what the command sets beside the configuration.
PAGES = {
    "ssd_mobilenet_coco": (
        "SSD-MobileNetV1, COCO",
        {
            "ssd_mobilenet_coco:codings": (BOTH, f"{CODINGS} {HELD_OUT}"),
            **delta_of("ssd_mobilenet_coco"),
            "ssd_mobilenet_coco": (EVERY, DETECTION),
            "ssd_mobilenet_coco_fit": (FITS, ""),
            "ssd_mobilenet_coco_ablation": (PARTS, ""),
        },
    ),
    "yolo_nano_coco": (
        "YOLOv3-Nano, COCO",
        {
            "yolo_nano_coco:codings": (BOTH, f"{CODINGS} {HELD_OUT}"),
            **delta_of("yolo_nano_coco"),
            "yolo_nano_coco": (EVERY, DETECTION),
            "yolo_nano_coco_fit": (FITS, ""),
            "yolo_nano_coco_linear_fit": (f"{FITS}, with spikes on its linear bottlenecks too", ""),
        },
    ),
    "yolo_fastest_coco": ("YOLO-Fastest 1.1 (leaky ReLU), COCO", delta_of("yolo_fastest_coco")),
    "yolov8n_coco": ("YOLOv8n, COCO", own_detector("yolov8n_coco")),
    "yolox_nano_coco": ("YOLOX-Nano, COCO", own_detector("yolox_nano_coco")),
    "picodet_s_coco": ("PicoDet-S, COCO", own_detector("picodet_s_coco")),
    "fastestdet_coco": ("FastestDet, COCO", own_detector("fastestdet_coco")),
    "resnet20_cifar100": (
        "ResNet-20, CIFAR-100",
        {
            "resnet20_cifar100:codings": (BOTH, CODINGS),
            "resnet20_cifar100": (EVERY, CLASSIFICATION),
            "resnet20_cifar100_fit": (FITS, ""),
            "resnet20_cifar100_ablation": (PARTS, ""),
        },
    ),
    "squeezenet_imagenet": (
        "SqueezeNet 1.0, ImageNet",
        {
            "squeezenet_imagenet:codings": (BOTH, CODINGS),
            "squeezenet_imagenet:delta": ("Delta coding", DELTA),
            "squeezenet_imagenet": (EVERY, CLASSIFICATION),
            "squeezenet_imagenet_fit": (FITS, ""),
        },
    ),
}
EXPERIMENTS = {name: about for _, experiments in PAGES.values() for name, about in experiments.items()}
INTRODUCTION = """\
# {title}

Every table that was measured on this network; what they say is in [the findings](../findings.md), what the columns
mean in [how to](../howto.md#choose-t-and-a-method). `python tools/make_results.py` makes the page from its runs.

The network is not trained again. Where evaluated images are calibration images too, their number is given. A fit sees
calibration images only, 16 of them unless its entry says otherwise. Methods that need T, the fits among them, are
converted anew for each t: each of their columns is a network of its own. All figures were measured here except those
marked as the paper's. The CSV files hold both accuracies and all costs.
"""
SECTION = """
## {heading}

    {command}

{facts}

{body}{orders}
![accuracy over energy and over operations]({name}.png)

All figures: [{name}.csv]({name}.csv).
"""


@once
def main(argv: list[str]) -> None:
    """Run the chosen experiments, or none with --from, and write the pages of all whose run directories are there."""
    parser = Parser(description=__doc__)
    parser.add_argument("--only", metavar="NAME,NAME", help=f"experiments to run; of {', '.join(EXPERIMENTS)}")
    parser.add_argument("--from", dest="source", metavar="DIR", help=f"run nothing, read DIR/NAME instead of {RUNS}")
    parser.add_argument("--out", default=PROJECT / "docs/results", type=Path, metavar="DIR", help="where the pages go")
    arguments = parser.parse_args(argv)
    names = arguments.only.split(",") if arguments.only else list(EXPERIMENTS)
    for name in names:
        if name not in EXPERIMENTS:
            raise InputError(f"no experiment {name}: --only takes {', '.join(EXPERIMENTS)}")
    runs = Path(arguments.source or RUNS)
    for name in [] if arguments.source else names:
        compare(configuration(name, runs))
    for page, (title, experiments) in PAGES.items():
        write_page(arguments.out / f"{page}.md", title, experiments, runs)


def configuration(name: str, runs: Path) -> Config:
    """What an experiment runs; its run directory is in ``runs``."""
    words = ["--cfg", str(PROJECT / f"configs/real/{name.split(':')[0]}.yaml"), *EXPERIMENTS[name][1].split()]
    return load_config([*words, "--out", str(runs / folder_of(name))])


def folder_of(name: str) -> str:
    """The name of an experiment's run directory and files."""
    return name.replace(":", "_")


def write_page(page: Path, title: str, experiments: dict[str, tuple[str, str]], runs: Path) -> None:
    """The page, unless no experiment of it was run, and beside it their figures as CSV and pictures."""
    parts = [INTRODUCTION.format(title=title)]
    kept = sections(page)
    for name, (heading, words) in experiments.items():
        if (runs / folder_of(name) / "summary.json").is_file():
            parts.append(section(page, name, heading, words, runs))
        elif heading in kept:
            parts.append(kept[heading])
        else:
            print(f"{name}: no finished run in {runs / folder_of(name)}, left out of {page}", file=sys.stderr)
    if len(parts) > 1:
        write_whole(page, lambda file: file.write_bytes("".join(parts).encode()))


def sections(page: Path) -> dict[str, str]:
    """The page's sections by their headings."""
    found = page.read_text("utf-8").split("\n## ")[1:] if page.is_file() else []
    return {text.split("\n")[0]: f"\n## {text.rstrip()}\n" for text in found}


def section(page: Path, name: str, heading: str, words: str, runs: Path) -> str:
    """One experiment's, its figures as CSV and its picture written beside the page."""
    folder, own = page.parent, folder_of(name)
    comparison = read_comparison(runs / own)
    require_same(comparison.config, configuration(name, runs), runs / own)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{own}.csv").write_text(table(comparison), "utf-8")
    RunDirectory(runs / own).save("pareto.png", draw_pareto(comparison.rows, comparison.title))
    shutil.copyfile(runs / own / "pareto.png", folder / f"{own}.png")
    config = f"configs/real/{name.split(':')[0]}.yaml"
    command = " ".join(f"msat-det compare --cfg {config} --out {RUNS}/{own} {words}".split())
    values = {"heading": heading, "command": command, "name": own}
    orders = order_by_cost(comparison) if name.endswith(":codings") else ""
    return SECTION.format(**values, facts=facts(comparison), body=markdown(comparison), orders=orders)


# keys that say where and how it was run, and those of pictures that no page shows
HERE = {*FREE, *(PATH_KEYS - {"energy"}), "threads", "batch", "device", "draw.images", "draw.t", "draw.method"}
RANKINGS = {"events_per_neuron": "fewest events", "spikes_per_neuron": "fewest spikes", "energy_ratio": "least energy"}


def order_by_cost(comparison: Comparison) -> str:
    """The methods at each t, the most accurate first, and the cheapest first by each of three figures."""
    lines = []
    for t in comparison.times:
        rows = [row for row in comparison.rows[1:] if row.t == t and row.method != "int8"]
        ranked = {"most accurate": sorted(rows, key=lambda row: -row.metrics[comparison.metric])}
        ranked |= {words: sorted(rows, key=lambda row: present(row.costs[name])) for name, words in RANKINGS.items()}
        parts = [f"{words} first {', '.join(row.method for row in order)}" for words, order in ranked.items()]
        lines.append(f"- t = {t}: {'; '.join(parts)}.")
    return "\nIn order:\n\n" + "\n".join(lines) + "\n"


def facts(comparison: Comparison) -> str:
    """What was run, in a sentence."""
    calib = comparison.config.calib
    folder = "/".join(filter(None, (Path(present(calib.root)).name, calib.split)))
    return (
        f"{comparison.title}; thresholds from {calib.limit or 'all'} images of {folder}; "
        f"seed {comparison.facts['seed']}, commit {comparison.facts['commit']}."
    )


def require_same(found: Config, wanted: Config, run: Path) -> None:
    """Raise InputError unless the run directory holds what the experiment would run now, on whatever machine."""
    then, now = dotted(found.values()), dotted(wanted.values())
    for key in now | then:
        if key not in HERE and then.get(key) != now.get(key):
            raise InputError(f"{run} was run with other {key}: run it again")


if __name__ == "__main__":
    sys.exit(main())
