"""The sections of a Darknet cfg that are layers: each is one function from its options to a module and its inputs."""

import copy
from collections import OrderedDict
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msat_det.base.files import show
from msat_det.graph.ops import hard_mish
from msat_det.models.importers.darknet.cfg import Section

Shape = tuple[int, int, int]  # channels, height, width
Built = tuple[nn.Module, list[int]]  # a layer, and the indices of the layers that it reads

TRAINING_ONLY = frozenset(
    "stopbackward burnin_update train_only_bn learning_rate onlyforward dont_update clip grad_centr "
    "assisted_excitation dropblock dropblock_size_rel dropblock_size_abs stream wait_stream".split()
)
MAX_ELEMENTS = 1 << 28  # that a layer gives for one image, or has as weights: 1 GiB
BATCH_NORM_EPS = 1e-5  # what Darknet adds to the variance when it fuses a layer for inference


class HardMish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return hard_mish(x)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "linear": nn.Identity,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "leaky": lambda: nn.LeakyReLU(0.1),
    "mish": nn.Mish,
    "hard_mish": HardMish,
    "swish": nn.SiLU,
    "silu": nn.SiLU,  # what PyTorch's readers of a cfg call swish; Darknet itself takes a name it doesn't know for relu
    "logistic": nn.Sigmoid,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "gelu": lambda: nn.GELU("tanh"),
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


def strides(section: Section) -> tuple[int, int]:
    """Down and across: stride, or stride_y and stride_x where these are given."""
    stride = section.integer("stride", 1, least=1)
    return section.integer("stride_y", stride, least=1), section.integer("stride_x", stride, least=1)


def convolutional(section: Section, index: int, shapes: dict[int, Shape]) -> Built:
    """Darknet pads a dilated convolution ``padding`` · dilation, and has no dilated 1x1 one."""
    channels = shapes[index - 1][0]
    filters, groups = section.integer("filters", 1, least=1), section.integer("groups", 1, least=1)
    size, stride = section.integer("size", 1, least=1), strides(section)
    dilation, normalize = section.integer("dilation", 1, least=1), section.integer("batch_normalize", 0)
    dilation = 1 if size == 1 else dilation
    padding = section.integer("padding", 0)
    padding = dilation * (size // 2 if section.integer("pad", 0) else padding)
    if channels % groups or filters % groups:
        raise section.error(
            f"groups={groups} must divide its {channels} input channels and filters={filters}", "groups"
        )
    if filters * (channels // groups) * size**2 > MAX_ELEMENTS:
        raise section.error("has far too many weights: mend filters or size")
    conv = nn.Conv2d(channels, filters, size, stride, padding, dilation, groups, bias=not normalize)
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv=conv)
    if normalize:
        layers["bn"] = nn.BatchNorm2d(filters, eps=BATCH_NORM_EPS)
    layers["activation"] = activation(section, "logistic")
    return nn.Sequential(layers), [index - 1]


class DropFirst(nn.Module):
    """Drops the first rows and columns, and with them what a symmetrical padding has too much at the top left."""

    def __init__(self, rows: int, columns: int):
        super().__init__()
        self.rows, self.columns = rows, columns

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, self.rows :, self.columns :]


