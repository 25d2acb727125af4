"""The evaluated images batch by batch: read, run through every network, decoded and kept as parts."""

import multiprocessing
import os
import shutil
import sys
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, fields, is_dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from msat_det.base import ranks
from msat_det.base.config import Config
from msat_det.base.device import current
from msat_det.base.errors import InputError
from msat_det.base.progress import Progress
from msat_det.data import Dataset
from msat_det.data.images import CorruptImage
from msat_det.graph.graph import Graph, elements
from msat_det.measure.anytime import changes
from msat_det.measure.batch_files import Part, Parts
from msat_det.methods.convert import Conversion
from msat_det.methods.observe import Observation
from msat_det.spiking.engine import images_at_once

AHEAD = 1  # batches that are read before they are asked for, by a thread
READERS = 16  # processes that read images for a GPU
PIECE = 8  # images that one of them reads at a time, at most
AHEAD_OF_EACH = 2  # such pieces of each process that are read before they are asked for
SHARED = "/dev/shm"  # what processes hand them over in


@dataclass
class Loaded:
    """A batch of images ready for the network.

    corrupt: the messages of those that could not be read. misfit: of those that have not their annotation's size.
    """

    number: int
    ids: list
    inputs: Any  # a tensor; None where no image could be read
    metas: list
    corrupt: list[str]
    misfit: list[str]


