"""Small networks that many tests share, and counts by brute force that owe nothing to the converter."""

import copy
import functools
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from msat_det.methods.observe import Observation, observe


def block(inputs: int, outputs: int, kernel: int = 3, act: type[nn.Module] = nn.ReLU, **options: int) -> nn.Sequential:
    """Convolution, batch norm, activation."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **options)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), act())


class Plain(nn.Module):
    """A classifier: convolutions, ReLU, global average, linear."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(block(3, 6), block(6, 8, stride=2), block(8, 8))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))


class Residual(nn.Module):
    """A residual block with one shared ReLU6, so that one module is two call sites."""

    def __init__(self):
        super().__init__()
        self.stem = block(3, 6, act=nn.ReLU6)
        self.branch = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6))
        self.deep = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.act = nn.ReLU6(inplace=True)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.act(x + self.branch(x))
        return self.head(self.act(self.deep(x)))


class Yolo(nn.Module):
    """Two heads as in YOLO: max pooling, spatial pyramid, upsampling, concatenation; its outputs are a dict."""

    def __init__(self):
        super().__init__()
        self.fine = nn.Sequential(block(3, 6), nn.MaxPool2d(2), block(6, 6))
        self.coarse = nn.Sequential(nn.MaxPool2d(2), block(6, 8))
        self.lateral = block(16, 4, 1)
        self.up = nn.Upsample(scale_factor=2)
        self.neck = block(10, 6)
        self.heads = nn.ModuleList([nn.Conv2d(6, 5, 1), nn.Conv2d(4, 5, 1)])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        fine = self.fine(x)
        coarse = self.coarse(fine)
        coarse = self.lateral(torch.cat((coarse, F.max_pool2d(coarse, 3, 1, 1)), 1))
        merged = self.neck(torch.cat((self.up(coarse), fine), 1))
        return {"fine": self.heads[0](merged), "coarse": self.heads[1](coarse)}


