"""Tracing: every spelling becomes a call site, nothing is skipped, what cannot be converted is refused."""

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
import torchvision
from support.networks import NETWORKS, build, images, randomise
from torch import Tensor, nn
from torch.fx.node import Node
from torch.utils import _pytree as pytree
from torchvision.ops import DropBlock2d, StochasticDepth, stochastic_depth
from torchvision.ops.misc import FrozenBatchNorm2d

from msat_det.base.errors import InputError
from msat_det.graph.facts import facts
from msat_det.graph.graph import Graph
from msat_det.graph.ops import Kind
from msat_det.graph.trace import trace


class Layer(nn.Module):
    """A convolution, then what is under test, then another convolution."""

    def __init__(self, body: Callable[..., Tensor], **modules: nn.Module):
        super().__init__()
        self.conv, self.after = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1)
        self.body = body
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.body(self, self.conv(x)))


def traced(net: nn.Module, batch: Any = None) -> Graph:
    """The trace, checked to compute what the network does (on other images than it was traced with)."""
    batch = images() if batch is None else batch
    graph = trace(randomise(net), batch)
    fresh = pytree.tree_map(lambda x: x + 0.3 * torch.ones_like(x), batch)
    own = pytree.tree_map(torch.clone, fresh)
    expected = net(**own) if isinstance(own, dict) else net(*own) if isinstance(own, tuple) else net(own)
    got = graph(fresh)
    assert pytree.tree_structure(got) == pytree.tree_structure(expected)
    for a, b in zip(pytree.tree_leaves(got), pytree.tree_leaves(expected), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4 * b.abs().max().item())
    return graph


def layer(body: Callable[..., Tensor], **modules: nn.Module) -> Graph:
    return traced(Layer(body, **modules))


RELU = {
    "module": lambda net, x: net.act(x),
    "functional": lambda net, x: F.relu(x),
    "functional in place": lambda net, x: F.relu(x, inplace=True),
    "functional in place by position": lambda net, x: F.relu(x, True),
    "functional by name": lambda net, x: F.relu(input=x),
    "F.relu_": lambda net, x: F.relu_(x),
    "torch": lambda net, x: torch.relu(x),
    "torch in place": lambda net, x: torch.relu_(x),
    "method": lambda net, x: x.relu(),
    "method in place": lambda net, x: x.relu_(),
    "clamp": lambda net, x: x.clamp(min=0),
    "clamp by position": lambda net, x: torch.clamp(x, 0),
    "clamp in place": lambda net, x: x.clamp_(0),
    "clamp_min": lambda net, x: x.clamp_min(0.0),
    "clamp_min in place": lambda net, x: torch.clamp_min_(x, 0),
    "clip": lambda net, x: torch.clip(x, min=0),
    "threshold": lambda net, x: F.threshold(x, 0, 0, True),
    "threshold by name": lambda net, x: F.threshold(x, threshold=0.0, value=0.0),
}
RELU6 = {
    "module": lambda net, x: net.act(x),
    "functional": lambda net, x: F.relu6(x),
    "functional in place": lambda net, x: F.relu6(x, inplace=True),
    "clamp": lambda net, x: x.clamp(0, 6),
    "clamp by name": lambda net, x: torch.clamp(x, min=0, max=6),
    "clamp in place": lambda net, x: x.clamp_(0.0, 6.0),
    "clip": lambda net, x: x.clip(0, 6),
    "hardtanh": lambda net, x: F.hardtanh(x, 0.0, 6.0),
    "hardtanh in place": lambda net, x: F.hardtanh_(x, 0.0, 6.0),
}


@pytest.mark.parametrize("body", RELU.values(), ids=RELU)
@pytest.mark.parametrize("inplace", [False, True])
def test_relu_in_every_spelling(body: Callable, inplace: bool) -> None:
    (site,) = layer(body, act=nn.ReLU(inplace)).sites
    activation = facts(site).activation
    assert (activation.name, activation.rectified, activation.upper) == ("relu", True, float("inf"))


@pytest.mark.parametrize("body", RELU6.values(), ids=RELU6)
@pytest.mark.parametrize("module", [nn.ReLU6(), nn.ReLU6(inplace=True), nn.Hardtanh(0, 6)], ids=str)
def test_relu6_in_every_spelling(body: Callable, module: nn.Module) -> None:
    (site,) = layer(body, act=module).sites
    activation = facts(site).activation
    assert (activation.name, activation.rectified, activation.upper) == ("relu6", True, 6.0)


