"""torchvision's single-stage detectors, SSD, RetinaNet and FCOS: their own transform, anchors and post-processing."""

import copy
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torchvision.models import detection as zoo
from torchvision.models import get_model, get_model_weights, list_models
from torchvision.models.detection.fcos import FCOS
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNet
from torchvision.models.detection.ssd import SSD

from msat_det.base.config import Model
from msat_det.base.device import brought
from msat_det.base.errors import InputError
from msat_det.data.base import class_names
from msat_det.models.class_names import COCO_COLUMNS, NO_CLASS, read_names
from msat_det.models.detector import Detections
from msat_det.models.importers.torchvision_boxes import best_boxes
from msat_det.models.state_dict import load_tensors, without_prefix
from msat_det.models.suppression import packed
from msat_det.models.weights import download, published, read_tensors

SINGLE_STAGE = (
    "ssd300_vgg16",
    "ssdlite320_mobilenet_v3_large",
    "retinanet_resnet50_fpn",
    "retinanet_resnet50_fpn_v2",
    "fcos_resnet50_fpn",
)
TWO_STAGE = sorted({*list_models(module=zoo)} - {*SINGLE_STAGE})
SIZE = 640  # side of RetinaNet's and FCOS's input; torchvision's own varies with the image, up to 1333 pixels
BACKGROUND = "__background__"

Size = tuple[int, int]  # height, width
Meta = tuple[Size, Size]


class Dense(nn.Module):
    """Backbone and head of a torchvision detector: (B, 3, h, w) → its head's dict of (B, anchors, …) tensors."""

    def __init__(self, model: SSD | RetinaNet | FCOS):
        super().__init__()
        self.backbone, self.head = model.backbone, model.head

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.head(list(self.backbone(images).values()))


