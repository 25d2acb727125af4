"""The methods side by side: a run of the whole registry, the paper's figures beside it, and the page of results."""

import csv
import importlib.util
import io
import itertools
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from msat_det.base.errors import InputError
from msat_det.base.settings import PROJECT
from msat_det.measure.rows import CurveRow, read_summary
from msat_det.methods import METHODS
from msat_det.report.comparison import markdown, pipe_table, read_comparison, table
from msat_det.report.curves import draw_curve, draw_pareto, pareto_front
from msat_det.report.directory import RunDirectory
from msat_det.report.paper import TABLE_1, TIMES
from msat_det.report.style import GREY, METHOD_COLOURS
from msat_det.run import cli
from msat_det.run.arguments import load_config

FILES = {"config.yaml", "curve.csv", "summary.json", "coverage.json", "curve.png"}
COSTS = ["spikes_per_neuron", "sops_per_mac", "energy_ratio", "events_per_neuron", "energy_ratio_int8"]
YOUNGER = {
    "adafire",
    "dcgs",
    "delta",
    "delta-fit",
    "delta-fit-anytime",
    "ftbc",
    "h-mt",
    "int8",
    "ltb",
}  # than the paper
OURS = {"constant", "constant-fit", "msat-fit", "msat-fit-anytime"}


def point(label: str, t: int, top1: float, cost: float = 1.0, *others: float) -> CurveRow:
    return CurveRow(label, t, {"top1": top1, "top5": 99.0}, 2.0, cost, 0.5, *others)