def test_other_clamps_keep_their_bounds() -> None:
    upper = facts(layer(lambda net, x: x.clamp(0, 2.5)).sites[0]).activation
    assert (upper.rectified, upper.upper) == (True, 2.5)
    two_sided = facts(layer(lambda net, x: x.clamp(-1, 2)).sites[0]).activation
    assert not two_sided.rectified
    assert two_sided.fn(torch.tensor([-3.0, 0.5, 3.0])).tolist() == [-1, 0.5, 2]
    by_channel = layer(lambda net, x: torch.clamp(x, max=net.most), most=parameter(4))
    assert not facts(by_channel.sites[0]).activation.rectified


def parameter(channels: int) -> nn.Parameter:
    return nn.Parameter(torch.linspace(0.2, 0.8, channels).reshape(channels, 1, 1))


POINTWISE = {
    "leaky": (nn.LeakyReLU(0.1), lambda x: F.leaky_relu(x, 0.1, inplace=True), False),
    "prelu": (nn.PReLU(4), lambda x: F.prelu(x, torch.tensor([0.3])), False),
    "hardswish": (nn.Hardswish(True), F.hardswish, True),
    "silu": (nn.SiLU(), lambda x: F.silu(x, inplace=True), True),
    "sigmoid": (nn.Sigmoid(), torch.sigmoid, True),
    "tanh": (nn.Tanh(), torch.tanh, True),
    "gelu": (nn.GELU(), F.gelu, True),
    "hardsigmoid": (nn.Hardsigmoid(), F.hardsigmoid, False),
    "rrelu": (nn.RReLU(0.1, 0.4), lambda x: F.rrelu(x, 0.1, 0.4, False, True), False),
    "steep": (nn.LeakyReLU(2.0), lambda x: F.leaky_relu(x, 2.0), False),
    "threshold": (nn.Threshold(0.1, -0.3), lambda x: F.threshold(x, 0.1, -0.3), False),
    "hardshrink": (nn.Hardshrink(), lambda x: x.hardshrink(), False),
    "softshrink": (nn.Softshrink(0.3), lambda x: F.softshrink(x, 0.3), False),
    "tanhshrink": (nn.Tanhshrink(), F.tanhshrink, True),
    "softsign": (nn.Softsign(), F.softsign, True),
    "celu": (nn.CELU(0.7), lambda x: F.celu(x, 0.7, True), True),
}


@pytest.mark.parametrize(("module", "function", "curved"), POINTWISE.values(), ids=POINTWISE)
def test_other_activations_are_sites_with_their_function(module: nn.Module, function: Callable, curved: bool) -> None:
    for graph in (layer(lambda net, x: net.act(x), act=module), layer(lambda net, x: function(x))):
        (site,) = graph.sites
        assert not facts(site).activation.rectified
        assert facts(site).activation.curved == curved
    x = torch.linspace(-4, 4, 36).reshape(1, 4, 9)
    assert torch.allclose(facts(layer(lambda net, x: net.act(x), act=module).sites[0]).activation.fn(x), module(x))


def test_a_shared_module_is_a_site_at_every_call() -> None:
    graph = traced(NETWORKS["residual"]())
    assert [site.name for site in graph.sites] == ["stem_2", "act", "act_1"]
    pyramid = layer(lambda net, x: net.act(x) + F.interpolate(net.act(x[:, :, ::2, ::2]), 12), act=nn.ReLU())
    assert len(pyramid.sites) == 2


def test_a_shared_module_in_place_overwrites_at_every_call() -> None:
    def body(net: Layer, x: Tensor) -> Tensor:
        a = net.act(x)
        b = -2 * a + 1
        c = net.act(b)
        return a + x + 3 * b + c  # b is what the second call left in it

    assert len(layer(body, act=nn.ReLU(inplace=True)).sites) == 2


def test_in_place_writes_are_seen_by_later_readers() -> None:
    def body(net: Layer, x: Tensor) -> Tensor:
        y = F.relu_(x)
        z = x + 1  # x is y by now
        z += y
        z *= 0.5
        z -= 0.1
        z /= 0.7
        y.add_(z)
        return x + z

    assert len(layer(body).sites) == 1


def test_in_place_arithmetic_on_sizes() -> None:
    def body(net: Layer, x: Tensor) -> Tensor:
        size = x.size(1)
        size *= 6
        return x.relu().view(x.size(0), size, -1).view(-1, 4, 12, 12)

    assert len(layer(body).sites) == 1


NORMS = {"batch norm": nn.BatchNorm2d(4), "frozen": FrozenBatchNorm2d(4), "no affine": nn.BatchNorm2d(4, affine=False)}


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_batch_norm_is_folded(norm: nn.Module) -> None:
    graph = layer(lambda net, x: net.norm(x).relu(), norm=norm)
    assert [facts(node).op for node in graph.nodes] == ["placeholder", "conv2d", "relu", "conv2d", "output"]


