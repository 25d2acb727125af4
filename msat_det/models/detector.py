"""What a detector is to msat-det: a dense network between a preprocessing and a decoding step."""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn


@dataclass(frozen=True)
class Detections:
    """The boxes found on one image, best first.

    boxes: (N, 4) float, x1 y1 x2 y2 in pixels of the original image.
    scores: (N,) float in 0..1.
    labels: (N,) int64, index into the detector's ``classes``.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


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
        """One uint8 RGB image (3, H, W) → the network's input (3, h, w) float, and what ``decode`` needs to go back."""
        ...

    def decode(self, outputs: Any, metas: list[Any]) -> list[Detections]:
        """The network's outputs for a batch of B, and B metas → B ``Detections`` in original pixels."""
        ...
