"""The networks of the benchmark, and what runs on them: the float forward pass and simulations by kind of neuron."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from msat_det.base.config import Model
from msat_det.base.errors import InputError
from msat_det.base.settings import data_root, expanded
from msat_det.data import ImageFiles
from msat_det.data.catalogue import get_with
from msat_det.methods.convert import spiking_network
from msat_det.methods.observe import Observation, observe
from msat_det.models import build_detector
from msat_det.models.classifiers import CLASSIFIERS, build_classifier
from msat_det.models.importers.darknet.cfg import parse_cfg
from msat_det.models.importers.darknet.network import DarknetNet
from msat_det.models.ssd import SsdMobileNetV1

# Name → method and its options.
NEURONS: dict[str, tuple[str, dict]] = {
    "if": ("constant", {"percentile": 99.9, "initial": "half"}),
    "if-signed-burst": ("constant", {"scale": "channel", "initial": "half", "signed": True, "gamma": 3}),
    "msat": ("msat", {}),
    "msat-signed": ("msat", {"variant": "normalised", "scale": "channel", "signed": True, "gamma": 3}),
}
MOST = 16  # images, the largest batch
OBSERVED = 2  # images that thresholds are set by


@dataclass
class Source:
    """A network as it is found. model: the detector or classifier around it, where there are weights for one.

    folder: photographs that it is made for, or None. weights: trained or random.
    """

    net: nn.Module
    size: int
    weights: str
    model: Any = None
    folder: Path | None = None


def ssd_mobilenet() -> Source:
    path = expanded(data_root()) / "weights/ssd_mobilenet_v1_075_coco.safetensors"
    if path.is_file():
        model = build_detector(Model("ssd_mobilenet_v1", weights=str(path)))
        return Source(model.net, 300, "trained", model, expanded(data_root()) / "coco_calib64")
    net = SsdMobileNetV1()
    for module in net.modules():  # there is no batch norm to keep the activations in size
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return Source(net, 300, "random")


def yolo_nano() -> Source:
    stem = expanded(data_root()) / "weights/MobileNetV2-YOLOv3-Nano-coco"
    cfg, weights = stem.with_suffix(".cfg"), stem.with_suffix(".weights")
    if weights.is_file():
        model = build_detector(Model("darknet", cfg=str(cfg), weights=str(weights), names="coco"))
        return Source(model.net, 320, "trained", model, expanded(data_root()) / "coco_calib64")
    if not cfg.is_file():
        raise InputError(f"yolo-nano needs {cfg}: {get_with(cfg)}, or leave it out")
    return Source(DarknetNet(parse_cfg(cfg)), 320, "random")


def resnet20() -> Source:
    path = expanded(data_root()) / "weights/cifar100_resnet20.safetensors"
    if path.is_file():
        model = build_classifier(Model("resnet20", weights=str(path), preprocess="cifar"))
        return Source(model.net, 32, "trained", model, expanded(data_root()) / "cifar100_subset/test")
    return Source(CLASSIFIERS["resnet20"].build(100), 32, "random")


def ssd300_vgg16() -> Source:
    return Source(build_detector(Model("ssd300_vgg16")).net, 300, "random")


def vgg16_cifar() -> Source:
    return Source(CLASSIFIERS["vgg16_cifar"].build(100), 32, "random")


NETWORKS: dict[str, Callable[[], Source]] = {
    "ssd-mobilenet": ssd_mobilenet,
    "yolo-nano": yolo_nano,
    "resnet20": resnet20,
    "ssd300-vgg16": ssd300_vgg16,
    "vgg16-cifar": vgg16_cifar,  # for the comparison with SpikingJelly alone
}


@dataclass
class Bench:
    """A network ready to be measured. images: (16, 3, h, w), channels_last. weights: as in ``Source``."""

    observation: Observation
    images: Tensor
    weights: str
    model: Any

    def float_forward(self, batch: int) -> Callable[[], Any]:
        """The float network once: batch norm folded, eager, node by node."""
        x = self.images[:batch]
        return lambda: self.observation.graph(x)

    def simulation(self, neuron: str, batch: int, T: int) -> Callable[[], Any]:
        """T timesteps of one batch from rest."""
        name, options = NEURONS[neuron]
        snn, x = spiking_network(name, options, self.observation, T), self.images[:batch]
        return lambda: snn.run(x, T)


@lru_cache(1)  # more would add to the next one's peak memory
def load(name: str) -> Bench:
    """The network by its name, observed on two images. Raises InputError where a file that it needs is missing."""
    torch.manual_seed(0)
    source = NETWORKS[name]()
    if source.folder and source.folder.is_dir():
        photographs = ImageFiles(source.folder)
        chosen = photographs.ids[:MOST]
        images = torch.stack([source.model.preprocess(photographs.image(id))[0] for id in chosen])
    else:
        images = torch.randn(MOST, 3, source.size, source.size)
    observation = observe(source.net.eval(), [images[:OBSERVED]])
    return Bench(observation, images.contiguous(memory_format=torch.channels_last), source.weights, source.model)
