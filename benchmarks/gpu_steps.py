"""What a timestep costs on a GPU beside a float forward, by layout and precision, and beside SpikingJelly's."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from benchmarks import gpu_networks, rival
from benchmarks.gpu_networks import Bench
from benchmarks.timing import Clock, ratio
from msat_det.spiking.engine import LONGEST_CHUNK_GPU, images_at_once

# Network → (batch, T), the most telling first; float forwards longer than LONGEST seconds · T are left out.
CASES = {
    "ssd300-vgg16": [(64, 64), (16, 8), (64, 8), (1, 8), (16, 64), (1, 64), (64, 4), (16, 4), (1, 4)],
    "ssd-mobilenet": [(64, 4), (64, 64), (16, 8), (1, 8), (64, 8), (16, 64), (1, 64), (16, 4), (1, 4)],
    "retinanet-r50": [(16, 8), (1, 8), (1, 64), (16, 4), (1, 4), (16, 64)],
    "yolox-like": [(16, 8), (64, 64), (1, 8), (64, 8), (16, 64), (1, 64), (64, 4), (16, 4), (1, 4)],
    "resnet20": [(64, 64), (16, 8), (1, 8), (64, 8), (16, 64), (1, 64), (64, 4), (16, 4), (1, 4)],
}
LONGEST = 12.0  # seconds of one simulation


def layout_rows(clock: Clock, name: str, bench: Bench) -> Iterator[dict]:
    """A float forward by memory layout and precision."""
    x = bench.images(16 if clock.device.type == "cuda" else 2)
    for kind in ("float32", "tf32", "bf16", "fp16"):  # tf32x3 is the spiking network's alone
        row: dict[str, Any] = {"network": name, "precision": kind, "batch": len(x)}
        graph = bench.floating(kind)
        for layout, format in rival.LAYOUTS.items():
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
    for neuron in gpu_networks.NEURONS:
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
        rival.select(implementation)
        for layout in rival.LAYOUTS:
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
