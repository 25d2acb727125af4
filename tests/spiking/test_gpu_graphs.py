"""CUDA graphs on a GPU, in a file of their own: a capture that fails would spoil what runs after it in one process."""

from collections.abc import Callable

import pytest
import torch
from support.networks import Residual, Yolo
from support.on_gpu import METHODS, UNREPEATED, assert_the_same_bits, converted, needs_gpu, plain

pytestmark = needs_gpu
CAPTURED = [name for name in METHODS if name not in UNREPEATED and "delta" not in name]


@pytest.fixture(autouse=True)
def asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSAT_DET_CUDA_GRAPHS", "on")


@pytest.mark.parametrize("method", CAPTURED)
@pytest.mark.parametrize("make", [plain, Residual, Yolo])
def test_batches_that_are_replayed_give_the_same_bits(make: Callable, method: str) -> None:
    snn = assert_the_same_bits(method, make)
    assert ("readout", 8) in snn._replays.replay.graphs
    torch.randn(1, device="cuda")  # would raise after a capture that failed


def test_networks_take_turns_and_one_after_another_goes() -> None:
    """A pool of memory that was captured into is not captured into again when its graphs have gone."""
    methods = ("signed bursts", "msat")
    expected = [[converted(method)[0].run(batch, 8)[8] for batch in converted(method)[1]] for method in methods]
    for _ in range(3):
        pairs = [converted(method) for method in methods]
        for n in (0, 1, 2, 1, 0):
            for (snn, batches), outputs in zip(pairs, expected, strict=True):
                assert torch.equal(snn.run(batches[n], 8)[8], outputs[n])
        del pairs, snn
        torch.cuda.empty_cache()
