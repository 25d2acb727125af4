"""The neurons alone: GB/s of a scan over timesteps beside a memcpy of the same bytes, and cycles an element.

An element is one neuron at one timestep. Input and output make 8 bytes an element, which both the scan and the memcpy
are charged; the neurons' state, read and written once a chunk, is not counted. In place the output overwrites the
input, as it does behind a convolution. Cycles = measured ns x nominal GHz of /proc/cpuinfo x threads: of one core, at
a clock that the machine need not have run at.
"""

import multiprocessing
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks import rival
from benchmarks.networks import NEURONS
from benchmarks.timing import median_seconds
from msat_det.methods.convert import spiking_network
from msat_det.methods.observe import observe
from msat_det.spiking.kernels import Scan, keep_freed_memory

SHAPE = (4, 64, 150, 150)  # images, channels, height, width: 23 MB a timestep
STEPS = 8


def gigahertz() -> float | None:
    """The nominal clock: of the model's name where it is there, else the first core's MHz; None off Linux."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return None
    if found := re.search(r"model name.*@ *([\d.]+) *GHz", text):
        return float(found[1])
    found = re.search(r"cpu MHz\s*: *([\d.]+)", text)
    return float(found[1]) / 1000 if found else None


def rows(threads: int, shape: tuple[int, ...] = SHAPE) -> Iterator[dict]:
    """One dict for the memcpy, two for each kind of neuron and, where it is installed, two for SpikingJelly's: as it
    comes and in a process that keeps freed memory, as ours does."""
    keep_freed_memory()
    steps = currents(shape)
    x, target = steps.flatten(0, 1), torch.empty_like(steps.flatten(0, 1))
    copy_seconds = median_seconds(lambda: target.copy_(x))
    lengths = {"memcpy": copy_seconds}
    scans = {name: make_scan(name, steps[0]) for name in NEURONS}
    with torch.inference_mode():
        for name, scan in scans.items():
            lengths[name] = median_seconds(partial(scan.run, steps, 0, STEPS))
            own = steps.clone()
            lengths[f"{name}, in place"] = median_seconds(partial(scan.run, own, STEPS, STEPS, in_place=True))
    if rival.missing() is None:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            lengths["spikingjelly IFNode"] = process.submit(spikingjelly_seconds, threads, shape).result()
        lengths["spikingjelly IFNode, freed memory kept"] = spikingjelly_seconds(threads, shape)
    clock = gigahertz()
    for name, seconds in lengths.items():
        nanoseconds = seconds * 1e9 / x.numel()
        yield {
            "scan": name,
            "gb_per_s": 8 / nanoseconds,
            "of_memcpy": copy_seconds / seconds,
            "elements_g_per_s": 1 / nanoseconds,
            "cycles_per_element": nanoseconds * clock * threads if clock else None,
        }


def currents(shape: tuple[int, ...]) -> Tensor:
    """Normal input currents (STEPS, *shape), channels last."""
    torch.manual_seed(0)
    x = torch.randn(STEPS, *shape).flatten(0, 1).contiguous(memory_format=torch.channels_last)
    return x.unflatten(0, (STEPS, shape[0]))


def spikingjelly_seconds(threads: int, shape: tuple[int, ...]) -> float:
    """Of SpikingJelly's multi-step integrate-and-fire node with soft reset, in this process as it is."""
    from spikingjelly.activation_based.neuron import IFNode

    torch.set_num_threads(threads)
    node, steps = IFNode(1.0, v_reset=None, step_mode="m").eval(), currents(shape)
    with torch.inference_mode():
        return median_seconds(lambda: node(steps))


def make_scan(name: str, currents: Tensor) -> Scan:
    """A population for these currents (B, C, h, w), its thresholds found on a convolution in front of it."""
    channels = currents.shape[1]
    net = nn.Sequential(nn.Conv2d(3, channels, 3), nn.ReLU(), nn.Conv2d(channels, 1, 1)).eval()
    observation = observe(net, [torch.randn(2, 3, 16, 16)])
    method, options = NEURONS[name]
    (neuron,) = spiking_network(method, options, observation, STEPS).neurons.values()
    return Scan(neuron, currents, torch.zeros(currents.shape[1:]), with_output=False)