def batch_size(config: Config, graph: Graph) -> int:
    """Images per batch: what is given; else on a GPU as many as convolutions are fast with and half of the memory that
    is free holds, a power of two."""
    if not config.free_batch:
        return config.batch
    sizes = [elements(node) for node in graph.sites] or [1]
    # five values of every neuron at most, and of the largest layer the chunk, its output and what a convolution takes
    image = 4 * (5 * sum(sizes) + 8 * max(sizes))
    free = torch.cuda.mem_get_info(torch.device(config.device))[0]
    most = min(free // (2 * image), images_at_once(graph))
    return 1 << max(most, 1).bit_length() - 1


def load_batches(
    model: Any, dataset: Dataset, batches: list[list], todo: Sequence[int], device: torch.device, strict: bool
) -> Iterator[Loaded]:
    """The numbered batches of images on the device, the next ones read while this one is simulated.

    Images are read and preprocessed on the CPU: beside a simulation there by one thread, beside one on a GPU by
    processes, which leave them in pinned memory, from where the GPU takes a batch while it works on the one before.
    Raises CorruptImage where ``strict``.
    """
    wanted = [batches[number] for number in todo]
    if device.type == "cuda":
        with current(device):  # memory is pinned for that one, and no other is woken
            found = _uploaded(_by_processes(model, dataset, wanted), device)
    else:
        found = _by_thread(Reader(model, dataset, wanted))
    with closing(found):  # where an image is bad the readers end at once
        for number, read in zip(todo, found, strict=True):
            if isinstance(read, InputError):
                raise read
            yield gather(number, batches[number], read, device, strict)


@dataclass
class Reader:
    """Images i of ``ids``, read and preprocessed: the inputs (B, 3, h, w) of what can be read, and of each image
    ``Read``; or what is raised, for an exception does not come out of a process in one line."""

    model: Any
    dataset: Dataset
    ids: list[list]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> "Images | InputError":
        try:
            found = [self._image(id) for id in self.ids[index]]
        except InputError as error:
            return error
        inputs = [pixels for pixels, _ in found if pixels is not None]
        return torch.stack(inputs) if inputs else None, [read for _, read in found]

    def _image(self, id: Any) -> tuple[Tensor | None, "Read"]:
        try:
            image = self.dataset.image(id)
        except CorruptImage as error:
            return None, Read(corrupt=str(error))
        pixels, meta = self.model.preprocess(image)  # at once: a batch of photographs takes gigabytes
        return pixels, Read(meta, misfit=self.dataset.misfit(id, image))


@dataclass
class Read:
    """What is known of an image that has been read: what its boxes need, or why it can't be, and ``Loaded.misfit``."""

    meta: Any = None
    corrupt: str | None = None
    misfit: str | None = None


Images = tuple[Tensor | None, list[Read]]


def _by_thread(reader: Reader) -> Generator[Any, None, None]:
    with ThreadPoolExecutor(1) as pool:
        coming = deque(pool.submit(reader.__getitem__, index) for index in range(min(AHEAD, len(reader))))
        for index in range(len(reader)):
            found = coming.popleft().result()
            if index + AHEAD < len(reader):
                coming.append(pool.submit(reader.__getitem__, index + AHEAD))
            yield found


def _by_processes(model: Any, dataset: Dataset, wanted: list[list]) -> Iterator[list[Any]]:
    """Each batch in pieces, which several processes read, so that none is waited for longer than for its share.

    They are forked, so that neither data nor network are copied; by a thread, whole, where that is not possible.
    """
    blank, _ = model.preprocess(torch.zeros(3, 480, 640, dtype=torch.uint8))
    workers, piece = _shares(blank.nbytes)
    if workers == 0:
        return ([each] for each in _by_thread(Reader(model, dataset, wanted)))
    reader = Reader(model, dataset, [ids[at : at + piece] for ids in wanted for at in range(0, len(ids), piece)])
    pieces = iter(
        DataLoader(
            cast(Any, reader),
            None,
            num_workers=max(min(workers, len(reader)), 1),
            prefetch_factor=AHEAD_OF_EACH,
            pin_memory=torch.cuda.is_available(),
            multiprocessing_context="fork",
            generator=torch.Generator(),
        )
    )
    return (list(islice(pieces, -(-len(ids) // piece))) for ids in wanted)


def _shares(image: int) -> tuple[int, int]:
    """How many processes read, and how many images each at a time, of so many bytes as inputs: a core each, but for the
    one that feeds the GPU, as they find shared memory for what they hand over, half of which is left to others. No
    process where none can."""
    if "fork" not in multiprocessing.get_all_start_methods() or not Path(SHARED).is_dir():
        return 0, 0
    ranks_here = ranks.local_count()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    room = shutil.disk_usage(SHARED).free // (2 * ranks_here * AHEAD_OF_EACH * image)
    workers = min(READERS, max(cores // ranks_here - 1, 1), room)
    return workers, min(PIECE, room // max(workers, 1))


def _uploaded(batches: Iterator[list[Any]], device: torch.device) -> Generator[Any, None, None]:
    """Batches in pieces → whole and on the GPU, copied there while it works on the batch before: on a stream of its
    own, for which the GPU waits before the batch is handed over, but this process does not."""
    copying = torch.cuda.Stream(device) if torch.cuda.is_available() else None

    def begun() -> Any:
        with torch.cuda.stream(copying):
            pieces = next(batches, None)
            return None if pieces is None else _joined(pieces, device)

    coming = begun()
    while coming is not None:
        ready = coming
        if copying is not None:
            computing = torch.cuda.current_stream(device)
            computing.wait_stream(copying)
            if not isinstance(ready, InputError) and ready[0] is not None:
                ready[0].record_stream(computing)  # its memory is free when the simulation is done with it
        coming = begun()
        yield ready


def _joined(pieces: list[Any], device: torch.device) -> "Images | InputError":
    """The pieces of a batch as one, on the device; or the first that could not be read at all."""
    for piece in pieces:
        if isinstance(piece, InputError):
            return piece
    inputs = [pixels.to(device, non_blocking=True) for pixels, _ in pieces if pixels is not None]
    return torch.cat(inputs) if inputs else None, [read for _, found in pieces for read in found]


def gather(number: int, ids: list, read: Images, device: torch.device, strict: bool) -> Loaded:
    """A batch of what has been read of these images, on the device. Raises CorruptImage where ``strict``."""
    inputs, found = read
    corrupt = [one.corrupt for one in found if one.corrupt]
    if corrupt and strict:
        raise CorruptImage(corrupt[0])
    good = [(id, one) for id, one in zip(ids, found, strict=True) if not one.corrupt]
    if inputs is not None:
        inputs = inputs.to(device, non_blocking=True)
    misfit = [one.misfit for _, one in good if one.misfit]
    return Loaded(number, [id for id, _ in good], inputs, [one.meta for _, one in good], corrupt, misfit)


def simulate(
    config: Config,
    model: Any,
    dataset: Dataset,
    batches: list[list],
    todo: Sequence[int],
    observation: Observation,
    conversions: list[Conversion],
    parts: Parts,
) -> None:
    """Float pass and all simulations of the batches ``todo``, each kept once it is done, while the next one runs. One
    bar for all ranks."""

    def images(*also: int) -> int:
        return sum(len(batches[number]) for number in parts.done().union(also))

    bar = Progress(total=len(dataset), initial=images(), desc="simulating", unit="image", disable=ranks.rank() > 0)
    with bar, torch.inference_mode(), ThreadPoolExecutor(1) as disk:
        written: Future[None] | None = None
        for loaded in load_batches(model, dataset, batches, todo, torch.device(config.device), config.strict):
            for message in loaded.corrupt:
                bar.write(f"skipped: {message}", file=sys.stderr)
            part = Part(loaded.ids, loaded.corrupt, misfit=loaded.misfit)
            if loaded.ids:
                simulate_batch(model, observation, conversions, loaded, part, bar, config.exit.methods)
            if written:
                written.result()
            written = disk.submit(parts.write, loaded.number, part)
            bar.update(images(loaded.number) - bar.n)
        if written:
            written.result()
        bar.set_postfix_str("")
        ranks.wait(lambda: bar.update(images() - bar.n))
        bar.update(images() - bar.n)


def simulate_batch(
    model: Any,
    observation: Observation,
    conversions: list[Conversion],
    loaded: Loaded,
    part: Part,
    bar: Progress,
    exits: list[str],
) -> None:
    """Fill ``part`` with what every network finds on one batch and what that costs, the labels ``exits`` per image."""
    part.found["float", None] = on_cpu(model.decode(observation.graph(loaded.inputs), loaded.metas))
    for conversion in conversions:
        bar.set_postfix_str(conversion.label)
        result = conversion.snn.simulate(loaded.inputs, conversion.record[-1], conversion.record, loaded.ids)
        for t, output in result.outputs.items():
            part.found[conversion.label, t] = on_cpu(model.decode(output, loaded.metas))
            each = result.counts[t].figures
            part.costs[conversion.label, t] = each.sum(0)
            if conversion.label in exits:
                part.each[conversion.label, t] = each
        if conversion.label in exits:
            part.changes[conversion.label] = changes(result.outputs).T.contiguous()


def on_cpu(found: list) -> list:
    """What a model decodes, its tensors on the CPU: those of a batch in one transfer for each of their fields."""
    if not found or not is_dataclass(found[0]):
        return found  # a classifier's scores, which it hands over on the CPU
    names = [item.name for item in fields(found[0]) if isinstance(getattr(found[0], item.name), Tensor)]
    if all(getattr(one, name).device.type == "cpu" for one in found for name in names):
        return found
    sizes = [len(getattr(one, names[0])) for one in found]
    values = [torch.cat([getattr(one, name) for one in found]).cpu().split(sizes) for name in names]
    kind: Any = type(found[0])
    return [kind(**dict(zip(names, each, strict=True))) for each in zip(*values, strict=True)]
