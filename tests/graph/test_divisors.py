"""Divisions by what a network calculates: neurons do not round divisors, whatever the division is written as."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.networks import images, randomise
from torch import Tensor, nn

import msat_det
from msat_det.base.errors import InputError
from msat_det.graph.divisors import in_divisors
from msat_det.graph.facts import facts
from msat_det.graph.trace import trace

Division = Callable[[Tensor, Tensor], Tensor]
RATE = {"method": "constant", "scale": "channel", "initial": "half", "signed": True, "gamma": 3}


class LinearAttention(nn.Module):
    """As of EfficientViT: numerator and divisor of its quotient are columns of one product."""

    def __init__(self, division: Division):
        super().__init__()
        self.stem, self.qkv = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 3 * 8, 1, bias=False)
        self.head, self.division = nn.Linear(8, 6), division

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(F.relu(self.stem(x))).flatten(2).transpose(1, 2).chunk(3, -1)
        out = F.relu(q) @ (F.relu(k).transpose(1, 2) @ F.pad(v, (0, 1), value=1.0))
        return self.head(self.division(out[..., :-1], out[..., -1:] + 1e-5))


SPELLINGS: dict[str, Division] = {
    "quotient": lambda a, b: a / b,
    "function": lambda a, b: torch.div(a, other=b),
    "method": lambda a, b: a.div(b),
    "in place": lambda a, b: a.clone().div_(b),
    "times one over it": lambda a, b: a * (1 / b),
    "times its reciprocal": lambda a, b: a * b.reciprocal(),
    "power": lambda a, b: a * b**-1,
    "named power": lambda a, b: a * torch.pow(b, exponent=-1.0),
    "power of a tensor": lambda a, b: a * b.pow(torch.tensor(-1.0)),
    "square of the root": lambda a, b: a * b.rsqrt().square(),
    "addcdiv": lambda a, b: torch.addcdiv(torch.zeros_like(a), a, b),
    "at least epsilon": lambda a, b: a / b.clamp(min=1e-5),
}


@pytest.mark.parametrize("division", SPELLINGS.values(), ids=SPELLINGS)
def test_linear_attention_has_no_neurons_before_its_quotient(division: Division) -> None:
    """Rounded apart from its divisor, the numerator met a divisor of 0: outputs came to 4e6, or to NaN."""
    observation = msat_det.observe(randomise(LinearAttention(division)), images(4))
    snn = msat_det.convert(observation, spiking_linear=True, **RATE)
    own, behind = [n.name for n in snn.graph.sites if facts(n).op == "identity"]  # the quotient's is the second
    assert own == "qkv_identity"
    assert "matmul" not in behind
    goal = observation.graph(images())
    errors = [((y - goal).norm() / goal.norm()).item() for y in snn.run(images(), 64, (1, 2, 3, 4, 16, 64)).values()]
    assert max(errors) < 2
    assert errors[-1] < min(0.05, errors[-2] / 2)
    coded = msat_det.convert(observation, method="delta-3", spiking_linear=True).run(images(), 2)[2]
    assert ((coded - goal).norm() / goal.norm()).item() < 0.05


class Branches(nn.Module):
    def __init__(self, body: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.left, self.right, self.body = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.left(x), self.right(x))


SITES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], list[str]]] = {
    "a clamp below": (lambda a, b: a.relu() / b.clamp(min=0.01), ["relu"]),
    "a sigmoid below": (lambda a, b: a.relu() / b.sigmoid(), ["relu"]),
    "a term below": (lambda a, b: a.relu() / (2 * F.softplus(b) + 1e-3), ["relu"]),
    "terms below": (lambda a, b: a.relu() / (a.relu().sum(1, keepdim=True) + b.sigmoid()), ["relu", "relu"]),
    "one above and below": (lambda a, b: (y := a.sigmoid()) / (y.sum(1, keepdim=True) + 1e-3), ["sigmoid"]),
    "a layer between": (
        lambda a, b: a.relu() / (F.conv2d(b.sigmoid(), torch.ones(4, 4, 1, 1)) + 1),
        ["relu", "sigmoid"],
    ),
    "a logarithm": (lambda a, b: a.relu() + b.sigmoid().log(), ["relu"]),
    "a logit": (lambda a, b: (y := b.sigmoid()).clamp(min=1e-5).log() - (1 - y).clamp(min=1e-5).log(), ["sigmoid"]),
    "a divisor's numerator": (lambda a, b: torch.log(a.relu().clamp(min=1e-5) / b.relu().clamp(1e-5)), ["relu"] * 2),
    "not above 0": (lambda a, b: a.relu() / (1 + b.relu()), ["relu", "relu"]),
    "no division by it": (lambda a, b: b.sigmoid() ** 2 / 3, ["sigmoid"]),
}


@pytest.mark.parametrize(("body", "sites"), SITES.values(), ids=SITES)
def test_call_sites_above_zero_that_are_but_divisors_stay_analog(
    body: Callable[[Tensor, Tensor], Tensor], sites: list[str]
) -> None:
    graph = trace(randomise(Branches(body)), images())
    assert [facts(site).op for site in graph.sites] == sites


def test_a_clamp_keeps_a_divisor_above_zero() -> None:
    """Its neuron rounded .01 to 0, and quotients came to infinity."""
    net = randomise(Branches(lambda a, b: a.relu() / b.clamp(min=0.01)))
    for method in ("delta-3", "constant"):
        out = msat_det.convert(net, images(4), method=method).run(images(), 32)[32]
        assert ((out - net(images())).norm() / net(images()).norm()).item() < 0.1


def test_a_clamp_keeps_a_logarithm_finite() -> None:
    """The inverse sigmoid by which DETRs refine boxes came to infinity, and to NaN in the next neuron."""

    def refined(a: Tensor, b: Tensor) -> Tensor:
        y = b.sigmoid().clamp(0, 1)
        return (0.1 * a + torch.log(y.clamp(min=1e-3) / (1 - y).clamp(min=1e-3))).sigmoid()

    net = randomise(Branches(refined))
    for method in ("delta-3", "constant"):
        out = msat_det.convert(net, images(4), method=method).run(images(), 64, (1, 64))[64]
        assert ((out - net(images())).norm() / net(images()).norm()).item() < 0.1


@pytest.mark.parametrize("division", ["Div", "Reciprocal", "Pow"])
def test_divisions_of_onnx_files_count(division: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    from support.onnx_files import node, write_onnx

    last = {
        "Div": [node("Div", "p q", "y")],
        "Reciprocal": [node("Reciprocal", "q", "r"), node("Mul", "p r", "y")],
        "Pow": [node("Pow", "q e", "r"), node("Mul", "p r", "y")],
    }[division]
    nodes = [node("Relu", "x", "a"), node("Transpose", "a", "t", perm=[0, 1, 3, 2]), node("MatMul", "a t", "p")]
    nodes += [node("Add", "p one", "q"), *last]
    path = write_onnx(tmp_path / "net.onnx", nodes, constants={"one": 1.0, "e": -1.0})
    graph = trace(msat_det.load_onnx(path), torch.rand(2, 4, 6, 8))
    assert [facts(n).op for n in in_divisors(graph)] == ["matmul"]


class Directions(nn.Module):
    """Unit vectors: of no length before spikes have come, under rate coding."""

    def __init__(self, least: float):
        super().__init__()
        self.conv, self.head, self.least = nn.Conv2d(3, 8, 3, bias=False), nn.Conv2d(8, 5, 1), least

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.conv(x))
        return self.head(x / (x.norm(dim=1, keepdim=True) + self.least))


def test_a_division_by_nothing_is_named_with_its_mend() -> None:
    bare, kept = (randomise(Directions(least)) for least in (0.0, 1e-6))
    weak = 0.05 * images()
    snn = msat_det.convert(bare, images(4), T=64, spiking_linear=True, **RATE)
    with pytest.raises(
        InputError, match=r"is NaN by timestep .*node 'truediv' \(.*test_divisors.py.*add 1e-6, say, to"
    ) as caught:
        snn.run(weak, 64)
    assert "\n" not in str(caught.value)
    goal = kept(weak)
    found = msat_det.convert(kept, images(4), T=512, spiking_linear=True, **RATE).run(weak, 512, (64, 512))
    errors = [((y - goal).norm() / goal.norm()).item() for y in found.values()]
    assert errors[1] < min(0.1, errors[0] / 3)
    found = msat_det.convert(bare, images(4), method="delta", bits=12, terms=6).run(images(), 8)[8]
    assert (found - bare(images())).norm() < 0.02 * bare(images()).norm()
