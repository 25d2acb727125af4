"""The main job from the command line to its files, on a few of the embedded scenes, and what bad input ends in."""

import csv
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from msat_det.base.settings import PROJECT, read_config
from msat_det.graph.facts import facts
from msat_det.run import cli, prepare
from msat_det.spiking.network import SpikingNetwork

CFG = str(PROJECT / "configs" / "yolo_voc.yaml")
SMALL = ["--data.limit", "6", "--calib.limit", "4", "--batch", "4", "--sim.record", "2,4", "--draw.images", "1"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "yolo"
    assert cli.run(["--cfg", CFG, "--out", str(out), "--methods", "signed-b3,msat,staged-4", *SMALL]) == 0
    return out


def test_a_run_leaves_its_files(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert {"config.yaml", "summary.json", "curve.csv", "curve.png", "detections"} <= names
    assert {"coverage.json", "coverage.txt", "coverage.svg"} <= names
    assert {"report.html", "report.json", "boxes.gif"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert len(list((finished / "detections").glob("*.png"))) == 1


def test_the_report_is_made_anew_from_the_files_alone(finished: Path) -> None:
    page = finished / "report.html"
    before = page.read_bytes()
    page.unlink()
    assert cli.main(["report", str(finished)]) == 0
    assert page.read_bytes() == before
    image = json.loads((finished / "report.json").read_text())["images"][0]
    assert {label: list(found) for label, found in image["methods"].items()} == {
        "signed-b3": ["2", "4"],
        "msat": ["2", "4"],
        "staged-4": ["4"],
    }
    assert image["float"]


def test_the_curve_has_a_row_for_each_method_and_t(finished: Path) -> None:
    with (finished / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["t"]) for row in rows] == [
        ("float", ""),
        ("signed-b3", "2"),
        ("signed-b3", "4"),
        ("msat", "2"),
        ("msat", "4"),
        ("staged-4", "4"),
    ]
    level, staged = float(rows[0]["map50"]), float(rows[-1]["map50"])
    assert staged >= 0.8 * level  # on all 100 images it keeps over 99 %
    assert [float(row["spikes_per_neuron"]) for row in rows[1:3]] == pytest.approx(spikes_by_hand(finished), rel=2e-3)


def spikes_by_hand(finished: Path) -> list[float]:
    """Σ|s| of signed-b3 per neuron after 2 and 4 timesteps, from what its call sites send, over θ."""
    config = read_config(finished / "config.yaml")
    model = prepare.build_model(config, "detection")
    observation = prepare.observed(config, model)
    snn = prepare.convert(config, config.methods[0], observation, 4)
    annotated = prepare.annotated_images(config, model.classes)
    dataset = prepare.evaluated_images(config, annotated, prepare.calibration_images(config))
    batch = torch.stack([model.preprocess(dataset.image(id))[0] for id in dataset.ids])
    found = []
    for T in (2, 4):
        sent: list[float] = []
        snn.run(batch, T, tap=lambda site, y, sent=sent: sent.append((y.abs() / theta_of(snn, site)).sum().item()))
        found.append(sum(sent) / len(batch) / sum(math.prod(facts(node).shape) for node in snn.graph.sites))
    return found


def theta_of(snn: SpikingNetwork, site: str) -> Tensor:
    return snn.neurons[site].theta.clamp(min=1e-30)[:, None, None]


def test_the_summary_tells_images_seed_and_analog_share(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["images"] == 6
    assert summary["seed"] == 0
    assert summary["analog_mac_share"] == 0
    assert set(summary["methods"]["signed-b3"]) == {"2", "4"}
    assert "map50_11point" in summary["float"]


def test_batches_do_not_matter_to_spikes_beyond_ties(finished: Path, tmp_path: Path) -> None:
    words = ["--cfg", CFG, "--out", str(tmp_path), "--methods", "signed-b3", *SMALL, "--batch", "3"]
    assert cli.run(words) == 0
    first, second = (json.loads((path / "summary.json").read_text()) for path in (finished, tmp_path))
    for t in ("2", "4"):
        a, b = (summary["methods"]["signed-b3"][t]["spikes_per_neuron"] for summary in (first, second))
        assert a == pytest.approx(b, rel=1e-3)


def test_a_corrupt_image_is_named_and_left_out_or_stops_a_strict_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "voc"
    shutil.copytree(PROJECT / "data" / "voc", root)
    images = sorted((root / "VOCdevkit" / "VOC2007" / "JPEGImages").iterdir())
    listed = (root / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main" / "test.txt").read_text().split()
    broken = next(path for path in images if path.stem in listed)
    broken.write_bytes(broken.read_bytes()[:200])
    (root / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main" / "test.txt").write_text(
        "\n".join([broken.stem, *[stem for stem in listed if stem != broken.stem][:3]]) + "\n"
    )
    words = ["--cfg", CFG, "--data.root", str(root), "--calib.root", str(PROJECT / "data" / "voc")]
    words += ["--methods", "signed", *SMALL, "--out", str(tmp_path / "out")]
    assert cli.run(words) == 0
    assert broken.name in capsys.readouterr().err
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["images"] == 3
    assert len(summary["corrupt_images"]) == 1
    assert cli.run([*words, "--strict", "--out", str(tmp_path / "strict")]) == 2
    assert "error:" in capsys.readouterr().err


def weights_of_another_shape(folder: Path) -> str:
    tensors = load_file(PROJECT / "data" / "weights" / "yolo_demo.safetensors")
    name = next(iter(tensors))
    save_file(tensors | {name: torch.zeros(3, 3)}, folder / "wrong.safetensors")
    return str(folder / "wrong.safetensors")


def root_without_images(folder: Path) -> str:
    shutil.copytree(PROJECT / "data" / "voc", folder / "empty", ignore=shutil.ignore_patterns("*.jpg"))
    return str(folder / "empty")


def root_with_an_unknown_class(folder: Path) -> str:
    root = folder / "unknown"
    shutil.copytree(PROJECT / "data" / "voc", root)
    for path in (root / "VOCdevkit" / "VOC2007" / "Annotations").iterdir():
        path.write_text(path.read_text().replace("<name>cat</name>", "<name>unicorn</name>"))
    return str(root)


BAD = {
    "no such configuration": lambda folder: ["--cfg", str(folder / "none.yaml")],
    "unknown key": lambda folder: ["--cfg", CFG, "--data.lmit", "3"],
    "unknown label": lambda folder: ["--cfg", CFG, "--methods", "staged-5"],
    "unknown option": lambda folder: ["--cfg", CFG, "--methods.signed.gama", "3"],
    "weights that do not fit": lambda folder: ["--cfg", CFG, "--model.weights", weights_of_another_shape(folder)],
    "no weights": lambda folder: ["--cfg", CFG, "--model.weights", str(folder / "none.safetensors")],
    "no images": lambda folder: ["--cfg", CFG, "--data.root", root_without_images(folder)],
    "no root": lambda folder: ["--cfg", CFG, "--data.root", str(folder / "none")],
    "unknown class": lambda folder: ["--cfg", CFG, "--data.root", root_with_an_unknown_class(folder)],
    "no timesteps": lambda folder: ["--cfg", CFG, "--sim.T", "0"],
    "unwritable": lambda folder: ["--cfg", CFG, "--out", "/proc/none"],
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_status_2(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = BAD[case](tmp_path)
    words = words if "--out" in words else [*words, "--out", str(tmp_path / "out")]
    assert cli.run(words) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert len(lines[0]) > 30  # it says what, where and how to mend it


@pytest.mark.parametrize("command", [cli.run, cli.inspect, cli.doctor])
@pytest.mark.parametrize("case", ["unknown label", "weights that do not fit", "no weights", "no root"])
def test_a_run_that_never_began_leaves_nothing_behind(case: str, command: Callable, tmp_path: Path) -> None:
    words = BAD[case](tmp_path)
    words += ["--calib.root", str(tmp_path / "none")] if case == "no root" else []
    assert command([*words, "--out", str(tmp_path / "runs" / "out")]) == 2
    assert not (tmp_path / "runs").exists()
    (tmp_path / "runs").mkdir()  # what was there before stays, with all that it holds
    (tmp_path / "runs" / "notes.txt").write_text("mine")
    assert command([*words, "--out", str(tmp_path / "runs")]) == 2
    assert [path.name for path in (tmp_path / "runs").iterdir() if path.name != ".lock"] == ["notes.txt"]


@pytest.mark.parametrize(("key", "value", "said"), [("images", "8", "8"), ("t", "2,4", "[2, 4]")])
def test_pictures_of_a_classifiers_boxes_are_refused(
    key: str, value: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--cfg", str(PROJECT / "configs/vgg_demo.yaml"), "--out", str(tmp_path / "out"), "--sim.record", "2,4"]
    assert cli.run([*words, f"--draw.{key}", value]) == 2
    told = f"error: draw.{key} is {said}, and a classifier has no boxes: leave it out\n"
    assert capsys.readouterr().err.endswith(told)
    assert not (tmp_path / "out").exists()


def test_truncated_darknet_weights(shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "MobileNetV2-YOLOv3-Nano-voc"
    cut = tmp_path / "cut.weights"
    cut.write_bytes((shared_data / "weights" / f"{name}.weights").read_bytes()[:100_000])
    words = ["--cfg", CFG, "--model.cfg", str(shared_data / "weights" / f"{name}.cfg"), "--model.weights", str(cut)]
    assert cli.run([*words, "--out", str(tmp_path / "out")]) == 2
    assert "cut.weights" in capsys.readouterr().err


def test_nan_weights_name_the_call_site(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = load_file(PROJECT / "data" / "weights" / "yolo_demo.safetensors")
    name = next(name for name, tensor in tensors.items() if tensor.dim() == 4)
    tensors[name] = torch.full_like(tensors[name], float("nan"))
    save_file(tensors, tmp_path / "nan.safetensors")
    words = ["--cfg", CFG, "--model.weights", str(tmp_path / "nan.safetensors"), "--out", str(tmp_path / "out"), *SMALL]
    assert cli.run(words) == 2
    assert "nan" in capsys.readouterr().err.lower()


def test_whole_batches_of_corrupt_images(voc_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the four images of ``voc_root``, first two, which are a batch, and then all of them."""
    words = ["--cfg", CFG, "--data.root", str(voc_root), "--calib.root", str(PROJECT / "data" / "voc"), *SMALL]
    words += ["--data.limit", "none", "--batch", "2", "--methods", "signed", "--out", str(tmp_path / "out")]
    images = sorted((voc_root / "VOCdevkit" / "VOC2007" / "JPEGImages").iterdir())
    for path in images[:2]:
        path.write_bytes(b"no JPEG")
    assert cli.run(words) == 0
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["images"] == 2
    capsys.readouterr()
    for path in images[2:]:
        path.write_bytes(b"no JPEG")
    assert cli.run([*words, "--overwrite"]) == 2
    assert "error: none of the 4 images could be read; the first: can't read" in capsys.readouterr().err


def test_classification_is_the_same_line(tmp_path: Path) -> None:
    words = ["--cfg", str(PROJECT / "configs" / "vgg_demo.yaml"), "--methods", "signed,staged-4", "--sim.record", "4"]
    assert cli.run([*words, "--data.limit", "20", "--calib.limit", "20", "--out", str(tmp_path)]) == 0
    with (tmp_path / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:4] == ["method", "t", "top1", "top5"]
    assert float(rows[0]["top1"]) > 50
    assert [row["method"] for row in rows] == ["float", "signed", "staged-4"]
    assert not (tmp_path / "detections").exists()
    assert not (tmp_path / "boxes.gif").exists()
    assert "top-1 accuracy" in (tmp_path / "report.html").read_text("utf-8")