def test_a_shared_convolution_is_folded_by_call() -> None:
    """One head convolution with a norm for each level, as RetinaNet-like heads have, and one block called twice."""

    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.norms = nn.ModuleList([nn.BatchNorm2d(3), nn.BatchNorm2d(3)])

        def forward(self, x: Tensor) -> list[Tensor]:
            first = F.relu(self.norms[0](self.conv(x)))
            second = F.relu(self.norms[1](self.conv(x[:, :, ::2])))
            return [first, second, F.relu(self.norms[0](self.conv(first))), self.conv(second)]

    graph = traced(Heads())
    assert "batchnorm2d" not in [facts(node).op for node in graph.nodes]


@pytest.mark.parametrize("affine", [True, False])
def test_linear_with_batch_norm_is_folded(affine: bool) -> None:
    norm = nn.BatchNorm1d(5, affine=affine)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 36, 5), norm, nn.ReLU(), nn.Linear(5, 2))
    assert [facts(n).op for n in traced(net, images(3, size=6)).nodes if facts(n).op == "batchnorm1d"] == []


@pytest.mark.parametrize("features", [4, 5])
def test_batch_norm_of_positions_is_not_folded_into_a_linear_layer(features: int) -> None:
    """Tokens (B, 5, 6) → (B, 5, features): the norm's five channels are no outputs of the layer, even where it has as
    many."""
    net = nn.Sequential(nn.Linear(6, features), nn.BatchNorm1d(5), nn.ReLU())
    assert [facts(n).op for n in traced(net, torch.rand(3, 5, 6)).nodes][1:3] == ["linear", "batchnorm1d"]


@pytest.mark.parametrize(
    "body",
    [
        lambda net, x: net.norm(torch.cat((x, x.flip(1)), 1)[:, 2:6]).relu(),
        lambda net, x: net.norm(x).relu() + x,  # the convolution's own output is needed too
        lambda net, x: net.norm(x.relu()),
        lambda net, x: net.norm(net.up(x)).relu(),
    ],
    ids=["after concat", "output used twice", "after the activation", "after a transposed convolution"],
)
def test_batch_norm_that_cannot_be_folded_stays_linear(body: Callable) -> None:
    graph = layer(body, norm=nn.BatchNorm2d(4), up=nn.ConvTranspose2d(4, 4, 2, 2))
    assert [facts(node).kind for node in graph.nodes if facts(node).op == "batchnorm2d"] == [Kind.LINEAR]


