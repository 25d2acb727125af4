"""Everything on a GPU in under five minutes: python benchmarks/gpu.py [--seconds S] [--json FILE] [--part NAME …].

Correctness first: kernels against the reference step, the device against the CPU. Then the scan's bandwidth beside a
copy of the same bytes, and for each network a float forward by layout and precision, the cost of a timestep beside
it, SpikingJelly on the same folded network in turns, and images a second from JPEG files to boxes. Weights are random
but for SSD-MobileNet's where MSAT_DET_DATA holds them. A part that fails prints its traceback and the others go on.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import gpu_networks, rival
from benchmarks.gpu_networks import Bench
from benchmarks.gpu_parts import chunk_rows, convolution_rows, part_rows, reading_rows, replay_rows
from benchmarks.rival import LAYOUTS
from benchmarks.timing import ratio
from msat_det.base.names import PRECISIONS
from msat_det.base.settings import data_root, expanded
from msat_det.data import ImageFiles
from msat_det.graph.ops import Activation
from msat_det.models.detector import Detections, Detector
from msat_det.run.batches import Loaded, load_batches, on_cpu
from msat_det.spiking import kernels
from msat_det.spiking.engine import LONGEST_CHUNK_GPU, images_at_once
from msat_det.spiking.kernels import Scan
from msat_det.spiking.network import SpikingNetwork
from msat_det.spiking.neurons import Chances, Msat, Neuron, new_state, step

NEURONS = ("if", "if-signed-burst", "msat")
# Network → (batch, T), the most telling first; float forwards longer than LONGEST seconds · T are left out.
CASES = {
    "ssd300-vgg16": [(64, 64), (16, 8), (64, 8), (1, 8), (16, 64), (1, 64), (64, 4), (16, 4), (1, 4)],
    "ssd-mobilenet": [(64, 4), (64, 64), (16, 8), (1, 8), (64, 8), (16, 64), (1, 64), (16, 4), (1, 4)],
    "retinanet-r50": [(16, 8), (1, 8), (1, 64), (16, 4), (1, 4), (16, 64)],
    "yolox-like": [(16, 8), (64, 64), (1, 8), (64, 8), (16, 64), (1, 64), (64, 4), (16, 4), (1, 4)],
    "resnet20": [(64, 64), (16, 8), (1, 8), (64, 8), (16, 64), (1, 64), (64, 4), (16, 4), (1, 4)],
}
IMAGES = {"ssd-mobilenet": (64, 4), "retinanet-r50": (16, 8)}  # batch, T, from JPEG files to boxes
LONGEST = 12.0  # seconds of one simulation


class Clock:
    """Time that is left, and how long a call takes on the device."""

    def __init__(self, device: torch.device, seconds: float):
        self.device, self.end = device, time.monotonic() + seconds

    @property
    def left(self) -> float:
        return self.end - time.monotonic()

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def once(self, call: Callable[[], Any]) -> float:
        """Seconds of one call."""
        self.wait()
        if self.device.type != "cuda":
            begun = time.perf_counter()
            call()
            return time.perf_counter() - begun
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000

    def median(self, call: Callable[[], Any], budget: float = 1.0) -> float:
        """Seconds of a call that was made before: the median of 3 to 20, or one that takes longer than the budget."""
        lengths = [self.once(call)]
        while len(lengths) < 20 and (len(lengths) < 3 or sum(lengths) < budget) and lengths[0] < budget:
            lengths.append(self.once(call))
        return statistics.median(lengths)

    def waiting(self, call: Callable[[], Any]) -> Callable[[], Any]:
        """The call, which then waits for the device."""

        def both() -> None:
            call()
            self.wait()

        return both


# ---- correctness

RELU = Activation("relu", torch.relu, rectified=True)
RELU6 = Activation("relu6", F.relu6, rectified=True, upper=1.4)
SILU = Activation("silu", F.silu, curved=True)
LEAKY = Activation("leakyrelu", lambda x: F.leaky_relu(x, 0.1), slope=0.1)


def families() -> dict[str, Neuron]:
    theta = torch.rand(32, generator=torch.Generator().manual_seed(0)) + 0.3
    theta[3] = 0.0
    return {
        "if": Neuron(torch.tensor(0.7), RELU, initial=0.5),
        "signed burst": Neuron(theta, RELU, signed=True, gamma=3, margin=0.7, initial=0.5),
        "rounding, stages": Neuron(theta, RELU, signed=True, gamma=15, rounding="track", stages=(2.0, 1.0, 0.5, 0.25)),
        "bounded": Neuron(theta, RELU6, signed=True, gamma=3),
        "reset to zero, bias": Neuron(theta, RELU, reset="zero", bias=theta / 10),
        "imbalanced": Neuron(theta, LEAKY, imbalanced=True, gamma=2),
        "tracking leaky": Neuron(theta, LEAKY, gamma=3),
        "tracking silu": Neuron(theta, SILU, gamma=3),
        "confidence": Neuron(theta, RELU, confidence=0.4, drop="lossy"),
        "msat": Neuron(torch.tensor(0.7), RELU, adaptive=Msat()),
        "msat paper": Neuron(theta, RELU, adaptive=Msat(drive="depolarisation", twice=True, tau_mp=0.5, tau_rd=0.5)),
        "msat-signed": Neuron(theta, RELU, adaptive=Msat(normalised=True), signed=True, gamma=3),
    }


def kernel_rows(clock: Clock) -> Iterator[dict]:
    """Each family on the device against ``step`` on the CPU, from the same currents."""
    generator = torch.Generator().manual_seed(0)
    x = 0.3 + torch.randn(16, 2, 32, 20, 20, generator=generator)
    x = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (16, 2))
    reach, chances = torch.arange(12800.0).reshape(32, 20, 20), Chances(3, [5, 6], 1)
    for name, neuron in families().items():
        state = new_state(neuron, x[0], True)
        expected = torch.stack([step(neuron, state, x[t], t, chances)[1] for t in range(len(x))])
        scan = Scan(neuron, x[0].to(clock.device), reach, True, chances)
        got = torch.cat([scan.run(x[t : t + 5].to(clock.device), t, len(x[t : t + 5])) for t in range(0, 16, 5)]).cpu()
        # θ(t) differs in its last bits at most, so a spike more or less shows as a whole threshold
        apart = ((got != 0) != (expected != 0)) | ((got - expected).abs() > 0.1 * expected.abs())
        kept = ~apart.any(0)
        error = ((got - expected).abs() / expected.abs().clamp(min=1))[:, kept].max().item()
        yield {
            "family": name,
            "backend": scan.backend,
            "max_error": error,
            "other_spikes_share": apart.any(0).float().mean().item(),
        }


def device_rows(clock: Clock) -> Iterator[dict]:
    """A network on the device against the CPU, on the same images, thresholds and weights."""
    for name in ("resnet20", "ssd-mobilenet"):
        for neuron in NEURONS:
            bench = gpu_networks.load(name, torch.device("cpu"))
            x, snn = bench.images(2), bench.network(neuron, 8)
            level, spiking = bench.observation.graph(x), snn.run(x, 8)[8]
            spikes = snn.counts[8].spikes_per_neuron
            snn.to(clock.device)
            level_there, spiking_there = bench.observation.graph(x), snn.run(x, 8)[8]
            snn.to("cpu")
            yield {
                "network": name,
                "neuron": neuron,
                "float_error": apart(level, level_there).max().item(),
                "spiking_median_error": apart(spiking, spiking_there).median().item(),
                "spiking_mean_error": apart(spiking, spiking_there).mean().item(),
                "spikes_cpu": spikes,
                "spikes_device": snn.counts[8].spikes_per_neuron,
            }


def apart(ours: Any, theirs: Any) -> Tensor:
    """Differences of all outputs in units of the largest of each."""
    pairs = zip(*(torch.utils._pytree.tree_leaves(each) for each in (ours, theirs)), strict=True)
    return torch.cat([((a - b.cpu()).abs() / a.abs().max().clamp(min=1e-12)).flatten() for a, b in pairs])


# ---- the scan


def copy_speed(clock: Clock, x: Tensor) -> float:
    """GB/s of a copy on the device, bytes read and written."""
    y = torch.empty_like(x)
    y.copy_(x)
    return 8 * x.numel() / clock.median(lambda: y.copy_(x), 0.3) / 1e9


def scanned(theta: Tensor) -> dict[str, Neuron]:
    """The neurons that are measured. theta: (C,), of those that have a threshold for each channel."""
    return {
        "if": Neuron(torch.tensor(1.0), RELU, initial=0.5),
        "if-signed-burst": Neuron(theta, RELU, signed=True, gamma=3, initial=0.5),
        "msat": Neuron(torch.tensor(1.0), RELU, adaptive=Msat()),
        "msat-signed": Neuron(theta, RELU, adaptive=Msat(normalised=True), signed=True, gamma=3),
    }


def scan_rows(clock: Clock) -> Iterator[dict]:
    """GB/s of a scan, charged 8 bytes an element, beside a copy of as many, by the kernel's block and warps."""
    steps, shape = (16, (16, 64, 150, 150)) if clock.device.type == "cuda" else (4, (1, 16, 75, 75))
    x = torch.randn(steps * shape[0], *shape[1:], device=clock.device)
    x = x.contiguous(memory_format=torch.channels_last)
    size, copied = 8 * x.numel(), copy_speed(clock, x)
    yield {"scan": "copy", "gb_per_s": copied}
    currents = x.unflatten(0, (steps, shape[0]))
    reach = torch.ones(shape[1:], device=clock.device)
    gpu = kernels.on_gpu()
    own = dict(gpu[0].SHAPES) if gpu else {}
    shapes = [(256, 2), (512, 4), (1024, 4), (1024, 8), (2048, 8)] if clock.device.type == "cuda" else [None]
    for name, neuron in scanned(torch.rand(shape[1], device=clock.device) + 0.5).items():
        chosen = own[gpu[0].family_of(neuron)] if gpu else None
        for kernel in shapes:
            if gpu and kernel:
                gpu[0].SHAPES.update(dict.fromkeys(own, kernel))
            for in_place in (False, True) if kernel in (chosen, None) else (False,):
                scan = Scan(neuron, currents[0], reach, with_output=False)
                given = currents.clone() if in_place else currents
                run = partial(scan.run, given, 16, steps, in_place=in_place)
                run()
                speed = size / clock.median(run, 0.2) / 1e9
                yield {
                    "scan": name,
                    "block,warps": str(kernel),
                    "in_place": in_place,
                    "chosen": kernel == chosen,
                    "gb_per_s": speed,
                    "of_copy": speed / copied,
                }
                del scan
    if gpu:
        gpu[0].SHAPES.update(own)


