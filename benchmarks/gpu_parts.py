"""Where the time of a simulation on a GPU goes: convolutions by precision, parts of a chunk, chunk lengths, replays."""

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.gpu_networks import Bench
from benchmarks.timing import Clock
from msat_det.graph.facts import facts
from msat_det.graph.precision import arithmetic
from msat_det.spiking import kernels
from msat_det.spiking.energy import count
from msat_det.spiking.engine import Chunk, Run
from msat_det.spiking.kernels import product, split
from msat_det.spiking.network import SpikingNetwork


def convolutions(bench: Bench) -> dict[tuple, tuple[nn.Conv2d, int]]:
    """The convolutions of a network without groups by what decides their time, each with how many are alike."""
    found: dict[tuple, tuple[nn.Conv2d, int]] = {}
    for node in bench.observation.graph.nodes:
        if node.op == "call_module" and facts(node).op == "conv2d":
            conv = bench.observation.graph.layer(node)
            assert isinstance(conv, nn.Conv2d)
            shape = facts(node.all_input_nodes[0]).image_shape
            key = (*shape, conv.out_channels, *conv.kernel_size, conv.stride, conv.dilation)
            if conv.groups == 1 and shape[0] % 4 == 0:
                found[key] = (conv, found.get(key, (conv, 0))[1] + 1)
    return found


def convolution_rows(clock: Clock, name: str, bench: Bench, sizes: tuple[int, ...]) -> Iterator[dict]:
    """Each convolution by precision, ms and the largest error against float64; the sums last."""
    for batch in sizes:
        sums: dict[str, float] = defaultdict(float)
        for key, (conv, alike) in convolutions(bench).items():
            x = torch.randint(0, 4, (batch, *key[:3]), device=clock.device).float() * 0.3
            x = x.contiguous(memory_format=torch.channels_last)
            times, errors = one_convolution(clock, conv, x, all_ways=batch == sizes[0])
            yield {"network": name, "batch": batch, "convolution": str(key), "alike": alike} | times | errors
            for kind, ms in times.items():
                sums[kind] += alike * ms
            own = times["product" if product.fits(conv, x) else "float32"]
            sums["float32 as chosen"] += alike * own
            sums["tf32x3 as chosen"] += alike * (times["tf32x3"] if "tf32x3" in times and split.fits(conv, x) else own)
        yield {"network": name, "batch": batch, "convolution": "all"} | sums


def one_convolution(
    clock: Clock, conv: nn.Conv2d, x: Tensor, all_ways: bool
) -> tuple[dict[str, float], dict[str, float]]:
    """Milliseconds and errors by precision."""
    gpu = kernels.on_gpu() if x.is_cuda else None
    names = ("float32", "tf32", "bf16", "fp16") if all_ways else ("float32", "tf32")
    ways: dict[str, Callable[[], Tensor]] = {name: _at(name, conv, x) for name in names}
    ways["float32, contiguous"] = _at("float32", conv, x.contiguous())
    ways["product"] = lambda: product.convolution(conv, x)
    if gpu:
        ways["tf32x3"] = lambda: split.convolution(conv, gpu.split.split(x))
    with torch.inference_mode():
        few = x[:1]
        exact = F.conv2d(
            few.double(), conv.weight.double(), None if conv.bias is None else conv.bias.double(), conv.stride,
            conv.padding, conv.dilation,
        )  # fmt: skip
        times, errors = {}, {}
        for name, call in ways.items():
            y = call()
            times[name] = 1e3 * clock.median(call, 0.05)
            if name in ("float32", "product", "tf32x3", "tf32", "bf16"):
                errors[f"error {name}"] = ((y[:1].double() - exact).abs().max() / exact.abs().max()).item()
    return times, errors


def _at(name: str, conv: nn.Conv2d, x: Tensor) -> Callable[[], Tensor]:
    def call() -> Tensor:
        with arithmetic(name, x.device):
            return conv(x).float()

    return call


def part_rows(clock: Clock, name: str, bench: Bench, cases: list[tuple[int, int, str]]) -> Iterator[dict]:
    """One simulation taken apart: ms of the device in convolutions and linear nodes, neurons, poolings and the rest,
    and of the host until all is asked for; what comes before and after, each until the device is done; the whole, by
    itself and in the memory of the last one; and the convolutions of a float pass over as many images.
    """
    for batch, T, neuron in cases:
        x, snn = bench.images(batch), bench.network(neuron, T)
        snn.run(x, T)
        row: dict[str, Any] = {"network": name, "batch": batch, "T": T, "neuron": neuron}
        with torch.inference_mode():
            run = Run(snn.setup, x)
            row |= {"chunk": run.chunk} | taken_apart(clock, run, T) | around(clock, snn, run, x, T)
        row["run_ms"] = 1e3 * clock.median(partial(snn.run, x, T, tap=lambda site, y: None), 0.5)
        snn.run(x, T)
        row["again_ms"] = 1e3 * clock.median(partial(snn.run, x, T), 0.5)
        graph = bench.observation.graph
        graph(x)
        row["float_ms"] = 1e3 * clock.median(partial(graph, x), 0.5)
        yield row
        del snn, run


