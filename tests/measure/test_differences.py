"""How far methods are ahead of one of them: the run's own file, the comparison's table, and what is refused."""

import csv
import json
from pathlib import Path

import pytest

from msat_det.base.settings import PROJECT
from msat_det.run import cli

VGG = ["--cfg", str(PROJECT / "configs/vgg_demo.yaml"), "--data.limit", "24", "--calib.limit", "8", "--threads", "1"]
YOLO = ["--cfg", str(PROJECT / "configs/yolo_coco.yaml"), "--data.limit", "4", "--calib.limit", "4", "--threads", "1"]


@pytest.mark.parametrize(("words", "against"), [(VGG, "p-norm"), (YOLO, "p-norm")], ids=["classifier", "detector"])
def test_differences_of_a_run(words: list[str], against: str, tmp_path: Path) -> None:
    """Each is that of the two rows at the same t, within its interval's reach; the comparison's tables show them."""
    if words is YOLO:
        pytest.importorskip("hotcoco", reason="hotcoco is not installed: pip install msat-det[fast]")
    words = [*words, "--sim.record", "4,8", "--draw.images", "0", "--out", str(tmp_path), "--bootstrap.draws", "200"]
    assert cli.main(["compare", *words, "--methods", f"{against},signed-b3", "--bootstrap.against", against]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    metrics = ["map", "agreement"] if words[1].endswith("yolo_coco.yaml") else ["top1"]
    rows = list(csv.DictReader((tmp_path / "differences.csv").open()))
    assert [(row["method"], row["against"], row["t"], row["metric"]) for row in rows] == [
        ("signed-b3", against, t, metric) for t in ("4", "8") for metric in metrics
    ]
    page = (tmp_path / "compare.md").read_text()
    for row, told in zip(rows, summary["differences"], strict=True):
        ours, theirs = (summary["methods"][label][row["t"]][row["metric"]] for label in ("signed-b3", against))
        assert told["difference"] == pytest.approx(ours - theirs, abs=1e-6)
        assert float(row["difference"]) == pytest.approx(told["difference"], abs=1e-3)
        assert told["low"] <= told["difference"] <= told["high"]
        reach = (told["high"] - told["low"]) / 2
        if metrics == ["top1"]:  # ours is always right, so that the difference of an image is 0 or 1
            assert ours == 100
            share, images = told["difference"] / 100, summary["images"]
            assert reach == pytest.approx(164.5 * (share * (1 - share) / images) ** 0.5, abs=50 / images)
        else:
            assert reach > 0
        assert f"{told['difference']:+.1f} ({told['low']:+.1f}, {told['high']:+.1f})" in page
    assert ("Agreement with the float network" in page) == ("agreement" in metrics)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--bootstrap.against", "nope"], "bootstrap.against is 'nope': the labels are "),
        (["--bootstrap.draws", "0"], "bootstrap.draws is 0"),
        (["--bootstrap.confidence", "1"], "bootstrap.confidence is 1"),
    ],
)
def test_bad_settings(words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["compare", *VGG, "--out", str(tmp_path), *words]) == 2
    assert message in capsys.readouterr().err


def test_coco_without_hotcoco_is_told_before_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    words = ["--out", str(tmp_path / "run"), "--methods", "p-norm", "--bootstrap.against", "p-norm"]
    assert cli.main(["compare", *YOLO, *words]) == 2
    assert "hotcoco" in capsys.readouterr().err
    assert not (tmp_path / "run/parts").exists()
