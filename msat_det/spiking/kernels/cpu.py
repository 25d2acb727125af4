"""``scan.cpp``, compiled once per machine and cached: the neuron step over a chunk of timesteps, and what is counted of
activations, on a CPU. ``levels.cpp`` is loaded here, too: its neurons are ``delta``'s.
"""

import ctypes
import functools
import math
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from msat_det.base.checks import present
from msat_det.graph.channels import rows_by_channel
from msat_det.spiking.kernels.build import wanted
from msat_det.spiking.kernels.layout import laid_out, laid_out_by_channel, memory_format, period_of
from msat_det.spiking.kernels.targets import is_enough, write_targets
from msat_det.spiking.neurons import Neuron, State, initial_potential, per_channel, threshold

PIECEWISE = {  # slope, low, high of f(x) = clamp(max(x, slope·x), low, high)
    "identity": (1.0, -math.inf, math.inf),
    "leakyrelu": (0.0, -math.inf, math.inf),
}
_FAMILIES = {"spike": 0, "reset": 1, "track": 2, "leaky": 3, "given": 4}
_POINTERS = "x y v o sum mean before theta theta_max start bias fanout stage counts".split()
_FLOATS = "gamma overflow offset margin upper slope low high alpha k_a k_i C tau_mp tau_det rest".split()
_FLAGS32 = "is_signed bounded normalised depolarisation dtt det rest_is_max".split()


_N, _P = ctypes.c_int64, ctypes.c_void_p  # a number, a pointer


class _Scan(ctypes.Structure):
    _fields_ = (
        [(name, _N) for name in ("K", "B", "N", "period", "x_step", "t0")]
        + [(name, _P) for name in _POINTERS]
        + [(name, ctypes.c_float) for name in _FLOATS]
        + [(name, ctypes.c_int32) for name in _FLAGS32]
    )


@functools.cache
def levels_library() -> ctypes.CDLL | None:
    """``levels.cpp`` compiled, or None as ``library`` has it."""
    lib = wanted(Path(__file__).with_name("levels.cpp"), "delta coding runs in plain PyTorch")
    if lib is not None:
        lib.count_digits.argtypes = [_P, _N, _N, _N, _P, ctypes.c_float, ctypes.c_int32, _P, _P]
    return lib


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernel, or None with a one-line notice on stderr where it cannot be had."""
    lib = wanted(Path(__file__).with_name("scan.cpp"), "the neurons run in plain PyTorch")
    if lib is None:
        return None
    lib.scan_units.restype = lib.scan_group.restype = lib.scan_struct_size.restype = ctypes.c_int64
    lib.scan_units.argtypes = [_N]
    lib.count_events.argtypes = [_P, _N, _N, _P, _P]
    lib.observe_channels.argtypes = [_P, _N, _N, _N, *[ctypes.c_int32] * 3, _P, _P]
    assert lib.scan_struct_size() == ctypes.sizeof(_Scan)
    return lib


def _family(neuron: Neuron) -> str:
    """Which of the kernel's neurons this one is; of ``given`` it is told what the output sum shall be."""
    if neuron.tracking:
        return "track" if neuron.activation.name in PIECEWISE else "given"
    return "leaky" if neuron.imbalanced else "reset" if neuron.reset == "zero" else "spike"


def holds(neuron: Neuron) -> bool:
    """Whether the kernel computes this neuron, and is there."""
    n, m = neuron, neuron.adaptive
    plain = not (n.imbalanced and n.reset == "zero")
    if _family(n) == "given":  # the kernel sees no current then
        plain = is_enough(n)
    # else a spike is cut to its leading digits, or its height is gone when they are counted
    whole = n.bits is None or (min(n.terms) >= n.bits and m is None)
    return plain and whole and n.confidence >= 1 and library() is not None