LEVEL = CurveRow("float", None, {"top1": 80.0, "top5": 95.0})
ROWS = [
    LEVEL,
    *[point("p-norm", 8, 10, 1), point("p-norm", 32, 40, 4)],
    *[point("burst", 8, 50, 2), point("burst", 32, 79, 8)],
    *[point("msat", 8, 0, 3), point("msat", 32, 30, 12)],
    *[point("signed", 8, 76, 1.5), point("signed", 32, 78, 6, 1.5, 0.75)],
    point("staged", 8, 60, 1),
]
METHOD_WORDS = [
    {"label": "p-norm", "method": "p-norm"},
    {"label": "burst", "method": "burst", "gamma": 3},
    {"label": "msat", "method": "msat"},
    {"label": "signed", "method": "constant", "signed": True},
    {"label": "staged", "method": "constant", "stages": [2, 1], "record": [8]},
]


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A run directory of ROWS, as if the small VGG had been run."""
    config = load_config(["--cfg", str(PROJECT / "configs/vgg_demo.yaml"), "--sim.record", "8,32"])
    config.methods = METHOD_WORDS
    return write_run(tmp_path / "run", config.to_yaml(), ROWS)


def write_run(path: Path, config: str, rows: list[CurveRow], **facts: Any) -> Path:
    run = RunDirectory(path)
    run.write("config.yaml", config)
    run.write_summary(rows, images=7, seed=0, commit="abc", **facts)
    run.save("pareto.png", draw_pareto(rows))
    return run.path


def cells(text: str, label: str, number: int = 0) -> list[str]:
    """The row of a label in the number-th of the Markdown tables that have it."""
    lines = [line for line in text.splitlines() if line.startswith(f"| {label}")]
    return [cell.strip() for cell in lines[number].strip("|").split("|")]


def test_every_method_of_the_registry_on_the_embedded_classifier(tmp_path: Path) -> None:
    words = ["--data.limit", "4", "--calib.limit", "8", "--sim.record", "2,4", "--threads", "1"]
    words += ["--methods", "all", "--methods.calibration.images", "2", "--out", str(tmp_path)]
    assert cli.main(["compare", "--cfg", str(PROJECT / "configs/vgg_demo.yaml"), *words]) == 0
    assert {file.name for file in tmp_path.iterdir()} >= FILES | {"compare.md", "compare.csv", "pareto.png"}

    rows = list(csv.DictReader((tmp_path / "compare.csv").open()))
    assert list(rows[0]) == ["source", "network", "label", "method", "t", "top1", "top5", *COSTS]
    measured = [row for row in rows if row["source"] == "measured"]
    labels = list(METHODS)
    assert [(row["label"], row["t"]) for row in measured] == [
        ("float", ""),
        *[(label, t) for label in labels for t in ("2", "4") if (label, t) != ("staged-4", "2")],  # the file's record
    ]
    assert all(row["method"] == row["label"] for row in measured)
    curve = list(csv.DictReader((tmp_path / "curve.csv").open()))
    for ours, theirs in zip(measured, curve, strict=True):
        assert ours["label"] == theirs["method"]
        for name in ("top1", "top5", *COSTS):
            assert float(ours[name] or 0) == pytest.approx(float(theirs[name] or 0), abs=1e-3)

    page = (tmp_path / "compare.md").read_text()
    assert page.startswith("# vgg_demo on 4 images of cls/test\n")
    assert all(f"\n| `{label}` " in page for label in labels)


def test_detectors_have_map_and_nothing_of_the_paper(tmp_path: Path) -> None:
    words = ["--data.limit", "2", "--calib.limit", "4", "--sim.record", "2", "--threads", "1", "--draw.images", "0"]
    words += ["--methods", "p-norm,burst", "--methods.p-norm.percentile", "99", "--out", str(tmp_path)]
    config = str(PROJECT / "configs/yolo_coco.yaml")
    assert cli.main(["compare", "--cfg", config, *words]) == 2  # burst is no label of that file
    words[words.index("p-norm,burst")] = "p-norm"
    assert cli.main(["compare", "--cfg", config, *words]) == 0
    header, *rows = csv.reader((tmp_path / "compare.csv").open())
    assert header[5:] == ["map", "map50", *COSTS]
    assert {row[0] for row in rows} == {"measured"}
    page = (tmp_path / "compare.md").read_text()
    assert "paper" not in page
    assert "mAP50" in page
    assert "`{method: p-norm, percentile: 99}`" in page

    words[words.index("2")] = "3"  # another run in the same folder: nothing of this one may stand beside it
    assert cli.main(["run", "--cfg", config, *words, "--overwrite"]) == 0
    assert not {"compare.md", "compare.csv", "pareto.png"} & {file.name for file in tmp_path.iterdir()}


def test_a_row_per_method(finished: Path) -> None:
    text = markdown(read_comparison(finished))
    assert cells(text, "method") == [
        "method",
        "t = 8",
        "t = 32",
        *"spikes/neuron,SOPs/MAC,energy ratio,events/neuron,energy/int8,to 95 %".split(","),
    ]
    assert cells(text, "float network") == ["float network", "80.0", "80.0", "", "1", "1", "", "", ""]
    assert cells(text, "`p-norm`") == ["`p-norm`", "10.0", "40.0", "2.00", "4.00", "0.50", "", "", "–"]
    assert cells(text, "`burst`") == ["`burst`", "50.0", "**79.0**", "2.00", "8.00", "0.50", "", "", "t = 32: 8.00"]
    assert cells(text, "`signed`") == [
        "`signed`",
        "**76.0**",
        "78.0",
        "2.00",
        "6.00",
        "0.50",
        "1.50",
        "0.75",
        "t = 8: 1.50",
    ]
    assert cells(text, "`staged`") == ["`staged`", "60.0", "", "2.00 (t = 8)", "1.00", "0.50", "", "", "–"]
    assert "- `burst`: `{method: burst, gamma: 3}`" in text
    assert "- `staged`: `{method: constant, stages: [2, 1]}`" in text
    assert "- `p-norm`" not in text


def test_what_each_method_takes_to_keep_a_share(finished: Path) -> None:
    text = markdown(read_comparison(finished))
    assert cells(text, "keeps")[1:] == [f"{p}%: {x}" for p in (99, 95, 90) for x in ("first t", "least energy")]
    assert cells(text, "`burst`", 1) == ["`burst`", "–", "–", "t = 32", "0.50", "t = 32", "0.50"]
    assert cells(text, "`signed`", 1) == ["`signed`", "–", "–", "t = 8", "0.50", "t = 8", "0.50"]
    assert cells(text, "costs")[1:] == ["t = 8", "t = 32"]
    assert cells(text, "`burst`", 2) == ["`burst`", "2.00 / 2.00 / 0.50", "2.00 / 8.00 / 0.50"]
    assert cells(text, "`staged`", 1)[1:] == ["2.00 / 1.00 / 0.50", ""]
    assert text.count("\n| `p-norm`") == 4  # accuracies, costs, and in the paper's two tables


def test_the_papers_figures_are_marked_and_compared(finished: Path) -> None:
    comparison = read_comparison(finished)
    text = markdown(comparison)
    for network in TABLE_1:
        assert f"**The paper's own figures for {network}**, not measured here" in text
    assert cells(text, "`msat`", 2) == ["`msat`", "78.5", "63.3", "75.5", "78.1", "78.6", "78.6"]
    assert cells(text, "`msat`", 3)[2] == "72.0"
    assert "T = 64, best" not in text  # not recorded
    assert (text.count("| `signed`"), text.count("| `staged`")) == (3, 2)  # no method's own name
    assert text.count("T = 32, best first: here burst, p-norm, msat; the paper burst, msat, p-norm; 2 of 3 pairs") == 2

    rows = [row for row in csv.DictReader(io.StringIO(table(comparison))) if row["source"] == "paper"]
    assert {row["network"] for row in rows} == set(TABLE_1)
    assert {row["label"] for row in rows} == {"p-norm", "burst", "msat"}
    assert [row["top1"] for row in rows if (row["network"], row["label"]) == ("VGG16", "burst")] == [
        *"78.49 74.98 78.26 78.66 78.65".split()
    ]
    assert not any(row[cost] for row in rows for cost in COSTS)


def test_table_1_is_of_registered_methods_and_within_its_float_figures() -> None:
    for lines in TABLE_1.values():
        assert set(lines) == {name for name, method in METHODS.items() if not method.base} - OURS - YOUNGER
        for line in lines.values():
            assert set(line.at) <= set(TIMES)
            assert all(0 < accuracy < line.ann + 1 for accuracy in (*line.at.values(), line.best))


def test_summary_reads_back(finished: Path) -> None:
    rows, facts = read_summary(finished)
    assert rows == ROWS
    assert facts == {"images": 7, "seed": 0, "commit": "abc"}


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"float": {}, "methods": {}}', '{"float": 1, "methods": []}'])
def test_a_damaged_summary_is_refused(finished: Path, text: str) -> None:
    (finished / "summary.json").write_text(text)
    with pytest.raises(InputError, match=r"summary\.json is not what a run writes"):
        read_comparison(finished)
    (finished / "summary.json").unlink()
    with pytest.raises(InputError, match="the run did not end"):
        read_comparison(finished)


def test_pareto_front() -> None:
    front = pareto_front([*ROWS[1:], point("silent", 8, 99, 0)], "top1")
    assert [(row.method, row.t) for row in front] == [("staged", 8), ("signed", 8), ("signed", 32), ("burst", 32)]
    axes = draw_pareto(ROWS, "title").axes[1]
    assert axes.get_xscale() == "log"
    assert [text.get_text() for text in axes.texts] == ["signed, t = 8", "burst, t = 32"]  # staged: below 80 %
    assert draw_pareto([LEVEL, point("silent", 8, 0, 0)]).axes[0].texts[:] == []


def test_the_front_by_energy_is_one_of_its_own() -> None:
    cheap = CurveRow("cheap", 8, {"top1": 70.0, "top5": 90.0}, 1.0, 9.0, 0.1)
    rows = [LEVEL, cheap, point("dear", 8, 75, 1.0)]
    assert [row.method for row in pareto_front(rows[1:], "top1")] == ["dear"]
    assert [row.method for row in pareto_front(rows[1:], "top1", "energy_ratio")] == ["cheap", "dear"]
    by_energy, by_operations = draw_pareto(rows).axes  # energy first
    assert "energy" in by_energy.get_xlabel()
    assert len(by_operations.texts) == 1
    assert len(by_energy.texts) == 2


def test_the_picture_of_the_front_is_zoomed_and_its_names_lie_apart() -> None:
    """From 80 % of the float figure on; who never gets there stands below, in words."""
    many = [
        CurveRow(f"method-{i}", 8, {"top1": 76 + 0.2 * i, "top5": 90.0}, 1, 1 + 0.01 * i, 0.3 + 0.01 * i)
        for i in range(9)
    ]
    lost = CurveRow("lost", 8, {"top1": 2.0, "top5": 9.0}, 1.0, 1.0, 0.2)
    figure = draw_pareto([LEVEL, lost, *many])
    axes = figure.axes[0]
    assert axes.get_ylim()[0] == pytest.approx(0.8 * LEVEL.metrics["top1"])
    assert figure.legends[0].get_title().get_text() == "never at 80% of the float network: lost"
    assert "lost" not in [text.get_text() for text in figure.legends[0].get_texts()]
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [text.get_window_extent(renderer) for text in axes.texts]
    assert len(boxes) == len(many)
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    whole = draw_pareto([LEVEL, lost]).axes[0]  # nobody gets there: all is shown
    assert whole.get_ylim()[0] == 0


def test_a_method_that_finds_nothing_is_grey_and_others_keep_their_colours() -> None:
    lost = CurveRow("lost", 8, {"top1": 2.0, "top5": 9.0}, 1.0, 1.0, 0.2)
    good = CurveRow("good", 8, {"top1": 70.0, "top5": 90.0}, 1.0, 1.0, 0.2)
    for first, second in ((lost, good), (good, lost)):
        left = draw_curve([LEVEL, first, second]).axes[0]
        found = {line.get_label(): line.get_color() for line in left.lines}
        assert found["lost"] == GREY
        assert found["good"] == METHOD_COLOURS[1 if first is lost else 0]


def test_pipe_table() -> None:
    assert pipe_table(["a", "b"], [["x", "10"], ["long", ""]]) == (
        "| a    |   b |\n| ---- | --: |\n| x    |  10 |\n| long |     |"
    )


@pytest.fixture
def make_results() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_results", PROJECT / "tools/make_results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_page_of_results(make_results: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name in ("resnet20_cifar100", "yolo_nano_coco"):
        config = make_results.configuration(name, tmp_path)
        metrics = {"top1": 50.0, "top5": 70.0} if name == "resnet20_cifar100" else {"map": 17.0, "map50": 33.5}
        points = [(entry["label"], t) for entry in config.methods for t in config.record_of(entry)]
        rows = [CurveRow("float", None, metrics), *(CurveRow(label, t, metrics, 1.0) for label, t in points)]
        write_run(tmp_path / name, config.to_yaml(), rows, seen_in_calibration=3 * (name == "yolo_nano_coco"))
    docs = tmp_path / "docs/results"
    page = docs / "yolo_nano_coco.md"
    words = ["--from", str(tmp_path), "--out", str(docs)]
    assert make_results.main(words) == 0
    told = capsys.readouterr().err
    assert all(f"{name}: no finished run" in told for name in ("squeezenet_imagenet", "ssd_mobilenet_coco"))
    classifier, text = (docs / "resnet20_cifar100.md").read_text(), page.read_text()
    assert classifier.startswith("# ResNet-20, CIFAR-100\n")
    assert (
        "\nMobileNetV2-YOLOv3-Nano-coco on 7 images of coco_val128/val2017 (3 of them calibration images); thresholds "
        "from all images of coco_calib64; seed 0, commit abc.\n"
    ) in text
    assert "resnet20 on 7 images of cifar100_subset/test; thresholds from all" in classifier
    assert "\n    msat-det compare --cfg configs/real/resnet20_cifar100.yaml --out runs/results/resnet20" in classifier
    assert "--sim.record 8,16,32,64 --data.limit 64 --methods p-norm,channel-norm," in text
    assert cells(classifier, "method")[1:10] == [f"t = {t}" for t in (1, 2, 4, 8, 16, 32, 64, 128, 256)]
    assert cells(text, "`msat-normalised`")[1:5] == ["**17.0**"] * 4
    assert {file.name for file in docs.iterdir()} == {  # a page a network, and no fit was run
        f"{name}.{kind}" for name in ("resnet20_cifar100", "yolo_nano_coco") for kind in ("csv", "md", "png")
    }

    pages = page, docs / "resnet20_cifar100.md"
    first = [page.read_bytes() for page in pages]
    assert make_results.main(words) == 0
    assert [page.read_bytes() for page in pages] == first
    (tmp_path / "resnet20_cifar100").rename(tmp_path / "elsewhere")
    assert make_results.main(words) == 0
    assert [page.read_bytes() for page in pages] == first  # a section stays when its run is gone

    config = tmp_path / "yolo_nano_coco/config.yaml"
    was = config.read_text()
    for key, old, new in (
        ("data.limit", "limit: 64", "limit: 8"),
        ("precision", "precision: float32", "precision: bf16"),
        ("energy", "energy: 45nm", "energy: 45nm-shift"),
    ):
        config.write_text(was.replace(old, new, 1))
        assert make_results.main(words) == 2
        assert f"was run with other {key}: run it again" in capsys.readouterr().err
    config.write_text(was.replace("threads: null", "threads: 3").replace("data_root", "elsewhere"))
    assert make_results.main(words) == 0


def test_the_order_of_the_methods_by_each_figure(make_results: ModuleType, tmp_path: Path) -> None:
    name = "ssd_mobilenet_coco:codings"
    config = make_results.configuration(name, tmp_path)
    assert (config.sim.record, config.bootstrap.against) == ([1, 2, 4, 8, 16], "int8")
    figures = {
        "delta-3": (23.0, 1.3, 1.1, 0.23, 1.3),
        "dcgs": (5.0, 0.5, 0.6, 0.12, 0.4),
        "h-mt": (9.0, 3.0, 2.0, 0.4, 0.3),
    }
    rows = [CurveRow("float", None, {"map": 23.2, "map50": 39.0})]
    for label, (found, spikes, sops, energy, events) in figures.items():
        rows.append(CurveRow(label, 1, {"map": found, "map50": 2 * found}, spikes, sops, energy, events, energy))
    write_run(tmp_path / "ssd_mobilenet_coco_codings", config.to_yaml(), rows)
    assert make_results.main(["--from", str(tmp_path), "--out", str(tmp_path / "docs")]) == 0
    text = (tmp_path / "docs/ssd_mobilenet_coco.md").read_text()
    assert (
        "\n- t = 1: most accurate first delta-3, h-mt, dcgs; fewest events first h-mt, dcgs, delta-3; fewest spikes "
        "first dcgs, delta-3, h-mt; least energy first dcgs, delta-3, h-mt.\n"
    ) in text


def test_results_of_an_unknown_experiment(make_results: ModuleType, capsys: pytest.CaptureFixture) -> None:
    assert make_results.main(["--only", "nope"]) == 2
    assert capsys.readouterr().err.startswith(
        "error: no experiment nope: --only takes ssd_mobilenet_coco:codings, ssd_"
    )
