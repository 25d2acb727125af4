"""Imported networks are carried away like the others: resumed, shared by ranks, saved, exported as a timestep."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support.onnx_files import node, write_onnx
from support.small_runs import as_ranks, command, contents, die_at, run_quietly, start, tiny

import msat_det
from msat_det.base.settings import PROJECT
from msat_det.data.images import read_image
from msat_det.run import cli


@pytest.fixture(scope="module", params=["small", pytest.param("YOLOX-Nano", marks=pytest.mark.slow)])
def words(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What makes the embedded YOLO's configuration one of an ONNX file with YOLOX's outputs: a small one, or a real."""
    file, names = tmp_path_factory.mktemp("net") / "net.onnx", "voc"
    if request.param == "small":
        write_small(file)
    else:
        file, names = request.getfixturevalue("shared_data") / "weights/yolox_nano.onnx", "coco"
    network = ["--model.name", "onnx", "--model.weights", str(file), "--model.head", "yolox", "--model.size", "96"]
    return [*network, "--model.names", names, "--methods", "delta-3"]


def write_small(file: Path) -> None:
    random = np.random.default_rng(0)
    constants = {"w": random.standard_normal((16, 3, 8, 8)) * 5e-4, "u": random.random((25, 16, 1, 1))}
    heads = [node("Conv", f"{level} u b", f"{level}_raw") for level in ("fine", "middle", "coarse")]
    halves = (("fine", "middle"), ("middle", "coarse"))
    pools = [node("MaxPool", a, b, kernel_shape=[2, 2], strides=[2, 2]) for a, b in halves]
    joined = [node("Sigmoid", "a", "s"), node("Mul", "a s", "fine")]  # SiLU as exporters write it
    first = node("Conv", "x w v", "a", strides=[8, 8])
    write_onnx(
        file,
        [first, *joined, *pools, *heads],
        constants=constants | {"v": np.zeros(16), "b": np.full(25, -0.5)},
        outputs="fine_raw middle_raw coarse_raw",
        shape=(1, 3, 96, 96),
    )


@pytest.fixture(scope="module")
def whole(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    process = start(run_quietly, tiny(out, *words))
    process.join()
    assert process.exitcode == 0
    return out


def test_resumed(words: list[str], whole: Path, tmp_path: Path) -> None:
    process = start(die_at, 30, tiny(tmp_path / "run", *words))
    process.join()
    assert process.exitcode == -signal.SIGKILL
    process = start(run_quietly, tiny(tmp_path / "run", *words, "--resume"))
    process.join()
    assert contents(tmp_path / "run") == contents(whole)


@pytest.mark.slow
@pytest.mark.parametrize("words", ["YOLOX-Nano"], indirect=True)
def test_two_ranks(words: list[str], tmp_path: Path) -> None:
    """That import it each for themselves, with hashes of their own."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GIT_DIR": "/nowhere"}
    tool = [*launcher, str(PROJECT / "tools/convert_det.py"), *command(tmp_path / "two/run", *words)]
    subprocess.run(tool, env=environment, check=True, capture_output=True)
    statuses, told = as_ranks(1, "run", *command(tmp_path / "one/run", *words))
    assert statuses == [0], told
    assert contents(tmp_path / "two/run") == contents(tmp_path / "one/run")


def converting(words: list[str], method: str = "delta-3") -> list[str]:
    """The words of ``msat-det export`` for the same network."""
    return ["--cfg", str(PROJECT / "configs/yolo_voc.yaml"), *words[:-2], "--calib.limit", "4", "--method", method]


def test_saved(words: list[str], tmp_path: Path) -> None:
    """To the bit after loading, boxes included."""
    assert cli.main(["export", *converting(words), "--out", str(tmp_path / "net.msat")]) == 0
    detector = msat_det.load_detector(words[3], "yolox", classes=words[words.index("--model.names") + 1], size=96)
    images = [read_image(path) for path in sorted((PROJECT / "data/voc").rglob("*.jpg"))[:4]]
    snn = msat_det.convert(detector, [images], "delta-3")
    snn.save(tmp_path / "again.msat")
    loaded = msat_det.load(tmp_path / "again.msat")
    assert loaded.detector.classes == detector.classes
    for a, b in zip(snn.detect(images, 2)[2], loaded.detect(images, 2)[2], strict=True):
        assert len(a.scores)
        assert torch.equal(a.boxes, b.boxes)
        assert torch.equal(a.scores, b.scores)


def test_its_timestep_in_onnxruntime(words: list[str], tmp_path: Path) -> None:
    """The command checks it. A real network's step is one of rate coding, whose call sites are a third of the nodes."""
    method = "delta-3" if "voc" in words else "signed"
    assert cli.main(["export", *converting(words, method), "--out", str(tmp_path / "step.onnx"), "--onnx"]) == 0
