"""What a run has found so far, one file a batch: the run can go on after any end, and its ranks need no other channel.

A part is a safetensors file, written whole or not at all: tensors to the bit, ids and messages as JSON in its header.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from msat_det.base.errors import InputError, lack_of_memory
from msat_det.base.files import is_file, write_whole
from msat_det.models.detector import Detections

T = TypeVar("T")
FIGURES = 5  # of ``spiking.energy.Counts.figures``
Key = tuple[str, int | None]  # a method's label and a recorded timestep; ("float", None) is the float network


@dataclass
class Part:
    """What one batch gave.

    ids: of the images that could be read. corrupt: messages of those that could not.
    found: {(label, t): for each image its Detections, or its logits (K,)}.
    costs: {(label, t): (5,) float64, sums over the images of ``spiking.energy.Counts.figures``}.
    changes: {label: (B, K), for each image how much its outputs changed before each recorded t (``anytime.changes``)},
    each: {(label, t): (B, 5) float64, costs of each image}; both for methods with an exit.
    misfit: messages of the images that have another size than their annotation says.
    """

    ids: list[int | str]
    corrupt: list[str]
    found: dict[Key, list[Detections] | list[Tensor]] = field(default_factory=dict)
    costs: dict[Key, Tensor] = field(default_factory=dict)
    changes: dict[str, Tensor] = field(default_factory=dict)
    each: dict[Key, Tensor] = field(default_factory=dict)
    misfit: list[str] = field(default_factory=list)


class Parts:
    """The parts of a run in ``folder``, numbered by batch; whatever they tell is in the order of the batches.

    batches: ids of each batch's images, and classes: number of those that a label or a logit can stand for; a part
    that says otherwise is damaged. None: not known. Readers raise InputError for a damaged part.
    """

    def __init__(self, folder: Path, batches: Sequence[list[int | str]] | None = None, classes: int | None = None):
        self.folder, self.batches, self.classes = folder, batches, classes

    def done(self) -> set[int]:
        """The numbers of the batches that have been written."""
        return {int(path.stem) for path in self._files()}

    def write(self, number: int, part: Part) -> None:
        """Keep one batch. Raises InputError where the disk does not take it."""
        tensors = {f"{_name(key)}/costs": costs for key, costs in part.costs.items()}
        tensors |= {f"{_name(key)}/each": costs for key, costs in part.each.items()}
        tensors |= {f"{label}/changes": changes for label, changes in part.changes.items()}
        for key, found in part.found.items():
            tensors |= {f"{_name(key)}/{name}": tensor for name, tensor in _pack(found).items()}
        header = {name: json.dumps(getattr(part, name)) for name in ("ids", "corrupt", "misfit")}
        content = safetensors.torch.save(tensors, header)
        write_whole(self.folder / f"{number:08}.safetensors", lambda file: file.write_bytes(content))

    def ids(self) -> list[int | str]:
        """The images that could be read."""
        return [id for ids in self._each(lambda ids, file: ids) for id in ids]

    def corrupt(self) -> list[str]:
        """What was wrong with the images that could not be read."""
        return self._messages("corrupt")

    def misfit(self) -> list[str]:
        """Which images have another size than their annotation says."""
        return self._messages("misfit")

    def found(self, label: str, t: int | None, least: int | None = None) -> dict[int | str, Any]:
        """Image id → its Detections or logits, of one method at one timestep.

        With ``least`` N, no more batches are read than hold the first N images.
        """
        name = _name((label, t))
        found: dict[int | str, Any] = {}
        for part in self._each(
            lambda ids, file: dict(zip(ids, _unpack(file, name, self.classes), strict=True)) if ids else {}
        ):
            found |= part
            if least is not None and len(found) >= least:
                break
        return found

    def costs(self, label: str, t: int | None) -> Tensor:
        """(5,) float64 sums over all images; added batch by batch, so that they do not depend on who did which."""
        name, none = f"{_name((label, t))}/costs", torch.zeros(FIGURES, dtype=torch.float64)
        return sum(self._each(lambda ids, file: _checked(file.get_tensor(name)) if ids else none), none)

    def changes(self, label: str, times: int) -> Tensor:
        """(N, K) float64 changes of all images before the K = ``times`` recorded t, of one method with an exit."""
        return self._rows(f"{label}/changes", times)

    def each(self, label: str, t: int) -> Tensor:
        """(N, 5) float64 costs of each image, of one method with an exit."""
        return self._rows(f"{_name((label, t))}/each", FIGURES)

    def _rows(self, name: str, columns: int) -> Tensor:
        """A row for each image that could be read."""

        def take(ids: list[int | str], file: Any) -> Tensor:
            rows = file.get_tensor(name) if ids else torch.zeros(0, columns, dtype=torch.float64)
            if rows.shape != (len(ids), columns) or rows.dtype != torch.float64:
                raise ValueError(f"its {name} is not {columns} numbers for each image")
            return rows

        return torch.cat(list(self._each(take)))

    def _messages(self, name: str) -> list[str]:
        return [
            text for texts in self._each(lambda ids, file: _messages(file.metadata().get(name, "[]"))) for text in texts
        ]

    def _files(self) -> list[Path]:
        found = sorted(self.folder.glob(f"{'[0-9]' * 8}.safetensors"))
        return [path for path in found if is_file(path) and not path.is_symlink()]

    def _each(self, take: Callable[[list[int | str], Any], T]) -> Iterator[T]:
        """What ``take`` gives for the ids and the open file of each part."""
        for path in self._files():
            try:
                with safe_open(path, "pt") as file:
                    taken = take(self._ids(int(path.stem), file.metadata()["ids"]), file)
            except (SafetensorError, OSError, LookupError, ValueError, TypeError, RuntimeError) as error:
                if lack_of_memory(error):
                    raise
                raise InputError(f"{path} is damaged ({error}): delete it, --resume computes it again") from error
            yield taken

    def _ids(self, number: int, text: str) -> list[int | str]:
        ids = json.loads(text)
        known = ids if self.batches is None else self.batches[number]
        if not isinstance(ids, list) or any(type(id) not in (int, str) or id not in known for id in ids):
            raise ValueError("it names other images than its batch has")
        return ids


def _messages(text: str) -> list[str]:
    messages = json.loads(text)
    if not isinstance(messages, list) or not all(isinstance(message, str) for message in messages):
        raise ValueError("its messages are none")
    return messages


def _checked(costs: Tensor) -> Tensor:
    if costs.shape != (FIGURES,) or costs.dtype != torch.float64:
        raise ValueError(f"its costs are not {FIGURES} numbers")
    return costs


def _name(key: Key) -> str:
    label, t = key
    return f"{label}/{t or 0}"


def _pack(found: Sequence[Any]) -> dict[str, Tensor]:
    """What was decoded on a batch's images as few tensors."""
    if not isinstance(found[0], Detections):
        return {"logits": torch.stack(list(found))}
    return {
        "boxes": torch.cat([one.boxes for one in found]),
        "scores": torch.cat([one.scores for one in found]),
        "labels": torch.cat([one.labels for one in found]),
        "sizes": torch.tensor([len(one.scores) for one in found]),
    }


def _unpack(file: Any, name: str, classes: int | None) -> Iterator[Any]:
    """One method's part of a file, image by image."""
    if f"{name}/logits" in file.keys():  # noqa: SIM118 (safetensors' file is no dict)
        logits = file.get_tensor(f"{name}/logits")
        if not logits.is_floating_point() or logits.dim() != 2 or classes not in (logits.shape[1], None):
            raise ValueError("its logits are not of the network's classes")
        return iter(logits)
    boxes, scores, labels, sizes = (file.get_tensor(f"{name}/{key}") for key in ("boxes", "scores", "labels", "sizes"))
    n = len(labels)
    fits = boxes.shape == (n, 4) and scores.shape == labels.shape == (n,) and sizes.dim() == 1
    if not (fits and labels.dtype == torch.int64 and boxes.is_floating_point() and scores.is_floating_point()):
        raise ValueError("its boxes, scores and labels do not fit together")
    if n and not 0 <= labels.min() <= labels.max() < (classes or torch.inf):
        raise ValueError("its labels are not of the network's classes")
    return map(Detections, *(part.split(sizes.tolist()) for part in (boxes, scores, labels)))
