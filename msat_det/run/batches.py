"""The evaluated images batch by batch: read, run through every network, decoded and kept as parts."""

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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
    """The numbered batches of images, the next one read while this one is simulated."""

    def load(number: int) -> Loaded:
        ids, made, corrupt, misfit = [], [], [], []
        for id in batches[number]:
            try:
                image = dataset.image(id)
            except CorruptImage as error:
                if config.strict:
                    raise
                corrupt.append(str(error))
                continue
            ids.append(id)
            made.append(model.preprocess(image))  # at once: a batch of photographs takes half a gigabyte
            if message := dataset.misfit(id, image):
                misfit.append(message)
        inputs = torch.stack([image for image, _ in made]) if made else None
        return Loaded(number, ids, inputs, [meta for _, meta in made], corrupt, misfit)

    if not todo:
        return
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(load, todo[0])
        for number in [*todo[1:], None]:
            loaded = coming.result()
            if number is not None:
                coming = reader.submit(load, number)
            yield loaded


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
    part.found["float", None] = model.decode(observation.graph(loaded.inputs), loaded.metas)
    for conversion in conversions:
        bar.set_postfix_str(conversion.label)
        outputs = conversion.snn.run(loaded.inputs, conversion.record[-1], conversion.record, loaded.ids)
        for t, output in outputs.items():
            part.found[conversion.label, t] = model.decode(output, loaded.metas)
            each = conversion.snn.counts[t].figures
            part.costs[conversion.label, t] = each.sum(0)
            if conversion.label in exits:
                part.each[conversion.label, t] = each
        if conversion.label in exits:
            part.changes[conversion.label] = changes(outputs).T.contiguous()
