"""The run configuration: one dataclass tree with its defaults and checks.

The dataclasses are the only list of keys: types, defaults and the text that annotates each, which ``--help`` and
docs/reference.md show.
"""

import re
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any

from msat_det.base.errors import InputError
from msat_det.base.files import show, yaml_text
from msat_det.base.names import PRECISIONS
from msat_det.base.reader import Reader, plain

MOST_TIMESTEPS = 1 << 24  # potentials and running sums are float32, which counts no further
MOST_THREADS = 1024
MOST_DRAWS = 1_000_000


@dataclass
class Data:
    """The keys of ``data``, see ``Config``."""

    kind: Annotated[str, "dataset reader: voc, coco, yolo, cifar100, folders …"]
    root: Annotated[
        str,
        "its folder; a COCO root holds annotations/ and <split>/, a VOC root VOCdevkit/; of kind yolo its YAML file.",
    ]
    split: Annotated[str | None, "val2017 (COCO), test or val (VOC) …; null: the reader's default."] = None
    annotations: Annotated[
        str | None, "JSON file of kind coco, relative to root; null: found where COCO and annotation tools put it."
    ] = None
    images: Annotated[
        str | None,
        "folder of kind coco's images, relative to root; null: found where COCO and annotation tools put them.",
    ] = None
    year: Annotated[str, "year of VOCdevkit/VOC<year>, of kind voc."] = "2007"
    limit: Annotated[int | None, "only the first N of a seeded shuffle of the sorted ids; null: all."] = None
    held_out: Annotated[
        bool,
        "evaluate only images that are not among the calibration images, by their bytes; limit counts what is left.",
    ] = False
    corrupt: Annotated[
        str | None,
        "evaluate corrupted images, noise, blur, fog, brightness or jpeg with a severity of 1 to 5, as in noise:3.",
    ] = None

    def __post_init__(self) -> None:
        _as_hinted(self, "data.")
        _positive("data.limit", self.limit)


