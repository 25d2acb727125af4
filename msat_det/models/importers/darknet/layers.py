"""The sections of a Darknet cfg that are layers: each is one function from its options to a module and its inputs."""

import copy
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msat_det.base.files import show
from msat_det.models.importers.darknet.cfg import Section

Shape = tuple[int, int, int]  # channels, height, width
Built = tuple[nn.Module, list[int]]  # a layer, and the indices of the layers that it reads

TRAINING_ONLY = frozenset(
    "stopbackward burnin_update train_only_bn learning_rate onlyforward dont_update clip grad_centr "
    "assisted_excitation dropblock dropblock_size_rel dropblock_size_abs stream wait_stream".split()
)
MAX_ELEMENTS = 1 << 28  # that a layer gives for one image, or has as weights: 1 GiB
BATCH_NORM_EPS = 1e-5  # what Darknet adds to the variance when it fuses a layer for inference


class Pass(nn.Module):
    """Hands its input on, and traces to no node at all."""

    def forward(self, x: Tensor) -> Tensor:
        return x


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "linear": Pass,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "leaky": lambda: nn.LeakyReLU(0.1),
    "mish": nn.Mish,
    "swish": nn.SiLU,
    "logistic": nn.Sigmoid,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
}


def activation(section: Section, default: str) -> nn.Module:
    name = section.text("activation", default)
    if name not in ACTIVATIONS:
        raise section.error(f"activation={show(name)} is not supported: use {', '.join(ACTIVATIONS)}", "activation")
    return ACTIVATIONS[name]()


def absolute(section: Section, key: str, index: int, layers: list[int]) -> list[int]:
    """Layer numbers as a cfg gives them (negative: counted back from here) → indices of earlier layers."""
    found = [index + layer if layer < 0 else layer for layer in layers]
    for layer, given in zip(found, layers, strict=True):
        if not 0 <= layer < index:
            raise section.error(f"{key}={given} is no earlier layer: give 0 to {index - 1}, or -1 to -{index}", key)
    return found


def same_extent(section: Section, shapes: list[Shape], what: str) -> None:
    if len({shape[1:] for shape in shapes}) > 1:
        sizes = ", ".join(f"{height}x{width}" for _, height, width in shapes)
        raise section.error(f"joins layers of different size ({sizes}): {what} layers of one height and width")


