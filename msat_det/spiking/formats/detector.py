"""Detectors as plain data and back: what surrounds the network, which is stored apart (``formats.native``)."""

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.transforms import InterpolationMode

from msat_det.base.checks import present
from msat_det.base.errors import InputError
from msat_det.base.files import show
from msat_det.base.reader import LARGEST, Reader
from msat_det.models.classifiers import Classifier, Preprocess
from msat_det.models.headed import HeadDetector
from msat_det.models.heads import HEADS
from msat_det.models.importers.torchvision.building import SINGLE_STAGE, TWO_STAGE
from msat_det.models.importers.torchvision.detector import TorchvisionDetector
from msat_det.models.preprocessing import RESIZES, Inputs
from msat_det.models.ssd import SsdDetector
from msat_det.models.yolo import FORMS, YoloDetector
from msat_det.spiking.formats.archive import finite

_PRIORS = "detector/priors"
_SIDE = 8192  # most pixels of an image's side

if TYPE_CHECKING:  # the names of tables, which ``Reader`` checks, are text to a type checker
    Form: TypeAlias = str
    Head: TypeAlias = str
    Interpolation: TypeAlias = str
    Name: TypeAlias = str
    Resize: TypeAlias = str
else:
    Form, Head, Name, Resize = (Literal[tuple(names)] for names in (FORMS, HEADS, SINGLE_STAGE + TWO_STAGE, RESIZES))
    Interpolation = Literal[tuple(mode.name for mode in InterpolationMode)]


def _fields(kind: type[Any], values: dict[str, Any]) -> dict[str, Any]:
    """What a dataclass takes of these values."""
    return {item.name: values[item.name] for item in fields(kind)}


@dataclass
class Yolo:
    """See ``YoloDetector``."""

    classes: list[str]
    size: tuple[int, int]
    anchors: list[list[tuple[float, float]]]
    strides: list[int]
    scale_x_y: list[float]
    form: Form
    resize: Resize
    score: float
    nms_iou: float
    top_k: int
    channels: int = 3

    @classmethod
    def of(cls, detector: YoloDetector) -> "Yolo":
        return cls(**_fields(cls, vars(detector) | {"anchors": [anchors.tolist() for anchors in detector.anchors]}))

    def build(self, net: nn.Module, tensors: dict[str, Tensor]) -> YoloDetector:
        if not len(self.anchors) == len(self.strides) == len(self.scale_x_y):
            raise InputError("detector: give anchors, strides and scale_x_y for each head")
        values = dict(vars(self))
        return YoloDetector(net, anchors_per_head=values.pop("anchors"), **values)


@dataclass
class Ssd:
    """See ``SsdDetector``."""

    classes: list[str]
    size: tuple[int, int]
    box_scales: tuple[float, float, float, float]
    mean: float
    std: float
    activation: Literal["sigmoid", "softmax"]
    columns: list[int]
    resize: Resize
    score: float
    nms_iou: float
    top_k: int

    @classmethod
    def of(cls, detector: SsdDetector) -> "Ssd":
        own = vars(detector) | {"box_scales": detector.box_scales.tolist(), "columns": detector.columns.tolist()}
        return cls(**_fields(cls, own))

    def build(self, net: nn.Module, tensors: dict[str, Tensor]) -> SsdDetector:
        priors = tensors.get(_PRIORS)
        if priors is None or priors.dim() != 2 or priors.shape[1] != 4 or len(self.columns) != len(self.classes):
            raise InputError("detector: give priors of shape (P, 4), and a column for each class")
        return SsdDetector(net, priors=finite(_PRIORS, priors), **vars(self))


@dataclass
class Torchvision:
    """One of torchvision's own detectors by its name; see ``TorchvisionDetector``."""

    name: Name
    columns: list[str]
    size: tuple[int, int]
    longer: int | None
    score: float
    nms_iou: float
    top_k: int

    @property
    def channels(self) -> int:
        return 4 if self.name in TWO_STAGE else 3

    @classmethod
    def of(cls, detector: TorchvisionDetector) -> "Torchvision":
        limits, transform = detector.stages.limits, detector.transform
        longer = None if transform.fixed_size is not None else transform.max_size
        limits = limits.score_thresh, limits.nms_thresh, limits.detections_per_img
        return cls(present(detector.name), detector.columns, detector.size, longer, *limits)

    def build(self, net: nn.Module, tensors: dict[str, Tensor]) -> TorchvisionDetector:
        limits = {"score_thresh": self.score, "nms_thresh": self.nms_iou, "detections_per_img": self.top_k}
        with torch.random.fork_rng(devices=[]):  # its weights are drawn, and given up at once
            model = get_model(self.name, weights=None, weights_backbone=None, num_classes=len(self.columns))
        detector = TorchvisionDetector(model, self.columns, self.longer, self.name)
        for key, value in limits.items():
            setattr(detector.stages.limits, key, value)
        detector.stages.strip()
        detector.net = net
        return detector