# ---- networks


def layout_rows(clock: Clock, name: str, bench: Bench) -> Iterator[dict]:
    """A float forward by memory layout and precision."""
    x = bench.images(16 if clock.device.type == "cuda" else 2)
    for kind in ("float32", "tf32", "bf16", "fp16"):  # tf32x3 is the spiking network's alone
        row: dict[str, Any] = {"network": name, "precision": kind, "batch": len(x)}
        graph = bench.floating(kind)
        for layout, format in LAYOUTS.items():
            graph.module.to(memory_format=format)
            images = x.contiguous(memory_format=format)
            graph(images)
            row[f"{layout}_ms"] = 1e3 * clock.median(partial(graph, images), 0.3)
        yield row
    graph.module.to(memory_format=torch.channels_last)


def step_rows(clock: Clock, name: str, bench: Bench, share: float) -> Iterator[dict]:
    """What a timestep costs in float forwards, within this share of the time that is left."""
    end = clock.left * (1 - share)
    own = CASES[name] if clock.device.type == "cuda" else [(2, 4)]
    turns = (("float32", own[:3]), ("tf32x3", own[:3]), ("tf32", own[1:2]), ("bf16", own[1:2]))
    for kind, cases in (*turns, ("float32", own[3:]), ("tf32x3", own[3:])):
        for batch, T in cases:
            yield from case_rows(clock, name, bench, kind, batch, T, end)


