"""The evaluated images as batches, read and preprocessed on the CPU while the batch before is simulated.

Beside a simulation on the CPU one thread reads. Beside one on a GPU processes do, which leave images in pinned memory,
from where the GPU takes a batch while it works on the one before.
"""

import multiprocessing
import os
import shutil
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils.data import DataLoader

from msat_det.base import ranks
from msat_det.base.device import brought, current
from msat_det.base.errors import InputError
from msat_det.data import Dataset
from msat_det.data.images import CorruptImage

READERS = 16  # processes that read images for a GPU
PIECE = 8  # images that one of them reads at a time, at most
AHEAD = 2  # such pieces of each process that are read before they are asked for
SHARED = "/dev/shm"  # what processes hand them over in


@dataclass
class Loaded:
    """Images ready for the network.

    ids: of those that could be read. metas: what their boxes need. inputs: (B, 3, h, w); None where there is none.
    corrupt: the messages of those that could not be read. misfit: of those that have not their annotation's size.
    """

    ids: list = field(default_factory=list)
    metas: list = field(default_factory=list)
    corrupt: list[str] = field(default_factory=list)
    misfit: list[str] = field(default_factory=list)
    inputs: Any = None

    def pin_memory(self) -> "Loaded":
        """Itself, in memory that a GPU copies from by itself, as PyTorch's loader asks for it."""
        return self if self.inputs is None else replace(self, inputs=self.inputs.pin_memory())


def load_batches(
    model: Any, dataset: Dataset, batches: list[list], device: torch.device, strict: bool
) -> Iterator[Loaded]:
    """The images of these ids on the device, batch by batch. Raises CorruptImage where ``strict``."""
    reader = Reader(model, dataset, batches, strict)
    if device.type == "cuda":
        with current(device):  # memory is pinned for that one, and no other is woken
            found = _uploaded(_by_processes(reader), device)
    else:
        found = (_joined(pieces, device) for pieces in _by_thread(reader))
    with closing(found):  # where an image is bad the readers end at once
        for loaded in found:
            if isinstance(loaded, InputError):
                raise loaded
            yield loaded


@dataclass
class Reader:
    """Images ``ids[i]``, read and preprocessed; or what is raised, for an exception does not come out of a process in
    one line: CorruptImage where ``strict``."""

    model: Any
    dataset: Dataset
    ids: list[list]
    strict: bool

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Loaded | InputError:
        found, inputs = Loaded(), []
        for id in self.ids[index]:
            try:
                image = self.dataset.image(id)
                pixels, meta = self.model.preprocess(image)  # at once: a batch of photographs takes gigabytes
            except InputError as error:
                if self.strict or not isinstance(error, CorruptImage):
                    return error
                found.corrupt.append(str(error))
                continue
            found.ids.append(id)
            found.metas.append(meta)
            inputs.append(pixels)
            if misfit := self.dataset.misfit(id, image):
                found.misfit.append(misfit)
        found.inputs = torch.stack(inputs) if inputs else None
        return found


Piece = Loaded | InputError


def _by_thread(reader: Reader) -> Generator[list[Piece], None, None]:
    """Each batch whole, the next one read ahead."""
    with ThreadPoolExecutor(1) as pool:
        pieces = map(reader.__getitem__, range(len(reader)))
        coming = pool.submit(next, pieces, None)
        while (piece := coming.result()) is not None:
            coming = pool.submit(next, pieces, None)
            yield [piece]


def _by_processes(reader: Reader) -> Iterator[list[Piece]]:
    """Each batch in pieces, which several processes read, so that none is waited for longer than for its share.

    They are forked, so that neither data nor network are copied; by a thread, whole, where that is not possible.
    """
    blank, _ = reader.model.preprocess(torch.zeros(3, 480, 640, dtype=torch.uint8))
    workers, size = _shares(blank.nbytes)
    if workers == 0:
        return _by_thread(reader)
    ids = [batch[at : at + size] for batch in reader.ids for at in range(0, len(batch), size)]
    pieces = iter(
        DataLoader(
            cast(Any, replace(reader, ids=ids)),
            None,
            num_workers=max(min(workers, len(ids)), 1),
            prefetch_factor=AHEAD,
            pin_memory=torch.cuda.is_available(),
            multiprocessing_context="fork",
            generator=torch.Generator(),
        )
    )
    return (list(islice(pieces, -(-len(batch) // size))) for batch in reader.ids)


def _shares(image: int) -> tuple[int, int]:
    """How many processes read, and how many images each at a time, of so many bytes as inputs: a core each, but for the
    one that feeds the GPU, as they find shared memory for what they hand over, half of which is left to others. No
    process where none can."""
    if "fork" not in multiprocessing.get_all_start_methods() or not Path(SHARED).is_dir():
        return 0, 0
    ranks_here = ranks.local_count()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    room = shutil.disk_usage(SHARED).free // (2 * ranks_here * AHEAD * image)
    workers = min(READERS, max(cores // ranks_here - 1, 1), room)
    return workers, min(PIECE, room // max(workers, 1))


def _uploaded(batches: Iterator[list[Piece]], device: torch.device) -> Generator[Piece, None, None]:
    """Batches in pieces → whole and on the GPU, copied there while it works on the batch before: on a stream of its
    own, for which the GPU waits before the batch is handed over, but this process does not."""
    copying = torch.cuda.Stream(device) if torch.cuda.is_available() else None

    def begun() -> Piece | None:
        with torch.cuda.stream(copying):
            pieces = next(batches, None)
            return None if pieces is None else _joined(pieces, device)

    coming = begun()
    while coming is not None:
        ready = coming
        if copying is not None:
            computing = torch.cuda.current_stream(device)
            computing.wait_stream(copying)
            if isinstance(ready, Loaded) and ready.inputs is not None:
                ready.inputs.record_stream(computing)  # its memory is free when the simulation is done with it
        coming = begun()
        yield ready


def _joined(pieces: list[Piece], device: torch.device) -> Piece:
    """The pieces of a batch as one, on the device; or the first that could not be read at all."""
    whole, inputs = Loaded(), []
    for piece in pieces:
        if isinstance(piece, InputError):
            return piece
        for name in ("ids", "metas", "corrupt", "misfit"):
            getattr(whole, name).extend(getattr(piece, name))
        if piece.inputs is not None:
            inputs.append(brought(piece.inputs, device))
    whole.inputs = torch.cat(inputs) if inputs else None
    return whole
