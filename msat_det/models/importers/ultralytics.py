"""Ultralytics' detectors (YOLOv3 to YOLO26, RT-DETR) as their own package builds them, up to the head's raw outputs.

The package is an extra, under a licence of its own (AGPL-3.0). Nothing of it is imported unless one of its networks is
asked for by name, or given.
"""

import re
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from msat_det.base.config import Model
from msat_det.base.errors import InputError
from msat_det.base.files import show
from msat_det.graph.inputs import MISFIT, reason
from msat_det.models.headed import HEAD_KEYS, HeadDetector, head_of, head_options
from msat_det.models.state_dict import load_tensors, without_prefix
from msat_det.models.weights import read_tensors

# The usual head, by the name of their class
HEADS_BY_CLASS = {"Detect": "yolov8", "v10Detect": "yolov8", "RTDETRDecoder": "rtdetr"}
_NEEDED = "Ultralytics' networks need their package: pip install 'msat-det[ultralytics]'"


class RawMaps(nn.Module):
    """A network of Ultralytics' without the decoding: (B, 3, h, w) → for each level (box, classes), the head's maps.

    box: (B, 4·bins, h, w), classes: (B, C, h, w). model: their ``DetectionModel``.
    """

    def __init__(self, model: Any):
        super().__init__()
        *layers, head = model.model
        self.layers, self.sources, self.levels = nn.ModuleList(layers), [layer.f for layer in layers], head.f
        ends = getattr(head, "end2end", False)  # heads that need no suppression
        self.boxes, self.classes = (head.one2one_cv2, head.one2one_cv3) if ends else (head.cv2, head.cv3)

    def forward(self, x: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
        outputs: list[Tensor] = []
        for layer, source in zip(self.layers, self.sources, strict=True):
            x = layer(self.read(source, x, outputs))
            outputs.append(x)
        maps = self.read(self.levels, x, outputs)
        return tuple((box(m), classes(m)) for m, box, classes in zip(maps, self.boxes, self.classes, strict=True))

    @staticmethod
    def read(source: Any, x: Tensor, outputs: list[Tensor]) -> Any:
        """What a layer takes: the layer before it (-1), another one, or several."""
        if isinstance(source, int):
            return x if source == -1 else outputs[source]
        return [x if index == -1 else outputs[index] for index in source]


class Queries(nn.Module):
    """An RT-DETR of theirs without what chooses the best: (B, 3, h, w) → boxes (B, Q, 4) and logits (B, Q, C)."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        _, (boxes, logits, *_) = self.model(x)
        return boxes.squeeze(0), logits.squeeze(0)  # of the last layer alone


def is_ultralytics(network: Any) -> bool:
    return type(network).__module__.partition(".")[0] == "ultralytics"


def as_detection_model(network: Any) -> Any:
    """Their ``DetectionModel`` in what people have, ``YOLO(...)`` say. Raises InputError for other tasks."""
    inner = getattr(network, "model", None)
    model = network if inner is None or isinstance(inner, nn.Sequential) else inner  # a YOLO has its model's attributes
    head = model.model[-1] if isinstance(getattr(model, "model", None), nn.Sequential) else model
    if type(head).__name__ not in HEADS_BY_CLASS:
        raise InputError(
            f"{type(network).__name__} ends in {type(head).__name__}: of Ultralytics' networks those for detection "
            "convert; others from Python, as any nn.Module without its decoding"
        )
    return model


def ultralytics_detector(network: Any, size: int | None = None, **options: Any) -> HeadDetector:
    """Ultralytics' ``YOLO("yolov8n.pt")`` or ``RTDETR(...)``, or its ``DetectionModel``, as a detector with head yolov8
    or rtdetr.

    size: of the input; by default the one that the network was trained with. options: of ``HeadDetector``.
    """
    model = as_detection_model(network)
    head = model.model[-1]
    names = model.names.values() if isinstance(model.names, dict) else model.names
    if getattr(head, "end2end", False):
        options = {"nms_iou": 1.0} | options
    trained = getattr(model, "args", None)
    trained = trained.get("imgsz", 640) if isinstance(trained, dict) else 640
    usual = _usual_head(model)
    own: dict[str, Any] = {"classes": list(names)}
    if usual == "rtdetr":
        net: nn.Module = Queries(model)
    else:
        net, own["strides"] = RawMaps(model), [int(s) for s in head.stride]
    own |= options
    return HeadDetector(net.float(), own.pop("head", usual), size=size or trained, **own).check()


def _usual_head(model: Any) -> str:
    return HEADS_BY_CLASS[type(model.model[-1]).__name__]


def _options(model: Model, network: Any) -> dict[str, Any]:
    """What a configuration says of the head, as options of ``ultralytics_detector``."""
    head = head_of(model, _usual_head(network))
    options = head_options(model, head)
    return options | {"head": head}


def ultralytics(model: Model) -> HeadDetector:
    """The detector ``model.arch`` (yolov8n, yolo11s …) with ``model.weights``, a state dict under Ultralytics' names.

    Or what a ``.pt`` file of theirs holds, which is a program: only with ``model.trust``, and read by their package; it
    says itself which network it is.
    """
    try:
        from ultralytics import YOLO
        from ultralytics.nn.tasks import DetectionModel, RTDETRDetectionModel
    except ModuleNotFoundError:
        raise InputError(_NEEDED) from None
    model.refuse_others("weights", "trust", "arch", "num_classes", *HEAD_KEYS)
    weights = None if model.weights is None else Path(model.weights)
    if model.trust and (weights is None or weights.suffix != ".pt"):
        raise InputError(
            "model.trust is true, and model.weights is no .pt file, the only one that is run: leave it out"
        )
    if weights is not None and weights.suffix == ".pt" and (model.trust or model.arch is None):
        if not model.trust:
            raise InputError(
                f"{weights} holds code that reading it runs: set model.trust true if you trust its origin, or give "
                "model.arch and its state dict as .safetensors"
            )
        if not weights.is_file():  # their package would go and fetch one of that name
            raise InputError(f"{weights}: no such file; give --model.weights a whole file")
        network = _called(weights, YOLO, str(weights))
        return ultralytics_detector(network, model.size, **_options(model, as_detection_model(network)))
    if model.arch is None or not re.fullmatch(r"[\w.-]+", model.arch):
        raise InputError(f"model.arch is {show(model.arch)}: give the network's name, yolov8n say")
    tensors = None if weights is None else _in_float32(_state_in(weights))
    count = model.num_classes or (None if tensors is None else _classes_of(tensors))
    if count is None:
        raise InputError(f"{model.arch} has no weights: give --model.weights FILE, or --model.num_classes N")
    build = RTDETRDetectionModel if "rtdetr" in model.arch else DetectionModel
    network = _called(model.arch, build, f"{model.arch.removesuffix('.yaml')}.yaml", nc=count, verbose=False)
    options = _options(model, network)
    if tensors is not None and weights is not None:
        if not any(".bn." in name for name in tensors):
            network.fuse(verbose=False)
        load_tensors(network, without_prefix(tensors, network.state_dict(), weights), weights)
        if model.names is None and count == 80:
            options["classes"] = "coco"
    return ultralytics_detector(network, model.size, **options)


def _state_in(weights: Path) -> dict[str, Tensor]:
    try:
        return read_tensors(weights)
    except InputError as error:
        if weights.suffix != ".pt" or not weights.is_file():
            raise
        raise InputError(
            f"{error}; or set model.trust true if it is Ultralytics' own and you trust its origin"
        ) from None


def _in_float32(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def _classes_of(tensors: dict[str, Tensor]) -> int | None:
    """By the class scores of the head's first level, the last convolution of ``cv3.0``, or of RT-DETR's encoder."""
    scores = re.compile(r"\.(cv3\.0\.2|enc_score_head)\.weight$")
    found = [tensor for name, tensor in sorted(tensors.items()) if scores.search(name)]
    return len(found[-1]) if found else None


def _called(what: Any, build: Any, *args: Any, **kwargs: Any) -> Any:
    try:
        return build(*args, **kwargs)
    except (*MISFIT, OSError, ImportError) as error:
        raise InputError(f"{what}: Ultralytics' package can't build it ({reason(error)})") from error