class Compiled:
    """The kernel's arguments for one population; ``Scan`` holds the state. counts: (B, 4), see there."""

    def __init__(self, neuron: Neuron, currents: Tensor, state: State, fanout: Tensor):
        """currents: (B, C, …) float32, dense in the memory format of the state. fanout: (N,) in memory order."""
        self.neuron, self.state = neuron, state
        self.counts = torch.zeros(len(currents), 4, dtype=torch.float64)
        self._family = _family(neuron)
        self._struct = self._layout(currents, fanout)

    def _layout(self, x: Tensor, fanout: Tensor) -> _Scan:
        n, m, st, lib = self.neuron, self.neuron.adaptive, self.state, present(library())
        size, period = x[0].numel(), period_of(n, x)

        def periodic(value: Tensor | float) -> Tensor:
            return laid_out_by_channel(value, x, period, lib.scan_group())

        slope, low, high = PIECEWISE.get(n.activation.name, (0.0, 0.0, math.inf))
        bias = None if self._family == "given" else n.steady_bias
        self._partial = torch.zeros(len(x), lib.scan_units(size), 4, dtype=torch.float64)
        self._arrays = {  # the structure holds bare pointers: this keeps them alive
            "v": st.v, "o": st.o, "sum": st.x, "mean": st.mean, "before": st.before, "fanout": fanout,
            "theta": periodic(threshold(n, x)), "theta_max": periodic(per_channel(n.theta, x, n.axis)),
            "start": periodic(initial_potential(n, x)),
            "bias": None if bias is None else periodic(per_channel(bias, x, n.axis)),
            "counts": self._partial,
        }  # fmt: skip
        values = dict(
            gamma=n.gamma, overflow=n.overflow, offset=n.offset, margin=n.margin, upper=n.activation.upper,
            slope=n.activation.slope or slope, low=low, high=high, is_signed=n.signed, bounded=n.bounded,
        )  # fmt: skip
        if m:
            values |= dict(
                alpha=m.alpha, k_a=m.k_a, k_i=m.k_i, C=m.C, tau_mp=m.tau_mp,
                tau_det=m.tau_rd * (m.tau_rd if m.twice else 1.0), rest_is_max=m.rest is None and not m.normalised,
                rest=-1.0 if m.rest is None else m.rest, normalised=m.normalised,
                depolarisation=m.drive == "depolarisation", dtt=m.dtt, det=m.det,
            )  # fmt: skip
        pointers = {name: None if a is None else a.data_ptr() for name, a in self._arrays.items()}
        return _Scan(B=len(x), N=size, period=period, **pointers, **values)

    def run(self, x: Tensor, y: Tensor, t0: int, steps: int, constant: bool) -> None:
        """x: (steps·B, C, …), or (B, C, …) where constant in time; y: (steps·B, C, …), which may be x."""
        c, n = self._struct, self.neuron
        stages = torch.tensor([n.stage(t0 + k) for k in range(steps)], dtype=torch.float32)
        if self._family == "given":
            write_targets(n, self.state.x, x, y, t0)
            x, constant = y, False
        c.K, c.t0, c.x_step = steps, t0, 0 if constant else c.B * c.N
        c.x, c.y, c.stage = x.data_ptr(), y.data_ptr(), stages.data_ptr()
        present(library()).scan_chunk(
            ctypes.byref(c), _FAMILIES[self._family], int(self.state.o is not None), int(n.adaptive is not None)
        )
        self.counts += self._partial.sum(1) if n.bits is None else self._digits(y, stages, n.bits)

    def restart(self) -> None:
        """Counts from 0."""
        self.counts.zero_()

    def _digits(self, y: Tensor, stages: Tensor, bits: int) -> Tensor:
        """The counts of bursts that go as binary digits; y (steps·B, C, …)."""
        c, first = self._struct, 0
        counts = torch.empty(len(stages), *self.counts.shape, dtype=self.counts.dtype)
        for stage, alike in groupby(stages.tolist()):
            steps = len(list(alike))
            present(levels_library()).count_digits(
                y[first * c.B].data_ptr(),
                *(steps * c.B, c.N, c.period, c.theta, stage, bits, c.fanout, counts[first].data_ptr()),
            )
            first += steps
        return counts.sum(0) + 0 * self._partial.sum(1)  # NaN stays


def count_events(y: Tensor, fanout: Tensor) -> Tensor:
    """Σ[y≠0] and Σ[y≠0]·fan-out of each row of y (rows, C, …), as (rows, 2) float64 on its device. fanout: (C, …)."""
    lib = library()
    if y.device.type == "mps":  # which has no float64
        y = y.cpu()
    if lib is None or y.device.type != "cpu" or y.dtype != torch.float32:
        moved, each = y != 0, tuple(range(1, y.dim()))
        reached = torch.where(moved, fanout.to(y), 0.0).sum(each, dtype=torch.float64)
        return torch.stack((moved.sum(each, dtype=torch.float64), reached), 1)
    y, reach = y.contiguous(memory_format=memory_format(y)), laid_out(fanout, y)
    counts = torch.empty(len(y), 2, dtype=torch.float64)
    lib.count_events(y.data_ptr(), len(y), y[0].numel(), reach.data_ptr(), counts.data_ptr())
    return counts


def observe_channels(x: Tensor, axis: int | None, shift: int, first: int, histogram: Tensor, maximum: Tensor) -> None:
    """Add |x| (B, …) to the histograms (C, bins) int32 and maxima (C,) of ``methods.observe.Site`` by channel.

    axis: the dimension of the channels, None where all values belong to one.
    """
    channels, bins = histogram.shape
    lib = library()
    if lib is None or x.device.type != "cpu" or x.dtype != torch.float32:
        rows = rows_by_channel(x.abs().float(), axis)
        index = ((rows.contiguous().view(torch.int32) >> shift) - (first - 1)).clamp_(0, bins - 1)
        index += bins * torch.arange(channels, dtype=torch.int32, device=x.device)[:, None]
        found = torch.bincount(index.flatten(), minlength=channels * bins).view(channels, bins)
        histogram += found.to(histogram.device, torch.int32)
        torch.maximum(maximum, rows.amax(1).to(maximum.device), out=maximum)
        return
    last = memory_format(x) is torch.channels_last and axis in (1, None)
    x = x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    inner = 1 if last and axis else x[0].numel() if axis is None else math.prod(x.shape[axis + 1 :])
    outer = x.numel() // (channels * inner)
    sizes = outer, channels, inner, shift, first, bins
    lib.observe_channels(x.data_ptr(), *sizes, histogram.data_ptr(), maximum.data_ptr())