def case_rows(clock: Clock, name: str, bench: Bench, kind: str, batch: int, T: int, end: float) -> Iterator[dict]:
    row = {"network": name, "precision": kind, "batch": batch, "T": T}
    x = bench.images(batch).contiguous(memory_format=torch.channels_last)
    graph = bench.floating(kind)
    graph(x)
    forward = clock.median(lambda: graph(x), 0.5)
    # short enough for two chunks of the same length: what is compiled and found out once is not measured
    short = min(T, 2 * min(max(images_at_once(graph) // batch, 1), LONGEST_CHUNK_GPU))
    for neuron in NEURONS:
        snn = bench.network(neuron, T, kind)
        run = partial(snn.run, x, T)
        try:
            if clock.left < end:
                yield row | {"neuron": neuron, "left_out": "no time left"}
                continue
            snn.run(x, short)
            expected = clock.once(partial(snn.run, x, short)) * T / short
            if expected > min(LONGEST, clock.left - end):
                yield row | {"neuron": neuron, "left_out": f"{expected:.1f} s expected"}
                continue
            if expected < 0.5:
                run(), run()  # the second one in the memory of the first
            if clock.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(clock.device)
            seconds = clock.median(run, 0.5)
            peak = torch.cuda.max_memory_allocated(clock.device) / 1e9 if clock.device.type == "cuda" else None
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            yield row | {"neuron": neuron, "left_out": "out of memory"}
            continue
        yield row | {
            "neuron": neuron,
            "cost_per_step_over_float": seconds / T / forward,
            "float_ms": 1e3 * forward,
            "images_per_s": batch / seconds,
            "peak_gb": peak,
        }


def rival_rows(clock: Clock, name: str, bench: Bench) -> Iterator[dict]:
    """SpikingJelly 2.0's multi-step IF on the same folded network, its implementations and both layouts; ours in turns.

    Theirs runs in float32 without TF32 (``Graph.evaluate`` sees to that), ours in that and in tf32x3.
    """
    if lacking := rival.missing():
        yield {"network": name, "left_out": lacking}
        return
    batch, T = (16, 8) if clock.device.type == "cuda" else (2, 4)
    x, ours = bench.images(batch), {}
    for kind in ("float32", "tf32x3"):
        snn = bench.network("if", T, kind)
        ours[kind] = clock.waiting(partial(snn.run, x, T))
        ours[kind](), ours[kind]()
    many = x.repeat(T, 1, 1, 1)
    bench.observation.graph(many)
    alone = clock.median(lambda: bench.observation.graph(many), 0.5)
    yield {"network": name, "batch": batch, "T": T, "theirs": "all timesteps' float passes at once", "ms": 1e3 * alone}
    for implementation in ("triton", "cuda", "torch"):
        select(implementation)
        for layout in LAYOUTS:
            row = {"network": name, "batch": batch, "T": T, "theirs": f"{implementation}, {layout}"}
            try:
                net = rival.MultiStep(bench.observation, "IFNode", layout, T)
                theirs = clock.waiting(partial(net, x))
                theirs()
            except (RuntimeError, ImportError, OSError) as error:
                yield row | {"left_out": str(error).splitlines()[0][:120]}
                continue
            for kind, call in ours.items():
                measured = ratio(theirs, call, 2.0)
                times = {"theirs_ms": 1e3 * measured.seconds, "ours_ms": 1e3 * measured.baseline}
                found = {"speed_ratio": measured.value, "low": measured.low, "high": measured.high}
                yield row | {"ours": kind} | found | times
    yield {"network": name, "theirs": "cupy", "left_out": "SpikingJelly 2.0 has no CuPy implementation of the IF node"}


def select(implementation: str) -> None:
    """What SpikingJelly calculates with. It chooses when it is first called, by an environment variable that is read at
    import: so its own selection is set."""
    from spikingjelly._ops.if_ import _selection

    _selection._requested = implementation
    for cache in (_selection._selections, _selection._compiled_selections):
        cache.clear()


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


def accuracy_rows(clock: Clock) -> Iterator[dict]:
    """mAP of trained SSD-MobileNet by precision, from the command's own run; the first row is the float network's."""
    from msat_det.run.arguments import load_config
    from msat_det.run.experiment import run

    file = Path(__file__).resolve().parents[1] / "configs/real/ssd_mobilenet_coco.yaml"
    words = "--methods if-signed-b3,staged-4,msat-signed-b3 --sim.record 4,8 --calib.limit 24 --draw.images 1"
    for kind in PRECISIONS:
        with tempfile.TemporaryDirectory() as folder:
            given = ["--cfg", str(file), "--out", folder, "--device", str(clock.device), "--precision", kind]
            start = time.perf_counter()
            rows = run(load_config([*given, *words.split()]))
            seconds = time.perf_counter() - start
        for row in rows:
            found = {"precision": kind, "method": row.method, "t": row.t, "spikes": row.spikes_per_neuron}
            yield found | row.accuracies | {"seconds_of_run": seconds}


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


# ---- all together


def parts(clock: Clock) -> dict[str, Callable[[], Iterator[dict]]]:
    """Everything by its name, the most important first."""

    def of(name: str, rows: Callable[..., Iterator[dict]], *rest: Any) -> Callable[[], Iterator[dict]]:
        return lambda: rows(clock, name, gpu_networks.load(name, clock.device), *rest)

    gpu = clock.device.type == "cuda"
    batches = [(16, 8), (1, 8)] if gpu else [(1, 2)]
    found: dict[str, Callable[[], Iterator[dict]]] = {
        "kernels": lambda: kernel_rows(clock),
        "scan": lambda: scan_rows(clock),
        "convolutions ssd300-vgg16": of("ssd300-vgg16", convolution_rows, (16, 64) if gpu else (1,)),
    }
    for name in CASES:
        cases = [(*case, neuron) for case in batches for neuron in ("if", "msat")]
        found[f"parts {name}"] = of(name, part_rows, cases)
        found[f"chunks {name}"] = of(name, chunk_rows, [(batch, 16) for batch, _ in batches] if gpu else [(1, 2)])
        found[f"layout {name}"] = of(name, layout_rows)
        found[f"step {name}"] = of(name, step_rows, 0.5 if name == "ssd300-vgg16" else 0.4)
        if name in IMAGES:
            found[f"images {name}"] = of(name, image_rows)
        if name in ("ssd300-vgg16", "resnet20"):
            found[f"spikingjelly {name}"] = of(name, rival_rows)
        if name == "ssd300-vgg16":
            found["device"] = lambda: device_rows(clock)
            found["accuracy"] = lambda: accuracy_rows(clock)
    # last, for a capture that fails spoils the process; the batch of 1 first
    cases = [(batch, T, neuron) for batch, T in reversed(batches) for neuron in ("if", "msat")]
    return found | {f"replay {name}": of(name, replay_rows, cases) for name in CASES if gpu}


def shown(row: dict) -> str:
    def cell(value: Any) -> str:
        return f"{value:.3g}" if isinstance(value, float) and abs(value) < 100 else (
            f"{value:.0f}" if isinstance(value, float) else str(value)
        )  # fmt: skip

    return "  ".join(f"{key} {cell(value)}" for key, value in row.items() if value is not None)


def machine(device: torch.device) -> dict:
    facts: dict[str, Any] = {"PyTorch": torch.__version__, "device": str(device)}
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        facts |= {"card": card.name, "gb": card.total_memory / 1e9, "cudnn": torch.backends.cudnn.version()}
    return facts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the program; %(default)s")
    parser.add_argument("--seconds", type=float, default=280.0, help="after which no part is begun; %(default)s")
    parser.add_argument("--json", type=Path, help="results; $OUT/gpu.json where OUT is set")
    parser.add_argument("--part", nargs="+", help="parts whose names begin so; all")
    args = parser.parse_args()
    device = torch.device(args.device)
    if device.type == "cuda":
        device = torch.device("cuda", torch.cuda.current_device())
    file = args.json or (Path(os.environ["OUT"]) / "gpu.json" if os.environ.get("OUT") else None)
    clock, failed = Clock(device, args.seconds), 0
    results: dict[str, Any] = {"machine": machine(device)}
    print(shown(results["machine"]), flush=True)
    for name, rows in parts(clock).items():
        if args.part and not any(name.startswith(part) for part in args.part):
            continue
        if clock.left < 0:
            print(f"== {name}: no time left", flush=True)
            continue
        print(f"== {name} ({clock.left:.0f} s left)", flush=True)
        results[name] = []
        try:
            for row in rows():
                results[name].append(row)
                print(shown(row), flush=True)
        except Exception:  # noqa: BLE001 (the other parts are wanted)
            failed += 1
            traceback.print_exc()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        if file:
            file.write_text(json.dumps(results, indent=1) + "\n")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
