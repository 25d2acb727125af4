"""Calibration images among the evaluated ones: found by their bytes, told, and left out on demand."""

import json
import shutil
from pathlib import Path

import pytest
from support.roots import write_image

from msat_det.base.settings import PROJECT
from msat_det.data import ImageFiles, build_dataset, subset
from msat_det.data.overlap import overlap
from msat_det.report.comparison import read_comparison
from msat_det.run import cli

VOC = PROJECT / "data" / "voc"
WORDS = f"--cfg {PROJECT}/configs/yolo_voc.yaml --methods signed --sim.record 1 --draw.images 0 --data.limit 4"
WORDS += " --calib.kind images --calib.split null"


def test_images_are_the_same_by_their_bytes(tmp_path: Path) -> None:
    for name, seed in {"a/1.png": 1, "a/2.png": 2, "a/3.png": 3, "b/other.png": 2, "b/x/3.png": 4}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_image(tmp_path / name, seed)
    (tmp_path / "a/5.png").symlink_to(tmp_path / "b/other.png")
    one, other = ImageFiles(tmp_path / "a"), ImageFiles(tmp_path / "b")
    assert overlap(one, other) == ["2.png", "5.png"]
    assert overlap(other, one) == ["other.png"]
    (tmp_path / "b/other.png").unlink()  # what has gone is in neither: whoever reads the image says so
    assert overlap(one, other) == []
    assert overlap(other, one) == []


def test_of_the_same_length_only_equal_ones_are_shared(tmp_path: Path) -> None:
    for name, content in {"a/1.png": b"12", "a/2.png": b"34", "b/1.png": b"34", "b/2.png": b"56"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert overlap(ImageFiles(tmp_path / "a"), ImageFiles(tmp_path / "b")) == ["2.png"]


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two of the four evaluated images under other names, and one that is not evaluated."""
    folder = tmp_path_factory.mktemp("calibration")
    evaluated = subset(build_dataset("voc", VOC, "test"), 4, seed=0).ids[:2]
    for name in [*evaluated, build_dataset("voc", VOC, "trainval").ids[0]]:
        shutil.copyfile(VOC / f"VOCdevkit/VOC2007/JPEGImages/{name}.jpg", folder / f"copy of {name}.jpg")
    return folder


def summary(calibration: Path, out: Path, *words: str) -> tuple[int, dict]:
    """Exit status and summary.json of a run on four images."""
    status = cli.run([*WORDS.split(), "--calib.root", str(calibration), "--out", str(out), *words])
    return status, json.loads((out / "summary.json").read_text()) if status == 0 else {}


def test_a_run_tells_them(calibration: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, found = summary(calibration, tmp_path)
    assert (found["images"], found["seen_in_calibration"]) == (4, 2)
    assert "warning: 2 of the 4 evaluated images are calibration images: --data.held_out" in capsys.readouterr().err
    assert read_comparison(tmp_path).title == "yolo_demo on 4 images of voc/test (2 of them calibration images)"


def test_held_out_leaves_them_out(calibration: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, found = summary(calibration, tmp_path, "--data.held_out", "true")
    assert (found["images"], found["seen_in_calibration"]) == (4, 0)  # four others: the limit counts what is left
    assert "calibration images" not in capsys.readouterr().err
    assert read_comparison(tmp_path).title == "yolo_demo on 4 images of voc/test, held out"


def test_detect_tells_them(calibration: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One of two pictures in different folders; on others alone it says nothing."""
    images = VOC / "VOCdevkit/VOC2007/JPEGImages"
    seen, _, other, another = subset(build_dataset("voc", VOC, "test"), 4, seed=0).ids
    shutil.copyfile(images / f"{seen}.jpg", tmp_path / "mine.jpg")
    words = [*WORDS.split()[:2], "--calib.kind", "images", "--calib.split", "null", "--calib.root", str(calibration)]
    for name, told in ((tmp_path / "mine.jpg", True), (images / f"{another}.jpg", False)):
        found = [str(name), str(images / f"{other}.jpg"), *words, "--t", "1", "--out", str(tmp_path / "out")]
        assert cli.main(["detect", *found]) == 0
        warning = "warning: calibration images among the pictures: 1 of 2; on others it may find less\n"
        assert (warning in capsys.readouterr().err) is told


def test_nothing_left_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = VOC / "VOCdevkit/VOC2007/JPEGImages"
    assert summary(own, tmp_path, "--data.held_out", "true", "--calib.limit", "null")[0] == 2
    assert "all 100 images are calibration images: give others with calib.root" in capsys.readouterr().err
