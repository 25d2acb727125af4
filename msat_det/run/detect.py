"""``msat-det detect``: a converted detector on pictures of your own."""

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from msat_det.base.config import Config
from msat_det.base.device import find_device
from msat_det.base.errors import InputError
from msat_det.base.files import drop_empty, is_file, make_folders, show, write_whole
from msat_det.base.names import hint
from msat_det.base.progress import Progress
from msat_det.base.settings import NETWORKS, expanded
from msat_det.data import Dataset
from msat_det.data.images import CorruptImage, Size, read_upright, upright_size
from msat_det.data.overlap import overlap
from msat_det.data.sources import images_of_all
from msat_det.data.video import VideoFile, frames_of, is_video
from msat_det.methods import DEFAULT, METHODS
from msat_det.models.detector import Detections, Detector
from msat_det.report.side_by_side import side_by_side
from msat_det.run.prepare import build_model, calibration_images, convert, observed, settle, task_of
from msat_det.spiking.network import SpikingNetwork, load

RESULT = "detections.json"
FRAMES = 8  # of a video that are simulated at once
ENOUGH = {"delta": 4, "rate": 32}  # timesteps where none are asked for
SHOWN = 0.3  # the least score where neither the user nor the detector's head says another


@dataclass(frozen=True)
class Wanted:
    """What is asked for. t: timesteps, None: as many as the coding needs. classes: names, empty for all. score: the
    least that counts, None: what is usual. compare: the float network's boxes and those over t in one picture. device:
    of a saved network; one that is converted lies where its configuration says."""

    out: Path
    t: int | None = None
    classes: tuple[str, ...] = ()
    score: float | None = None
    compare: bool = False
    device: str = "auto"


def detect(sources: Sequence[str], network: Config | Path, method: str | None, wanted: Wanted) -> Path:
    """Detect on pictures, those of folders and patterns, or on a video; write pictures and detections.json into
    ``wanted.out``, and print a line for each picture. Returns that folder.

    sources: several, or a video alone. network: a configuration, whose detector is converted by ``method`` (a label of
    the file or a registered name, by default the library's), or a file that ``msat_det.save`` wrote. Raises InputError
    for bad input of any kind.
    """
    video = next(filter(is_video, sources), None)
    if video and len(sources) > 1:
        raise InputError(f"{video} is a video, and other sources stand beside it: give it alone")
    files = {Path(video).name: expanded(video)} if video else _but_made(images_of_all(sources), sources, wanted)
    targets = places(files, wanted.out, ".mp4" if video else ".jpg")
    if isinstance(network, Path):
        snn = saved(network).to(find_device(wanted.device))
    else:
        snn = converted(network, method, wanted.t, files)
    job = Job(snn, wanted)
    made = make_folders(wanted.out)
    try:
        if video:
            ((name, path),) = files.items()
            write_whole(targets[name], partial(job.video, name, frames_of(path)))
        else:
            job.pictures(files, targets)
        job.write()
    finally:
        drop_empty(made)
    return wanted.out


def _but_made(files: dict[str, Path], sources: Sequence[str], wanted: Wanted) -> dict[str, Path]:
    """The files without those that an earlier call has left in ``wanted.out``, a folder below a source."""
    out, named = wanted.out.resolve(), [expanded(source) for source in sources]
    kept = {name: path for name, path in files.items() if path in named or out not in path.resolve().parents}
    if kept and len(kept) < len(files):
        print(
            f"{len(files) - len(kept)} pictures are in {wanted.out}, where they are written: left out", file=sys.stderr
        )
    return kept or files


def places(files: dict[str, Path], out: Path, suffix: str) -> dict[str, Path]:
    """Where the picture of each source goes: its name below ``out``, behind which its own suffix stays where another
    one has that place, a.png.jpg beside a.jpg. Raises InputError where a source would be overwritten."""
    found: dict[str, Path] = {}
    taken: set[str] = set()  # without capitals, which some systems do not tell apart
    originals = {path.resolve() for path in files.values()}
    for name in sorted(files, key=lambda name: Path(name).suffix != suffix):  # those that keep their names first
        target, longer = Path(name).with_suffix(suffix), name
        while str(target).casefold() in taken:
            longer += suffix
            target = Path(longer)
        taken.add(str(target).casefold())
        found[name] = out / target
        if found[name].resolve() in originals:
            raise InputError(f"{found[name]} is one of the sources, which would be overwritten: give another --out DIR")
    return found