class DropPath(nn.Module):
    """As many networks write stochastic depth for themselves."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * torch.bernoulli(torch.full((len(x), 1, 1, 1), 0.5))


def test_dropout_goes() -> None:
    def body(net: Layer, x: Tensor) -> Tensor:
        torch._assert(x.shape[1] == 4, "four channels")
        x = F.dropout(net.drop(x.relu()), 0.5, net.training)
        x = F.dropout2d(net.drop2d(x), training=net.training)
        x = F.feature_alpha_dropout(net.alpha(x), 0.5, net.training)
        x = stochastic_depth(net.depth(x), 0.5, "row", net.training)
        return net.path(net.block(x))

    graph = layer(
        body,
        drop=nn.Dropout(),
        drop2d=nn.Dropout2d(inplace=True),
        alpha=nn.FeatureAlphaDropout(),
        depth=StochasticDepth(0.5, "batch"),
        block=DropBlock2d(0.5, 3),
        path=DropPath(),
    )
    ops = [facts(node).op for node in graph.nodes if facts(node).kind is not Kind.SHAPE]
    assert ops == ["placeholder", "conv2d", "relu", "conv2d", "output"]


LINEAR = {
    "add and concat": lambda net, x: torch.cat((x + x.flip(1), x), 1)[:, :4],
    "arithmetic": lambda net, x: (2 - x / 3) * 4 - 1,
    "sum": lambda net, x: sum([x, x.flip(1), x.flip(2)]),
    "nearest": lambda net, x: F.interpolate(x, scale_factor=2),
    "to the size of another": lambda net, x: F.interpolate(x[:, :, ::2], size=x.shape[-2:]) + x,
    "bilinear": lambda net, x: F.interpolate(x, (7, 9), mode="bilinear"),
    "upsample": lambda net, x: net.module(x),
    "to one number": lambda net, x: F.linear(x, net.vector)[..., None],
    "to one number and a bias": lambda net, x: F.linear(x, net.vector, net.vector[0])[..., None],
    "picked by a constant": lambda net, x: x.take_along_dim(net.mask.long()[None, None], 2),
    "pad": lambda net, x: F.pad(x, (1, 0, 2, 1), value=0.5),
    "average": lambda net, x: F.avg_pool2d(x, 2) + F.adaptive_avg_pool2d(x, 1),
    "mean": lambda net, x: x.mean((2, 3), keepdim=True) + x.mean(1, keepdim=True),
    "reshape": lambda net, x: x.view(x.size(0), 2, 2, 12, 12).transpose(1, 2).reshape(x.shape),
    "permute": lambda net, x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
    "flatten": lambda net, x: x.flatten(2).unflatten(2, (12, 12)),
    "chunk": lambda net, x: torch.cat(x.chunk(2, 1)[::-1], 1),
    "split": lambda net, x: torch.cat(torch.split(x, [3, 1], 1), 1),
    "split in three": lambda net, x: torch.cat(torch.tensor_split(x, 3, 1)[::-1] + x.tensor_split([1], 1)[1:], 1)[
        :, :4
    ],
    "broadcast": lambda net, x: x + torch.broadcast_to(x.mean((2, 3), keepdim=True), x.shape),
    "filled like it": lambda net, x: x - torch.full_like(x, 0.5) + x.new_full((12,), 2.0),
    "stack": lambda net, x: torch.stack([x.unbind(1)[i] for i in (3, 2, 1, 0)], 1),
    "parameter": lambda net, x: x * net.scale + net.scale,
    "zeros": lambda net, x: torch.cat((x, torch.zeros_like(x)), 1)[:, 2:6],
    "pixel shuffle": lambda net, x: F.pixel_shuffle(x, 2).repeat(1, 4, 1, 1),
    "pixel unshuffle": lambda net, x: F.pixel_unshuffle(x, 2)[:, ::4],
    "channel shuffle": lambda net, x: F.channel_shuffle(x, 2),
    "roll": lambda net, x: torch.roll(x, (1, -2), (2, 3)) + x.roll(1, 1),
    "rotation": lambda net, x: torch.rot90(x, 1, (2, 3)) + torch.fliplr(x),
    "unfold": lambda net, x: F.fold(F.unfold(x, 3, padding=1), (12, 12), 3, padding=1),
    "windows": lambda net, x: x.unfold(2, 4, 4).mean(-1).repeat_interleave(4, 2),
    "reflected border": lambda net, x: F.pad(x, (2, 1, 1, 2), mode="reflect"),
    "replicated border": lambda net, x: F.pad(x, (2, 1, 1, 2), mode="replicate"),
    "border all around": lambda net, x: F.pad(x, (2, 1, 1, 2), mode="circular"),
    "bicubic": lambda net, x: F.interpolate(x, (20, 17), mode="bicubic"),
    "area": lambda net, x: F.interpolate(x, (5, 6), mode="area"),
    "antialiased": lambda net, x: F.interpolate(x, (5, 6), mode="bilinear", antialias=True),
    "nearest, exactly": lambda net, x: F.interpolate(x, (20, 17), mode="nearest-exact"),
    "stacked side by side": lambda net, x: torch.hstack((x, +x))[:, 2:6],
    "shape of another": lambda net, x: x.flatten(1).view_as(x) + x.mean((2, 3), keepdim=True).expand_as(x),
    "type of another": lambda net, x: x.type_as(x) + x.type(torch.float32),
    "chosen by a buffer": lambda net, x: torch.where(net.mask, x, 2 * x + 1) + x.where(net.mask, net.scale),
    "filled by a buffer": lambda net, x: x.masked_fill(net.mask, 0.3),
    "filled by a buffer in place": lambda net, x: (1 * x).masked_fill_(net.mask, 0.3),
    "einsum": lambda net, x: torch.einsum("bchw,cd->bdhw", x, net.square),
    "einsum on the right": lambda net, x: torch.einsum("dc,bc...->bd...", net.square, x),
    "einsum of one": lambda net, x: torch.einsum("bchw->bcwh", x),
    "matrix product": lambda net, x: (x.flatten(2).transpose(1, 2) @ net.square).transpose(1, 2).view(x.shape),
}


@pytest.mark.parametrize("body", LINEAR.values(), ids=LINEAR)
def test_linear_operations_are_linear(body: Callable) -> None:
    graph = layer(
        lambda net, x: body(net, x.relu()),
        module=nn.Upsample(scale_factor=2),
        scale=parameter(4),
        mask=nn.Buffer(torch.arange(144).reshape(12, 12) % 3 > 0),
        square=nn.Parameter(torch.arange(16.0).reshape(4, 4) / 8 - 1),
        vector=nn.Parameter(torch.arange(12.0) / 6 - 1),
    )
    kinds = {facts(node).kind for node in graph.nodes}
    assert kinds <= {Kind.INPUT, Kind.LINEAR, Kind.SPIKING, Kind.SHAPE, Kind.OUTPUT}
    assert facts(graph.nodes[1]).kind is Kind.LINEAR
    assert facts(graph.nodes[-2]).kind is Kind.LINEAR
    a, b = (torch.randn(2, 4, 12, 12, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    of_sum, of_none, of_a, of_b = (behind(graph, graph.sites[0], x) for x in (a + b, 0 * a, a, b))
    assert torch.allclose(of_sum + of_none, of_a + of_b, atol=1e-5 * of_sum.abs().max().item())


def behind(graph: Graph, site: Node, value: Tensor) -> Tensor:
    """The network's output with ``value`` in place of what the call site gives."""
    env: dict[Node, Any] = {}
    for node in graph.nodes:
        env[node] = images() if node.op == "placeholder" else value if node is site else graph.evaluate(node, env)
    return env[graph.nodes[-1]]


