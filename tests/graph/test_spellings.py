"""An activation is one call site however it is written, and nothing else is taken for one."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.networks import images, randomise
from torch import Tensor, nn

import msat_det
from msat_det.graph.facts import facts
from msat_det.graph.graph import Graph
from msat_det.graph.ops import Kind
from msat_det.graph.trace import trace
from msat_det.report.coverage_table import coverage_text


class Spelled(nn.Module):
    """A convolution, an activation as it is spelled, a convolution; constants as ONNX files have them, in buffers."""

    def __init__(self, spell: Callable[["Spelled", Tensor], Tensor]):
        super().__init__()
        self.conv, self.after, self.spell = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1), spell
        self.register_buffer("three", torch.tensor(3.0))
        self.register_buffer("sixth", torch.full((1, 1, 1, 1), 1 / 6))
        self.register_buffer("slopes", torch.tensor([0.1, 0.2, 0.3, -0.4]).reshape(4, 1, 1))
        self.drop = nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.spell(self, self.conv(x)))


SPELLINGS: dict[str, list[Callable[[Spelled, Tensor], Tensor]]] = {
    "silu": [
        lambda net, x: x * torch.sigmoid(x),
        lambda net, x: x.sigmoid().mul(x),
        lambda net, x: x / (1 + torch.exp(-x)),
        lambda net, x: x.mul_(x.sigmoid()),
        lambda net, x: net.drop(x) * F.sigmoid(x).clone(),
        lambda net, x: 0.5 * x * (1 + torch.tanh(0.5 * x)),
    ],
    "hardswish": [
        lambda net, x: x * F.relu6(x + 3) / 6,
        lambda net, x: x * (F.relu6(x + net.three) * net.sixth),
        lambda net, x: x * torch.clip(x + 3, 0, 6) / 6,
        lambda net, x: x * F.hardsigmoid(x),
        lambda net, x: x * torch.clamp(x * net.sixth + 0.5, 0, 1),
        lambda net, x: x * F.hardtanh(x + 3, 0.0, 6.0) / 6.0,
    ],
    "mish": [
        lambda net, x: x * torch.tanh(F.softplus(x)),
        lambda net, x: x * torch.tanh(torch.log(1 + torch.exp(x))),
        lambda net, x: x.exp().log1p().tanh() * x,
    ],
    "leakyrelu": [
        lambda net, x: torch.where(x > 0, x, 0.1 * x),
        lambda net, x: torch.max(x, 0.1 * x),
        lambda net, x: torch.maximum(0.1 * x, x),
        lambda net, x: F.relu(x) - 0.1 * F.relu(-x),
        lambda net, x: x.masked_fill(x < 0, 0.0) + torch.where(x < 0, 0.1 * x, 0.0),
    ],
    "prelu": [
        lambda net, x: torch.where(x >= 0, x, net.slopes * x),
        lambda net, x: x.relu() - net.slopes * (-x).relu(),
    ],
    "relu": [
        lambda net, x: torch.maximum(x, torch.zeros_like(x)),
        lambda net, x: torch.where(x > 0, x, 0.0),
        lambda net, x: x * (x > 0),
        lambda net, x: (x + x.abs()) / 2,
    ],
    "gelu": [
        lambda net, x: x * 0.5 * (1 + torch.erf(x / 2**0.5)),
        lambda net, x: 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))),
    ],
    "hardmish": [lambda net, x: x / 2 * (x + 2).clamp(0, 2)],
    "softsign": [lambda net, x: x / (1 + x.abs())],
    "tanh": [lambda net, x: (x.exp() - (-x).exp()) / (x.exp() + (-x).exp())],
}
CASES = [(name, i) for name, spellings in SPELLINGS.items() for i in range(len(spellings))]


@pytest.mark.parametrize(("name", "which"), CASES)
def test_every_spelling_is_one_call_site(name: str, which: int) -> None:
    net = randomise(Spelled(SPELLINGS[name][which]))
    graph = trace(net, images())
    (site,) = graph.sites
    assert facts(site).activation.name == name
    assert [facts(n).kind for n in graph.nodes if facts(n).kind in (Kind.DIFFERENTIAL, Kind.SPIKING)] == [Kind.SPIKING]
    assert len(facts(site).joined) > 1
    assert torch.allclose(graph(images(5, seed=3)), net(images(5, seed=3)), atol=1e-5)


OTHERS: dict[str, Callable[[Spelled, Tensor], Tensor]] = {
    "gate of another": lambda net, x: x * torch.sigmoid(x.flip(1)),
    "gate of the mean": lambda net, x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),
    "steeper gate": lambda net, x: x * torch.sigmoid(1.7 * x),
    "gate off by a little": lambda net, x: x * torch.sigmoid(1.001 * x),
    "bent the other way": lambda net, x: torch.minimum(x, 0.1 * x),
    "square": lambda net, x: x * x,
    "affine by channel": lambda net, x: torch.where(x >= 0, x, net.slopes + x),
    "residual": lambda net, x: x + x.relu(),
}


@pytest.mark.parametrize("spell", OTHERS.values(), ids=OTHERS)
def test_nothing_else_is_taken_for_one(spell: Callable[[Spelled, Tensor], Tensor]) -> None:
    graph = trace(randomise(Spelled(spell)), images())
    assert all(not facts(node).joined for node in graph.nodes)


FAR: dict[str, Callable[[Spelled, Tensor], Tensor]] = {
    "bounded far up": lambda net, x: x.relu() - (x - 20).relu(),
    "bounded by a mask": lambda net, x: x * (x > 0) * (x < 20) + 20 * (x >= 20),
    "cut off far down": lambda net, x: torch.where(x < -15, -1.5, F.leaky_relu(x, 0.1)),
    "steeper from far on": lambda net, x: x * torch.sigmoid(x) + (x - 600).relu(),
}


@pytest.mark.parametrize("spell", FAR.values(), ids=FAR)
def test_what_differs_from_an_activation_far_away_is_none(spell: Callable[[Spelled, Tensor], Tensor]) -> None:
    """The images that it is traced on need not reach that far: others do."""
    net = randomise(Spelled(spell))
    far = 3000 * images(5, seed=3)
    assert torch.allclose(trace(net, images())(far), net(far), rtol=1e-4)


def test_what_others_use_stays() -> None:
    def spell(net: Spelled, x: Tensor) -> Tensor:
        gate = torch.sigmoid(x)
        return x * gate + gate

    graph = trace(randomise(Spelled(spell)), images())
    assert [facts(site).activation.name for site in graph.sites] == ["sigmoid", "silu"]


def test_stacked_activations_are_as_many_call_sites() -> None:
    def spell(net: Spelled, x: Tensor) -> Tensor:
        y = x * torch.sigmoid(x)
        y = y * torch.sigmoid(y) + x
        return y * F.relu6(y + 3) / 6

    graph: Graph = trace(randomise(Spelled(spell)), images())
    assert [facts(site).activation.name for site in graph.sites] == ["silu", "silu", "hardswish"]


def test_the_coverage_table_says_what_was_joined(tmp_path: Path) -> None:
    snn = msat_det.convert(randomise(Spelled(SPELLINGS["hardswish"][0])), images(), "constant")
    (row,) = [row for row in snn.coverage if row["kind"] == "spiking"]
    assert row["joined"] == ["add", "relu6", "mul", "truediv"]
    row = {**row, "theta": {}}
    assert "hardswish (add + relu6 + mul + truediv)" in coverage_text([row])
    snn.save(tmp_path / "a")
    loaded = msat_det.load(tmp_path / "a")
    assert [row.get("joined") for row in loaded.coverage] == [row.get("joined") for row in snn.coverage]
    assert torch.equal(loaded.run(images(), 8)[8], snn.run(images(), 8)[8])
