"""What is held while a network is recorded, and while its graph runs: what nothing needs any more is free."""

import weakref
from typing import Any

import pytest
import torch
from support.networks import images
from torch import Tensor, nn

from msat_det.graph.fanout import fan_out
from msat_det.graph.graph import Graph
from msat_det.graph.trace import trace


class Chain(nn.Module):
    """Twelve convolutions one behind the other. most: activations that were alive at once in any forward."""

    most = 0

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(12))

    def forward(self, x: Tensor) -> Tensor:
        seen = []
        for layer in self.layers:
            x = layer(x).relu()
            seen.append(weakref.ref(x))
            Chain.most = max(Chain.most, sum(each() is not None for each in seen))
        return x


def test_a_record_holds_no_activation_that_the_network_does_not() -> None:
    Chain.most = 0
    trace(Chain(), images(4))
    assert Chain.most == 1


def test_a_graph_that_runs_holds_no_activation_that_it_does_not_need(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, seen, most = trace(Chain(), images(2)), [], 0
    evaluate = Graph.evaluate

    def watched(self: Graph, *args: Any) -> Any:
        nonlocal most
        value = evaluate(self, *args)
        seen.append(weakref.ref(value))
        most = max(most, sum(each() is not None for each in seen))
        return value

    monkeypatch.setattr(Graph, "evaluate", watched)
    graph(images(2))
    assert len(seen) > 24
    assert most <= 3


def test_shapes_and_fan_outs_take_no_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = trace(nn.Sequential(*Chain().layers, nn.ReLU(), nn.Flatten(), nn.Linear(3 * 12 * 12, 2)), images(2))

    def forward(*args: Any) -> Any:
        raise AssertionError("the network has been run")

    monkeypatch.setattr(Graph, "walk", forward)
    assert fan_out(graph).total > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_shapes_are_those_that_a_forward_pass_finds(dtype: torch.dtype) -> None:
    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.places = nn.Conv2d(3, 4, 3), nn.Parameter(torch.rand(1, 4, 1))

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x).relu()
            number, channels, height, width = x.shape
            grid = torch.arange(height * width, dtype=dtype, device=x.device) / width
            return x.reshape(number, channels, -1) + self.places + grid

    graph = trace(Sized(), images(2))
    found = dict(graph.walk(images(1)))
    shapes = graph.shapes("cpu")
    assert shapes
    for node, value in shapes.items():
        assert torch.equal(value, found[node]) if isinstance(value, Tensor) else value == found[node]
