"""Classifiers: a network between a preprocessing and its logits, and the registry of those that go by a name.

The networks for CIFAR are named for what they are. What the MSAT paper calls ResNet20 has the size of a ResNet-18
(four stages, 64 to 512 channels): here that is ``resnet18_cifar``, and ``resnet20`` is the network with 0.28 million
parameters that He et al. (2015) call so.
"""

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import WeightsEnum, get_model
from torchvision.models.resnet import BasicBlock
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from msat_det.base.checks import present
from msat_det.base.config import Model
from msat_det.base.errors import InputError
from msat_det.base.files import show
from msat_det.base.names import Names, hint
from msat_det.data.base import class_names
from msat_det.models.class_names import read_names
from msat_det.models.own import build_own, is_own
from msat_det.models.state_dict import load_tensors, without_prefix
from msat_det.models.weights import OWN_WEIGHTS, download, published, read_tensors

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Preprocess:
    """How a photograph becomes a network's input: resized, cropped, scaled, normalised.

    resize: (height, width), or one number for the shorter side. crop: side of the central square that is kept.
    scale: what a pixel's value of 0..255 is multiplied with; then mean is subtracted and std divides, both in the
    channels' order, which is blue, green, red for ``bgr``.
    """

    resize: int | tuple[int, int]
    crop: int
    mean: Triple
    std: Triple
    scale: float = 1 / 255
    bgr: bool = False
    interpolation: InterpolationMode = InterpolationMode.BILINEAR

    def fit(self, image: Tensor) -> Tensor:
        """uint8 (3, H, W) → uint8 (3, crop, crop)."""
        resize = list(self.resize) if isinstance(self.resize, tuple) else [self.resize]
        return F.center_crop(F.resize(image, resize, self.interpolation, antialias=True), [self.crop, self.crop])

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 (…, 3, h, w) → the network's input, float32."""
        mean, std = (torch.tensor(values, device=pixels.device)[:, None, None] for values in (self.mean, self.std))
        return ((pixels.flip(-3) if self.bgr else pixels).float() * self.scale - mean) / std

    def of_size(self, size: int) -> "Preprocess":
        """The same for another input size, the part of the photograph that is seen unchanged."""

        def scaled(side: int) -> int:
            return round(side * size / self.crop)

        own = self.resize
        resize = (scaled(own[0]), scaled(own[1])) if isinstance(own, tuple) else scaled(own)
        return replace(self, resize=resize, crop=size)


