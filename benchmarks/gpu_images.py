"""From JPEG files to boxes with a GPU: images a second, and where the time goes."""

import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.gpu_networks import Bench
from benchmarks.timing import Clock
from msat_det.base.settings import data_root, expanded
from msat_det.data import ImageFiles
from msat_det.models.detector import Detections, Detector
from msat_det.run.batches import Loaded, load_batches, on_cpu
from msat_det.spiking.network import SpikingNetwork

IMAGES = {"ssd-mobilenet": (64, 4), "retinanet-r50": (16, 8)}  # batch, T, from JPEG files to boxes


def image_rows(clock: Clock, name: str, bench: Bench) -> Iterator[dict]:
    """Images a second from JPEG files to boxes on the CPU, and milliseconds a batch of each stage by itself."""
    batch, T = IMAGES[name] if clock.device.type == "cuda" else (2, 4)
    if bench.model is None:
        yield {"network": name, "left_out": "no weights: set MSAT_DET_DATA"}
        return
    with tempfile.TemporaryDirectory() as folder:
        dataset = ImageFiles(photographs(Path(folder)))
        ids = (dataset.ids * 64)[: 16 * batch]
        batches = [ids[i : i + batch] for i in range(0, len(ids), batch)]
        yield from ({"network": name} | row for row in reading_rows(clock.device, bench.model, dataset, batches))
        own = [("if-signed-burst", kind) for kind in ("float32", "tf32x3", "bf16")]
        for neuron, kind in (*own, ("msat", "float32")):
            snn = bench.network(neuron, T, kind)
            row = {"network": name, "neuron": neuron, "precision": kind, "batch": batch, "T": T}
            yield row | from_files(clock, snn, T, bench.model, dataset, batches)


def from_files(
    clock: Clock, snn: SpikingNetwork, T: int, model: Detector, dataset: ImageFiles, batches: list[list[str]]
) -> dict[str, float]:
    """What ``image_rows`` tells of one network on these images."""

    def load(turns: int) -> Iterator[Loaded]:
        return load_batches(model, dataset, batches, range(turns), clock.device, strict=True)

    def boxes(outputs: Any, metas: list) -> list[Detections]:
        return on_cpu(model.decode(outputs, metas))

    for turns in (3, len(batches)):  # the first time to warm up
        start = time.perf_counter()
        for loaded in load(turns):
            found = boxes(snn.run(loaded.inputs, T)[T], loaded.metas)
        seconds = time.perf_counter() - start
    (loaded,) = load(1)
    outputs = snn.run(loaded.inputs, T)[T]
    return {
        "images_per_s_from_jpeg": sum(map(len, batches)) / seconds,
        "simulate_ms": 1e3 * clock.median(clock.waiting(partial(snn.run, loaded.inputs, T)), 0.3),
        "decode_ms": 1e3 * clock.median(partial(boxes, outputs, loaded.metas), 0.3),
        "boxes_of_last_batch": sum(len(one.boxes) for one in found),
    }


def reading_rows(
    device: torch.device, model: Detector, dataset: ImageFiles, batches: list[list[str]]
) -> Iterator[dict]:
    """Images a second that come out of files alone, and by the GPU's own JPEG decoder, with how far that is off."""
    images = sum(map(len, batches))
    begun = time.perf_counter()
    for _ in load_batches(model, dataset, batches, range(len(batches)), device, strict=True):
        pass
    yield {"read, preprocessed": images, "images_per_s": images / (time.perf_counter() - begun)}
    if device.type != "cuda":
        return
    from torchvision.io import ImageReadMode, decode_jpeg, read_file

    files = [read_file(str(dataset.folder / id)) for id in batches[0]]
    decode_jpeg(files, device=device, mode=ImageReadMode.RGB)
    torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(8):
        found = decode_jpeg(files, device=device, mode=ImageReadMode.RGB)
    torch.cuda.synchronize()
    speed = 8 * len(files) / (time.perf_counter() - begun)
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
    from torchvision.io import write_jpeg

    for number in range(64):
        generator = torch.Generator().manual_seed(number)
        coarse = torch.rand(1, 3, 30, 40, generator=generator)
        pixels = F.interpolate(coarse, (480, 640), mode="bilinear")[0].mul(255).to(torch.uint8)
        write_jpeg(pixels, str(folder / f"{number:03d}.jpg"))
    return folder