class TorchvisionDetector:
    """A torchvision ``SSD``, ``RetinaNet`` or ``FCOS`` as a ``Detector``. ``model`` is put into evaluation mode.

    columns: a name for each of the head's columns, background included; a box in a column named ``__background__``,
        ``N/A`` or ``???`` is no detection. Default: COCO's 91, or for another number of columns their numbers.
    size: side of the square that images of any shape are brought to, so that they make one batch. RetinaNet and FCOS
        shrink or enlarge an image, its aspect ratio kept, until its longer side is ``size`` (default 640), and pad it
        with zeros at the right and bottom to the next multiple of 32; torchvision's published figures are for a shorter
        side of 800. SSD stretches to its own fixed size; another is an InputError.
    name: of the model in ``torchvision.models``, where it is built as that name says.
    Scores, suppression and the number of boxes kept are the model's ``score_thresh``, ``nms_thresh`` and
    ``detections_per_img``.
    """

    def __init__(
        self,
        model: SSD | RetinaNet | FCOS,
        columns: Sequence[str] | None = None,
        size: int | None = None,
        name: str | None = None,
    ):
        self.model, self.name = model.eval(), name
        self.net: nn.Module = Dense(model).eval()
        self.transform = copy.deepcopy(model.transform)
        self.size = self._fix_size(size)
        self.levels, count = self._shapes()
        if columns is None:
            columns = COCO_COLUMNS if count == len(COCO_COLUMNS) else [BACKGROUND, *map(str, range(1, count))]
        if len(columns) != count:
            raise InputError(f"{len(columns)} class names for {count} columns: give one for each, background included")
        self.columns = class_names(columns, "the detector", NO_CLASS)
        known = [i for i, name in enumerate(columns) if name not in NO_CLASS]
        self.classes = [columns[i] for i in known]
        self.index = torch.full((count,), -1).index_put((torch.tensor(known),), torch.arange(len(known)))
        maps = [torch.zeros(()).expand(1, 1, *shape) for shape in self.levels]
        blank = torch.zeros(()).expand(1, 3, *self.size)
        (self.anchors,) = model.anchor_generator(ImageList(blank, [self.size]), maps)
        per_cell = model.anchor_generator.num_anchors_per_location()
        self.counts = [h * w * number for (h, w), number in zip(self.levels, per_cell, strict=True)]

    def preprocess(self, image: Tensor) -> tuple[Tensor, Meta]:
        """uint8 RGB (3, H, W) → (3, *size) float; the resized (h, w) and the original (H, W)."""
        resized, _ = self.transform.resize(self.transform.normalize(image.float() / 255))
        height, width = resized.shape[1:]
        padded = F.pad(resized, (0, self.size[1] - width, 0, self.size[0] - height))
        return padded, ((height, width), (image.shape[1], image.shape[2]))

    def decode(self, outputs: dict[str, Tensor], metas: list[Meta]) -> list[Detections]:
        """The head's outputs for a batch → boxes in original pixels, best first."""
        resized, originals = map(list, zip(*metas, strict=True))
        if outputs["cls_logits"].device.type != "cpu":
            return self._at_once(outputs, resized, originals)
        found = self._one_by_one(outputs, resized)
        return [self._named(one) for one in self.transform.postprocess(found, resized, originals)]

    def _at_once(self, outputs: dict[str, Tensor], resized: list[Size], originals: list[Size]) -> list[Detections]:
        """As torchvision's code and ``_named`` give them, for the whole batch."""
        device = outputs["cls_logits"].device
        anchors, index = (brought(values, device) for values in (self.anchors, self.index))
        boxes, scores, labels, kept = best_boxes(self.model, outputs, anchors, self.counts, resized)
        height, width = brought(torch.tensor(originals) / torch.tensor(resized), device).unbind(1)
        boxes, labels = boxes * torch.stack((width, height) * 2, 1)[:, None], index[labels]
        kept &= (labels >= 0) & (boxes[..., 2:] > boxes[..., :2]).all(-1)
        return packed(boxes, scores, labels, kept, kept.shape[1])

    def _one_by_one(self, outputs: dict[str, Tensor], resized: list[Size]) -> list[dict[str, Tensor]]:
        """The boxes by torchvision's own code."""
        if isinstance(self.model, SSD):
            return self.model.postprocess_detections(outputs, [self.anchors] * len(resized), resized)
        levels = {name: list(value.split(self.counts, 1)) for name, value in outputs.items()}
        anchors = list(self.anchors.split(self.counts))
        return self.model.postprocess_detections(levels, [anchors] * len(resized), resized)

    def _named(self, found: dict[str, Tensor]) -> Detections:
        """Without boxes of no class, and those in the padding, of which clipping to the image has left a line."""
        boxes, labels = found["boxes"], self.index[found["labels"]]
        good = (labels >= 0) & (boxes[:, 2:] > boxes[:, :2]).all(1)
        return Detections(boxes[good], found["scores"][good], labels[good])

    def _fix_size(self, size: int | None) -> tuple[int, int]:
        transform = self.transform
        if transform.fixed_size is not None:
            width, height = transform.fixed_size
            if size is not None and (size, size) != (width, height):
                raise InputError(f"model.size is {size}: this SSD's anchors are for {width}x{height}; leave it out")
            return height, width
        size = SIZE if size is None else size
        transform.min_size, transform.max_size = (size,), size
        side = -(-size // transform.size_divisible) * transform.size_divisible
        return side, side

    def _shapes(self) -> tuple[list[tuple[int, int]], int]:
        """(h, w) of each level that the head sees, and its number of columns; only shapes are computed."""
        levels: list[Tensor] = []
        hook = self.net.get_submodule("head").register_forward_pre_hook(lambda head, args: levels.extend(args[0]))
        shapes_only = {name: value.float().to("meta") for name, value in self.net.state_dict().items()}
        outputs = functional_call(self.net, shapes_only, torch.empty(1, 3, *self.size, device="meta"))
        hook.remove()
        return [(level.shape[2], level.shape[3]) for level in levels], outputs["cls_logits"].shape[-1]


def as_detector(network: Any) -> Any:
    """A torchvision SSD, RetinaNet or FCOS wrapped, anything else as it is. Raises InputError for a two-stage one."""
    if isinstance(network, GeneralizedRCNN):
        raise two_stage(type(network).__name__)
    return TorchvisionDetector(network) if isinstance(network, SSD | RetinaNet | FCOS) else network


def two_stage(name: str) -> InputError:
    """The refusal of a two-stage detector."""
    return InputError(
        f"{name} is a two-stage detector: its second stage runs on regions that differ by image, which no fixed set of "
        f"neurons can stand for; take a single-stage one: {', '.join(SINGLE_STAGE)}"
    )


def torchvision_detector(model: Model) -> TorchvisionDetector:
    """The detector of ``torchvision.models.detection`` that ``model.name`` names.

    model.weights: a name in its torchvision enum (DEFAULT, COCO_V1), downloaded unless torch.hub's cache has it; a file
        (.safetensors, or a state dict that torch.save wrote); None draws them at random from torch's global generator,
        which a run seeds with its ``seed``.
    model.names: the classes, "voc", "coco" or a file with one name a line, background left out or first; by default
        COCO's 91 columns. model.num_classes: their number without background, where they have no names.
    model.size, model.score, model.nms_iou, model.top_k: see ``TorchvisionDetector``.
    """
    if model.resize is not None:
        raise InputError(f"model.resize is {model.resize}: {model.name} resizes as torchvision does; leave it out")
    model.refuse_others("weights", "names", "num_classes", "size", "score", "nms_iou", "top_k")
    columns = _columns(model)
    net = get_model(model.name, weights=None, weights_backbone=None, num_classes=len(columns))
    if model.weights is None:
        print(f"{model.name}: no weights given, they are drawn at random", file=sys.stderr)
    else:
        _load(net, model.name, model.weights)
    names = {"score": "score_thresh", "nms_iou": "nms_thresh", "top_k": "detections_per_img"}
    for key, value in model.given(*names).items():
        setattr(net, names[key], value)
    return TorchvisionDetector(net, columns, model.size, model.name)


def _columns(model: Model) -> list[str]:
    if model.names is None and model.num_classes is not None:
        return [BACKGROUND, *map(str, range(1, model.num_classes + 1))]
    names = COCO_COLUMNS if model.names in (None, "coco") else read_names(model.names)
    columns = names if names[0] in NO_CLASS else [BACKGROUND, *names]
    if model.num_classes not in (None, len(columns) - 1):
        raise InputError(
            f"{model.names} has {len(columns) - 1} classes, model.num_classes is {model.num_classes}: let them agree"
        )
    return columns


def _load(net: nn.Module, name: str, weights: str) -> None:
    """Put weights by enum name or file into ``net``, under today's names and with the batch norm's ε they are for."""
    enum = published(name, weights) if str(weights).isidentifier() else None
    tensors = download(enum) if enum else read_tensors(weights)
    own = net.state_dict()
    tensors = {_renamed(net, key): tensor for key, tensor in without_prefix(tensors, own, weights).items()}
    scores = [key for key in own if key.startswith("head.classification_head") and key.endswith("bias")][-1]
    if scores in tensors and len(tensors[scores]) != len(own[scores]):
        raise InputError(
            f"{weights}: its head scores {len(tensors[scores]) / len(own[scores]):.3g} times as many classes as the "
            "configuration has: set --model.names or --model.num_classes to the classes that it was trained for"
        )
    load_tensors(net, tensors, weights)
    first = get_model_weights("retinanet_resnet50_fpn").COCO_V1
    if enum is first or Path(weights).name == Path(first.url).name:
        # published before torchvision's frozen batch norm had an ε (pull request 2933), and to be run without one
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 0.0


def _renamed(net: nn.Module, key: str) -> str:
    """A tensor's name in the state dicts that older torchvision wrote → its name now."""
    key = re.sub(r"(fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$", r"\1.0.\2", key)
    if isinstance(net, RetinaNet) and (old := re.fullmatch(r"(head\.\w+_head\.conv)\.(\d)\.(weight|bias)", key)):
        return f"{old[1]}.{int(old[2]) // 2}.0.{old[3]}"
    return key