def convolutional(section: Section, index: int, shapes: dict[int, Shape]) -> Built:
    channels = shapes[index - 1][0]
    filters, groups = section.integer("filters", 1, least=1), section.integer("groups", 1, least=1)
    size, stride = section.integer("size", 1, least=1), section.integer("stride", 1, least=1)
    padding = section.integer("padding", 0)
    padding = size // 2 if section.integer("pad", 0) else padding
    dilation, normalize = section.integer("dilation", 1, least=1), section.integer("batch_normalize", 0)
    if channels % groups or filters % groups:
        raise section.error(
            f"groups={groups} must divide its {channels} input channels and filters={filters}", "groups"
        )
    if filters * (channels // groups) * size**2 > MAX_ELEMENTS:
        raise section.error("has far too many weights: mend filters or size")
    layers = OrderedDict(conv=nn.Conv2d(channels, filters, size, stride, padding, dilation, groups, bias=not normalize))
    if normalize:
        layers["bn"] = nn.BatchNorm2d(filters, eps=BATCH_NORM_EPS)
    layers["activation"] = activation(section, "logistic")
    return nn.Sequential(layers), [index - 1]


class DropFirst(nn.Module):
    """Drops the first row and column, and with them what a symmetrical padding has too much at the top left."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, 1:, 1:]


def maxpool(section: Section, index: int, shapes: dict[int, Shape]) -> Built:
    """Darknet pads ``padding`` (size − 1 by default) in all, the smaller half of it at the top left."""
    stride = section.integer("stride", 1, least=1)
    size = section.integer("size", stride, least=1)
    padding = section.integer("padding", size - 1)
    if padding > size or (padding % 2 and stride > 2):
        raise section.error(
            f"padding={padding} does not go with size={size} and stride={stride}: use another", "padding"
        )
    if padding % 2 and stride == 1:
        return nn.Sequential(nn.MaxPool2d(size, 1, padding // 2 + 1), DropFirst()), [index - 1]
    return nn.MaxPool2d(size, stride, padding // 2, ceil_mode=padding % 2 == 1), [index - 1]


def avgpool(section: Section, index: int, shapes: dict[int, Shape]) -> Built:
    return nn.AdaptiveAvgPool2d(1), [index - 1]


def upsample(section: Section, index: int, shapes: dict[int, Shape]) -> Built:
    if section.number("scale", 1.0) != 1:
        raise section.error("scale other than 1 is not supported: fold it into the layer before", "scale")
    return nn.Upsample(scale_factor=section.integer("stride", 2, least=1), mode="nearest"), [index - 1]


def dropout(section: Section, index: int, shapes: dict[int, Shape]) -> Built:
    probability = section.number("probability", 0.5)
    if not 0 <= probability <= 1:
        raise section.error(f"probability={probability:g}: give a number from 0 to 1", "probability")
    return nn.Dropout(probability), [index - 1]


class Route(nn.Module):
    """Several layers' channels one after the other; ``cuts`` gives the channels that are taken of each (None: all)."""

    def __init__(self, cuts: list[tuple[int, int] | None]):
        super().__init__()
        self.cuts = cuts

    def forward(self, *inputs: Tensor) -> Tensor:
        parts = [x if cut is None else x[:, cut[0] : cut[1]] for x, cut in zip(inputs, self.cuts, strict=True)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def route(section: Section, index: int, shapes: dict[int, Shape]) -> Built:
    sources = absolute(section, "layers", index, section.integers("layers"))
    groups, group = section.integer("groups", 1, least=1), section.integer("group_id", 0)
    channels = [shapes[source][0] for source in sources]
    if group >= groups or any(n % groups for n in channels):
        raise section.error(f"group_id={group} of groups={groups} does not go with {channels} channels", "groups")
    same_extent(section, [shapes[source] for source in sources], "route")
    cuts = [None if groups == 1 else (n // groups * group, n // groups * (group + 1)) for n in channels]
    return Route(cuts), sources


class Shortcut(nn.Module):
    """The previous layer plus others; of a layer with another number of channels, those that both have are added.

    surplus: for each of the others, its channels minus the previous layer's.
    """

    def __init__(self, surplus: list[int], activation: nn.Module):
        super().__init__()
        self.surplus, self.activation = surplus, activation

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        for other, surplus in zip(others, self.surplus, strict=True):
            if surplus > 0:
                other = other[:, :-surplus]
            elif surplus < 0:
                other = F.pad(other, (0, 0, 0, 0, 0, -surplus))
            x = x + other
        return self.activation(x)


def shortcut(section: Section, index: int, shapes: dict[int, Shape]) -> Built:
    sources = [index - 1, *absolute(section, "from", index, section.integers("from"))]
    if section.text("weights_type", "none") != "none":
        raise section.error("weights_type other than none is not supported: use plain shortcuts", "weights_type")
    same_extent(section, [shapes[source] for source in sources], "add")
    for key in ("alpha", "beta"):
        if section.number(key, 1.0) != 1:
            raise section.error(f"{key} other than 1 is not supported: scale the layer before instead", key)
    surplus = [shapes[source][0] - shapes[index - 1][0] for source in sources[1:]]
    return Shortcut(surplus, activation(section, "linear")), sources


class Product(nn.Module):
    """The previous layer, times another layer."""

    def __init__(self, activation: nn.Module):
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return self.activation(x * other)


def scale_channels(section: Section, index: int, shapes: dict[int, Shape]) -> Built:
    """Another layer's channels, each times one number of the previous layer (squeeze-and-excite)."""
    (source,) = absolute(section, "from", index, [section.integer("from", least=None)])
    if section.integer("scale_wh", 0):
        raise section.error("scale_wh=1 is not supported: scale channels, not positions", "scale_wh")
    if shapes[index - 1] != (shapes[source][0], 1, 1):
        raise section.error(
            f"multiplies {shapes[source]} by {shapes[index - 1]}: the previous layer must be its channels x1x1"
        )
    return Product(activation(section, "linear")), [index - 1, source]


def sam(section: Section, index: int, shapes: dict[int, Shape]) -> Built:
    """The previous layer times another of the same shape (spatial attention)."""
    (source,) = absolute(section, "from", index, [section.integer("from", least=None)])
    if shapes[index - 1] != shapes[source]:
        raise section.error(f"multiplies {shapes[source]} by {shapes[index - 1]}: the two must be of one shape")
    return Product(activation(section, "linear")), [index - 1, source]


class Reorg(nn.Module):
    """YOLOv2's passthrough as Darknet computes it: (C, h, w), its memory read as (C/s², h·s, w·s), goes to
    (s², C/s², h, w) by the positions of s×s blocks, whose memory is then read as (C·s², h/s, w/s)."""

    def __init__(self, shape: Shape, stride: int):
        super().__init__()
        self.shape, self.stride = shape, stride

    def forward(self, x: Tensor) -> Tensor:
        (channels, height, width), s = self.shape, self.stride
        blocks = x.reshape(-1, channels // s**2, height, s, width, s).permute(0, 3, 5, 1, 2, 4)
        return blocks.reshape(-1, channels * s**2, height // s, width // s)


def reorg(section: Section, index: int, shapes: dict[int, Shape]) -> Built:
    (channels, height, width), stride = shapes[index - 1], section.integer("stride", 1, least=1)
    if channels % stride**2 or height % stride or width % stride:
        raise section.error(
            f"stride={stride} must divide height and width, its square the channels, of {shapes[index - 1]}"
        )
    return Reorg(shapes[index - 1], stride), [index - 1]


LAYERS: dict[str, Callable[[Section, int, dict[int, Shape]], Built]] = {
    "convolutional": convolutional,
    "conv": convolutional,
    "maxpool": maxpool,
    "max": maxpool,
    "avgpool": avgpool,
    "avg": avgpool,
    "upsample": upsample,
    "dropout": dropout,
    "route": route,
    "shortcut": shortcut,
    "scale_channels": scale_channels,
    "sam": sam,
    "reorg": reorg,
}


def infer_shape(section: Section, module: nn.Module, inputs: list[Shape]) -> Shape:
    """The shape that a layer gives, found on empty tensors."""
    try:
        output = copy.deepcopy(module).to("meta").eval()(*(torch.empty(1, *shape, device="meta") for shape in inputs))
    except RuntimeError:
        raise section.error(
            f"does not fit its input {inputs[0]}: choose a larger model.size or a smaller kernel"
        ) from None
    if output[0].numel() > MAX_ELEMENTS:
        raise section.error(f"gives {show(tuple(output.shape[1:]))}, far too much for one image: mend size or stride")
    return tuple(output.shape[1:])


@dataclass(frozen=True)
class Head:
    """What a [yolo] or [region] section says of the raw tensor before it, in ``YoloDetector``'s terms."""

    anchors: list[tuple[float, float]]
    stride: int
    classes: int
    scale_x_y: float = 1.0
    form: str = "v3"


def read_head(section: Section, shape: Shape, size: tuple[int, int]) -> Head:
    """The head of a [yolo] or [region] section that reads a tensor of ``shape`` in a network for images of ``size``.

    Their other options matter in training only. Region anchors count in cells, yolo anchors in input pixels.
    """
    stride = size[0] // shape[1]
    if (shape[1] * stride, shape[2] * stride) != size:
        raise section.error(
            f"its {shape[1]}x{shape[2]} cells do not divide the input of {size[0]}x{size[1]}: choose model.size so"
        )
    classes = section.integer("classes", 20, least=1)
    numbers = section.numbers("anchors")
    anchors = list(zip(numbers[::2], numbers[1::2], strict=False))[: section.integer("num", 1, least=1)]
    if section.kind == "yolo":
        mask = section.integers("mask", list(range(len(anchors))))
        if not all(0 <= i < len(anchors) for i in mask):
            raise section.error(f"mask={mask} asks for more than its {len(anchors)} anchors", "mask")
        form = "scaled" if section.integer("new_coords", 0) else "v3"
        head = Head([anchors[i] for i in mask], stride, classes, section.number("scale_x_y", 1.0), form)
    else:
        for key in ("tree", "map"):
            if key in section.options:
                raise section.error(f"'{key}' (a tree of classes) is not supported: use a flat list of classes", key)
        form = "v2" if section.integer("softmax", 0) else "v3"
        head = Head([(w * stride, h * stride) for w, h in anchors], stride, classes, form=form)
    if shape[0] != len(head.anchors) * (5 + classes):
        raise section.error(
            f"{len(head.anchors)} anchors and {classes} classes need filters={len(head.anchors) * (5 + classes)} "
            f"in the layer before, which has {shape[0]}"
        )
    return head


HEADS = ("yolo", "region")
