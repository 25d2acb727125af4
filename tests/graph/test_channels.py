"""The dimension of the channels: found in the graph, and kept to by statistics, neurons, kernels, fits and files."""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.networks import images, randomise
from torch import Tensor, nn

from msat_det import load
from msat_det.base.errors import InputError
from msat_det.graph.channels import channels, mean_by_channel, rows_by_channel
from msat_det.graph.facts import facts
from msat_det.graph.ops import Activation
from msat_det.graph.trace import trace
from msat_det.methods import METHODS
from msat_det.methods.convert import spiking_network
from msat_det.methods.observe import Observation, Site, observe
from msat_det.spiking.formats.plan import read_neurons, write_neurons
from msat_det.spiking.kernels import Scan
from msat_det.spiking.kernels.cpu import library
from msat_det.spiking.network import SpikingNetwork
from msat_det.spiking.neurons import Msat, Neuron, new_state, step

SIDE = 6
RELU = Activation("relu", torch.relu, rectified=True)


class Behind(nn.Module):
    """A convolution to ``outputs`` channels, a way of carrying them elsewhere, a ReLU."""

    def __init__(self, carry: Callable[[Tensor], Tensor], outputs: int = 10):
        super().__init__()
        self.conv, self.carry = nn.Conv2d(3, outputs, 3, padding=1), carry

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.carry(self.conv(x)))


def attend(x: Tensor) -> Tensor:
    return (x @ x.transpose(1, 2)).softmax(-1) @ x


CARRIED = {
    "as they are": (lambda x: x, 1),
    "to one number": (lambda x: F.linear(x, torch.ones(6)), None),
    "all to one number": (lambda x: F.linear(x.flatten(1), torch.ones(360))[:, None], None),
    "NHWC": (lambda x: x.permute(0, 2, 3, 1), 3),
    "transposed": (lambda x: x.transpose(1, 3), 3),
    "moved": (lambda x: torch.movedim(x, 1, 2), 2),
    "an attribute": (lambda x: x.flatten(2).mT, 2),
    "tokens": (lambda x: x.flatten(2).transpose(1, 2), 2),
    "one row of positions": (lambda x: x.flatten(2), 1),
    "YuNet": (lambda x: x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, 10), 2),
    "RetinaNet": (lambda x: x.view(-1, 2, 5, SIDE, SIDE).permute(0, 3, 4, 1, 2).flatten(1, 3), 2),
    "YOLO": (lambda x: x.view(x.shape[0], 2, 5, SIDE, SIDE).permute(0, 1, 3, 4, 2), 4),
    "anchors and values": (lambda x: x.reshape(x.shape[0], 2, 5, SIDE, SIDE), 2),
    "flattened": (lambda x: x.flatten(1), None),
    "flattened from NHWC": (lambda x: x.permute(0, 2, 3, 1).flatten(1), None),
    "one channel": (lambda x: x[:, 0], None),
    "some channels": (lambda x: x.permute(0, 2, 3, 1)[..., 4:], 3),
    "a row": (lambda x: x.select(2, 0), 1),
    "a column": (lambda x: x.permute(0, 2, 3, 1)[:, :, 0], 2),
    "an added dimension": (lambda x: x.unsqueeze(1), 2),
    "its removal": (lambda x: x.unsqueeze(1).squeeze(1), 1),
    "a part": (lambda x: x.permute(0, 2, 3, 1).chunk(2, 3)[1], 3),
    "split": (lambda x: torch.split(x, [3, 7], 1)[0], 1),
    "joined channels": (lambda x: torch.cat((x, 2 * x), 1), 1),
    "joined positions": (lambda x: torch.cat([v.flatten(2).transpose(1, 2) for v in (x, x[:, :, ::2])], 1), 2),
    "stacked": (lambda x: torch.stack((x, -x), 2), 1),
    "joined with one of no axis": (lambda x: torch.cat((x.permute(0, 2, 3, 1), x[:, :1].view(-1, 6, 6, 1)), 3), 3),
    "joined with constants": (lambda x: torch.cat((x.flatten(1), x.new_full((x.shape[0], 2), 77.0)), 1), None),
    "stacked on constants": (lambda x: torch.stack((x, x.new_full(x.shape, 7.0)), 2), 1),
    "padded channels": (lambda x: F.pad(x, (0, 0, 0, 0, 2, 3)), 1),
    "shuffled": (lambda x: F.channel_shuffle(x, 2), 1),
    "shuffled by hand": (lambda x: x.view(-1, 2, 5, SIDE, SIDE).transpose(1, 2).reshape(-1, 10, SIDE, SIDE), 1),
    "mean over positions": (lambda x: x.mean((2, 3)), 1),
    "mean over positions of NHWC": (lambda x: x.permute(0, 2, 3, 1).mean(dim=(1, 2)), 1),
    "mean over channels": (lambda x: x.mean(1), None),
    "mean over channels, kept": (lambda x: x.mean(1, keepdim=True), 1),
    "pooled": (lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1), 1),
    "pooled by maximum": (lambda x: F.max_pool2d(x, 2).flip(2), 1),
    "upsampled": (lambda x: F.interpolate(x, scale_factor=2), 1),
    "softmax": (lambda x: x.permute(0, 2, 3, 1).softmax(-1), 3),
    "a sum of two": (lambda x: x.transpose(1, 3) + 2 * x.transpose(1, 3), 3),
    "a sum of two that differ": (lambda x: x.transpose(1, 2).reshape(-1, 10, SIDE, SIDE) + x, None),
    "gated": (lambda x: x * x.mean((2, 3), keepdim=True).sigmoid(), 1),
    "attention": (lambda x: attend(x.flatten(2).transpose(1, 2)), 2),
    "scores of attention": (lambda x: x.flatten(2).transpose(1, 2) @ x.flatten(2), None),
    "rows of a product": (lambda x: x.flatten(2) @ x.flatten(2).transpose(1, 2), 2),
}  # fmt: skip


