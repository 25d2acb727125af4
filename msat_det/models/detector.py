"""What a detector is to msat-det: a dense network between a preprocessing and a decoding step."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image
from torch import Tensor, nn

from msat_det.base.colours import COLOURS
from msat_det.base.tables import Tabular
from msat_det.models.drawing import draw_boxes
from msat_det.models.pictures import picture


@dataclass(frozen=True, repr=False, eq=False)
class Detections(Tabular):
    """The boxes found on one image, best first.

    boxes: (N, 4) float, x1 y1 x2 y2 in pixels of the original image.
    scores: (N,) float in 0..1.
    labels: (N,) int64, index into the detector's ``classes``.
    classes: those names, which ``SpikingNetwork.detect`` puts there; without them labels are shown as numbers.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    classes: Sequence[str] = ()

    _headings = ("class", "score", "x1", "y1", "x2", "y2")
    _most = 10

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def names(self) -> list[str]:
        """The class of each box."""
        known = self.classes
        return [known[label] if 0 <= label < len(known) else str(label) for label in self.labels.tolist()]

    def above(self, score: float) -> "Detections":
        """The boxes with at least this score."""
        keep = self.scores >= score
        return Detections(self.boxes[keep], self.scores[keep], self.labels[keep], self.classes)

    def draw(self, image: Tensor | Image.Image | str | Path, score: float = 0.3) -> Image.Image:
        """A copy of the image that was detected on, a uint8 RGB tensor (3, H, W), a path or one of PIL, with the boxes
        of at least this score, their classes and scores. A notebook shows it, ``save(path)`` writes it."""
        shown = self.above(score)
        texts = [f"{name} {s:.2f}" for name, s in zip(shown.names, shown.scores.tolist(), strict=True)]
        colours = [COLOURS[label % len(COLOURS)] for label in shown.labels.tolist()]
        photo = Image.fromarray(picture(image).permute(1, 2, 0).cpu().numpy())
        return draw_boxes(photo, shown.boxes.tolist(), texts, colours)

    def to_supervision(self) -> dict[str, Any]:
        """The boxes as NumPy arrays under the names of ``supervision.Detections``, which takes them as its arguments:
        xyxy (N, 4) float32, confidence (N,) float32, class_id (N,) int64 and data: {"class_name": (N,) str}."""
        return {
            "xyxy": self.boxes.detach().cpu().numpy().astype(np.float32).reshape(-1, 4),
            "confidence": self.scores.detach().cpu().numpy().astype(np.float32),
            "class_id": self.labels.detach().cpu().numpy().astype(np.int64),
            "data": {"class_name": np.array(self.names, dtype=np.str_)},
        }

    def __repr__(self) -> str:
        found = [f"{name} {s:.2f}" for name, s in zip(self.names[: self._most], self.scores.tolist(), strict=False)]
        return f"Detections({', '.join(found) or 'nothing'}{', …' if len(self) > self._most else ''})"

    @property
    def _headline(self) -> str:
        return f"{len(self) or 'no'} box{'es' * (len(self) != 1)}"

    def _rows(self) -> list[list[str]]:
        numbers = zip(self.names, self.scores.tolist(), self.boxes.tolist(), strict=True)
        return [[name, f"{score:.2f}", *(f"{x:.1f}" for x in box)] for name, score, box in numbers]


@runtime_checkable
class Detector(Protocol):
    """The protocol that makes a network convertible and its spikes readable as boxes.

    net: the dense part (backbone, neck, head convolutions), the only part that becomes spiking. It takes one batch
        (B, 3, h, w) and returns a tensor or any nest of tuples, lists and dicts of tensors.
    classes: class names; a label is an index into them.
    """

    net: nn.Module
    classes: list[str]

    def preprocess(self, image: Tensor) -> tuple[Tensor, Any]:
        """One uint8 RGB image (3, H, W) → the network's input (3, h, w) float, and what ``decode`` needs of it."""
        ...

    def decode(self, outputs: Any, metas: list[Any]) -> list[Detections]:
        """The network's outputs for a batch of B, and B metas → B ``Detections`` in original pixels."""
        ...