DIFFERENTIAL = {
    "max pooling": lambda net, x: F.max_pool2d(x, 2),
    "product of branches": lambda net, x: x * x.mean((2, 3), keepdim=True),
    "quotient": lambda net, x: 1 / (1 + x),
    "softmax": lambda net, x: F.softmax(x, 1),
    "group norm": lambda net, x: F.group_norm(x, 2),
    "L2 norm": lambda net, x: F.normalize(x),
    "norm of vectors": lambda net, x: torch.linalg.vector_norm(x, dim=3, keepdim=True),
    "norm of linear algebra": lambda net, x: torch.linalg.norm(x, dim=2, keepdim=True),
    "read between pixels": lambda net, x: F.grid_sample(x, x.permute(0, 2, 3, 1)[..., :2], align_corners=False),
    "amax": lambda net, x: x.amax(2, keepdim=True),
    "first of a maximum": lambda net, x: x.max(2, keepdim=True)[0],
    "values of a minimum": lambda net, x: torch.min(input=x, dim=-1).values[..., None],
    "largest": lambda net, x: x.topk(4, 2).values,
    "smallest of them": lambda net, x: torch.topk(input=x, k=4, dim=2, largest=False)[0],
    "larger of two": lambda net, x: torch.maximum(x, x.flip(1)),
    "gated linear unit": lambda net, x: F.glu(x, 1).repeat(1, 2, 1, 1),
    "einsum of branches": lambda net, x: torch.einsum("bchw,bdhw->bcd", x, x)[:, :, :1, None],
    "weighted mean": lambda net, x: torch.lerp(x, x.flip(1), 0.3),
    "deviation": lambda net, x: x.std((2, 3), keepdim=True),
    "square in place": lambda net, x: squared_in_place(x),
    "instance norm": lambda net, x: F.instance_norm(x),
    "sign, of traced power pooling": lambda net, x: x.sign(),
}


def squared_in_place(x: Tensor) -> Tensor:
    x = 1 * x
    x **= 2
    return x


@pytest.mark.parametrize("body", DIFFERENTIAL.values(), ids=DIFFERENTIAL)
def test_the_rest_is_differential(body: Callable) -> None:
    graph = layer(lambda net, x: body(net, x.relu()))
    assert [facts(node).kind for node in graph.nodes].count(Kind.DIFFERENTIAL) == 1


def marked(values: Tensor, places: Tensor) -> Tensor:
    return values * (places > 1)


MASKS = {
    "choice": (lambda x: torch.where(x > 0.5, x, 0.1 * x), ["gt", "where"]),
    "choice by method": (lambda x: x.where(x.ge(0.5), 0.1 * x), ["ge", "where"]),
    "filled": (lambda x: x.masked_fill(x < 0.5, 0.0), ["lt", "maskedfill"]),
    "factor": (lambda x: x * (x > 0.5), ["gt", "mul"]),
    "factor as float": (lambda x: x * (x > 0.5).float(), ["gt", "float", "mul"]),
    "logic": (
        lambda x: torch.where((x > 0.5) & ~(x > 2) | (x == 0), x, 1),
        ["gt", "gt", "invert", "and", "eq", "or", "where"],
    ),
    "reshaped": (lambda x: torch.where((x.flatten(2) > 0.5).view(x.shape), x, -x), ["gt", "reshape", "where"]),
    "all and any of a row": (
        lambda x: torch.where((x > 0.5).all(3, True) | torch.any(x < 0.1, 3, True), x, -x),
        ["gt", "all", "lt", "any", "or", "where"],
    ),
    "counted": (lambda x: x / (1 + (x > 0.5).sum(1, keepdim=True)), ["gt", "sum", "add", "truediv"]),
    "places of the largest": (lambda x: x.gather(3, x.topk(9)[1]), ["topkplaces", "gather"]),
    "place of the largest": (lambda x: x.take_along_dim(x.argmax(2, True), 2), ["argmax", "takealongdim"]),
    "the largest and its place": (lambda x: marked(*x.max(2, keepdim=True)), ["amax", "argmax", "gt", "mul"]),
    "whole numbers": (lambda x: (10 * x).to(torch.int32).float(), ["to", "float"]),
}


