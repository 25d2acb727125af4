"""Scripted and traced modules (torch.jit): they convert to what the modules that they were made of convert to."""

import copy
import functools
import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.networks import NETWORKS, build, images, randomise
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torchvision import models

import msat_det
from msat_det.base.errors import InputError
from msat_det.graph import aten
from msat_det.graph.facts import facts
from msat_det.graph.trace import trace
from msat_det.spiking.network import SpikingNetwork

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated", "ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:calibration saw no activation"),
]


def gate(x: Tensor, up: bool = True) -> Tensor:
    if up:
        x = F.interpolate(x, size=[x.shape[2] * 2, x.shape[3] * 2], mode="bilinear", align_corners=False)
    return x * torch.sigmoid(x)


class Parts(nn.Module):
    """Functions of its author's, loops over layers, sizes, parts of tensors; its outputs are a dict."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding="same"), nn.BatchNorm2d(8)
        self.layers = nn.ModuleList([nn.Conv2d(8, 8, 1) for _ in range(2)])
        self.last = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor, scale: float = 1.5) -> dict[str, Tensor]:
        a, b = gate(self.norm(self.conv(x))).chunk(2, 1)
        x = torch.cat([b, F.leaky_relu(a, 0.2)], 1)
        for layer in self.layers:
            x = F.relu(layer(x), inplace=True)
        if x.shape[1] == 8:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        x = self.last(x) * scale
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).permute(0, 1, 3, 4, 2)
        return {"some": x[..., :2], "positive": F.relu6(x + 1)}


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.up, self.norm = nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 4, 2, 2), nn.GroupNorm(2, 4)
        self.act, self.pool, self.mean = nn.PReLU(4), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1)
        self.affine = nn.BatchNorm2d(4)  # behind no layer: it is not folded

    def forward(self, x: Tensor) -> Tensor:
        x = self.affine(self.pool(self.act(self.norm(self.up(self.conv(x))))))
        x = F.pad(F.hardswish(x), [1, 1, 1, 1])[:, :, 1:-1, 1:-1] * self.mean(x).softmax(1)
        return F.avg_pool2d(x, 2).split([1, 3], 1)[1]


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.attention = nn.Conv2d(3, 8, 4, 4), nn.MultiheadAttention(8, 2, batch_first=True)
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.embed(x)).flatten(2).transpose(1, 2)
        return self.last(x + self.attention(x, x, x, need_weights=False)[0])


class Resampling(nn.Module):
    """Windows as rows, reading between pixels, transposing by attribute, sizes out of floats, as in CARAFE and CBAM."""

    def __init__(self):
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        rows = F.unfold(x, 2, stride=2).mT
        x = F.fold(rows.mT, x.shape[2:], 2, stride=2) * F.adaptive_max_pool2d(x, [1, 1])
        x = F.interpolate(x, scale_factor=0.75, mode="bilinear", recompute_scale_factor=True, antialias=True)
        at = torch.stack((x[:, 0], x[:, 1]), -1).tanh()
        return self.last(F.grid_sample(x, at, "nearest", "border", align_corners=False))


def loaded(net: nn.Module, x: Tensor) -> nn.Module:
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(net), file)
    return torch.jit.load(io.BytesIO(file.getvalue()))


FORMS: dict[str, Callable[[nn.Module, Tensor], nn.Module]] = {
    "scripted": lambda net, x: torch.jit.script(net),
    "traced": lambda net, x: torch.jit.trace(net, x[:1], strict=False),
    "frozen": lambda net, x: torch.jit.freeze(torch.jit.script(net)),
    "loaded": loaded,
}
NETS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    **{name: (make, 12) for name, make in NETWORKS.items()},
    **{"parts": (Parts, 12), "layers": (Layers, 12), "attention": (Attention, 12)},
    "resampling": (Resampling, 12),
    **{name: (getattr(models, name), 64) for name in ("resnet18", "squeezenet1_1", "mobilenet_v3_small")},
    "swin": (lambda: models.SwinTransformer([4, 4], 24, [2] * 4, [1, 2, 4, 8], [7, 7]), 64),  # a narrow swin_t
}
CASES = [
    pytest.param(net, form, marks=pytest.mark.slow if net in ("resnet18", "mobilenet_v3_small", "swin") else ())
    for net in NETS
    for form in FORMS
    if (net, form) not in (("attention", "traced"), ("attention", "frozen"))  # see below
]


@functools.cache
def converted(name: str) -> tuple[nn.Module, Tensor, SpikingNetwork]:
    """A network itself, images, and what it converts to."""
    make, size = NETS[name]
    torch.manual_seed(0)
    net, x = randomise(make()), torch.rand(4, 3, size, size)
    return net, x, msat_det.convert(net, x, method="delta-3")


@pytest.mark.parametrize(("name", "form"), CASES)
def test_it_converts_to_what_the_module_itself_does(name: str, form: str, tmp_path: Path) -> None:
    net, x, own = converted(name)
    module = FORMS[form](net, x)
    before = pytree.tree_leaves(module(x))
    found = msat_det.convert(module, x, method="delta-3")
    assert len(found.graph.sites) == len(own.graph.sites)
    norms = [Counter(row["op"] for row in snn.coverage if "norm" in row["op"]) for snn in (own, found)]
    assert norms[0] == norms[1]
    a, b = own.run(x, 1)[1], found.run(x, 1)[1]
    for wanted, got in zip(pytree.tree_leaves(a), pytree.tree_leaves(b), strict=True):
        assert wanted.std() > 0
        assert torch.allclose(got, wanted, rtol=1e-5, atol=1e-5 * wanted.abs().max().item())
    assert found.counts[1].energy_ratio == pytest.approx(own.counts[1].energy_ratio)
    found.save(tmp_path / "net")
    again = msat_det.load(tmp_path / "net").run(x, 1)[1]
    assert all(map(torch.equal, pytree.tree_leaves(again), pytree.tree_leaves(b)))
    assert all(map(torch.equal, pytree.tree_leaves(module(x)), before))  # it stays as it was


@pytest.mark.parametrize("form", FORMS)
def test_nodes_tell_the_line_that_they_come_from(form: str) -> None:
    graph = trace(FORMS[form](randomise(Parts()), images()), images())
    rows = [(facts(node).op, facts(node).source) for node in graph.nodes]
    sources = dict(rows)
    assert "return x * torch.sigmoid(x)" in sources["silu"]
    assert 'return {"some": x[..., :2]' in sources["add"]
    assert (
        form == "frozen" or "gate(self.norm(self.conv(x))).chunk(2, 1)" in rows[1][1]
    )  # its layers are in one program


def test_a_part_or_what_is_in_a_wrapper_may_be_scripted() -> None:
    net = randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1)))
    rounded = copy.deepcopy(net).half()
    for given, own in (
        (nn.DataParallel(torch.jit.script(net)), net),
        (nn.Sequential(net[0], torch.jit.script(net[1:3]), net[3]), net),
        (torch.jit.script(rounded), copy.deepcopy(rounded).float()),
    ):
        graph = trace(given, images())
        assert [facts(node).op for node in graph.nodes] == ["placeholder", "conv2d", "relu", "conv2d", "output"]
        assert torch.allclose(graph(images()), own(images()), atol=1e-5)


class Several(nn.Module):
    steps: int

    def __init__(self):
        super().__init__()
        self.conv, self.steps = nn.Conv2d(3, 4, 3), 0

    def forward(self, left: Tensor, right: Tensor, scale: float = 2.0) -> Tensor:
        self.steps = self.steps + 1
        i = 0
        while i < 3:
            left = left + right * self.steps
            i += 1
        return self.conv(left).relu() * scale


def test_inputs_have_their_names_and_attributes_may_change() -> None:
    net, one, two = torch.jit.script(randomise(Several())), images(), images(seed=1)
    graph = trace(net, {"right": two, "left": one})
    assert set(graph.inputs) == {"left", "right"}
    assert torch.allclose(graph({"left": one, "right": two}), net(one, two), atol=1e-5)
    assert msat_det.convert(net, [(one, two)]).run((one, two), 1)[1].shape == (2, 4, 10, 10)


def doubled(x: Tensor) -> Tensor:
    return 2 * x.relu()


class Calls(nn.Module):
    def __init__(self, body: Callable[[Tensor], Tensor]):
        super().__init__()
        self.conv, self.body = nn.Conv2d(3, 4, 3), body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.conv(x))


@pytest.mark.parametrize("make", [torch.jit.script, lambda f: torch.jit.trace(f, torch.rand(1, 4, 2, 2))])
def test_functions_that_a_network_keeps_may_be_scripted(make: Callable) -> None:
    net = randomise(Calls(make(doubled)))
    graph = trace(net, images())
    assert [facts(node).op for node in graph.nodes] == ["placeholder", "conv2d", "relu", "mul", "output"]
    assert torch.allclose(graph(images()), net(images()), atol=1e-5)


class Decides(Calls):
    def __init__(self):
        nn.Module.__init__(self)
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if x.mean() > 0:
            x = x.relu()
        return x


class Sums(Decides):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cumsum(self.conv(x), 1)


class Unusual(Decides):
    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.aten.alias(self.conv(x))


REFUSED = {
    "values decide": (
        lambda: torch.jit.script(Decides()),
        r"test_scripted.py:\d+: `if x.mean\(\) > 0:` .*'__bool__' of a",
    ),
    "unknown to us": (lambda: torch.jit.script(Sums()), r"node 'cumsum' \(.*test_scripted.py:\d+: return torch.cumsum"),
    "unknown to Python": (lambda: torch.jit.script(Unusual()), r"operator 'aten::alias' \(.*test_scripted.py:\d+\)"),
    "changed for a processor": (
        lambda: torch.jit.optimize_for_inference(torch.jit.script(build("plain"))),
        "operator 'prim::ConstantMKLDNNTensor' .*give the module that was scripted",
    ),
    "frozen attention": (lambda: FORMS["frozen"](Attention().eval(), images()), "'transpose_1'.* mixes the images"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_convert_says_so(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        msat_det.convert(make(), images())
    assert "\n" not in str(caught.value)


def test_what_torchscript_calculates_otherwise_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(aten._CALLS, "relu", torch.tanh)
    with pytest.raises(InputError, match=r"differ from the network's by .*give the module that was scripted"):
        trace(torch.jit.script(build("plain")), images())
