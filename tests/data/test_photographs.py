"""Images that are not as their annotations say, from the files to the score and to what a run says at its end."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.roots import write_image

from msat_det.base.settings import PROJECT
from msat_det.data import CocoDetection, Dataset, images, make_target
from msat_det.data.images import ORIENTATION
from msat_det.measure.accuracy import evaluate
from msat_det.measure.rows import cautions
from msat_det.models import build_detector
from msat_det.run import cli
from msat_det.run.arguments import load_config

CFG = str(PROJECT / "configs" / "ssd_coco.yaml")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The first twelve drawn scenes in COCO's layout, their images without loss."""
    content = json.loads((PROJECT / "data/coco/annotations/instances_val2017.json").read_text())
    content["images"] = content["images"][:12]
    ids = {entry["id"] for entry in content["images"]}
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] in ids]
    (tmp_path / "coco/annotations").mkdir(parents=True)
    (tmp_path / "coco/val2017").mkdir()
    for entry in content["images"]:
        source = PROJECT / "data/coco/val2017" / entry["file_name"]
        entry["file_name"] = f"{source.stem}.png"
        with Image.open(source) as image:
            image.save(tmp_path / "coco/val2017" / entry["file_name"])
    (tmp_path / "coco/annotations/instances_val2017.json").write_text(json.dumps(content))
    return tmp_path / "coco"


def float_map(root: Path) -> float:
    """The float network's mAP."""
    model, dataset = build_detector(load_config(["--cfg", CFG]).model), CocoDetection(root)
    found = {}
    with torch.inference_mode():
        for id in dataset.ids:
            pixels, meta = model.preprocess(dataset.image(id))
            (found[id],) = model.decode(model.net(pixels[None]), [meta])
    return evaluate(dataset, found, model.classes)["map"]


def test_photographs_that_were_annotated_upright_score_as_if_stored_so(root: Path) -> None:
    """As a telephone stores them: turned, with EXIF's word for it (their mAP was a hundredth of what it is)."""
    before = float_map(root)
    assert before > 50
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    for path in (root / "val2017").iterdir():
        with Image.open(path) as image:
            if image.width != image.height:  # a square's size tells nothing
                image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    assert float_map(root) == before


def test_photographs_that_are_read_smaller_score_alike(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Enlarged with their boxes, then read at a quarter, they are the same pixels and the same boxes."""
    before = float_map(root)
    path = root / "annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    for entry in content["images"]:
        entry.update(width=4 * entry["width"], height=4 * entry["height"])
        file = root / "val2017" / entry["file_name"]
        with Image.open(file) as image:
            image.resize((entry["width"], entry["height"]), Image.Resampling.NEAREST).save(file)
    for entry in content["annotations"]:
        entry.update(bbox=[4 * edge for edge in entry["bbox"]], area=16 * entry["area"])
    path.write_text(json.dumps(content))
    monkeypatch.setattr(images, "WHOLE", 60_000)
    assert float_map(root) == before


@pytest.mark.parametrize("size", [None, (64, 48)])
def test_every_data_set_with_boxes_follows_its_photographs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int] | None
) -> None:
    """Whether its annotations tell the size or not; one's own reader need not know of it."""
    write_image(tmp_path / "a.jpg", size=(64, 48))
    target = make_target([[4, 8, 24, 18]], [0], [False])
    sizes = None if size is None else {"a": size}
    for most, boxes in ((64 * 48, [4, 8, 24, 18]), (1000, [2, 4, 12, 9]), (200, [1, 2, 6, 4.5])):
        monkeypatch.setattr(images, "WHOLE", most)
        dataset = Dataset(tmp_path, ["dog"], {"a": "a.jpg", "b": "b.jpg"}, {"a": target, "b": target}, sizes)
        assert dataset[0].target.boxes.tolist() == [boxes]
        assert dataset.misfit("a", dataset.image("a")) == ""
        assert dataset.target("b") is target  # whose image is missing
    dataset = Dataset(tmp_path, ["dog"], {"a": "a.jpg"}, {"a": target}, {"a": (32, 48)})
    assert dataset.misfit("a", dataset.image("a")).endswith("a.jpg has 64 x 48 pixels, its annotation is for 32 x 48")


def test_a_run_ends_with_what_its_figures_are_not_about(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, *_, last = sorted((root / "val2017").iterdir())
    first.unlink()
    last.write_bytes(b"no PNG")
    with Image.open(second) as image:
        image.resize((50, 40)).save(second)
        was = "{} x {}".format(*image.size)
    words = ["--cfg", CFG, "--data.root", str(root), "--calib.root", str(PROJECT / "data/coco"), "--calib.limit", "4"]
    words += ["--methods", "signed", "--sim.record", "1", "--draw.images", "1", "--batch", "5"]
    words += ["--out", str(tmp_path / "out")]
    assert cli.run(words) == 0
    missing = f"no image file {first}: restore it or take it off the list"
    misfit = f"{second} has 50 x 40 pixels, its annotation is for {was}"
    warnings = [
        f"warning: 2 of 12 images could not be read and are left out, the first: {missing}",
        "warning: 1 of 10 images have another size than their annotation says, so that their boxes lie elsewhere; the "
        f"first: {misfit}: bring back the images that were annotated, or annotate these",
    ]

    def told() -> list[str]:
        return [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning:")]

    assert told() == warnings
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert (summary["images"], len(summary["corrupt_images"]), summary["misfit_images"]) == (10, 2, [misfit])
    page = (tmp_path / "out/report.html").read_text("utf-8")
    assert "2 more images could not be read and are left out." in page
    assert "1 image has another size than its annotation says, so that its boxes lie elsewhere." in page
    assert misfit in page
    assert cli.run([*words, "--resume"]) == 0  # it is done: the same is said
    assert told() == warnings
    assert cautions({"images": 10, "corrupt_images": [], "misfit_images": []}) == cautions({"images": 10}) == []