PREPROCESS: dict[str, Preprocess] = {
    # 32 x 32, with the mean and standard deviation of CIFAR-100's training pixels
    "cifar": Preprocess((32, 32), 32, (0.5070, 0.4865, 0.4409), (0.2673, 0.2564, 0.2761)),
    # torchvision's for ImageNet: shorter side 256, centre 224
    "imagenet": Preprocess(256, 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    # Caffe's for SqueezeNet: 256 x 256, centre 227, BGR of 0..255 without ImageNet's mean
    "caffe": Preprocess((256, 256), 227, (104.0, 117.0, 123.0), (1.0, 1.0, 1.0), scale=1.0, bgr=True),
}


class Classifier:
    """A network, and what surrounds it. ``decode`` gives logits: their order is that of ``classes``."""

    def __init__(self, net: nn.Module, classes: list[str], inputs: Preprocess):
        self.net, self.classes, self.inputs = net.eval(), class_names(classes, "the classifier", classes), inputs

    def preprocess(self, image: Tensor) -> tuple[Tensor, None]:
        """One uint8 RGB image (3, H, W) → the network's input (3, h, w) float32; nothing is needed to go back."""
        return self.inputs.normalise(self.inputs.fit(image)), None

    def decode(self, outputs: Tensor, metas: Sequence[Any]) -> list[Tensor]:
        """Outputs (B, K) → B logits (K,)."""
        return list(outputs.float().cpu())


class Vgg(nn.Module):
    """3x3 convolutions with batch norm and ReLU, "M" for 2x2 max pooling; the last map's mean enters one linear layer.

    On 32 x 32 pixels five poolings leave a last map of one pixel, so that the mean is that pixel.
    """

    def __init__(self, plan: Sequence[int | str], num_classes: int):
        super().__init__()
        layers: list[nn.Module] = []
        width = 3
        for item in plan:
            if isinstance(item, str):
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(width, item, 3, padding=1, bias=False), nn.BatchNorm2d(item), nn.ReLU()]
                width = item
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width, num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, h, w) → logits (B, K)."""
        return self.classifier(self.features(x).mean((2, 3)))


class CifarResNet(nn.Module):
    """He et al. 2015, section 4.2: a 3x3 stem without pooling, stages that double in width and halve in size.

    blocks: basic blocks in each stage; 6n + 2 layers for three stages of n. width: channels of the first stage.
    Shortcuts between stages are 1x1 convolutions with batch norm (the paper's option B).
    """

    def __init__(self, blocks: Sequence[int], width: int, num_classes: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.stages = len(blocks)
        inputs = width
        for stage, count in enumerate(blocks):
            outputs, stride = width << stage, 1 if stage == 0 else 2
            shortcut = None
            if stage > 0:
                shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
            layers = [BasicBlock(inputs, outputs, stride, shortcut)]
            layers += [BasicBlock(outputs, outputs) for _ in range(count - 1)]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
            inputs = outputs
        self.fc = nn.Linear(inputs, num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, h, w) → logits (B, K)."""
        x = self.relu(self.bn1(self.conv1(x)))
        for stage in range(self.stages):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        return self.fc(x.mean((2, 3)))


def _initialise(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


@dataclass(frozen=True)
class Network:
    """A registered network. build: number of classes → the network, its weights random.

    preprocess: name in ``PREPROCESS`` where neither the configuration nor the weights say another. classes: the usual
    number. weights: file that is used where the configuration names none.
    """

    build: Callable[[int], nn.Module]
    preprocess: str | Preprocess = "cifar"
    classes: int = 100
    weights: Path | None = None


def _torchvision(name: str) -> Callable[[int], nn.Module]:
    # As torchvision sets them up for their published weights, without the classifiers that only training needs.
    special = {"init_weights": False, "aux_logits": False, "transform_input": True}
    options = special if name in ("googlenet", "inception_v3") else {}
    return lambda num_classes: get_model(name, weights=None, num_classes=num_classes, **options)


CLASSIFIERS: Names[Network] = Names(
    "classifier",
    {
        "vgg_demo": Network(
            partial(Vgg, (16, 16, "M", 32, 32, "M", 48, 48, "M", 64, 64, "M", 96, "M")),
            classes=20,
            weights=OWN_WEIGHTS / "vgg_demo.safetensors",
        ),
        # The paper's VGG16: 13 convolutions and one linear layer.
        "vgg16_cifar": Network(
            partial(Vgg, (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", *(512, 512, 512, "M") * 2)),
        ),
        "resnet18_cifar": Network(partial(CifarResNet, (2, 2, 2, 2), 64)),
        **{f"resnet{6 * n + 2}": Network(partial(CifarResNet, (n, n, n), 16)) for n in (3, 5, 7, 9)},
        **{
            name: Network(_torchvision(name), "imagenet", 1000)
            for name in torchvision.models.list_models(module=torchvision.models)
        },
    },
)


KEYS = ("weights", "names", "preprocess", "size")


def build_classifier(model: Model) -> Classifier:
    """The classifier that ``model.name`` names, built from the rest of ``model`` (a ``config.Model``).

    model.weights: a file, or a name in torchvision's enum of that network (DEFAULT), which may be downloaded. Without
    weights, ``model.num_classes`` must be given: the weights then are random. model.preprocess, model.size: see
    ``find_preprocess``. model.names: class names; by default the enum's, otherwise the classes are numbers.
    Raises InputError for an unknown name, weights that don't fit and names that are not as many as the classes.
    """
    network = _found(model)
    if not is_own(model.name):
        model.refuse_others(*KEYS, "num_classes", *(["arch"] if model.name == "timm" else []))
    weights = model.weights or network.weights
    enum = published(model.name, str(weights)) if weights and str(weights).isidentifier() else None
    if weights is None:
        if model.num_classes is None and not is_own(model.name):
            raise InputError(
                f"{model.name} has no weights: give --model.weights FILE, or --model.num_classes N for random ones"
            )
        if not is_own(model.name):
            print(f"{model.name} has no weights: it runs with random ones", file=sys.stderr)
        net = network.build(model.num_classes or network.classes)
    else:
        tensors = download(enum) if enum else read_tensors(weights)
        net = _build_to_fit(network, model.num_classes, tensors, weights)
    count = head(net)[1]
    if model.names is not None:
        classes = read_names(model.names, distinct=False)  # ImageNet has two cranes
    else:
        classes = list(enum.meta["categories"]) if enum else [str(index) for index in range(count)]
    if len(classes) != count:
        raise InputError(f"{model.names} has {len(classes)} names and {model.name} has {count} classes: give one each")
    return Classifier(net, classes, find_preprocess(model, enum))


def _found(model: Model) -> Network:
    """The network that ``model.name`` names: a registered one, timm's ``model.arch``, or one of the user's own."""
    if is_own(model.name):
        return Network(lambda _: build_own(model, *KEYS), "imagenet")
    return timm_network(model) if model.name == "timm" else CLASSIFIERS.find(model.name)


def timm_network(model: Model) -> Network:
    """timm's ``model.arch``, with the preprocessing that timm has for it. Raises InputError."""
    try:
        import timm
    except ModuleNotFoundError:
        raise InputError("timm's networks need its package: pip install 'msat-det[timm]'") from None
    if model.arch not in timm.list_models():
        near = hint(model.arch, timm.list_models(), "timm.list_models() has all")
        raise InputError(f"model.arch is {show(model.arch)}, which is no network of timm: {near}")
    known = timm.get_pretrained_cfg(model.arch)
    own = timm.data.resolve_data_config({}, pretrained_cfg=known.to_dict() if known else {})
    crop, mean, std = own["input_size"][-1], tuple(own["mean"]), tuple(own["std"])
    mode = InterpolationMode(own["interpolation"])
    inputs = Preprocess(round(crop / own["crop_pct"]), crop, mean, std, interpolation=mode)
    return Network(lambda count: timm.create_model(present(model.arch), num_classes=count), inputs, 1000)


def find_preprocess(model: Model, enum: WeightsEnum | None = None) -> Preprocess:
    """``model.preprocess`` by name, else as torchvision's ``enum`` says, else its own; of ``model.size``."""
    found = model.preprocess or _found(model).preprocess
    if isinstance(found, str):
        if found not in PREPROCESS:
            raise InputError(f"model.preprocess is {found!r}: give one of {', '.join(PREPROCESS)}")
        found = PREPROCESS[found]
    if enum is not None and model.preprocess is None:
        own = enum.transforms()
        mean, std = tuple(own.mean), tuple(own.std)
        found = Preprocess(own.resize_size[0], own.crop_size[0], mean, std, interpolation=own.interpolation)
    return found if model.size is None else found.of_size(model.size)


def head(net: nn.Module) -> tuple[str, int]:
    """The name of a network's last linear or convolutional layer, and its number of outputs: the classes."""
    layers = [(name, module) for name, module in net.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    name, module = layers[-1]
    return name, module.weight.shape[0]


def _build_to_fit(network: Network, num_classes: int | None, tensors: dict[str, Tensor], path: str | Path) -> nn.Module:
    """The network with these weights, and as many classes as asked for or, by default, as the weights have."""
    net = network.build(num_classes or network.classes)
    tensors = _adapted(without_prefix(tensors, net.state_dict(), path))
    name, count = head(net)
    weight = tensors.get(f"{name}.weight")
    if num_classes is None and weight is not None and weight.dim() > 1:
        fits = weight.shape[1:] == net.get_parameter(f"{name}.weight").shape[1:] and weight.numel()
        if fits and weight.shape[0] != count:
            net = network.build(weight.shape[0])
    load_tensors(net, tensors, path)
    return net


def _adapted(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Published state dicts under today's names: DenseNet's old ones, and no classifiers that only training needs."""
    tensors = {n: t for n, t in tensors.items() if not n.startswith(("aux1.", "aux2.", "AuxLogits."))}
    return {re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", n): t for n, t in tensors.items()}