@dataclass
class Headed:
    """See ``HeadDetector`` and ``Inputs``."""

    classes: list[str]
    size: tuple[int, int]
    head: Head
    strides: list[int] | list[list[float]] | None
    anchors: list[list[float]] | None
    activated: bool
    resize: Resize
    pad: float
    bgr: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    score: float
    nms_iou: float
    top_k: int
    names: list[str] | None = None

    @property
    def channels(self) -> int:
        return len(self.mean)

    @classmethod
    def of(cls, detector: HeadDetector) -> "Headed":
        own = vars(detector) | {"strides": detector.strides or None}
        return cls(**_fields(cls, own | vars(detector.inputs)))

    def build(self, net: nn.Module, tensors: dict[str, Tensor]) -> HeadDetector:
        values = dict(vars(self))
        inputs = Inputs(**{item.name: values.pop(item.name) for item in fields(Inputs)})
        return HeadDetector(net, inputs=inputs, **values)


@dataclass
class Recogniser:
    """See ``Classifier`` and ``Preprocess``."""

    classes: list[str]
    resize: int | tuple[int, int]
    crop: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    scale: float
    bgr: bool
    interpolation: Interpolation

    @classmethod
    def of(cls, classifier: Classifier) -> "Recogniser":
        own = vars(classifier.inputs) | {"interpolation": classifier.inputs.interpolation.name}
        return cls(classifier.classes, **own)

    @property
    def size(self) -> tuple[int, int]:
        return self.crop, self.crop

    def build(self, net: nn.Module, tensors: dict[str, Tensor]) -> Classifier:
        values = vars(self) | {"interpolation": InterpolationMode[self.interpolation]}
        return Classifier(net, list(self.classes), Preprocess(**_fields(Preprocess, values)))


Data = Yolo | Ssd | Headed | Torchvision | Recogniser
KINDS: dict[str, tuple[type, type[Data]]] = {
    "yolo": (YoloDetector, Yolo),
    "ssd": (SsdDetector, Ssd),
    "head": (HeadDetector, Headed),
    "torchvision": (TorchvisionDetector, Torchvision),
    "classifier": (Classifier, Recogniser),
}
_LIMITS: dict[str, tuple[float, float]] = {  # of the numbers in a field, whatever has it; texts have none
    **dict.fromkeys(("score", "nms_iou"), (0, 1)),
    **dict.fromkeys(("size", "strides", "longer", "resize", "crop"), (1, _SIDE)),
    **{"top_k": (1, LARGEST), "channels": (1, 3), "columns": (0, LARGEST), "std": (1e-30, 1e30)},
}
_RANGES = {(data, key): limits for _, data in KINDS.values() for key, limits in _LIMITS.items()}
_RANGES |= {(Headed, "anchors"): (1e-3, _SIDE)}


def write_detector(detector: Any) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
    """A detector as JSON values and named tensors; None for one of the user's own, which is handed in at loading."""
    own = type(detector)
    for kind, (cls, data) in KINDS.items():
        if own is cls and getattr(detector, "name", "") is not None:
            tensors = {_PRIORS: detector.priors} if cls is SsdDetector else {}
            return {"kind": kind, **asdict(data.of(detector))}, tensors
    return None, {}


def read_detector(values: Any, tensors: dict[str, Tensor], net: nn.Module, inputs: list[tuple[int, ...]]) -> Any:
    """The detector around ``net`` that ``write_detector`` wrote. inputs: shapes of what ``net`` takes.

    Raises InputError.
    """
    kind = values.get("kind") if isinstance(values, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise InputError(f"detector: {show(kind)} is none of {', '.join(KINDS)}")
    data = Reader("detector", _RANGES).read(KINDS[kind][1], {key: v for key, v in values.items() if key != "kind"})
    shape = getattr(data, "channels", 3), *data.size
    if inputs != [shape]:
        raise InputError(f"detector: its images are of {shape}, the network takes {inputs}")
    return data.build(net, tensors)
