"""Networks as they leave training: wrappers, weights that are made of others, what is not there or can't be traced."""

import copy
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest
import torch
from support.networks import build, images
from torch import Tensor, nn
from torch.ao import quantization
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm
from torch.optim.swa_utils import AveragedModel

import msat_det
from msat_det.base.errors import InputError
from msat_det.graph.facts import facts
from msat_det.graph.prepare import prepared
from msat_det.graph.trace import trace


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Sequential(nn.Conv2d(4, 4, 1), nn.Linear(10, 10))
    return nn.Sequential(*layers).eval()


def outputs(net: nn.Module) -> Tensor:
    with torch.no_grad():
        return net(images())


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "data parallel": nn.DataParallel,
    "compiled": torch.compile,
    "averaged": AveragedModel,
    "nested": lambda net: AveragedModel(nn.DataParallel(net)),
    "a part compiled": lambda net: nn.Sequential(*net[:3], torch.compile(net[3])),
    "a part of a part": lambda net: nn.Sequential(*net[:3], nn.Sequential(nn.DataParallel(net[3][0]), net[3][1])),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_wrappers_come_off(wrap: Callable[[nn.Module], nn.Module]) -> None:
    net = network()
    graph = trace(wrap(copy.deepcopy(net)), images())
    assert torch.allclose(graph(images()), outputs(net), atol=1e-5)
    assert [facts(node).op for node in graph.nodes] == ["placeholder", "conv2d", "relu", "conv2d", "linear", "output"]


class Scaled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 1.7 * weight


def prune_twice(net: nn.Sequential) -> None:
    prune.l1_unstructured(net[0], "weight", 0.5)
    prune.random_unstructured(net[0], "weight", 0.3)
    prune.random_unstructured(net[0], "bias", 0.5)


def several(net: nn.Sequential) -> None:
    parametrizations.weight_norm(net[0])
    parametrize.register_parametrization(net[0], "bias", Scaled())
    parametrizations.orthogonal(net[3][1])


MADE: dict[str, Callable[[nn.Sequential], object]] = {
    "weight norm": lambda net: weight_norm(net[0]),
    "spectral norm": lambda net: spectral_norm(net[3][0]),
    "parametrised weight norm": lambda net: parametrizations.weight_norm(net[0]),
    "parametrised spectral norm": lambda net: parametrizations.spectral_norm(net[3][1]),
    "several parametrisations": several,
    "own parametrisation": lambda net: parametrize.register_parametrization(net[3][0], "weight", Scaled()),
    "pruned": prune_twice,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_weights_are_what_is_made_of_them(make: Callable[[nn.Sequential], object]) -> None:
    net = network()
    before = outputs(net)
    make(net)
    net.train()(images()).sum().backward()  # leaves weights behind that a graph has made
    net.eval()
    expected, state = outputs(net), copy.deepcopy(net.state_dict())
    assert make is MADE["spectral norm"] or not torch.allclose(expected, before, atol=1e-3)
    bare = prepared(net.train())
    assert torch.allclose(outputs(bare), expected, atol=1e-6)
    assert {type(module) for module in bare.modules()} == {nn.Sequential, nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Linear}
    assert not any(module._forward_pre_hooks for module in bare.modules())
    ops = [facts(node).op for node in trace(net, images()).nodes]
    assert ops == ["placeholder", "conv2d", "relu", "conv2d", "linear", "output"]
    # the network itself goes on as it was
    assert torch.equal(outputs(net.eval()), expected)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_precision_becomes_float32(dtype: torch.dtype) -> None:
    net = network().to(dtype)
    graph = trace(net, images().to(dtype))
    assert net[0].weight.dtype is dtype
    assert {value.dtype for value in graph.module.parameters()} == {torch.float32}
    assert torch.allclose(graph(images().to(dtype)), outputs(copy.deepcopy(net).float()), atol=1e-2)


def test_synchronised_batch_norm_is_folded() -> None:
    net = build("plain")
    graph = trace(nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(net)), images())
    assert torch.allclose(graph(images()), outputs(net), atol=1e-5)
    assert not [node for node in graph.nodes if "norm" in facts(node).op]


def holding_a_lock() -> nn.Module:
    net = network()
    net.lock = threading.Lock()
    return net


def not_loaded() -> nn.Module:
    with torch.device("meta"):
        return network()


def quantised() -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(432, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    return quantization.quantize_dynamic(net)


def observed_for_int8() -> nn.Module:
    net = quantization.QuantWrapper(network())
    net.qconfig = quantization.get_default_qconfig("fbgemm")
    return quantization.prepare(net)


REFUSED = {
    "exported": (lambda: torch.export.export(network(), (images(),)).module(), "the network is exported"),
    "quantised": (quantised, r"module '1' is quantised \(Linear\): give the float network"),
    "observed": (observed_for_int8, "is quantised .*Observer"),
    "a lock": (holding_a_lock, "Sequential can't be copied .*no tensor, number or module"),
    "not loaded": (not_loaded, "weight '0.weight' has no value yet: load"),
    "lazy": (lambda: nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU()), "weight '0.weight' has no value yet.*run the"),
}


