"""The networks of the GPU's benchmark: random weights, observed where they lie."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import networks
from msat_det.base.config import Model
from msat_det.graph.graph import Graph
from msat_det.methods.convert import spiking_network
from msat_det.methods.observe import Observation, observe
from msat_det.models import build_detector
from msat_det.models.class_names import COCO_COLUMNS, NO_CLASS
from msat_det.models.ssd import SsdDetector
from msat_det.spiking.network import SpikingNetwork


def unit(inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> nn.Sequential:
    """Convolution, batch norm, SiLU."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.SiLU())


class Split(nn.Module):
    """A cross-stage partial block: half of the channels go through ``depth`` residual pairs, half go past them."""

    def __init__(self, inputs: int, outputs: int, depth: int, residual: bool = True):
        super().__init__()
        half = outputs // 2
        self.past, self.into, self.out = unit(inputs, half), unit(inputs, half), unit(outputs, outputs)
        self.pairs = nn.ModuleList(nn.Sequential(unit(half, half), unit(half, half, 3)) for _ in range(depth))
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        y = self.into(x)
        for pair in self.pairs:
            y = y + pair(y) if self.residual else pair(y)
        return self.out(torch.cat((y, self.past(x)), 1))


class YoloxLike(nn.Module):
    """A network of YOLOX-s's form, width and depth: CSP backbone, pyramid pooling, two-way pyramid, decoupled heads."""

    def __init__(self, classes: int = 80, width: int = 32):
        super().__init__()
        w = width
        self.stem = unit(3, w, 6, 2)
        self.stages = nn.ModuleList(
            nn.Sequential(unit(a, b, 3, 2), Split(b, b, depth))
            for a, b, depth in ((w, 2 * w, 1), (2 * w, 4 * w, 3), (4 * w, 8 * w, 3))
        )
        self.deep, self.narrow = unit(8 * w, 16 * w, 3, 2), unit(16 * w, 8 * w)
        self.pools = nn.ModuleList(nn.MaxPool2d(size, 1, size // 2) for size in (3, 5))
        self.wide = nn.Sequential(unit(24 * w, 16 * w), Split(16 * w, 16 * w, 1, False))
        self.lateral = nn.ModuleList((unit(16 * w, 8 * w), unit(8 * w, 4 * w)))
        self.up = nn.Upsample(scale_factor=2)
        self.merged = nn.ModuleList((Split(16 * w, 8 * w, 1, False), Split(8 * w, 4 * w, 1, False)))
        self.down = nn.ModuleList((unit(4 * w, 4 * w, 3, 2), unit(8 * w, 8 * w, 3, 2)))
        self.last = nn.ModuleList((Split(8 * w, 8 * w, 1, False), Split(16 * w, 16 * w, 1, False)))
        self.stems = nn.ModuleList(unit(size, 4 * w) for size in (4 * w, 8 * w, 16 * w))
        self.towers = nn.ModuleList(
            nn.Sequential(unit(4 * w, 4 * w, 3), unit(4 * w, 4 * w, 3), nn.Conv2d(4 * w, outputs, 1))
            for _ in range(3)
            for outputs in (classes, 5)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stages[0](self.stem(x))
        low = self.stages[1](x)
        middle = self.stages[2](low)
        deep = self.narrow(self.deep(middle))
        high = self.lateral[0](self.wide(torch.cat([deep, *(pool(deep) for pool in self.pools)], 1)))
        inner = self.lateral[1](self.merged[0](torch.cat((self.up(high), middle), 1)))
        levels = [self.merged[1](torch.cat((self.up(inner), low), 1))]
        for down, beside, last in zip(self.down, (inner, high), self.last, strict=True):
            levels.append(last(torch.cat((down(levels[-1]), beside), 1)))
        stems = [stem(level) for stem, level in zip(self.stems, levels, strict=True)]
        return [tower(stems[i // 2]) for i, tower in enumerate(self.towers)]


def _yolox() -> networks.Source:
    return networks.Source(YoloxLike(), 640, "random")


def _ssd_mobilenet() -> networks.Source:
    """With random weights where there are none: its boxes mean nothing then, and are as many as there can be."""
    source = networks.ssd_mobilenet()
    if source.model is None:
        columns = [i for i, name in enumerate(COCO_COLUMNS) if name not in NO_CLASS]
        names, priors = [COCO_COLUMNS[i] for i in columns], torch.rand(1917, 4)
        source.model = SsdDetector(source.net, names, 300, priors, activation="sigmoid", columns=columns)
    return source


def _retinanet() -> networks.Source:
    model = build_detector(Model("retinanet_resnet50_fpn", size=800))
    return networks.Source(model.net, 800, "random", model)


NETWORKS: dict[str, Callable[[], networks.Source]] = {
    "ssd300-vgg16": networks.ssd300_vgg16,
    "ssd-mobilenet": _ssd_mobilenet,
    "retinanet-r50": _retinanet,
    "yolox-like": _yolox,
    "resnet20": networks.resnet20,
}
NEURONS = {name: networks.NEURONS[name] for name in ("if", "if-signed-burst", "msat")}
NEURONS["delta-3"] = "delta", {"bits": 7, "terms": (3,)}


@dataclass
class Bench:
    """A network on a device, observed. size: its input's side. model: the detector around it, if anything."""

    observation: Observation
    size: int
    model: Any

    def images(self, count: int) -> Tensor:
        """(count, 3, size, size), normal, on the network's device."""
        device = self.observation.graph.device
        generator = torch.Generator(device).manual_seed(1)
        return torch.randn(count, 3, self.size, self.size, device=device, generator=generator)

    def network(self, neuron: str, T: int, precision: str = "float32") -> SpikingNetwork:
        method, options = NEURONS[neuron]
        snn = spiking_network(method, options, self.observation, T)
        snn.precision = precision
        return snn

    def floating(self, precision: str = "float32") -> Graph:
        """The float network with its convolutions in this precision."""
        return replace(self.observation.graph, precision=precision)


@lru_cache(1)  # more would add to the next one's memory
def load(name: str, device: torch.device) -> Bench:
    """The network by its name. Raises InputError where a file that it needs is missing."""
    torch.manual_seed(0)
    source = NETWORKS[name]()
    net = source.net.eval().to(device)
    x = torch.randn(networks.OBSERVED, 3, source.size, source.size, device=device)
    return Bench(observe(net, [x]), source.size, source.model)