@pytest.mark.parametrize(("body", "ops"), MASKS.values(), ids=MASKS)
def test_what_a_mask_touches_is_differential(body: Callable, ops: list[str]) -> None:
    graph = layer(lambda net, x: body(x.relu()))
    assert [facts(node).op for node in graph.nodes if facts(node).kind is Kind.DIFFERENTIAL] == ops


def test_buffers_spread_over_the_image_are_followed() -> None:
    """Antialiased downsampling as it is usually written: a buffer's method takes a size of the image."""

    def blur(net: Layer, x: Tensor) -> Tensor:
        kernel = net.kernel.expand(x.shape[1], -1, -1, -1)
        return F.conv2d(F.pad(x.relu(), (1, 1, 1, 1), "reflect"), kernel, stride=2, groups=x.shape[1])

    graph = layer(blur, kernel=nn.Buffer(torch.arange(9.0).reshape(1, 1, 3, 3) / 36))
    assert [facts(node).op for node in graph.nodes if facts(node).kind is Kind.LINEAR].count("conv2d") == 3


def test_the_data_of_a_tensor_is_itself() -> None:
    graph = layer(lambda net, x: x.relu().data.view(x.data.size(0), 2, 2, 12, 12).transpose(1, 2).reshape(x.shape))
    assert len(graph.sites) == 1


def test_a_choice_by_another_input_is_differential() -> None:
    class Chosen(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 1)

        def forward(self, x: Tensor, seen: Tensor) -> Tensor:
            return torch.where(seen, self.conv(x).relu(), 0.5)

    graph = trace(randomise(Chosen()), (images(), images(channels=1) > 0))
    assert [facts(node).op for node in graph.nodes if facts(node).kind is Kind.DIFFERENTIAL] == ["where"]


class Queries(nn.Module):
    """A DETR: what a layer makes of learned queries alone is a constant, however often it is repeated."""

    def __init__(self):
        super().__init__()
        self.conv, self.queries = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.rand(5, 8))
        self.decoder = nn.TransformerDecoderLayer(8, 2, 16, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.queries.repeat(x.shape[0], 1, 1), self.conv(x).relu().flatten(2).transpose(1, 2))


def test_layers_on_learned_queries_are_constants() -> None:
    net = Queries().eval()
    graph = trace(net, images())
    own = [node for node in graph.nodes if facts(node).op in ("linear", "matmul", "bmm") and not facts(node).shape]
    assert own
    assert {facts(node).kind for node in own} == {Kind.SHAPE}
    assert torch.allclose(graph(images(3, seed=4)), net(images(3, seed=4)), atol=1e-5)


class Named(NamedTuple):
    scores: Tensor
    boxes: Any


@dataclass
class Known:
    scores: Tensor
    boxes: Any


@dataclass
class Unknown:
    scores: Tensor


class Giving(nn.Module):
    """Gives what ``give`` makes of an activation."""

    def __init__(self, give: Callable[[Tensor], Any]):
        super().__init__()
        self.conv, self.give = nn.Conv2d(3, 2, 1), give

    def forward(self, x: Tensor) -> Any:
        return self.give(self.conv(x).relu())


@pytest.mark.parametrize("kind", [Named, Known])
def test_outputs_in_classes_of_ones_own(kind: Callable[..., Any]) -> None:
    if kind is Known and Known not in pytree.SUPPORTED_NODES:
        pytree.register_dataclass(Known)
    net, fresh = Giving(lambda y: [kind(y, {"all": (2 * y, y.shape[0], None)})]).eval(), images(3, seed=4)
    graph = trace(net, images())
    got, expected = graph(fresh), net(fresh)
    assert pytree.tree_structure(got) == pytree.tree_structure(expected)
    assert type(got[0]) is kind
    for a, b in zip(pytree.tree_leaves(got), pytree.tree_leaves(expected), strict=True):
        assert torch.allclose(a, b, atol=1e-6) if isinstance(b, Tensor) else a == b


def test_outputs_that_nobody_can_look_into_are_refused() -> None:
    """They would be those of calibration for every image."""
    with pytest.raises(InputError, match=r"Giving gives a Unknown: .* or make the class known"):
        trace(Giving(Unknown).eval(), images())
    with pytest.raises(InputError, match="Giving gives a set"):
        trace(Giving(lambda y: [y, {1}]).eval(), images())


