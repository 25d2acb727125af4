"""The GPU's benchmark from JPEG files to boxes, tried on the CPU with a network of two layers."""

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import gpu_images
from benchmarks.gpu_networks import Bench
from benchmarks.timing import Clock
from msat_det.methods.observe import observe
from msat_det.models.headed import HeadDetector


@pytest.fixture
def bench() -> Bench:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.ReLU(), nn.Conv2d(8, 7, 1))  # box, objectness, two classes
    model = HeadDetector(net, "yolox", ["a", "b"], 64, strides=[8])
    return Bench(observe(net, [torch.randn(2, 3, 64, 64)]), 64, model)


def test_stages_are_told_and_add_up(bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("MSAT_DET_DATA", str(tmp_path))
    rows = list(gpu_images.image_rows(Clock(torch.device("cpu"), 120), "ssd-mobilenet", bench))
    core, reading, *runs = rows
    assert core["images_per_s"] == pytest.approx(1000 / (core["read_ms"] + core["prepare_ms"]))
    assert reading["read, prepared"] == 32
    assert [(row["neuron"], row["precision"]) for row in runs] == list(gpu_images.RUNS)
    for row in runs:
        # 16 batches of two: the first one's seconds and those of the stages of the others are the whole
        stages = sum(row[f"{stage}_ms_a_batch"] for stage in ("wait", "simulate", "decode"))
        assert 32 / row["images_per_s_from_jpeg"] == pytest.approx((row["start_ms"] + 15 * stages) / 1000)
        assert 30 / row["images_per_s_since_the_first"] == pytest.approx(15 * stages / 1000)
        assert row["images_per_s_read_behind"] > 0
        assert row["launch_waits"] is row["decode_waits"] is None


def test_a_slow_network_sees_three_batches_and_one_without_time_none(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    monkeypatch.setenv("MSAT_DET_DATA", str(tmp_path))
    monkeypatch.setattr(gpu_images, "LONGEST", 1e-6)
    monkeypatch.setattr(gpu_images, "RUNS", gpu_images.RUNS[:1])
    row = list(gpu_images.image_rows(Clock(torch.device("cpu"), 120), "ssd-mobilenet", bench))[-1]
    stages = sum(row[f"{stage}_ms_a_batch"] for stage in ("wait", "simulate", "decode"))
    assert 4 / row["images_per_s_since_the_first"] == pytest.approx(2 * stages / 1000)
    late = list(gpu_images.image_rows(Clock(torch.device("cpu"), 0), "ssd-mobilenet", bench))[-1]
    assert late["left_out"] == "no time left"


def test_waits_for_a_gpu_are_counted_without_the_notice_that_counting_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    def turn(mode: str) -> None:
        warnings.warn("… a prototype feature and does not yet detect all synchronizing operations", stacklevel=1)

    def decode() -> None:
        for _ in range(2):
            warnings.warn("called a synchronizing CUDA operation (Triggered internally at …)", stacklevel=1)

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", turn)
    clock: Any = SimpleNamespace(device=torch.device("cuda:0"))
    assert gpu_images.waits(clock, decode) == 2