@pytest.mark.parametrize("name", CARRIED)
def test_the_axis_is_followed(name: str) -> None:
    carry, axis = CARRIED[name]
    graph = trace(Behind(carry), images(2, size=SIDE))
    site = graph.sites[-1]
    assert facts(site).axis == axis
    assert channels(facts(site).shape, axis) == (1 if axis is None else facts(site).shape[axis - 1])


def test_layers_set_the_axis() -> None:
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.mix, self.norm = nn.Conv2d(3, 8, 2, 2), nn.Linear(8, 12), nn.LayerNorm(12)
            self.across, self.back = nn.Linear(9, 7), nn.ConvTranspose2d(12, 4, 3)
            self.batch, self.weight = nn.BatchNorm1d(7), nn.Parameter(torch.randn(12, 5))
            self.left = nn.Parameter(torch.randn(6, 9))

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            tokens = F.gelu(self.norm(self.mix(self.embed(x).flatten(2).transpose(1, 2))))  # (B, N, C)
            mixed = F.relu(self.across(tokens.transpose(1, 2)))  # along positions: their outputs are channels
            maps = F.relu(self.back(tokens.transpose(1, 2).unflatten(2, (3, 3))))
            product = F.relu(tokens @ self.weight)
            rows = F.relu(self.left @ tokens)  # of positions: (B, 6, 12)
            return mixed, maps, product, F.relu(self.batch(mixed.transpose(1, 2))), rows

    graph = trace(randomise(Net()), images(2, size=SIDE))
    assert [(facts(n).op, facts(n).axis) for n in graph.sites] == [
        ("gelu", 2), ("relu", 2), ("relu", 1), ("relu", 2), ("relu", 2), ("relu", 1),
    ]  # fmt: skip
    assert facts(graph.nodes[0]).axis == 1


# ---- that a position has no threshold of its own


def scene(side: str, count: int = 4, seed: int = 0) -> Tensor:
    """Dark pictures with a bright object in their left or right half."""
    x = 0.1 * torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    x[..., :3] += 3.0 * (side == "left")
    x[..., 5:] += 3.0 * (side == "right")
    return x


class Objectness(nn.Module):
    """The head of an exported detector: (B, positions, 1) before its sigmoid."""

    def __init__(self, values: int = 1):
        super().__init__()
        self.body, self.head, self.values = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, values, 1), values

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(F.relu(self.body(x)))
        return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, self.values).sigmoid()


