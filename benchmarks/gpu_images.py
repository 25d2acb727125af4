"""From JPEG files to boxes with a GPU: images a second, and where the time goes."""

import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from PIL import Image

from benchmarks.gpu_networks import Bench
from benchmarks.timing import Clock, seconds_of
from msat_det.base.settings import data_root, expanded
from msat_det.data import ImageFiles
from msat_det.models.detector import Detector
from msat_det.run.batches import on_cpu
from msat_det.run.loader import load_batches
from msat_det.run.pipeline import Pipeline
from msat_det.spiking.network import SpikingNetwork
from msat_det.spiking.simulate import Result

IMAGES = {"ssd-mobilenet": (64, 4), "retinanet-r50": (16, 8)}  # batch, T, from JPEG files to boxes
SYNCHRONIZING = "called a synchronizing CUDA operation"  # PyTorch's warning of it; of the mode itself it warns, too
BATCHES, LONGEST = 16, 8.0  # of one network: batches, unless they take more seconds, and at least three then
RUNS = (
    *(("if-signed-burst", kind) for kind in ("float32", "tf32x3", "bf16")),
    ("msat", "float32"),
    ("delta-3", "float32"),
)


def image_rows(clock: Clock, name: str, bench: Bench) -> Iterator[dict]:
    """Reading alone, copying to the device alone, then for each network the whole way, what a batch waits for on it,
    and simulation and reading of boxes by themselves; the GPU's own JPEG decoder."""
    batch, T = IMAGES[name] if clock.device.type == "cuda" else (2, 4)
    model = bench.model
    with tempfile.TemporaryDirectory() as folder:
        dataset = ImageFiles(photographs(Path(folder)))
        ids = (dataset.ids * 64)[: BATCHES * batch]
        batches = [ids[i : i + batch] for i in range(0, len(ids), batch)]
        for rows in (core_rows, reading_rows, upload_rows):
            yield from ({"network": name} | row for row in rows(clock, model, dataset, batches))
        for neuron, kind in RUNS:
            row = {"network": name, "neuron": neuron, "precision": kind, "batch": batch, "T": T}
            if clock.left < 3 * LONGEST:
                yield row | {"left_out": "no time left"}
                continue
            yield row | from_files(clock, bench.network(neuron, T, kind), T, model, dataset, batches)
        # last, for not every torchvision has it
        yield from ({"network": name} | row for row in decoder_rows(clock, dataset, batches))


def from_files(
    clock: Clock, snn: SpikingNetwork, T: int, model: Detector, dataset: ImageFiles, batches: list[list[str]]
) -> dict[str, float | None]:
    """Images a second from JPEG files to boxes on the CPU, the readers' start counted and, since the first batch came,
    not; the same where each batch is read while the next one runs, as in ``msat-det run``; the milliseconds of a batch
    in which the main process waits for images, simulates (until counts have come), decodes (until boxes have come);
    then simulation and decoding of one batch again and again, decoding of outputs in which every box is as good as any,
    and how often launching and decoding wait for the device."""
    first = through(snn, T, model, dataset, batches[:3], clock.device)  # what is compiled and found out once
    most = max(min(len(batches), int(LONGEST / max(first["simulate"] / 2, 1e-3))), 3)
    spent = through(snn, T, model, dataset, batches[:most], clock.device)
    images = sum(map(len, batches[:most]))
    whole, (loaded,) = sum(spent.values()), load_batches(model, dataset, batches[:1], clock.device, strict=True)
    found: dict[str, float | None] = {
        "images_per_s_from_jpeg": images / whole,
        "images_per_s_since_the_first": (images - len(batches[0])) / (whole - spent["first"]),
        "images_per_s_read_behind": (images - len(batches[0])) / behind(snn, T, model, dataset, batches[:most], clock),
        "start_ms": 1e3 * spent["first"],
    }
    found |= {f"{stage}_ms_a_batch": 1e3 * spent[stage] / (most - 1) for stage in ("wait", "simulate", "decode")}
    outputs = snn.run(loaded.inputs, T)[T]
    noise = pytree.tree_map(torch.randn_like, outputs)
    decode, decode_noise = (partial(boxes_of, model, each, loaded.metas) for each in (outputs, noise))
    decode_noise()
    return found | {
        "simulate_alone_ms": 1e3 * clock.median(clock.waiting(partial(snn.run, loaded.inputs, T)), 0.3),
        "decode_alone_ms": 1e3 * clock.median(decode, 0.3),
        "decode_noise_ms": 1e3 * clock.median(decode_noise, 0.3),
        "launch_waits": waits(clock, partial(snn.simulate, loaded.inputs, T)),
        "decode_waits": waits(clock, decode),
        "boxes_of_a_batch": sum(map(len, decode())),
    }


def through(
    snn: SpikingNetwork, T: int, model: Detector, dataset: ImageFiles, batches: list[list[str]], device: torch.device
) -> dict[str, float]:
    """Seconds of all batches by stage; ``first`` until the first one's boxes are there, the others without that one."""
    spent = dict.fromkeys(("first", "wait", "simulate", "decode"), 0.0)
    loading, begun = load_batches(model, dataset, batches, device, strict=True), time.perf_counter()
    for number in range(len(batches)):
        marks = [time.perf_counter()]
        loaded = next(loading)
        marks.append(time.perf_counter())
        outputs = snn.run(loaded.inputs, T)[T]
        marks.append(time.perf_counter())
        boxes_of(model, outputs, loaded.metas)
        marks.append(time.perf_counter())
        if number == 0:
            spent["first"] = marks[-1] - begun
        else:
            for stage, start, end in zip(("wait", "simulate", "decode"), marks, marks[1:], strict=False):
                spent[stage] += end - start
    return spent


