"""The evaluated images batch by batch: read, run through every network, decoded and kept as parts."""

import multiprocessing
import os
import shutil
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from msat_det.base import ranks
from msat_det.base.config import Config
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

READERS = 16  # processes that read images for a GPU
AHEAD = 1  # batches that are read before they are asked for, by a thread
SHARED, LEAST_SHARED = "/dev/shm", 1 << 30  # what processes hand batches over in, and free bytes of it


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
    processes, which leave the batch in pinned memory, from where the GPU takes it without anybody waiting.
    Raises CorruptImage where ``strict``.
    """
    reader = Reader(model, dataset, [batches[number] for number in todo])
    for number, read in zip(todo, _by_processes(reader) if device.type == "cuda" else _by_thread(reader), strict=True):
        if isinstance(read, InputError):
            raise read
        yield gather(number, batches[number], read, device, strict)


@dataclass
class Reader:
    """Batch i of ``ids``, read and preprocessed: the inputs (B, 3, h, w) of what can be read, and of each image
    ``Read``; or what is raised, for an exception does not come out of a process in one line."""

    model: Any
    dataset: Dataset
    ids: list[list]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> "tuple[Tensor | None, list[Read]] | InputError":
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


def _by_thread(reader: Reader) -> Iterator[Any]:
    with ThreadPoolExecutor(1) as pool:
        coming = deque(pool.submit(reader.__getitem__, index) for index in range(min(AHEAD, len(reader))))
        for index in range(len(reader)):
            found = coming.popleft().result()
            if index + AHEAD < len(reader):
                coming.append(pool.submit(reader.__getitem__, index + AHEAD))
            yield found


def _by_processes(reader: Reader) -> Iterator[Any]:
    """Forked, so that neither data nor network are copied; by a thread where that is not possible."""
    room = shutil.disk_usage(SHARED).free if Path(SHARED).is_dir() else 0
    if "fork" not in multiprocessing.get_all_start_methods() or room < LEAST_SHARED:
        return _by_thread(reader)
    workers = max(min(READERS, (os.cpu_count() or 1) // ranks.local_count(), len(reader)), 1)
    pinned = torch.cuda.is_available()
    loader: DataLoader = DataLoader(
        cast(Any, reader),
        None,
        num_workers=workers,
        pin_memory=pinned,
        multiprocessing_context="fork",
        generator=torch.Generator(),
    )
    return iter(loader)


def gather(
    number: int, ids: list, read: tuple[Tensor | None, list[Read]], device: torch.device, strict: bool
) -> Loaded:
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
    """Float pass and all simulations of the batches ``todo``, each kept once it is done. One bar for all ranks."""

    def images() -> int:
        return sum(len(batches[number]) for number in parts.done())

    bar = Progress(total=len(dataset), initial=images(), desc="simulating", unit="image", disable=ranks.rank() > 0)
    with bar, torch.inference_mode():
        for loaded in load_batches(model, dataset, batches, todo, torch.device(config.device), config.strict):
            for message in loaded.corrupt:
                bar.write(f"skipped: {message}", file=sys.stderr)
            part = Part(loaded.ids, loaded.corrupt, misfit=loaded.misfit)
            if loaded.ids:
                simulate_batch(model, observation, conversions, loaded, part, bar, config.exit.methods)
            parts.write(loaded.number, part)
            bar.update(images() - bar.n)
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