def saved(path: Path) -> SpikingNetwork:
    """The network in a file that ``msat_det.save`` wrote, whatever its name is. Raises InputError."""
    try:
        return load(path)
    except InputError as error:
        if not is_file(path) or path.suffix not in NETWORKS or path.suffix == ".safetensors":  # as saved ones often are
            raise
        raise InputError(
            f"{path} holds no network that msat_det.save wrote: name a float one in a configuration, and give that "
            "with --cfg FILE"
        ) from error


def converted(config: Config, method: str | None, T: int | None, files: dict[str, Path]) -> SpikingNetwork:
    """The detector of a configuration as a spiking network, and a word on files that it is calibrated on. Raises
    InputError."""
    if task_of(config) != "detection":
        raise InputError("this configuration is a classifier's: give a detector's")
    config = settle(config)
    name = method or DEFAULT
    entries = {entry["label"]: entry for entry in config.methods}
    if name not in entries and name not in METHODS:
        known = list(dict.fromkeys([*entries, *METHODS]))
        raise InputError(f"no method {show(name)}: {hint(name, known, 'msat-det list methods shows all')}")
    model, calibration = build_model(config, "detection"), calibration_images(config)
    _tell_seen(files, calibration)
    observation = observed(config, model, calibration)
    entry = entries.get(name, {"label": name, "method": name})
    coding = METHODS.find(entry["method"]).options().coding
    return convert(config, entry, observation, T or ENOUGH[entry.get("coding", coding)])


def _tell_seen(files: dict[str, Path], calibration: Dataset) -> None:
    paths, seen = [path.resolve() for path in files.values()], 0
    for root in {path.anchor for path in paths}:  # several on Windows
        below = {str(path): path.relative_to(root).as_posix() for path in paths if path.anchor == root}
        seen += len(overlap(Dataset(Path(root), [], below, {}), calibration))
    if seen:
        told = f"calibration images among the pictures: {seen} of {len(files)}; on others it may find less"
        print(f"warning: {told}", file=sys.stderr)


