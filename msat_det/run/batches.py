"""What every network finds on the evaluated images, batch by batch, each kept as a part."""

import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import torch

from msat_det.base import ranks
from msat_det.base.config import Config
from msat_det.base.errors import told_of_memory
from msat_det.base.progress import Progress
from msat_det.data import Dataset
from msat_det.graph.graph import Graph, elements
from msat_det.measure.anytime import changes
from msat_det.measure.batch_files import Part, Parts
from msat_det.methods.convert import Conversion
from msat_det.methods.observe import Observation
from msat_det.models.detector import Detections
from msat_det.run.loader import Loaded, load_batches
from msat_det.run.pipeline import Pipeline
from msat_det.spiking.engine import images_at_once
from msat_det.spiking.simulate import Result


def batch_size(config: Config, graph: Graph) -> int:
    """Images per batch: what is given; else on a GPU as many as convolutions are fast with and half of the memory that
    is free holds, shared by the ranks on it, a power of two. Every rank asks, and gets the least of all.

    Too little memory after all ends a run instead of making batches smaller: last bits depend on them.
    """
    batch, device = config.batch, torch.device(config.device)
    gpu = str(torch.cuda.get_device_properties(device).uuid) if config.free_batch and ranks.count() > 1 else ""
    sharing = ranks.from_all(gpu).count(gpu)
    if config.free_batch:
        sizes = [elements(node) for node in graph.sites] or [1]
        # five values of every neuron at most; of the largest layer the chunk, its output, and what a convolution takes
        image = 4 * (5 * sum(sizes) + 8 * max(sizes))
        free = torch.cuda.mem_get_info(device)[0]
        most = min(free // (2 * image * sharing), images_at_once(graph))
        batch = 1 << max(most, 1).bit_length() - 1
    return min(ranks.from_all(batch))


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
    wanted, device = [batches[number] for number in todo], torch.device(config.device)
    written: Future[None] | None = None

    def write(number: int, part: Part) -> None:
        nonlocal written
        if written:
            written.result()
        written = disk.submit(parts.write, number, part)
        bar.update(images(number) - bar.n)

    inference, memory = torch.inference_mode(), told_of_memory(partial(_begun_again, config.batch))
    with bar, inference, ThreadPoolExecutor(1) as disk, memory, Pipeline(device) as pipeline:
        for number, loaded in zip(todo, load_batches(model, dataset, wanted, device, config.strict), strict=True):
            for message in loaded.corrupt:
                bar.write(f"skipped: {message}", file=sys.stderr)
            part = Part(loaded.ids, loaded.corrupt, misfit=loaded.misfit)
            if loaded.ids:
                simulate_batch(model, observation, conversions, loaded, part, bar, config.exit.methods, pipeline)
            pipeline.after(partial(write, number, part))
        pipeline.catch_up()
        if written:
            written.result()
        bar.set_postfix_str("")
        ranks.wait(lambda: bar.update(images() - bar.n))
        bar.update(images() - bar.n)


def _begun_again(batch: int, lack: str) -> str:
    less = f"--batch {batch // 2}" if batch > 1 else "a smaller --sim.chunk or --model.size"
    return f"{lack} for a batch of {batch}: free some, and --resume goes on from here, or start anew with {less}"


def simulate_batch(
    model: Any,
    observation: Observation,
    conversions: list[Conversion],
    loaded: Loaded,
    part: Part,
    bar: Progress,
    exits: list[str],
    pipeline: Pipeline,
) -> None:
    """Launch every network on one batch; ``pipeline`` fills ``part`` with what they find and what that costs, the
    labels ``exits`` per image."""
    metas = loaded.metas

    def boxes(label: str, outputs: dict[Any, Any]) -> None:
        for t, output in outputs.items():
            part.found[label, t] = on_cpu(model.decode(output, metas))

    def boxes_and_costs(label: str, result: Result) -> None:
        for t, counts in result.counts.items():
            each = counts.figures
            part.costs[label, t] = each.sum(0)
            if label in exits:
                part.each[label, t] = each
        boxes(label, result.outputs)
        if label in exits:
            part.changes[label] = changes(result.outputs).T.contiguous()

    pipeline.read(partial(boxes, "float", {None: observation.graph(loaded.inputs)}))
    for conversion in conversions:
        bar.set_postfix_str(conversion.label)
        result = conversion.snn.simulate(loaded.inputs, conversion.record[-1], conversion.record, loaded.ids)
        pipeline.read(partial(boxes_and_costs, conversion.label, result))


def on_cpu(found: list) -> list:
    """What a model decodes, on the CPU: the Detections of a batch in one transfer for each of their fields."""
    if not found or not isinstance(found[0], Detections):
        return found  # a classifier's scores, which it hands over on the CPU
    sizes = [len(one.scores) for one in found]
    fields = zip(*((one.boxes, one.scores, one.labels) for one in found), strict=True)
    return list(map(Detections, *(torch.cat(each).cpu().split(sizes) for each in fields)))