def maxpool(section: Section, index: int, shapes: dict[int, Shape]) -> Built:
    """Darknet pads ``padding`` (size − 1 by default) in all, the smaller half of it at the top left."""
    stride = strides(section)
    size = section.integer("size", section.integer("stride", 1, least=1), least=1)
    padding = section.integer("padding", size - 1)
    odd = padding % 2
    if padding > size or (odd and max(stride) > 2):
        raise section.error(
            f"padding={padding} does not go with size={size} and stride={max(stride)}: use another", "padding"
        )
    surplus = [odd if step == 1 else 0 for step in stride]  # what a step of 1 would see too much of at the top left
    pool = nn.MaxPool2d(size, stride, tuple(padding // 2 + more for more in surplus), ceil_mode=odd == 1)
    return (nn.Sequential(pool, DropFirst(*surplus)) if any(surplus) else pool), [index - 1]


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
    """Memory of the shape ``blocks`` · s in height and width, sorted by the positions in s×s blocks, read as ``shape``.

    blocks, shape: (channels, height, width).
    """

    def __init__(self, blocks: Shape, stride: int, shape: Shape):
        super().__init__()
        self.blocks, self.stride, self.shape = blocks, stride, shape

    def forward(self, x: Tensor) -> Tensor:
        (channels, height, width), s = self.blocks, self.stride
        return x.reshape(-1, channels, height, s, width, s).permute(0, 3, 5, 1, 2, 4).reshape(-1, *self.shape)


def reorg(section: Section, index: int, shapes: dict[int, Shape]) -> Built:
    """YOLOv2's passthrough as Darknet computes it: (C, h, w), its memory taken for (C/s², h·s, w·s), goes to
    (C·s², h/s, w/s). ``reorg3d`` is what was meant: it takes the memory for what it is."""
    (channels, height, width), s = shapes[index - 1], section.integer("stride", 1, least=1)
    meant = section.kind == "reorg3d"
    if height % s or width % s or (channels % s**2 and not meant):
        square = "" if meant else ", its square the channels,"
        raise section.error(f"stride={s} must divide height and width{square} of {shapes[index - 1]}")
    after = channels * s**2, height // s, width // s
    return Reorg((channels, *after[1:]) if meant else (channels // s**2, height, width), s, after), [index - 1]


class Implicit(nn.Module):
    """Values of its own, whatever the image: (1, filters, atoms, 1)."""

    def __init__(self, filters: int, atoms: int, mean: float, std: float):
        super().__init__()
        self.values = nn.Parameter(mean + std * torch.randn(1, filters, atoms, 1))

    def forward(self) -> Tensor:
        return self.values


def implicit(section: Section, index: int, shapes: dict[int, Shape]) -> Built:
    mean = section.number("mean", 1.0 if section.kind == "implicit_mul" else 0.0)
    filters, atoms = section.integer("filters", 128, least=1), section.integer("atoms", 1, least=1)
    if filters * atoms > MAX_ELEMENTS:
        raise section.error("has far too many values: mend filters or atoms")
    return Implicit(filters, atoms, mean, section.number("std", 0.02)), []


class Shift(nn.Module):
    """The previous layer plus another layer."""

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return x + other


def by_channel(section: Section, index: int, shapes: dict[int, Shape]) -> Built:
    """YOLOR's shift and control: to each channel of the previous layer a number of another layer, added or times."""
    (source,) = absolute(section, "from", index, [section.integer("from", least=None)])
    if shapes[source] != (shapes[index - 1][0], 1, 1):
        raise section.error(
            f"takes {shapes[index - 1]} and {shapes[source]}: the other layer must be its channels x1x1"
        )
    return (Shift() if section.kind == "shift_channels" else Product(nn.Identity())), [index - 1, source]


def silence(section: Section, index: int, shapes: dict[int, Shape]) -> Built:
    return nn.Identity(), [index - 1]


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
    "reorg3d": reorg,
    **dict.fromkeys(["implicit", "implicit_add", "implicit_mul"], implicit),
    **dict.fromkeys(["shift_channels", "control_channels"], by_channel),
    **dict.fromkeys(["silence", "empty"], silence),
}
BROADCASTING = {"shift_channels", "control_channels", "scale_channels"}  # may read an implicit layer
# Sections that only YOLOR's program (Wang, Yeh and Liao 2021) has, which reads Darknet's cfg files in its own way.
YOLOR = {"implicit_add", "implicit_mul", "shift_channels", "control_channels"}


def infer_shape(section: Section, module: nn.Module, inputs: list[Shape]) -> Shape:
    """The shape that a layer gives, found on empty tensors."""
    shaping = getattr(module, "conv", module)  # batch norm and activation keep the shape, and take far longer
    try:
        output = copy.deepcopy(shaping).to("meta").eval()(*(torch.empty(1, *shape, device="meta") for shape in inputs))
    except RuntimeError:
        raise section.error(
            f"does not fit its input {inputs[0] if inputs else ''}: choose a larger model.size or a smaller kernel"
        ) from None
    if output[0].numel() > MAX_ELEMENTS:
        raise section.error(f"gives {show(tuple(output.shape[1:]))}, far too much for one image: mend size or stride")
    return tuple(output.shape[1:])