def test_outputs_keep_their_structure() -> None:
    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 1)

        def forward(self, x: Tensor) -> dict:
            y = self.conv(x).relu()
            return {"boxes": [y, (y + 1, {"deep": y * 2})], "scores": (self.conv(x),), "image": x}

    traced(Nested())


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 2, 1), nn.Conv2d(1, 2, 1)

    def forward(self, image: Tensor, depth: Tensor, scale: float = 2.0, mask: Tensor | None = None) -> Tensor:
        y = F.relu(self.a(image)) + scale * F.relu(self.b(depth))
        return y if mask is None else y * mask


def test_two_inputs_as_tuple_and_dict() -> None:
    image, depth = images(), images(channels=1, seed=5)
    by_position = traced(TwoInputs(), (image, depth))
    by_name = traced(TwoInputs(), {"depth": depth, "image": image})
    assert by_position.inputs == ["image", "depth"]
    assert torch.equal(by_position((image, depth)), by_name({"image": image, "depth": depth}))
    masked = traced(TwoInputs(), {"image": image, "depth": depth, "mask": depth})
    assert "mask" in masked.inputs


def test_a_batch_that_does_not_fit_the_inputs() -> None:
    image, depth = images(), images(channels=1)
    graph = trace(TwoInputs(), (image, depth))
    for batch in (image, (image,), {"image": image}, {"image": image, "mask": depth}):
        assert_input_error(lambda batch=batch: graph(batch), "image")
    assert_input_error(lambda: trace(TwoInputs(), {"image": image, "detph": depth}), "TwoInputs.forward", "depth")
    assert_input_error(lambda: trace(TwoInputs(), image), "TwoInputs.forward", "depth")


def test_defaults_of_forward_are_part_of_the_trace() -> None:
    class Switched(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 1)

        def forward(self, x: Tensor, twice: bool = False, *, heads: list | None = None) -> Tensor:
            x = self.conv(x)
            return x if twice or heads else F.relu(x)

    graph = traced(Switched())
    assert graph.inputs == ["x"]
    assert len(graph.sites) == 1


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_trace_and_stay_as_they_are(name: str) -> None:
    net = build(name).train()
    for parameter in net.parameters():
        parameter.requires_grad_(True)
    before, batch = copy.deepcopy(net.state_dict()), images()
    flags = [getattr(module, "inplace", None) for module in net.modules()]
    trace(net, batch)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(module.training for module in net.modules())
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert [getattr(module, "inplace", None) for module in net.modules()] == flags
    assert torch.equal(batch, images())


def test_a_network_that_writes_into_its_input_leaves_the_callers_images() -> None:
    class Centred(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x -= 0.5
            return self.conv(x.mul_(2)).relu()

    batch = images()
    trace(Centred(), batch)
    assert torch.equal(batch, images())


def test_every_node_says_where_it_comes_from() -> None:
    graph = layer(lambda net, x: net.block(x), block=nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 1)))
    assert all("test_graph.py:" in facts(n).source for n in graph.nodes if n.op.startswith("call"))
    resnet = trace(torchvision.models.resnet18(num_classes=2), images(size=32))
    assert all(
        re.search(r"torchvision.models.resnet\.py:\d+: \w", facts(n).source)
        for n in resnet.nodes
        if n.op.startswith("call")
    )
    assert len(resnet.sites) == 17
    assert not [n for n in resnet.nodes if facts(n).op.startswith("batchnorm")]


def assert_input_error(call: Callable[[], Any], *parts: str) -> None:
    """One line that holds all of the parts."""
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def overwrite_view(net: Layer, x: Tensor) -> Tensor:
    y = x.flatten(2)
    y.relu_()
    return x


def overwrite_viewed(net: Layer, x: Tensor) -> Tensor:
    y = x.transpose(2, 3)
    x.relu_()
    return y


def count_calls(net: Layer, x: Tensor) -> Tensor:
    net.state.add_(x.mean())
    return x.relu() + net.state


def branch(net: Layer, x: Tensor) -> Tensor:
    return x.relu() if x.mean() > 0 else x


def largest(net: Layer, x: Tensor) -> Tensor:
    values, places = net.pool(x.relu())
    return values * (places > 1)


