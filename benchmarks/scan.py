"""The neurons alone: GB/s of a scan over timesteps beside a memcpy of the same bytes, and cycles an element.

An element is one neuron at one timestep. Input and output make 8 bytes an element, which both the scan and the memcpy
are charged; the neurons' state, read and written once a chunk, is not counted. Cycles = measured ns x nominal GHz of
/proc/cpuinfo x threads: of one core, at a clock that the machine need not have run at.
"""

import importlib.util
import re
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.networks import NEURONS
from benchmarks.timing import seconds_of
from msat_det.convert.conversion import spiking_network
from msat_det.convert.observe import observe
from msat_det.kernels import Scan, keep_freed_memory

SHAPE = (4, 64, 150, 150)  # images, channels, height, width: 23 MB a timestep
STEPS = 8
REPEATS = 15


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


def median_seconds(call: Callable[[], Any], repeats: int = REPEATS) -> float:
    call()
    return statistics.median(seconds_of(call) for _ in range(repeats))


def rows(threads: int, shape: tuple[int, ...] = SHAPE) -> Iterator[dict]:
    """One dict for the memcpy, for each kind of neuron and for SpikingJelly's where it is installed."""
    keep_freed_memory()
    torch.manual_seed(0)
    x = torch.randn(STEPS, *shape).flatten(0, 1).contiguous(memory_format=torch.channels_last)
    target = torch.empty_like(x)
    steps = x.unflatten(0, (STEPS, shape[0]))
    copy_seconds = median_seconds(lambda: target.copy_(x))
    lengths = {"memcpy": copy_seconds}
    scans = {name: make_scan(name, steps[0]) for name in NEURONS}
    with torch.inference_mode():
        for name, scan in scans.items():
            lengths[name] = median_seconds(lambda scan=scan: scan.run(steps, 0, STEPS))
        if importlib.util.find_spec("spikingjelly"):
            from spikingjelly.activation_based.neuron import IFNode

            node = IFNode(1.0, v_reset=None, step_mode="m").eval()
            lengths["spikingjelly IFNode"] = median_seconds(lambda: node(steps))
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


def make_scan(name: str, currents: Tensor) -> Scan:
    """A population for these currents (B, C, h, w), its thresholds found on a convolution in front of it."""
    channels = currents.shape[1]
    net = nn.Sequential(nn.Conv2d(3, channels, 3), nn.ReLU(), nn.Conv2d(channels, 1, 1)).eval()
    observation = observe(net, [torch.randn(2, 3, 16, 16)])
    method, options = NEURONS[name]
    (neuron,) = spiking_network(method, options, observation, STEPS).neurons.values()
    return Scan(neuron, currents, torch.zeros(currents.shape[1:]), with_output=False)