def around(clock: Clock, snn: SpikingNetwork, run: Run, x: Tensor, T: int) -> dict[str, float]:
    """Milliseconds of what a simulation does beside advancing, host and device together."""
    counted = run.spikes(T)
    calls = {
        "begin_ms": lambda: Run(snn.setup, x),
        "restart_ms": lambda: run.restart(x),
        "readout_ms": lambda: run.readout(T),
        "fetch_ms": lambda: run.spikes(T),
        "count_ms": lambda: count(snn.graph, snn.neurons, snn.fanout, *counted, T, snn.energy),
    }
    found = {}
    run.readout(T)
    for name in ("readout_ms", "fetch_ms", "count_ms", "begin_ms", "restart_ms"):
        clock.wait()
        begun = time.perf_counter()
        calls[name]()
        clock.wait()
        found[name] = 1e3 * (time.perf_counter() - begun)
    return found


def replay_rows(clock: Clock, name: str, bench: Bench, cases: list[tuple[int, int, str]]) -> Iterator[dict]:
    """A simulation in the memory of the last one, as it is and captured as CUDA graphs."""
    for batch, T, neuron in cases:
        x, row = bench.images(batch), {"network": name, "batch": batch, "T": T, "neuron": neuron}
        for kind, value in (("again_ms", "off"), ("replayed_ms", "on")):
            with patch.dict(os.environ, MSAT_DET_CUDA_GRAPHS=value):
                snn = bench.network(neuron, T)
                snn.run(x, T), snn.run(x, T)
                row[kind] = 1e3 * clock.median(partial(snn.run, x, T), 0.5)
        replay = snn._replays.replay
        yield row | {"graphs": len(replay.graphs) if replay else 0}
        del snn, replay


def taken_apart(clock: Clock, run: Run, T: int) -> dict[str, float]:
    """Milliseconds on the device by kind of node, and of the host, over T timesteps of this run."""
    marks: list[tuple[str, Any, Any]] = []

    def timed(kind: str, method: Callable) -> Callable:
        def call(*given: Any) -> Any:
            if clock.device.type != "cuda":
                begun = time.perf_counter()
                value = method(*given)
                marks.append((kind, begun, time.perf_counter()))
                return value
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            value = method(*given)
            end.record()
            marks.append((kind, start, end))
            return value

        return call

    kinds = {(Chunk, "linear"): "linear", (run, "scan"): "neurons", (run, "differential"): "pools"}

    def advance() -> None:
        for t in range(0, T, run.chunk):
            run.advance(t, min(run.chunk, T - t))

    clock.wait()
    begun = time.perf_counter()
    with ExitStack() as stack:
        for (owner, name), kind in kinds.items():
            stack.enter_context(patch.object(owner, name, timed(kind, getattr(owner, name))))
        timed("all", advance)()
    host = 1e3 * (time.perf_counter() - begun)
    clock.wait()
    sums: dict[str, float] = defaultdict(float)
    for kind, start, end in marks:
        sums[f"{kind}_ms"] += 1e3 * (end - start) if isinstance(start, float) else start.elapsed_time(end)
    return dict(sums) | {"host_ms": host}


def chunk_rows(clock: Clock, name: str, bench: Bench, cases: list[tuple[int, int]]) -> Iterator[dict]:
    """A timestep in float forwards by how many images a chunk holds."""
    for batch, T in cases:
        x = bench.images(batch)
        bench.observation.graph(x)
        forward = clock.median(partial(bench.observation.graph, x), 0.3)
        row: dict[str, Any] = {"network": name, "batch": batch, "T": T}
        for images in (16, 64, 128, 256):
            if not batch <= images <= batch * T:
                continue
            for kind in ("float32", "tf32x3"):
                snn = bench.network("if-signed-burst", T, kind)
                snn.chunk = images // batch
                run = partial(snn.run, x, T)
                run(), run()
                cost = clock.median(run, 0.4) / T / forward
                yield row | {"precision": kind, "images_at_once": images, "cost_per_step_over_float": cost}
                del snn, run