@dataclass
class Job:
    """One call of the command: what it detects with, and what it has found so far."""

    snn: SpikingNetwork
    wanted: Wanted
    images: list[dict[str, Any]] = field(default_factory=list)
    found: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.detector: Any = self.snn.detector
        if not isinstance(self.detector, Detector):
            raise InputError("this network has no detector to read boxes: save one that has its detector")
        made = self.snn.T  # of a saved network as many as it was made for, which delta coding hardly ever needs
        self.T = self.wanted.t or (min(made, ENOUGH["delta"]) if self.snn.coding == "delta" else made)
        usual = getattr(self.detector, "shown", SHOWN)
        self.score: float = usual if self.wanted.score is None else self.wanted.score
        names = list(self.detector.classes)
        self.labels = torch.tensor([self._label(name, names) for name in self.wanted.classes], dtype=torch.int64)
        self.times = sorted({2**i for i in range(self.T.bit_length())} | {self.T}) if self.wanted.compare else [self.T]

    @staticmethod
    def _label(name: str, names: list[str]) -> int:
        if name not in names:
            known = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
            mend = hint(name, names, f"give some of {known}")
            raise InputError(f"the detector knows no {show(name)}: {mend}")
        return names.index(name)

    def pictures(self, files: dict[str, Path], targets: dict[str, Path]) -> None:
        """Pictures one by one; of several those that can't be read are told and left out."""
        for name, path in files.items():
            try:
                image = read_upright(path)
            except CorruptImage as error:
                if len(files) == 1:
                    raise
                print(f"warning: {error}", file=sys.stderr)
                continue
            (row,) = self.detected([image])
            self.note(name, row[self.T], image, upright_size(path))
            drawn = self.drawn(image, row)
            targets[name].parent.mkdir(parents=True, exist_ok=True)
            write_whole(targets[name], partial(drawn.save, format="JPEG", quality=92))
            print(f"{name}: {self.told(row[self.T])}")
        if not self.images:
            raise InputError("none of the pictures could be read: give others")

    def video(self, name: str, frames: Iterator[tuple[float, Tensor]], target: Path) -> None:
        """A video, a few frames at once; the pictures become a video as well."""
        rate, before = 25.0, None
        with VideoFile(target, rate) as video:
            bar = {"desc": "detecting", "unit": f"×{FRAMES} frames", "disable": None, "leave": False}
            for group in Progress(groups(frames, FRAMES), **bar):
                if before is None and len(group) > 1 and group[-1][0] > group[0][0]:
                    video.rate = max(1, round((len(group) - 1) / (group[-1][0] - group[0][0])))
                images = [image for _, image in group]
                for (seconds, image), row in zip(group, self.detected(images), strict=True):
                    before = seconds
                    self.note(name, row[self.T], image, frame=len(self.images), seconds=round(seconds, 4))
                    video.write(np.asarray(self.drawn(image, row)))
                    print(f"{name}, {seconds:.2f} s: {self.told(row[self.T])}")
        if not self.images:
            raise InputError(f"{name} holds no frame: give another video")

    def detected(self, images: list[Tensor]) -> list[dict[int | str, Detections]]:
        """For each image what is found at every timestep, and under "float" what the float network finds."""
        found: dict[Any, list[Detections]] = {**self.snn.detect(images, self.T, self.times)}
        if self.wanted.compare:
            found = {"float": self.float_boxes(images)} | found
        return [{key: self.chosen(each[i]) for key, each in found.items()} for i in range(len(images))]

    def float_boxes(self, images: list[Tensor]) -> list[Detections]:
        pixels, metas = zip(*map(self.detector.preprocess, images), strict=True)
        found = self.detector.decode(self.snn.graph(torch.stack(pixels).to(self.snn.device)), list(metas))
        return [Detections(one.boxes, one.scores, one.labels, tuple(self.detector.classes)) for one in found]

    def chosen(self, one: Detections) -> Detections:
        """The boxes of the asked classes that are sure enough."""
        one = one.above(self.score)
        keep = torch.isin(one.labels.cpu(), self.labels) if self.wanted.classes else slice(None)
        return Detections(one.boxes.cpu()[keep], one.scores.cpu()[keep], one.labels.cpu()[keep], one.classes)

    def drawn(self, image: Tensor, row: dict[int | str, Detections]) -> Image.Image:
        if not self.wanted.compare:
            return row[self.T].draw(image, self.score)
        photo = Image.fromarray(image.permute(1, 2, 0).numpy())
        headings = {"float network" if key == "float" else f"t = {key}": one for key, one in row.items()}
        return side_by_side(photo, headings, self.score)

    def told(self, one: Detections) -> str:
        """``2 person, 1 dog; t = 4, 0.31 of the float network's energy``."""
        kinds = ", ".join(f"{count} {name}" for name, count in Counter(one.names).most_common()) or "nothing"
        return f"{kinds}; t = {self.T}, {self.snn.counts[self.T].energy_ratio:.2f} of the float network's energy"

    def note(self, name: str, one: Detections, image: Tensor, size: Size | None = None, **more: Any) -> None:
        """Keep the boxes of an image as COCO has them, in pixels of its file: size, (width, height), where it was read
        smaller."""
        if not self.images:  # an earlier call's does not tell of these pictures
            (self.wanted.out / RESULT).unlink(missing_ok=True)
        id, read = len(self.images) + 1, (image.shape[2], image.shape[1])
        size = size or read
        self.images.append({"id": id, "file_name": name, "width": size[0], "height": size[1], **more})
        for (x1, y1, x2, y2), score, label in zip(
            (one.boxes * round(size[0] / read[0])).tolist(), one.scores.tolist(), one.labels.tolist(), strict=True
        ):
            box = [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)]
            entry = {"id": len(self.found) + 1, "image_id": id, "category_id": label + 1, "bbox": box}
            self.found.append(entry | {"area": round(box[2] * box[3], 2), "iscrowd": 0, "score": round(score, 5)})

    def write(self) -> None:
        """detections.json: images, categories and annotations as COCO has them, each with its score."""
        categories = [{"id": i, "name": name} for i, name in enumerate(self.detector.classes, 1)]
        content = {"images": self.images, "categories": categories, "annotations": self.found}
        text = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
        write_whole(self.wanted.out / RESULT, lambda file: file.write_bytes(text.encode()))


def groups(values: Iterable, size: int) -> Iterator[list]:
    """Lists of up to ``size`` values that follow each other."""
    values = iter(values)
    while group := list(islice(values, size)):
        yield group