def behind(
    snn: SpikingNetwork, T: int, model: Detector, dataset: ImageFiles, batches: list[list[str]], clock: Clock
) -> float:
    """Seconds from the first batch's boxes and counts to the last one's, each read while the next one is simulated."""
    ends, found = list[float](), list[Any]()

    def read(result: Result, metas: list) -> None:
        found.append((boxes_of(model, result.outputs[T], metas), result.counts))
        ends.append(time.perf_counter())

    with torch.inference_mode(), Pipeline(clock.device) as pipeline:
        for loaded in load_batches(model, dataset, batches, clock.device, strict=True):
            pipeline.read(partial(read, snn.simulate(loaded.inputs, T), loaded.metas))
    return ends[-1] - ends[0]


def boxes_of(model: Detector, outputs: Any, metas: list) -> list:
    return on_cpu(model.decode(outputs, metas))


def waits(clock: Clock, call: Callable[[], Any]) -> int | None:
    """How often a call waits for the GPU, as PyTorch tells."""
    if clock.device.type != "cuda":
        return None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum(SYNCHRONIZING in str(warning.message) for warning in caught)


def core_rows(clock: Clock, model: Detector, dataset: ImageFiles, batches: list[list[str]]) -> Iterator[dict]:
    """What one core reads and prepares."""
    images = [dataset.image(id) for id in batches[0]]
    ms = {
        "read_ms": seconds_of(lambda: [dataset.image(id) for id in batches[0]]),
        "prepare_ms": seconds_of(lambda: [model.preprocess(image) for image in images]),
    }
    ms = {name: 1e3 * seconds / len(images) for name, seconds in ms.items()}
    yield {"an image on a core": len(images)} | ms | {"images_per_s": 1e3 / sum(ms.values()), "cores": os.cpu_count()}


def reading_rows(clock: Clock, model: Detector, dataset: ImageFiles, batches: list[list[str]]) -> Iterator[dict]:
    """Images a second that come out of files, with nothing else to do but to copy them to the device."""
    images, begun = sum(map(len, batches)), time.perf_counter()
    loading = load_batches(model, dataset, batches, clock.device, strict=True)
    next(loading)
    first = time.perf_counter()
    for _ in loading:
        pass
    clock.wait()
    end = time.perf_counter()
    speeds = {"images_per_s": images / (end - begun), "since_the_first": (images - len(batches[0])) / (end - first)}
    yield {"read, prepared": images} | speeds | {"first_batch_ms": 1e3 * (first - begun)}


def upload_rows(clock: Clock, model: Detector, dataset: ImageFiles, batches: list[list[str]]) -> Iterator[dict]:
    """A batch's way to the device out of pinned memory and out of other."""
    if clock.device.type != "cuda":
        return
    one = model.preprocess(dataset.image(batches[0][0]))[0]
    batch = one.expand(len(batches[0]), *one.shape).contiguous()
    row: dict[str, Any] = {"to the device": len(batch), "megabytes": batch.nbytes / 1e6}
    for name, there in (("pinned_ms", batch.pin_memory()), ("pageable_ms", batch)):
        copy = partial(there.to, clock.device, non_blocking=True)
        copy()
        row[name] = 1e3 * clock.median(copy, 0.2)
    yield row


def decoder_rows(clock: Clock, dataset: ImageFiles, batches: list[list[str]]) -> Iterator[dict]:
    """Images a second by the GPU's own JPEG decoder, and how far they are off."""
    if clock.device.type != "cuda":
        return
    from torchvision.io import ImageReadMode, decode_jpeg, read_file

    files = [read_file(str(dataset.folder / id)) for id in batches[0]]
    decode = partial(decode_jpeg, files, device=clock.device, mode=ImageReadMode.RGB)
    found: list[torch.Tensor] = decode()
    speed = len(files) / clock.median(decode, 0.5)
    ours = [dataset.image(id) for id in batches[0][:16]]
    apart = [(a.cpu().int() - b.int()).abs() for a, b in zip(found, ours, strict=False) if a.shape == b.shape]
    pixels = torch.cat([each.flatten() for each in apart])
    yield {
        "decoded by the GPU": len(files),
        "images_per_s": speed,
        "other_pixels": (pixels > 0).float().mean().item(),
        "mean_difference": pixels.float().mean().item(),
        "largest_difference": pixels.max().item(),
    }


def photographs(folder: Path) -> Path:
    """The shared data's, or noise of a photograph's size."""
    if (expanded(data_root()) / "coco_val128/val2017").is_dir():
        return expanded(data_root()) / "coco_val128/val2017"
    for number in range(64):
        generator = torch.Generator().manual_seed(number)
        coarse = torch.rand(1, 3, 30, 40, generator=generator)
        pixels = F.interpolate(coarse, (480, 640), mode="bilinear")[0].mul(255).to(torch.uint8)
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / f"{number:03d}.jpg")
    return folder