class Tokens(nn.Module):
    """A token network: patches, two linear layers with GELU between them, a linear head."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 2, 2)
        self.mlp = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        return self.head(F.relu(x + self.mlp(x)))


HEADS = {"objectness": Objectness, "three values": functools.partial(Objectness, 3), "tokens": Tokens}


@pytest.mark.parametrize("scale", ["layer", "channel"])
@pytest.mark.parametrize("head", HEADS)
def test_objects_are_found_where_calibration_had_none(head: str, scale: str) -> None:
    """Was: an error of .98 at T = 4096, every object lost."""
    net = randomise(HEADS[head](), seed=3)
    if head != "tokens":
        net.head.bias.data -= 4.0
        net.head.weight.data.abs_()
    snn = spiking_network("constant", {"scale": scale}, observe(net, [scene("left")]), 32)
    x = scene("right", seed=1)
    expected = net(x)
    outputs = snn.run(x, 2048, record=[128, 512, 2048])
    errors = [((outputs[t] - expected).norm() / expected.norm()).item() for t in outputs]
    assert errors[2] < 0.01
    assert errors[2] < 0.5 * errors[1] < 0.25 * errors[0]
    if head == "objectness":
        assert expected.amax() > 0.9
        assert (outputs[512] - expected).abs().max() < 0.05


# ---- that all by channel goes along the axis


class Nhwc(nn.Module):
    """A network that keeps its activations (B, H, W, C), or (B, C, H, W): the same numbers."""

    def __init__(self, last: bool):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 3), nn.Conv2d(5, 4, 1)])
        self.last = last

    def act(self, x: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        return f(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if self.last else f(x)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.convs[0](x), F.relu)
        return self.convs[2](self.act(self.convs[1](x), F.relu6))


@functools.cache
def seen(last: bool) -> Observation:
    net = randomise(Nhwc(False))
    net.last = last
    return observe(net, [images(4, seed=100), images(3, seed=101)])


def test_statistics_are_those_of_the_same_network_in_nchw() -> None:
    first, last = seen(False), seen(True)
    for a, b in zip(first.sites.values(), last.sites.values(), strict=True):
        assert torch.equal(a.maximum, b.maximum)
        assert torch.equal(a.histogram, b.histogram)
        assert (a.axis, b.axis) == (1, 3)


OPTIONS = {
    "constant": {"scale": "channel", "initial": "half", "signed": True, "gamma": 3},
    "channel-norm": {},
    "msat": {"variant": "normalised", "scale": "channel"},
    "calibration": {"scale": "channel"},
    "opt": {"scale": "channel"},
    "msat-fit": {"dtt": True},
    "msat-fit-anytime": {"budget": 2.0, "budget_of": "sops"},
    "spike-norm": {},
}


@pytest.mark.parametrize("method", OPTIONS)
def test_a_network_in_nhwc_is_converted_as_in_nchw(method: str) -> None:
    first, last = (spiking_network(method, OPTIONS[method], seen(which), 8) for which in (False, True))
    for a, b in zip(first.neurons.values(), last.neurons.values(), strict=True):
        assert (a.axis, b.axis) == (1, 3)
        assert torch.allclose(a.theta, b.theta, rtol=1e-4)
        assert (a.bias is None) == (b.bias is None)
        assert a.bias is None or torch.allclose(a.bias, b.bias, atol=1e-4)
    x = images(2)
    assert torch.allclose(first.run(x, 8)[8], last.run(x, 8)[8], atol=1e-3)
    assert first.counts[8].spikes.tolist() == pytest.approx(last.counts[8].spikes.tolist(), rel=1e-3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["flattened", "YuNet", "NHWC"])
def test_every_method_takes_every_axis(method: str, name: str) -> None:
    carry, axis = CARRIED[name]
    observation = observe(randomise(Behind(carry)), [images(4, size=SIDE)])
    by_sums = METHODS[method].name in ("spike-norm", "rmp")  # which refuse a scale for ReLUs
    snn = spiking_network(method, {} if by_sums else {"scale": "channel"}, observation, 8)
    (neuron,), x = snn.neurons.values(), images(2, size=SIDE)
    assert neuron.axis == axis
    assert neuron.theta.dim() == (axis is not None and not by_sums)
    assert snn.run(x, 8)[8].isfinite().all()


@pytest.mark.skipif(library() is None, reason="no C++ compiler here, or MSAT_DET_KERNEL=off")
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("axis", [1, 2, 3, None])
def test_the_kernel_takes_thresholds_along_the_axis(axis: int | None, format: torch.memory_format) -> None:
    shape, steps = (2, 4, 6, 150), 9
    values = torch.linspace(0.5, 2.0, 1 if axis is None else shape[axis])
    values = values[0] if axis is None else values
    x = (0.3 + torch.randn(steps * 2, *shape[1:], generator=torch.Generator().manual_seed(0))).contiguous(
        memory_format=format
    )
    x = x.unflatten(0, (steps, 2))
    for adaptive in (None, Msat(normalised=True)):
        neuron = Neuron(values, RELU, bias=values / 9, initial=values / 3, adaptive=adaptive, axis=axis)
        state = new_state(neuron, x[0], True)
        expected = torch.stack([step(neuron, state, x[t], t)[1] for t in range(steps)])
        scan = Scan(neuron, x[0], torch.ones(shape[1:]), True)
        assert scan.backend == "cpu"
        got = scan.run(x, 0, steps)
        assert ((got - expected).abs().amax(0) < 1e-3).float().mean() > 0.999  # but for ties


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("axis", [1, 2, 3, None])
def test_statistics_along_the_axis(axis: int | None, kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not kernel:
        monkeypatch.setattr("msat_det.spiking.kernels.cpu.library", lambda: None)
    values = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    rows = rows_by_channel(values, axis)
    for x in (
        values,
        values.contiguous(memory_format=torch.channels_last),
        values.transpose(2, 3).contiguous().transpose(2, 3),
    ):
        site = Site.empty(len(rows), axis)
        site.add(x)
        site.add(x)
        assert torch.equal(site.maximum, rows.abs().amax(1))
        assert site.histogram.sum(1).tolist() == [2 * rows.shape[1]] * len(rows)
        wanted = torch.quantile(rows.abs(), 0.5, dim=1)
        assert torch.allclose(site.scale(50.0), wanted.squeeze() if axis is None else wanted, rtol=0.1)
        assert site.scale(50.0).shape == (() if axis is None else (len(rows),))
    assert torch.allclose(mean_by_channel(values, axis), rows.mean(1).reshape(mean_by_channel(values, axis).shape))


def test_a_layer_without_channels_may_have_more_activations_than_an_int32_counts() -> None:
    site = Site.empty(1, None)
    site.histogram[0, 0] = 2**31 - 10
    site.add(torch.zeros(1, 100))
    assert site.histogram[0, 0] == 2**31 + 90


# ---- files


@pytest.mark.parametrize("name", ["flattened", "YuNet", "NHWC", "as they are"])
def test_the_axis_is_saved(name: str, tmp_path: Path) -> None:
    observation = observe(randomise(Behind(CARRIED[name][0])), [images(4, size=SIDE)])
    snn, x = spiking_network("constant", {"scale": "channel", "signed": True}, observation, 8), images(2, size=SIDE)
    snn.save(tmp_path / "net.safetensors")
    again = load(tmp_path / "net.safetensors")
    assert [n.axis for n in again.neurons.values()] == [CARRIED[name][1]]
    assert torch.equal(again.run(x, 8)[8], snn.run(x, 8)[8])
    own, loaded = (s.coverage[-2]["dead_channels"] for s in (snn, again))
    assert own == loaded


def test_a_file_from_before_axes_has_its_channels_in_dimension_1() -> None:
    """Position by position, as it was written; its plan fits the network still."""
    observation = observe(randomise(Behind(CARRIED["YuNet"][0])), [images(4, size=SIDE)])
    (site,), graph = observation.graph.sites, observation.graph
    old = Neuron(torch.rand(SIDE * SIDE) + 0.5, facts(site).activation, axis=1)
    sites, tensors = write_neurons({site.name: old}, graph)
    sites = json.loads(json.dumps(sites))
    del sites[site.name]["neuron"]["axis"]
    assert sites[site.name]["channels"] == SIDE * SIDE
    found = read_neurons(sites, tensors, graph)[site.name]
    assert found.axis == 1
    assert torch.equal(found.theta, old.theta)
    assert (
        SpikingNetwork(graph, {site.name: found}, observation.fanout).run(images(2, size=SIDE), 4)[4].isfinite().all()
    )


@pytest.mark.parametrize("axis", [0, 4, -1, True, "1", 1.0])
def test_an_axis_that_cannot_be_is_refused(axis: object) -> None:
    observation = observe(randomise(Behind(CARRIED["NHWC"][0])), [images(4, size=SIDE)])
    snn = spiking_network("constant", {}, observation, 4)
    sites, tensors = write_neurons(snn.neurons, snn.graph)
    next(iter(sites.values()))["neuron"]["axis"] = axis
    with pytest.raises(InputError, match="axis"):
        read_neurons(sites, tensors, snn.graph)