@pytest.mark.filterwarnings("ignore::UserWarning:torch.ao")
@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_traced_says_so(make: Callable[[], nn.Module], message: str) -> None:
    net = make()
    for call in (trace, lambda net, batch: msat_det.convert(net, batch)):
        with pytest.raises(InputError, match=message) as caught:
            call(net, images())
        assert "\n" not in str(caught.value)


def test_an_exported_program_says_so() -> None:
    with pytest.raises(InputError, match=r"^the network is exported \(torch\.export\): give the module that was"):
        msat_det.convert(torch.export.export(network(), (images(),)), images())


class Clamping(nn.Conv2d):
    """Keeps its weights above 0 by writing into them whenever it runs."""

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data.clamp_(min=0)
        return super().forward(x)


@pytest.mark.parametrize("tolerance", [1e-4, 1e-12])  # the second one has everything checked in float64 as well
def test_no_network_writes_into_anothers_weights(tolerance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("msat_det.graph.trace._TOLERANCE", tolerance)
    net = nn.Sequential(network(), Clamping(4, 4, 1)).eval()
    state, expected = copy.deepcopy(net.state_dict()), outputs(copy.deepcopy(net))
    graph = trace(net, images())
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert torch.allclose(graph(images()), expected, atol=1e-5)
    for weight in net.parameters():
        weight.data.fill_(float("nan"))
    assert torch.allclose(graph(images()), expected, atol=1e-5)


MEMORY = """
from pathlib import Path
import torch
from torch import nn
from msat_det.graph import trace as tracing

def check(*given):
    calls.append(1)
    if calls[1:]:
        return once(*given)
    raise tracing._Different("as if by rounding")

def peak():  # getrusage's would be that of the process that started this one, where it is larger
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

def layer():
    convolution = nn.utils.skip_init(nn.Conv2d, 3072, 3072, 1, bias=False)
    convolution.weight.data.fill_(1e-3)
    return nn.Sequential(convolution, nn.BatchNorm2d(3072), nn.ReLU())

net, images = nn.Sequential(*(layer() for _ in range(6))).eval(), torch.rand(2, 3072, 1, 1)
once, tracing._check_batch, calls = tracing._check_batch, check, []
before = peak()
tracing.trace(net, images)
assert len(calls) == 2
print((peak() - before) / sum(4 * weight.numel() for weight in net.parameters()))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak of its memory from /proc")
def test_a_large_network_takes_its_weights_once_more() -> None:
    """And in float64, for rounding's sake, those of one layer alone, before and after batch norm is folded: 4/6."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, timeout=100)
    assert 0.9 < float(done.stdout) < 1.9, done.stderr


class Hooked(nn.Module):
    """Features by a hook that knows the network from outside, as people write it."""

    def __init__(self):
        super().__init__()
        self.net, self.kept = network(), {}
        self.net[0].register_forward_pre_hook(lambda module, given: 2 * given[0])
        self.net[2].register_forward_hook(lambda module, given, found: self.kept.update(features=found))

    def forward(self, x: Tensor) -> Tensor:
        self.net(x)
        return self.net[3](self.kept["features"])


@pytest.mark.parametrize("before", [0, 1, 2, 4])
def test_hooks_are_those_of_the_copy(before: int) -> None:
    """Else the copy reads what an earlier forward of the network has left."""
    net = Hooked().eval()
    if before:
        net(images(before, seed=8))
    graph = trace(net, images(4))
    assert torch.allclose(graph(images(3, seed=5)), net(images(3, seed=5)), atol=1e-5)
    assert len(net.kept["features"]) == 3


class Grid(nn.Module):
    """YOLO's: a grid that is made anew for another size, of the type of a map."""

    def __init__(self):
        super().__init__()
        self.conv, self.grid = nn.Conv2d(3, 2, 3, 2), torch.zeros(1, 1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).relu()
        if self.grid.shape[2:] != y.shape[2:]:
            rows, columns = torch.meshgrid(torch.arange(y.shape[2]), torch.arange(y.shape[3]), indexing="ij")
            self.grid = torch.stack((columns, rows)).view(1, 2, *y.shape[2:]).type_as(y)
        return y + self.grid + self.grid.int().to(y)


def test_a_grid_of_the_type_of_a_map_is_a_constant() -> None:
    net = Grid().eval()
    graph = trace(net, images(4))
    assert torch.allclose(graph(images(3, seed=5)), net(images(3, seed=5)), atol=1e-5)
