"""Triton launches on PyTorch's current GPU, wherever the tensors lie: each kernel makes theirs the current one."""

import contextlib
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from support.neurons import RELU
from torch import Tensor

from msat_det.spiking.kernels.window import Window
from msat_det.spiking.neurons import Neuron, State, new_state

pytest.importorskip("triton")
from msat_det.spiking.kernels import triton_delta, triton_pool, triton_scan, triton_split


def scan(x: Tensor) -> None:
    neuron = Neuron(torch.tensor(1.0), RELU)
    triton_scan.Fused(neuron, x, new_state(neuron, x, False), x[0].flatten(), None).run(x, x, 0, 1, False)


def correct(x: Tensor) -> None:
    neuron = Neuron(torch.tensor(1.0), RELU, coding="delta")
    triton_delta.Fused(neuron, x, x[0].flatten()).advance(x, None, State(o=x), 0, True, False)


def pool(x: Tensor) -> None:
    triton_pool.FusedPool(Window((2, 2), (2, 2), (0, 0), False), x, None).run(x, 0, 1)


KERNELS = [
    (triton_scan, "_scan", scan),
    (triton_delta, "_correct", correct),
    (triton_pool, "_pool", pool),
    (triton_split, "_split", triton_split.split),
]


@pytest.mark.parametrize(("module", "name", "launch"), KERNELS, ids=[name for _, name, _ in KERNELS])
def test_a_kernel_is_launched_where_its_tensors_lie(
    module: ModuleType, name: str, launch: Callable[[Tensor], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    current: list[Tensor | None] = [None]
    launched = []

    @contextlib.contextmanager
    def device_of(x: Tensor) -> Iterator[None]:
        current.append(x)
        yield
        current.pop()

    class Kernel:
        def __getitem__(self, grid: tuple) -> Callable[..., None]:
            return lambda *given, **options: launched.append(current[-1] is given[0])

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setattr(module, name, Kernel())
    launch(torch.rand(2, 4, 4, 4).contiguous(memory_format=torch.channels_last))
    assert launched == [True]