@dataclass
class Model:
    """The keys of ``model``, see ``Config``."""

    name: Annotated[
        str,
        "a name in the registry of detectors or classifiers (`msat-det list detectors`), or package.module:function "
        "for a network of your own, which the working directory may hold.",
    ]
    weights: Annotated[
        str | None,
        "a safetensors file, a PyTorch state dict or the checkpoint of a training around one, a Darknet .weights "
        "file, an ONNX file, or the name of a torchvision weights enum (DEFAULT). Nothing in a checkpoint is run.",
    ] = None
    cfg: Annotated[str | None, "Darknet .cfg file; --model.cfg makes the network a Darknet one."] = None
    names: Annotated[
        str | None, "the network's classes: voc, coco or a file with one name a line. Data of kind voc adopt them."
    ] = None
    trust: Annotated[bool, "read an Ultralytics .pt file, which holds code that is run."] = False
    arch: Annotated[str | None, "which network of timm (resnet18d …) or of Ultralytics (yolov8n, rtdetr-l …)."] = None
    head: Annotated[
        str | None,
        "how raw outputs become boxes: yolov3, yolov4, yolov5, yolov7, yolov8, yolox, nanodet, picodet, fastestdet, "
        "ssd, retinanet, efficientdet, fcos, rtmdet, detr, rtdetr or raw; its usual values are used for keys on heads "
        "and inputs that are not given. null: as an ONNX file says, or as it decodes boxes itself.",
    ] = None
    strides: Annotated[
        list[int] | list[list[float]] | None,
        "input pixels per cell, for each level of the head; [x, y] of them where they differ or are no whole numbers.",
    ] = None
    anchors: Annotated[
        list[list[float]] | None,
        "for each level the widths and heights of its anchors in input pixels, [[10, 13, 16, 30], …].",
    ] = None
    activated: Annotated[bool | None, "whether the network's scores are already probabilities."] = None
    outputs: Annotated[
        list[str] | None, "names of the tensors in an ONNX file that are the raw outputs, if they are not found."
    ] = None
    resize: Annotated[str | None, "stretch, letterbox, or corner: a letterbox, photograph at the top left."] = None
    pad: Annotated[float | None, "the letterbox's grey, 0 to 255."] = None
    bgr: Annotated[bool | None, "whether the input's channels are blue, green, red."] = None
    mean: Annotated[
        list[float] | None, "what is subtracted from the input's three channels, or from its grey one, 0 to 255."
    ] = None
    std: Annotated[list[float] | None, "what they are then divided by."] = None
    size: Annotated[int | None, "side of the network's square input, pixels."] = None
    preprocess: Annotated[str | None, "how a classifier's input is made: cifar, imagenet or caffe."] = None
    num_classes: Annotated[int | None, "number of classes, for networks built without weights that show it."] = None
    score: Annotated[float | None, "lowest score that is kept, 0 to 1."] = None
    nms_iou: Annotated[float | None, "overlap above which non-maximum suppression drops the weaker box, 0 to 1."] = None
    top_k: Annotated[int | None, "most boxes kept per image."] = None
    regions: Annotated[int | None, "most regions that a two-stage detector's second stage looks at."] = None

    def __post_init__(self) -> None:
        _as_hinted(self, "model.")
        for name in ("size", "num_classes", "top_k", "regions"):
            _positive(f"model.{name}", getattr(self, name))
        for name in ("score", "nms_iou"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise InputError(f"model.{name} is {value}: give a number from 0 to 1")
        if self.resize not in (None, "stretch", "letterbox", "corner"):
            raise InputError(
                f"model.resize is {self.resize!r}: give stretch or letterbox, or corner, one at the top left"
            )
        for stride in self.strides or []:
            if isinstance(stride, int):
                _positive("one of model.strides", stride)

    def given(self, *keys: str) -> dict[str, Any]:
        """Those of the keys that are set (not None)."""
        return {key: value for key in keys if (value := getattr(self, key)) is not None}

    def refuse_others(self, *keys: str) -> None:
        """Raise InputError for a key that is set, and that ``name``, which takes ``keys``, has no use for."""
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name not in ("name", *keys) and value != item.default:
                takes = f"it takes {', '.join(keys)}" if keys else "it takes no keys"
                raise InputError(f"model.{item.name} is {show(value)}, for which {self.name} has no use: {takes}")


@dataclass
class Augment:
    """The keys of ``calib.augment``, see ``Config``."""

    flip: Annotated[bool, "mirror a copy."] = False
    photometric: Annotated[bool, "change its brightness, contrast, saturation and hue."] = False
    crop: Annotated[bool, "cut out a part of it and enlarge that."] = False
    copies: Annotated[int, "how many copies of every image, where a change is on."] = 1

    def __post_init__(self) -> None:
        _as_hinted(self, "calib.augment.")
        _positive("calib.augment.copies", self.copies)
        if self.copies > 1 and not (self.flip or self.photometric or self.crop):
            raise InputError(
                f"calib.augment.copies is {self.copies}, and no change is on that copies differ by: set flip, "
                "photometric or crop"
            )


@dataclass
class Calib:
    """The keys of ``calib``, see ``Config``."""

    kind: Annotated[str, "dataset reader as in data.kind; images: every image below root, without labels."] = "images"
    root: Annotated[str | None, "its folder; null: data.root (not for kind images)."] = None
    split: Annotated[str | None, "split of that dataset; keep it apart from the evaluated one."] = None
    annotations: Annotated[str | None, "JSON file as in data.annotations."] = None
    images: Annotated[str | None, "folder as in data.images."] = None
    skip: Annotated[
        int, "skip the first N of the seeded shuffle, which are evaluated, if both come from the same images."
    ] = 0
    limit: Annotated[int | None, "only the first N of a seeded shuffle of the sorted ids; null: all."] = None
    augment: Annotated[
        Augment,
        "Changed copies of the calibration images beside the images themselves: more statistics from few of them.",
    ] = field(default_factory=Augment)

    def __post_init__(self) -> None:
        _as_hinted(self, "calib.")
        _positive("calib.limit", self.limit)
        _at_least_0("calib.skip", self.skip)


@dataclass
class Sim:
    """The keys of ``sim``, see ``Config``."""

    T: Annotated[int | None, "number of timesteps; null: the largest of record."] = None
    record: Annotated[
        list[int] | None, "timesteps at which the outputs are read and evaluated, 1 to T; null: powers of two up to T."
    ] = None
    chunk: Annotated[
        int | None,
        "timesteps that a layer runs before the next one does (delta coding: one); null: chosen by the simulator.",
    ] = None

    def __post_init__(self) -> None:
        _as_hinted(self, "sim.")
        _positive("sim.T", self.T, MOST_TIMESTEPS)
        _positive("sim.chunk", self.chunk)
        if not self.record:
            if self.T is None:
                raise InputError("sim has neither T nor record: give the number of timesteps with --sim.T N")
            self.record = [2**i for i in range(self.T.bit_length())]
        if min(self.record) <= 0:
            raise InputError(f"sim.record holds {min(self.record)}: timesteps count from 1")
        _positive("sim.record", max(self.record), MOST_TIMESTEPS)
        self.T = self.T or max(self.record)
        if max(self.record) > self.T:
            raise InputError(f"sim.record holds {max(self.record)}, beyond sim.T = {self.T}: raise T or leave it out")
        self.record = sorted({*self.record, self.T})


@dataclass
class Draw:
    """The keys of ``draw``, see ``Config``."""

    images: Annotated[int, "number of images drawn, the first ones evaluated; 0: none."] = 4
    t: Annotated[list[int] | None, "recorded timesteps that are drawn; null: three spread over the record."] = None
    method: Annotated[
        str | None,
        "label of the method that is drawn; null: of those with the most drawn timesteps, the best at its last one.",
    ] = None

    def __post_init__(self) -> None:
        _as_hinted(self, "draw.")
        _at_least_0("draw.images", self.images)


@dataclass
class Ledger:
    """The keys of ``ledger``, see ``Config``."""

    images: Annotated[
        int, "calibration images on which each method's error is analysed at the end of a run, the first ones; 0: none."
    ] = 0

    def __post_init__(self) -> None:
        _as_hinted(self, "ledger.")
        _at_least_0("ledger.images", self.images)


@dataclass
class Exit:
    """The keys of ``exit``, see ``Config``."""

    methods: Annotated[
        list[str], "labels of the methods that it is measured for; methods that are made anew for each t are excluded."
    ] = field(default_factory=list)
    images: Annotated[int, "calibration images that the rule is fitted on, the first ones."] = 16
    allowance: Annotated[
        float, "how much farther from the float outputs than at the last t the rule may stop, as a share."
    ] = 0.05

    def __post_init__(self) -> None:
        _as_hinted(self, "exit.")
        _positive("exit.images", self.images)
        if not 0 <= self.allowance < float("inf"):
            raise InputError(f"exit.allowance is {self.allowance}: give a share of 0 or more, such as 0.05")
        _refuse_idle("exit", self, "methods")


@dataclass
class Bootstrap:
    """The keys of ``bootstrap``, see ``Config``."""

    against: Annotated[
        str | None, "label of the method that the others are compared with, at the same t; null: no comparison."
    ] = None
    draws: Annotated[int, "how many times the images are resampled."] = 1000
    confidence: Annotated[float, "share of the draws that the interval contains."] = 0.9

    def __post_init__(self) -> None:
        _as_hinted(self, "bootstrap.")
        _positive("bootstrap.draws", self.draws, MOST_DRAWS)
        if not 0 < self.confidence < 1:
            raise InputError(f"bootstrap.confidence is {self.confidence}: give a share between 0 and 1, such as 0.9")
        _refuse_idle("bootstrap", self, "against")


@dataclass(kw_only=True)
class Config:
    """Everything that decides what a run computes."""

    data: Annotated[Data, "The images that are evaluated."]
    model: Annotated[
        Model, "The float network and how its outputs become boxes. null leaves a setting to the network's own default."
    ]
    calib: Annotated[Calib, "The images on which activations are observed."]
    methods: Annotated[
        list[dict],
        "the conversions to compare: a list of {label, method, …options of the method, record: own timesteps}.",
    ] = field(default_factory=list)
    sim: Annotated[Sim, "The simulation. Give T, record or both; T is always among the recorded timesteps."]
    draw: Annotated[Draw, "The pictures of boxes beside float and ground truth."] = field(default_factory=Draw)
    ledger: Annotated[
        Ledger,
        "Where the error comes from, call site by call site, and how to mend the worst of them (`msat-det doctor`).",
    ] = field(default_factory=Ledger)
    exit: Annotated[
        Exit, "Anytime exit: an image stops once its outputs have settled, by a rule fitted on calibration images."
    ] = field(default_factory=Exit)
    bootstrap: Annotated[Bootstrap, "How sure a difference in accuracy is: its interval over resampled images."] = (
        field(default_factory=Bootstrap)
    )
    energy: Annotated[
        str,
        "what operations cost: 45nm, 45nm-shift, 45nm-int8, or a YAML file like msat_det/spiking/energy_tables.yaml.",
    ] = "45nm"
    batch: Annotated[int, "images per batch; if it is not given, a GPU evaluates as many as its free memory holds."] = 8
    seed: Annotated[int, "seed of subsets and of random masks."] = 0
    threads: Annotated[int | None, "CPU threads; null: as PyTorch chooses."] = None
    device: Annotated[str, "where networks run: auto, cpu, cuda, cuda:N or mps; auto: a GPU if there is one."] = "auto"
    precision: Annotated[
        str,
        "of the spiking networks' convolutions: float32, tf32x3, tf32, bf16 or fp16; the float network's is float32, "
        "and so are tf32 and tf32x3 on a CPU.",
    ] = "float32"
    out: Annotated[
        str | None,
        "run directory; null: runs/NAME by the configuration's name, runs/NAME-2 … if there is a finished run.",
    ] = None
    resume: Annotated[bool, "continue where an interrupted run in the same directory stopped."] = False
    overwrite: Annotated[bool, "replace the run that the directory holds."] = False
    strict: Annotated[bool, "stop at a corrupt image instead of counting it and continuing."] = False
    command: Annotated[str | None, "the command line that asked for it, which the report shows; no key."] = field(
        default=None, compare=False, metadata={"key": False}
    )
    free_batch: Annotated[bool, "whether nobody has given a batch; no key."] = field(
        default=False, compare=False, metadata={"key": False}
    )

    def __post_init__(self) -> None:
        _as_hinted(self)
        _positive("batch", self.batch)
        _positive("threads", self.threads, MOST_THREADS)
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", self.device):
            raise InputError(f"device is {self.device!r}: give auto, cpu, cuda, cuda:N or mps")
        PRECISIONS.find(self.precision)
        if self.calib.root is None:
            if self.calib.kind == "images":
                raise InputError("calib.root is missing: name a folder of calibration images with --calib.root DIR")
            self.calib.root = self.data.root
        self.methods = [checked_method(entry) for entry in self.methods]
        labels = [entry["label"] for entry in self.methods]
        for label in labels:
            if labels.count(label) > 1:
                raise InputError(f"two methods are labelled {label}: give each a label of its own")
        named = [
            *(("exit.methods names", label, "") for label in self.exit.methods),
            ("draw.method is", self.draw.method, ""),
            ("bootstrap.against is", self.bootstrap.against, "; name one of them, or null"),
        ]
        for key, label, mend in named:
            if label is not None and label not in labels:
                raise InputError(f"{key} {label!r}: the labels are {', '.join(labels) or 'none'}{mend}")
        for t in self.draw.t or []:
            if t not in (self.sim.record or []):
                raise InputError(f"draw.t holds {t}, which is not recorded: sim.record is {self.sim.record}")

    def require_unseen(self) -> None:
        """Raise InputError where calibration images that ``calib.skip`` sets apart would be evaluated."""
        keys = ("kind", "root", "split", "annotations", "images")
        same = not self.data.held_out and all(getattr(self.calib, key) == getattr(self.data, key) for key in keys)
        if same and self.calib.skip and (self.data.limit is None or self.data.limit > self.calib.skip):
            raise InputError(
                f"data.limit is {self.data.limit} and calib.skip {self.calib.skip}: calibration images would be "
                "evaluated; give a data.limit of at most calib.skip"
            )

    @property
    def folder(self) -> str:
        """The run directory. Raises InputError where none is named."""
        if self.out is None:
            raise InputError("no run directory named: give one with --out")
        return self.out

    def record_of(self, entry: dict) -> list[int]:
        """The timesteps recorded for one entry of ``methods``: its own ``record``, where given, met with sim.record."""
        own = entry.get("record")
        return [t for t in self.sim.record or [] if own is None or t in own]

    def drawn_times(self, entry: dict) -> list[int]:
        """The timesteps drawn for one entry of ``methods``: draw.t, or up to three spread over its record."""
        record = self.record_of(entry)
        if self.draw.t:
            return [t for t in record if t in self.draw.t]
        return sorted({record[0], record[len(record) // 2], record[-1]}) if record else []

    def to_yaml(self) -> str:
        """All resolved values, as YAML that makes the same run again."""
        return yaml_text(self.values())

    def values(self) -> dict:
        """All resolved values as plain ones, a mapping for each section."""
        return {key: value for key, value in asdict(self).items() if key not in ("command", "free_batch")}


def _as_hinted(section: Any, prefix: str = "") -> None:
    """Bring what Python gave for a section's keys to the types of their hints, as for a file. Raises InputError."""
    reader = Reader("the configuration", by_hand=True)
    for item in fields(section):
        value = plain(getattr(section, item.name))
        setattr(section, item.name, reader.value(item.type, value, prefix + item.name))


def checked_method(entry: dict) -> dict:
    """One entry of ``methods``, checked: label and method are words, options scalars, flat lists or {T: number}."""
    entry = plain(entry)
    label = entry.get("label", entry.get("method"))
    for name, word in (("label", label), ("method", entry.get("method"))):
        if not isinstance(word, str) or not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", word):
            raise InputError(f"a method's {name} is {show(word)}: give a word of letters, digits, '-', '.', '_', '+'")
    if label in ("float", "all"):
        meaning = {"float": "the float network", "all": "every method in --methods"}[label]
        raise InputError(f"a method is labelled {label}, which names {meaning}: give it another label")
    for name, value in entry.items():
        if not isinstance(name, str):
            raise InputError(f"an option of method {label} is named {show(name)}: give a word")
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
        by_word = isinstance(value, dict) and not all(type(t) is int for t in value)
        if by_word or any(isinstance(part, dict | list) for part in parts):
            raise InputError(
                f"option {name} of method {label} is nested: give one value, a flat list or one for each T"
            )
    entry = {"label": label} | entry
    record = entry.get("record")
    if record is not None and not (
        record and isinstance(record, list) and all(type(t) is int and 0 < t <= MOST_TIMESTEPS for t in record)
    ):
        raise InputError(f"record of method {label} is {show(record)}: give a list of timesteps such as [4, 8]")
    return entry


def method_options(entry: dict) -> dict:
    """An entry of ``Config.methods`` without what is not the method's own."""
    return {key: value for key, value in entry.items() if key not in ("label", "method", "record")}


def _refuse_idle(section: str, keys: Any, switch: str) -> None:
    """Raise InputError for a key of a section that is given while the one that turns the section on is not."""
    for item in fields(keys) if not getattr(keys, switch) else ():
        value = getattr(keys, item.name)
        if item.name != switch and value != item.default:
            raise InputError(
                f"{section}.{item.name} is {value}, and {section}.{switch} names no method: name one, or leave it out"
            )


def _at_least_0(key: str, value: int) -> None:
    if value < 0:
        raise InputError(f"{key} is {value}: give 0 or more")


def _positive(key: str, value: int | None, most: int | None = None) -> None:
    if value is not None and value <= 0:
        raise InputError(f"{key} is {value}: give a whole number above 0")
    if value is not None and most is not None and value > most:
        raise InputError(f"{key} is {value}: give at most {most}")