class Bottleneck(nn.Module):
    """Inverted residuals as in MobileNetV2: the expansion's input is no spike train."""

    def __init__(self):
        super().__init__()
        self.stem = block(3, 4, act=nn.ReLU6, stride=2)
        wide = (block(4, 8, 1, act=nn.ReLU6), block(8, 8, act=nn.ReLU6, groups=8))
        self.first = nn.Sequential(*wide, nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4))
        self.second = nn.Sequential(*copy.deepcopy(wide), nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4))
        self.last = block(4, 8, 1, act=nn.ReLU6)
        self.head = nn.Conv2d(8, 5, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        x = self.first(self.stem(x))
        x = x + self.second(x)
        return (self.head(self.last(x)),)


NETWORKS = {"plain": Plain, "residual": Residual, "yolo": Yolo, "bottleneck": Bottleneck}


def build(name: str) -> nn.Module:
    """One of ``NETWORKS`` with weights and batch norm statistics drawn at random, in evaluation mode."""
    return randomise(NETWORKS[name]())


def randomise(net: nn.Module, seed: int = 0) -> nn.Module:
    """Weights that keep activations near 1 through the layers, biases and batch norms that matter."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            module.weight.data.normal_(0, (2 / module.weight[0].numel()) ** 0.5, generator=generator)
            if module.bias is not None:
                module.bias.data.normal_(0, 0.2, generator=generator)
        elif hasattr(module, "running_mean") and module.running_mean is not None:
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            if module.weight is not None:
                module.weight.data.uniform_(0.8, 1.4, generator=generator)
                module.bias.data.normal_(0, 0.3, generator=generator)
    return net.eval().requires_grad_(False)


@torch.no_grad()
def unit_variance(net: nn.Module, batch: Tensor, seed: int = 0) -> Any:
    """Seeded weights under which every layer has something to say, as a trained network's have. Returns the outputs.

    Convolutions and linear layers: Kaiming normal, each scaled when first called so that its output has unit variance
    (layer-sequential unit variance, Mishkin & Matas 2016). Batch norm: mean N(0, .3), variance .5–1.5, scale .8–1.4,
    shift N(0, .3).
    """
    generator, scaled, hooks = torch.Generator().manual_seed(seed), set(), []

    def scale(layer: nn.Module, args: tuple, out: Tensor) -> Tensor | None:
        if layer in scaled:
            return None
        scaled.add(layer)
        bias = torch.zeros(()) if layer.bias is None else layer.bias
        bias = bias.reshape(-1, *([1] * (layer.weight.dim() - 2)))
        deviation = (out - bias).std()
        layer.weight /= deviation
        return (out - bias) / deviation + bias

    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, generator=generator)
            hooks.append(module.register_forward_hook(scale))
        elif isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in ((module.running_var, 0.5, 1.5), (module.weight, 0.8, 1.4)):
                tensor.uniform_(low, high, generator=generator)
            for tensor in (module.running_mean, module.bias):
                tensor.normal_(0, 0.3, generator=generator)
    outputs = net(batch)
    for hook in hooks:
        hook.remove()
    return outputs


def images(count: int = 2, seed: int = 1, size: int = 12, channels: int = 3) -> Tensor:
    """A batch of smooth noise (count, channels, size, size), about −2..2."""
    noise = torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(seed))
    return noise + F.avg_pool2d(noise, 3, 1, 1)


@functools.cache
def observed(name: str) -> Observation:
    """The observation of ``build(name)`` on eight images, none of which ``images`` gives for a small seed."""
    return observe(build(name), [images(4, seed=100), images(4, seed=101)])


# Brute force: a trace of our own, in which signals are followed one by one.


class Follow(fx.Interpreter):
    """Runs a network with the outputs of some nodes replaced; keeps what enters the layers that multiply."""

    def __init__(self, module: fx.GraphModule, emit: dict[str, Tensor]):
        super().__init__(module)
        self.emit = emit
        self.entered: dict[str, Tensor] = {}

    def run_node(self, node: fx.Node) -> object:
        if is_paying(self.module, node):
            self.entered[node.name] = self.env[node.args[0]]
        return self.emit[node.name] if node.name in self.emit else super().run_node(node)


def _layer(module: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return module.get_submodule(node.target) if node.op == "call_module" else None


def is_paying(module: fx.GraphModule, node: fx.Node) -> bool:
    return isinstance(_layer(module, node), nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d | nn.Linear)


def is_event_source(module: fx.GraphModule, node: fx.Node) -> bool:
    """Neurons and max pooling (whose differences count as spikes)."""
    if isinstance(_layer(module, node), nn.ReLU | nn.ReLU6 | nn.MaxPool2d | nn.SiLU | nn.Sigmoid | nn.LeakyReLU):
        return True
    return node.target in (F.relu, torch.relu, F.relu6, F.max_pool2d, torch.sigmoid, "relu")


def is_differential(module: fx.GraphModule, node: fx.Node) -> bool:
    return isinstance(_layer(module, node), nn.Softmax | nn.GroupNorm)


class BruteForce:
    """What every spike of a network costs, found by setting each neuron alone.

    reach: {event source: (C, …) multiply-adds that one spike takes part in}. analog: {layer: multiply-adds paid in
    every timestep}. once: those on what does not change in time. macs: {layer: those of one float forward}.
    """

    def __init__(self, net: nn.Module, batch: Tensor):
        self.module = fx.symbolic_trace(copy.deepcopy(net).eval())
        self.moving: set[str] = set()
        shapes = self._shapes(batch[:1])
        self.macs = {name: products(self._get(name), torch.ones(1, *s)).item() for name, s in self._inputs.items()}
        generator = torch.Generator().manual_seed(0)
        positive = {name: 0.5 + torch.rand(1, *s, generator=generator) for name, s in shapes.items()}
        analog = self._follow({n: positive[n] for n in self._analog_sources})
        static = self._follow({n: positive[n] for n in shapes if n not in self.moving and n not in self._events})
        clean = {name: ~mask for name, mask in analog.items()}
        self.analog = {n: products(self._get(n), mask).item() for n, mask in analog.items() if mask.any()}
        self.once = sum(products(self._get(n), mask & clean[n]).item() for n, mask in static.items())
        self.reach: dict[str, Tensor] = {}
        for name in self._events:
            size = torch.Size(shapes[name]).numel()
            alone = self._follow({name: torch.eye(size).reshape(size, *shapes[name])})
            total = sum(products(self._get(n), mask & clean[n]) for n, mask in alone.items())
            self.reach[name] = total.reshape(shapes[name])

    def _get(self, name: str) -> nn.Module:
        return self.module.get_submodule(next(n.target for n in self.module.graph.nodes if n.name == name))

    def _shapes(self, one: Tensor) -> dict[str, tuple]:
        """Shapes of what can be a source: inputs, event sources, multiplying layers, differential nodes."""
        found, self._inputs, self._events, self._analog_sources = {}, {}, [], []
        values = dict(_values(self.module, one))
        for node in self.module.graph.nodes:
            event = is_event_source(self.module, node)
            if event or any(n.name in self.moving for n in node.all_input_nodes):
                self.moving.add(node.name)
            paying, differential = is_paying(self.module, node), is_differential(self.module, node)
            if event or paying or differential or node.op == "placeholder":
                found[node.name] = tuple(values[node.name].shape[1:])
            if event:
                self._events.append(node.name)
            elif (paying and node.name in self.moving) or differential:
                self._analog_sources.append(node.name)
            if paying:
                self._inputs[node.name] = tuple(values[node.args[0].name].shape[1:])
        self._sources = found
        return found

    def _follow(self, emit: dict[str, Tensor]) -> dict[str, Tensor]:
        """Where the emitted signals arrive at each multiplying layer: masks (signals, C, …)."""
        size = max((len(x) for x in emit.values()), default=1)
        quiet = {name: torch.zeros(size, *shape) for name, shape in self._sources.items()}
        results = []
        for values in (quiet | emit, quiet):  # offsets of affine nodes come in both
            run = Follow(self.module, values)
            run.run(*(values[n.name] for n in self.module.graph.nodes if n.op == "placeholder"))
            results.append(run.entered)
        return {name: results[0][name] != results[1][name] for name in results[0]}


def _values(module: fx.GraphModule, x: Tensor) -> Iterator[tuple[str, Tensor]]:
    class Keep(fx.Interpreter):
        def run_node(self, node: fx.Node) -> object:
            kept[node.name] = super().run_node(node)
            return kept[node.name]

    kept: dict[str, Tensor] = {}
    Keep(module).run(x)
    return iter(kept.items())


def products(layer: nn.Module, mask: Tensor) -> Tensor:
    """Multiply-adds of a layer that the marked elements of its input (N, C, …) take part in: (N,), float64."""
    if isinstance(layer, nn.Linear):
        return mask.double().flatten(1).sum(1) * layer.out_features
    taps = mask.double()
    for axis, length in enumerate(mask.shape[2:]):
        row = torch.tensor(_taps(layer, axis, length), dtype=torch.float64)
        taps = taps * row.reshape([-1 if i == axis + 2 else 1 for i in range(mask.dim())])
    return taps.flatten(1).sum(1) * (layer.out_channels // layer.groups)


def _taps(layer: nn.Module, axis: int, length: int) -> list[int]:
    """How many (output position, kernel tap) pairs each input position of one axis belongs to."""
    kernel, stride, dilation = layer.kernel_size[axis], layer.stride[axis], layer.dilation[axis]
    taps = [0] * length
    if isinstance(layer, nn.ConvTranspose2d):
        pad, extra = layer.padding[axis], layer.output_padding[axis]
        outputs = (length - 1) * stride - 2 * pad + dilation * (kernel - 1) + extra + 1
        for i in range(length):
            for k in range(kernel):
                taps[i] += 0 <= i * stride - pad + k * dilation < outputs
        return taps
    reach = dilation * (kernel - 1)
    if layer.padding in ("same", "valid"):
        total = reach if layer.padding == "same" else 0
        before, after = total // 2, total - total // 2
    else:
        before = after = layer.padding[axis]
    for o in range((length + before + after - reach - 1) // stride + 1):
        for k in range(kernel):
            i = o * stride - before + k * dilation
            if layer.padding_mode == "reflect":
                i = -i if i < 0 else 2 * (length - 1) - i if i >= length else i
            if 0 <= i < length:
                taps[i] += 1
    return taps
