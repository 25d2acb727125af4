"""Darknet networks: a ``.cfg`` and a ``.weights`` file become a module that torch.fx can trace.

The layers themselves, a function for each kind of section, are in ``layers``.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from msat_det.base.checks import present
from msat_det.base.config import Model
from msat_det.base.errors import InputError
from msat_det.base.files import bytes_of
from msat_det.data.catalogue import get_with
from msat_det.models.class_names import read_names
from msat_det.models.importers.darknet.cfg import Section, parse_cfg
from msat_det.models.importers.darknet.heads import HEADS, Head, read_head
from msat_det.models.importers.darknet.layers import (
    BROADCASTING,
    LAYERS,
    TRAINING_ONLY,
    YOLOR,
    Implicit,
    Shape,
    infer_shape,
)
from msat_det.models.preprocessing import as_size
from msat_det.models.weights import kind_of
from msat_det.models.yolo import YoloDetector

RANDOM = "random"  # in place of a file of weights, for what needs the network's structure alone


class DarknetNet(nn.Module):
    """The network that a cfg describes: (B, 3, h, w) in 0..1 → a tuple of raw heads (B, A·(5 + C), h/stride, w/stride).

    sections: from ``parse_cfg``. size: (height, width) instead of the [net] section's. With channels=1 it takes grey
    images (B, 1, h, w); a [Gaussian_yolo] head has A·(9 + C) channels. Weights are random until ``load_weights``.
    Raises InputError, with the line, for anything that isn't supported.
    """

    def __init__(self, sections: list[Section], size: tuple[int, int] | None = None):
        super().__init__()
        net, *sections = sections
        self.size = size or (net.integer("height", least=1), net.integer("width", least=1))
        self.resize = "letterbox" if net.integer("letter_box", 0) else "stretch"
        self.channels = net.integer("channels", 3)
        if self.channels not in (1, 3):
            raise net.error("channels must be 3 or 1: only networks for RGB or grey images can be read", "channels")
        self.layers = nn.ModuleList()
        self.sources: list[list[int]] = []  # for each layer the indices that it reads; -1 is the image
        self.heads: dict[int, Head] = {}  # layer index → what its section says of the raw tensor
        shapes: dict[int, Shape] = {-1: (self.channels, *self.size)}
        yolor = any(section.kind in YOLOR for section in sections)
        for index, section in enumerate(sections):
            self._add(section, index, shapes, yolor)
        if not self.heads:
            raise net.error("no [yolo] or [region] section follows: only detectors can be read")
        if len({(head.classes, head.form) for head in self.heads.values()}) > 1:
            raise net.error("its [yolo] sections differ in classes or new_coords: let them agree")
        self.eval()

    def _add(self, section: Section, index: int, shapes: dict[int, Shape], yolor: bool) -> None:
        """Append the layer or head of a section, and its shape to ``shapes``."""
        if section.kind in HEADS:
            module, sources = nn.Module(), [index - 1]
        elif section.kind in LAYERS:
            module, sources = LAYERS[section.kind](section, index, shapes)
        else:
            kinds = ", ".join(sorted([*LAYERS, *HEADS]))
            raise section.error(f"is not supported: use {kinds}, or cut the network before it")
        if self.heads.keys() & set(sources):
            raise section.error("reads a layer that ends in boxes: route to the one before it")
        constant = [source >= 0 and isinstance(self.layers[source], Implicit) for source in sources]
        if any(constant) and (section.kind not in BROADCASTING or all(constant)):
            raise section.error("reads an implicit layer: only shift, control and scale channels do that")
        if section.kind in HEADS:
            before = self._last_activation(index - 1)
            self.heads[index] = read_head(section, shapes[index - 1], self.size, before, yolor)
            shapes[index] = shapes[index - 1]
        else:
            section.refuse_unasked(TRAINING_ONLY)
            shapes[index] = infer_shape(section, module, [shapes[source] for source in sources])
        self.layers.append(module)
        self.sources.append(sources)

    def _last_activation(self, index: int) -> nn.Module:
        """The activation that a layer's values come from, through layers that only hand them on."""
        while index >= 0 and not hasattr(self.layers[index], "activation") and self.sources[index]:
            index = self.sources[index][0]
        return getattr(self.layers[index], "activation", nn.Identity()) if index >= 0 else nn.Identity()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        outputs = {-1: x}
        for index, (layer, sources) in enumerate(zip(self.layers, self.sources, strict=True)):
            inputs = [outputs[source] for source in sources]
            outputs[index] = inputs[0] if index in self.heads else layer(*inputs)
        return tuple(outputs[index] for index in self.heads)


def stored_tensors(net: DarknetNet) -> Iterator[Tensor]:
    """The network's tensors in the order of a ``.weights`` file: of every convolution its bias (with batch norm: bias,
    scale, running mean, running variance), then its kernels; of every implicit layer its values."""
    for layer in net.layers:
        if isinstance(layer, Implicit):
            yield layer.values
        if isinstance(conv := getattr(layer, "conv", None), nn.Conv2d):
            bn = getattr(layer, "bn", None)
            yield from (
                (conv.get_parameter("bias"),) if bn is None else (bn.bias, bn.weight, bn.running_mean, bn.running_var)
            )
            yield conv.weight


