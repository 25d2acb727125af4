"""torchvision's detectors by their names, with weights of its own or of a file."""

import re
import sys
from pathlib import Path
from typing import Any

from torch import nn
from torchvision.models import get_model, get_model_weights
from torchvision.models.detection.fcos import FCOS
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.retinanet import RetinaNet
from torchvision.models.detection.ssd import SSD

from msat_det.base.config import Model
from msat_det.base.errors import InputError
from msat_det.models.class_names import COCO_COLUMNS, NO_CLASS, read_names
from msat_det.models.importers.torchvision.detector import BACKGROUND, TorchvisionDetector
from msat_det.models.state_dict import load_tensors, without_prefix
from msat_det.models.weights import download, published, read_tensors

SINGLE_STAGE = (
    "ssd300_vgg16",
    "ssdlite320_mobilenet_v3_large",
    "retinanet_resnet50_fpn",
    "retinanet_resnet50_fpn_v2",
    "fcos_resnet50_fpn",
)
TWO_STAGE = (
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "maskrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn_v2",
    "keypointrcnn_resnet50_fpn",
)
# Whose first weights were published before torchvision's frozen batch norm had an ε (pull request 2933).
WITHOUT_EPSILON = (
    "retinanet_resnet50_fpn",
    "fasterrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn",
    "keypointrcnn_resnet50_fpn",
)


def as_detector(network: Any) -> Any:
    """One of torchvision's detectors wrapped, anything else as it is."""
    known = isinstance(network, SSD | RetinaNet | FCOS | GeneralizedRCNN)
    return TorchvisionDetector(network) if known else network


def torchvision_detector(model: Model) -> TorchvisionDetector:
    """The detector of ``torchvision.models.detection`` that ``model.name`` names.

    model.weights: a name in its torchvision enum (DEFAULT, COCO_V1), downloaded unless torch.hub's cache has it; a file
        (.safetensors, or a state dict that torch.save wrote); None draws them at random from torch's global generator,
        which a run seeds with its ``seed``.
    model.names: the classes, "voc", "coco" or a file with one name a line, background left out or first; by default
        COCO's 91 columns, of Keypoint R-CNN persons alone. model.num_classes: their number without background, where
        they have no names.
    model.size, model.score, model.nms_iou, model.top_k, model.regions: see ``TorchvisionDetector``.
    """
    if model.resize is not None:
        raise InputError(f"model.resize is {model.resize}: {model.name} resizes as torchvision does; leave it out")
    stages = ["regions"] if model.name in TWO_STAGE else []
    model.refuse_others("weights", "names", "num_classes", "size", "score", "nms_iou", "top_k", *stages)
    columns = _columns(model)
    net = get_model(model.name, weights=None, weights_backbone=None, num_classes=len(columns))
    if model.weights is None:
        print(f"{model.name}: no weights given, they are drawn at random", file=sys.stderr)
    else:
        _load(net, model.name, model.weights)
    names = {"score": "score_thresh", "nms_iou": "nms_thresh", "top_k": "detections_per_img"}
    for key, value in model.given(*names).items():
        setattr(net.roi_heads if isinstance(net, GeneralizedRCNN) else net, names[key], value)
    if model.regions is not None:
        net.rpn._post_nms_top_n["testing"] = model.regions
    return TorchvisionDetector(net, columns, model.size, model.name)


def _columns(model: Model) -> list[str]:
    if model.names is None and model.num_classes is not None:
        return [BACKGROUND, *map(str, range(1, model.num_classes + 1))]
    if model.names is None and model.name.startswith("keypointrcnn"):
        names = ["person"]
    else:
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
    heads = ("head.classification_head", "roi_heads.box_predictor.cls_score")
    scores = [key for key in own if key.startswith(heads) and key.endswith("bias")][-1]
    if scores in tensors and len(tensors[scores]) != len(own[scores]):
        raise InputError(
            f"{weights}: its head scores {len(tensors[scores]) / len(own[scores]):.3g} times as many classes as the "
            "configuration has: set --model.names or --model.num_classes to the classes that it was trained for"
        )
    load_tensors(net, tensors, weights)
    first = get_model_weights(name).COCO_V1 if name in WITHOUT_EPSILON else None
    if first is not None and (enum is first or Path(weights).name == Path(first.url).name):
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 0.0  # they are to be run without one


def _renamed(net: nn.Module, key: str) -> str:
    """A tensor's name in the state dicts that older torchvision wrote → its name now."""
    key = re.sub(r"(fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$", r"\1.0.\2", key)
    key = re.sub(r"^(rpn\.head\.conv)\.(weight|bias)$", r"\1.0.0.\2", key)
    if old := re.fullmatch(r"(roi_heads\.mask_head)\.mask_fcn(\d)\.(weight|bias)", key):
        return f"{old[1]}.{int(old[2]) - 1}.0.{old[3]}"
    if isinstance(net, RetinaNet) and (old := re.fullmatch(r"(head\.\w+_head\.conv)\.(\d)\.(weight|bias)", key)):
        return f"{old[1]}.{int(old[2]) // 2}.0.{old[3]}"
    return key
