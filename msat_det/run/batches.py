"""The evaluated images batch by batch: read, run through every network, decoded and kept as parts."""

import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from msat_det.base import ranks
from msat_det.base.config import Config
from msat_det.data import Dataset
from msat_det.data.images import CorruptImage
from msat_det.measure.anytime import changes
from msat_det.measure.parts import Part, Parts
from msat_det.methods.convert import Conversion
from msat_det.methods.observe import Observation

READERS = 8  # threads that read images for a GPU


@dataclass
class Loaded:
    """A batch of images ready for the network.

    corrupt: the messages of those that could not be read. misfit: of those that have not their annotation's size.
    """

    number: int
    ids: list
    inputs: Tensor | None
    metas: list
    corrupt: list[str]
    misfit: list[str]


def load_batches(
    config: Config, model: Any, dataset: Dataset, batches: list[list], todo: Sequence[int]
) -> Iterator[Loaded]:
    """The numbered batches of images on the device, the next ones read while this one is simulated.

    Images are read and preprocessed on the CPU: by one thread beside a simulation there, by several beside a GPU.
    """
    device = torch.device(config.device)
    readers, ahead = (1, 1) if device.type == "cpu" else (min(READERS, os.cpu_count() or 1), 2)

    def read(id: Any) -> tuple[Tensor, Any, str | None] | CorruptImage:
        try:
            image = dataset.image(id)
        except CorruptImage as error:
            return error
        return *model.preprocess(image), dataset.misfit(id, image)  # at once: a batch of photographs takes gigabytes

    with ThreadPoolExecutor(readers) as pool:
        coming: deque[tuple[int, list[Future]]] = deque()
        for number in todo:
            coming.append((number, [pool.submit(read, id) for id in batches[number]]))
            if len(coming) > ahead:
                number, reading = coming.popleft()
                yield gather(number, batches[number], reading, device, config.strict)
        for number, reading in coming:
            yield gather(number, batches[number], reading, device, config.strict)


def gather(number: int, ids: list, reading: list[Future], device: torch.device, strict: bool) -> Loaded:
    """A batch of what has been read of these images, on the device. Raises CorruptImage where ``strict``."""
    found = [(id, future.result()) for id, future in zip(ids, reading, strict=True)]
    corrupt = [one for _, one in found if isinstance(one, CorruptImage)]
    if corrupt and strict:
        raise corrupt[0]
    good = [(id, *one) for id, one in found if not isinstance(one, CorruptImage)]
    inputs = torch.stack([image for _, image, _, _ in good]) if good else None
    if good and device.type == "cuda":
        inputs = inputs.pin_memory().to(device, non_blocking=True)
    elif good:
        inputs = inputs.to(device)
    metas, misfit = [meta for _, _, meta, _ in good], [message for *_, message in good if message]
    return Loaded(number, [id for id, *_ in good], inputs, metas, [str(error) for error in corrupt], misfit)


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

    bar = tqdm(total=len(dataset), initial=images(), desc="simulating", unit="image", disable=ranks.rank() > 0)
    with bar, torch.inference_mode():
        for loaded in load_batches(config, model, dataset, batches, todo):
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
    bar: tqdm,
    exits: list[str],
) -> None:
    """Fill ``part`` with what every network finds on one batch and what that costs, the labels ``exits`` per image."""
    part.found["float", None] = on_cpu(model.decode(observation.graph(loaded.inputs), loaded.metas))
    for conversion in conversions:
        bar.set_postfix_str(conversion.label)
        outputs = conversion.snn.run(loaded.inputs, conversion.record[-1], conversion.record, loaded.ids)
        for t, output in outputs.items():
            part.found[conversion.label, t] = on_cpu(model.decode(output, loaded.metas))
            each = conversion.snn.counts[t].figures
            part.costs[conversion.label, t] = each.sum(0)
            if conversion.label in exits:
                part.each[conversion.label, t] = each
        if conversion.label in exits:
            part.changes[conversion.label] = changes(outputs).T.contiguous()


def on_cpu(found: list) -> list:
    """What a model decodes, its tensors on the CPU: those of a batch in one transfer for each of their fields."""
    if not found or not is_dataclass(found[0]):
        return found  # a classifier's scores, which it hands over on the CPU
    names = [item.name for item in fields(found[0])]
    if all(getattr(one, name).device.type == "cpu" for one in found for name in names):
        return found
    sizes = [len(getattr(one, names[0])) for one in found]
    values = [torch.cat([getattr(one, name) for one in found]).cpu().split(sizes) for name in names]
    return [type(found[0])(**dict(zip(names, each, strict=True))) for each in zip(*values, strict=True)]