REFUSED = {
    "branch on data": (branch, "x.mean() > 0", "outside the dense part"),
    "loop over data": (lambda net, x: sum(row.relu() for row in x), "outside the dense part"),
    "number from data": (lambda net, x: x.relu() * float(x.mean()), "outside the dense part"),
    "in place, view": (overwrite_view, "'relu_'", "y.relu_()", "out-of-place"),
    "in place, viewed": (overwrite_viewed, "'relu_'", "x.relu_()", "out-of-place"),
    "state": (count_calls, "'add_'", "net.state.add_", "state"),
    "unknown operation": (lambda net, x: torch.sort(x.relu())[0], "'sort'", "torch.sort", "ops.py"),
    "unknown method": (lambda net, x: x.relu().cumsum(1), "'cumsum'", "ops.py"),
    "unknown module": (lambda net, x: net.gru(x.flatten(2))[0].view(x.shape), "'gru'", "ops.py"),
    "property of data": (lambda net, x: x.relu().real, "'getattr", "ops.py"),
    "integer division": (lambda net, x: x.relu() // 2, "'floordiv'", "ops.py"),
    "remainder": (lambda net, x: x.relu() % 2, "'mod'", "ops.py"),
    "rounded quotient": (lambda net, x: torch.div(x.relu(), 2, rounding_mode="floor"), "'div'", "ops.py"),
    "two outputs": (largest, "'pool'", "return_indices"),
    "bounds from data": (lambda net, x: torch.clamp(x, max=x.mean((2, 3), keepdim=True)), "'clamp'", "parameters"),
    "mean over images": (lambda net, x: x.relu() - x.mean(0, keepdim=True), "'mean'", "dimension 0"),
    "maximum of all": (lambda net, x: x.relu() / x.max(), "'max_1'", "dimension 0"),
    "softmax over images": (lambda net, x: F.softmax(x, 0), "'softmax'", "dimension 0"),
    "other order of images": (lambda net, x: x.relu().flip(0), "'flip'", "dimension 0"),
    "images as channels": (lambda net, x: x.relu().view(1, -1, 12, 12)[:, :4], "'view'", "dimension 0"),
    "batch statistics": (lambda net, x: net.norm(x).relu(), "'norm'", "dimension 0"),
    "randomness": (lambda net, x: F.dropout(x.relu()), "randomness"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_refusals_name_node_line_and_mend(case: tuple) -> None:
    body, *parts = case
    net = Layer(body, state=nn.Buffer(torch.zeros(1)), norm=nn.BatchNorm2d(4, track_running_stats=False))
    net.gru, net.pool = nn.GRU(144, 144), nn.MaxPool2d(3, 1, 1, return_indices=True)
    where = [] if parts == ["randomness"] else ["test_graph.py:"]
    assert_input_error(lambda: trace(net, images()), *parts, *where)


def test_code_that_fx_has_made_is_no_source() -> None:
    """Its file's name counts the graphs made before it, so equal runs left different files."""

    class Inner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.max_pool2d(F.relu(x), 2)

    net = torch.fx.symbolic_trace(Inner())
    assert {facts(node).source for node in trace(net, images()).nodes} == {"no source line"}
    (site,) = trace(Layer(lambda layer, x: net(x)), images()).sites
    assert "test_graph.py" in facts(site).source


def test_nan_in_weights_is_named() -> None:
    net = build("plain")
    net.features[1][0].weight[2, 3, 1, 1] = float("nan")
    assert_input_error(lambda: trace(net, images()), "'features_1_0'", "NaN", "weights")


def by_batch(net: nn.Module, x: Tensor) -> Tensor:
    return x * x.sigmoid() * (1 + 1e-6 * float(x.shape[0]))


def test_rounding_is_no_reason_to_refuse_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here as on a black image, where the rounding of some networks is above what is allowed."""
    net = randomise(Layer(lambda net, x: x * x.sigmoid()))
    assert 1e-9 < (trace(net, images())(images()) - net(images())).abs().max() < 1e-5
    monkeypatch.setattr("msat_det.graph.trace._TOLERANCE", 1e-9)
    assert [site.name for site in trace(net, images()).sites] == ["silu"]
    with pytest.raises(InputError, match=r"differ from the network's|another number of images"):
        trace(randomise(Layer(by_batch)), images())


def test_rounding_of_folded_weights_is_no_reason_either() -> None:
    """On nearly the same value everywhere a batch norm takes a large mean off: what is left is less than the rounding
    of float32's weights, folded or not."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    x = 1 + 1e-6 * images()
    with torch.no_grad():
        net[0].weight.copy_(randomise(nn.Conv2d(3, 4, 3)).weight.abs() * 100)
        plain = net[0].double()(x.double())
        net[0].float(), net.eval()
        net[1].running_mean.copy_(plain.mean((0, 2, 3)))
        net[1].running_var.copy_(plain.var((0, 2, 3)))
    assert [facts(node).op for node in trace(net, x).nodes] == ["placeholder", "conv2d", "relu", "output"]


@pytest.mark.parametrize("value", [0.0, 1.0, 1e-6, -2.0])
@pytest.mark.parametrize("name", NETWORKS)
def test_images_of_one_value_trace(name: str, value: float) -> None:
    net, x = build(name), torch.full((2, 3, 12, 12), value)
    graph = trace(net, x)
    for a, b in zip(pytree.tree_leaves(graph(images())), pytree.tree_leaves(net(images())), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)