@torch.no_grad()
def load_weights(net: DarknetNet, path: str | Path) -> None:
    """Fill ``net`` from a Darknet ``.weights`` file: a header (``_header``), then float32.

    InputError if their number isn't the network's, one isn't finite, or the file is of another kind, which is named.
    A network built on the meta device comes to the CPU.
    """
    path = Path(path)
    expected = sum(tensor.numel() for tensor in stored_tensors(net))
    data = _read(path, expected)
    header = _header(data, expected)
    found = (len(data) - header) / 4
    if expected != found:
        raise InputError(
            f"{path}: expected {expected} floats after the {header}-byte header, found {found:.15g}; "
            f"is it {'truncated' if found < expected else 'too long'}, or made for another cfg or number of classes?"
            + _without_implicit(net, expected - found)
        )
    floats = torch.from_numpy(np.frombuffer(data, "<f4", expected, header).astype(np.float32))
    if not floats.isfinite().all():
        raise InputError(f"{path}: holds NaN or infinite weights; get an undamaged copy of the file")
    if next(net.parameters()).is_meta:
        net.to_empty(device="cpu")
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.get_buffer("num_batches_tracked").zero_()  # the one tensor that isn't in the file
    tensors = list(stored_tensors(net))
    for tensor, values in zip(tensors, floats.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(values.view_as(tensor))


def _read(path: Path, expected: int) -> bytes:
    try:
        kind = kind_of(path)
        if kind:
            raise InputError(
                f"{path} is {kind}, not Darknet weights: give the .weights file that belongs to the cfg; a PyTorch "
                "network is converted from Python, msat_det.convert(network, …)"
            )
        data = bytes_of(path, 4 * expected + (1 << 20))
    except OSError as error:
        mend = (not path.exists() and get_with(path)) or "give the path of a .weights file"
        raise InputError(f"{path}: weights not readable ({error.strerror or error}); {mend}") from None
    except ValueError as error:
        raise InputError(
            f"{path}: {error}, far too long for {expected} floats; is it made for another cfg or number of classes?"
        ) from None
    if len(data) < 16:
        raise InputError(f"{path}: {len(data)} bytes are too few for a Darknet header; is the file truncated?")
    return data


def _header(data: bytes, expected: int) -> int:
    """The header's bytes: three int32 (major, minor, revision) and the number of training images, int64 from version
    0.2 on, before that int32.

    Some programs write 20 bytes under version 0.0, or 16 or 24 under a later one. The file's length tells, and the four
    bytes in question, which are zero in a header: no network has seen 4 billion images.
    """
    major, minor, _ = np.frombuffer(data, "<i4", 3).tolist()
    told = 20 if major * 10 + minor >= 2 and major < 1000 and minor < 1000 else 16
    fits = len(data) - 4 * expected
    longer = 0 < fits - told <= 4 and not any(data[told:fits])
    shorter = fits == told - 4 == 16 and any(data[16:20])
    return fits if longer or shorter else told


def _without_implicit(net: DarknetNet, missing: float) -> str:
    count = sum(layer.values.numel() for layer in net.layers if isinstance(layer, Implicit))
    if not count or missing != count:
        return ""
    return f" The {count} values of its implicit layers are missing: YOLOR's own converter leaves them out"


def darknet(model: Model) -> YoloDetector:
    """The detector of a Darknet ``model.cfg`` and ``model.weights``, with class names one a line in ``model.names``.

    ``size``, ``resize``, ``score``, ``nms_iou`` and ``top_k`` of ``model``, where not None, replace the cfg's size and
    letter_box and ``YoloDetector``'s defaults. With ``RANDOM`` for weights, names may be missing, too.
    """
    model.refuse_others("cfg", "weights", "names", "num_classes", "size", "resize", "score", "nms_iou", "top_k")
    random = model.weights == RANDOM
    for key, what in (("cfg", "a .cfg file"), ("weights", "a .weights file"), ("names", "a file of class names")):
        if getattr(model, key) is None and not (random and key == "names"):
            raise InputError(f"model.{key} is not set: detector 'darknet' needs {what}; give --model.{key} FILE")
    with torch.device("cpu" if random else "meta"):  # nothing is allocated for a cfg that its weights don't match
        net = DarknetNet(parse_cfg(present(model.cfg)), None if model.size is None else as_size(model.size))
    if not random:
        load_weights(net, present(model.weights))
    heads = list(net.heads.values())
    classes = read_names(model.names) if model.names is not None else [str(i) for i in range(heads[0].classes)]
    for wanted, where in ((len(classes), f"{model.names} has"), (model.num_classes, "model.num_classes is")):
        if wanted not in (heads[0].classes, None):
            raise InputError(f"{model.cfg} has {heads[0].classes} classes, {where} {wanted}: let them agree")
    options: dict[str, Any] = {"resize": net.resize} | model.given("resize", "score", "nms_iou", "top_k")
    return YoloDetector(
        net,
        classes,
        net.size,
        [head.anchors for head in heads],
        [head.stride for head in heads],
        [head.scale_x_y for head in heads],
        heads[0].form,
        channels=net.channels,
        **options,
    )
