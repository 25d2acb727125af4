"""The neuron step fused over a chunk of timesteps: on a CPU ``scan.cpp``, compiled once per machine and cached, on a
CUDA device ``triton_scan.py``.

Where there is no C++ compiler or no Triton, and for what a kernel does not hold (``scan.cpp``: curved activations,
spike confidence; ``triton_scan.py``: see its ``holds``), ``spiking.neurons.step`` runs instead: the same arithmetic,
only slower. ``MSAT_DET_KERNEL=off`` forces it.
"""

import ctypes
import functools
import math
import os
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from msat_det.graph.channels import rows_by_channel
from msat_det.spiking.kernels import product, split
from msat_det.spiking.kernels.build import keep_freed_memory as keep_freed_memory
from msat_det.spiking.kernels.build import wanted
from msat_det.spiking.kernels.window import Window
from msat_det.spiking.neurons import (
    Chances,
    Neuron,
    State,
    initial_potential,
    new_state,
    per_channel,
    spikes,
    step,
    threshold,
)

_SOURCE = Path(__file__).with_name("scan.cpp")
_FAMILIES = {"spike": 0, "reset": 1, "track": 2, "leaky": 3}
_PIECEWISE = {  # slope, low, high of f(x) = clamp(max(x, slope·x), low, high)
    "identity": (1.0, -math.inf, math.inf),
    "leakyrelu": (0.0, -math.inf, math.inf),
}

_POINTERS = "x y v o sum mean before theta theta_max start bias fanout stage counts".split()
_FLOATS = "gamma overflow offset margin upper slope low high alpha k_a k_i C tau_mp tau_det rest".split()
_FLAGS32 = "is_signed bounded normalised depolarisation dtt det rest_is_max".split()


class _Scan(ctypes.Structure):
    _fields_ = (
        [(name, ctypes.c_int64) for name in ("K", "B", "N", "period", "x_step", "t0")]
        + [(name, ctypes.c_void_p) for name in _POINTERS]
        + [(name, ctypes.c_float) for name in _FLOATS]
        + [(name, ctypes.c_int32) for name in _FLAGS32]
    )


@functools.cache
def levels_library() -> ctypes.CDLL | None:
    """``levels.cpp`` compiled, or None as ``library`` has it."""
    return wanted(Path(__file__).with_name("levels.cpp"), "delta coding runs in plain PyTorch")


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernel, or None with a one-line notice on stderr where it cannot be had."""
    lib = wanted(_SOURCE, "the neurons run in plain PyTorch")
    if lib is None:
        return None
    lib.scan_units.restype = lib.scan_group.restype = lib.scan_struct_size.restype = ctypes.c_int64
    lib.scan_units.argtypes = [ctypes.c_int64]
    assert lib.scan_struct_size() == ctypes.sizeof(_Scan)
    return lib


@functools.cache
def on_gpu() -> tuple[ModuleType, ModuleType, ModuleType] | None:
    """The Triton kernels of neurons, of max pooling and of ``split``, or None: no Triton, or MSAT_DET_KERNEL=off."""
    if os.environ.get("MSAT_DET_KERNEL") == "off":
        return None
    try:
        from msat_det.spiking.kernels import triton_pool, triton_scan, triton_split
    except ImportError:
        return None
    return triton_scan, triton_pool, triton_split


def backend(neuron: Neuron, x: Tensor) -> Literal["eager", "cpu", "triton"]:
    """What runs this neuron on currents like x (B, C, …): ``step``, ``scan.cpp`` or Triton's kernel."""
    n = neuron
    if x.dtype != torch.float32:
        return "eager"
    if x.is_cuda:
        return "triton" if on_gpu() and on_gpu()[0].holds(n) else "eager"
    plain = not (n.imbalanced and n.reset == "zero") if not n.tracking else n.activation.name in _PIECEWISE
    whole = n.bits is None or min(n.terms) >= n.bits  # else a spike is cut to its leading digits
    fits = plain and whole and n.confidence >= 1 and x.device.type == "cpu"
    return "cpu" if fits and library() is not None else "eager"


class Scan:
    """A population of neurons of one call site, for one batch: its parameters laid out, its state, and its counts.

    currents: an example of the input (B, C, …), whose memory format the state takes over.
    fanout: (C, …) multiply-adds that a spike of each neuron reaches. with_output: keep the output sum.
    counts: Σ|s|, Σ|s|·fan-out, Σ[s≠0] and Σ[s≠0]·fan-out of each image so far. ``backend``: see there.
    """

    def __init__(
        self, neuron: Neuron, currents: Tensor, fanout: Tensor, with_output: bool, chances: Chances | None = None
    ):
        self._format = _memory_format(currents)
        currents = currents.contiguous(memory_format=self._format)
        self.neuron, self.chances = neuron, chances
        self.state: State = new_state(neuron, currents, with_output)
        self._start = initial_potential(neuron, currents)
        self.fanout = fanout.to(currents.device)
        self._counts = torch.zeros(currents.shape[0], 4, dtype=torch.float64, device=currents.device)
        self.backend = backend(neuron, currents)
        if self.backend == "cpu":
            self._struct = self._layout(currents)
        elif self.backend == "triton":
            reach = _laid_out(self.fanout, currents)
            self._fused = on_gpu()[0].Fused(neuron, currents, self.state, reach, chances)

    @property
    def repeats(self) -> bool:
        """Whether the same kernels run for every batch, and nothing but their numbers differs."""
        return self.backend == "triton" and self.neuron.confidence >= 1 and not self.neuron.window

    def restart(self) -> None:
        """Back to before the first timestep, in the same memory."""
        held = [value for value in vars(self.state).values() if value is not None]
        for value in [*held, self._counts, *([self._fused.counts] if self.backend == "triton" else [])]:
            value.zero_()
        self.state.v += self._start

    @property
    def counts(self) -> Tensor:
        """(B, 4) float64, on the neurons' device."""
        return self._counts + self._fused.counts.sum(1) if self.backend == "triton" else self._counts

    def takes(self, currents: Tensor) -> bool:
        """Whether the state is laid out as these currents (B, C, …) are."""
        v = self.state.v
        alike = (currents.shape, currents.dtype, currents.device) == (v.shape, v.dtype, v.device)
        return alike and _memory_format(currents) is self._format

    def run(self, x: Tensor, t0: int, steps: int, in_place: bool = False) -> Tensor:
        """Advance by ``steps`` timesteps from t0.

        x: (steps, B, C, …) input currents, or (1, B, C, …) for a current that is constant in time. in_place: the result
        may overwrite x. Returns the output s·θ (steps, B, C, …).
        """
        kernel = self._run_steps if self.backend == "eager" else self._run_kernel
        y = kernel(x, t0, steps, in_place)
        if self.neuron.window:
            self._count_pairs(y, t0)
        return y

    def _count_pairs(self, y: Tensor, t0: int) -> None:
        """A value beyond its window is sent by several pairs of spikes; the count of events has it as one."""
        full = self.neuron.gamma * threshold(self.neuron, y[0])
        for k, sent in enumerate(y.abs()):
            pairs = (sent / (full * self.neuron.stage(t0 + k)) - 1e-4).ceil()  # less than a spike, more than rounding
            more = (pairs - 1).clamp(min=0).flatten(1).double()
            reach = self.fanout.expand(y.shape[2:]).reshape(-1).double()
            self._counts[:, 2:] += torch.stack((more.sum(1), more @ reach), 1)

    def _run_steps(self, x: Tensor, t0: int, steps: int, in_place: bool) -> Tensor:
        outputs = []
        for k in range(steps):
            s, y = step(self.neuron, self.state, x[k if x.shape[0] > 1 else 0], t0 + k, self.chances)
            size = spikes(self.neuron, s).flatten(1).double()
            fanout, one = self.fanout.reshape(1, -1).double(), 1.0
            events = torch.where(size > 0, 1.0, size)
            self._counts += torch.stack([(v * f).sum(1) for v in (size, events) for f in (one, fanout)], 1)
            outputs.append(y)
        return torch.stack(outputs)

    def _layout(self, x: Tensor) -> _Scan:
        n, m, lib = self.neuron, self.neuron.adaptive, library()
        size = x[0].numel()

        period = period_of(n, x, self._format)

        def periodic(value: Tensor | float) -> Tensor:
            return laid_out_by_channel(value, x, period, lib.scan_group())

        theta_max = per_channel(n.theta, x, n.axis)
        slope, low, high = _PIECEWISE.get(n.activation.name, (0.0, 0.0, math.inf))
        slope = n.activation.slope or slope
        st = self.state
        arrays = {
            "v": st.v, "o": st.o, "sum": st.x, "mean": st.mean, "before": st.before,
            "theta": periodic(threshold(n, x)), "theta_max": periodic(theta_max),
            "start": periodic(initial_potential(n, x)),
            "bias": None if n.bias is None or n.bias.dim() > 1 else periodic(per_channel(n.bias, x, n.axis)),
            "fanout": _laid_out(self.fanout, x),
            "counts": torch.zeros(x.shape[0], lib.scan_units(size), 4, dtype=torch.float64),
        }  # fmt: skip
        self._arrays = arrays  # the structure holds bare pointers: this keeps them alive
        values = dict(
            gamma=n.gamma, overflow=n.overflow, offset=n.offset, margin=n.margin, upper=n.activation.upper,
            slope=slope, low=low, high=high, is_signed=n.signed, bounded=n.bounded,
        )  # fmt: skip
        if m:
            values |= dict(
                alpha=m.alpha, k_a=m.k_a, k_i=m.k_i, C=m.C, tau_mp=m.tau_mp,
                tau_det=m.tau_rd * (m.tau_rd if m.twice else 1.0), rest_is_max=m.rest is None and not m.normalised,
                rest=-1.0 if m.rest is None else m.rest, normalised=m.normalised,
                depolarisation=m.drive == "depolarisation", dtt=m.dtt, det=m.det,
            )  # fmt: skip
        pointers = {name: None if a is None else a.data_ptr() for name, a in arrays.items()}
        return _Scan(B=x.shape[0], N=size, period=period, **pointers, **values)

    def _run_kernel(self, x: Tensor, t0: int, steps: int, in_place: bool) -> Tensor:
        n = self.neuron
        if n.bias is not None and n.bias.dim() == 2:
            bias = torch.stack([n.bias_at(t0 + k) for k in range(steps)]).to(x)
            x = x + bias.reshape(steps, *(-1 if d == n.axis else 1 for d in range(x.dim() - 1)))
        constant, images = x.shape[0] == 1 and steps > 1, x.shape[1]
        flat = x.flatten(0, 1)
        if not flat.is_contiguous(memory_format=self._format):
            flat = flat.contiguous(memory_format=self._format)
        y = flat
        if constant or not in_place:
            size = (steps * images, *flat.shape[1:])
            y = torch.empty(size, device=x.device, memory_format=self._format)
        if self.backend == "triton":
            self._fused.run(flat, y, t0, steps, constant)
        else:
            self._run_cpp(flat, y, t0, steps, constant)
        return y.unflatten(0, (steps, images))

    def _run_cpp(self, flat: Tensor, y: Tensor, t0: int, steps: int, constant: bool) -> None:
        c, n = self._struct, self.neuron
        stages = torch.tensor([n.stage(t0 + k) for k in range(steps)], dtype=torch.float32)
        c.K, c.t0, c.x_step = steps, t0, 0 if constant else c.B * c.N
        c.x, c.y, c.stage = flat.data_ptr(), y.data_ptr(), stages.data_ptr()
        family = "track" if n.tracking else "leaky" if n.imbalanced else "reset" if n.reset == "zero" else "spike"
        library().scan_chunk(
            ctypes.byref(c), _FAMILIES[family], int(self.state.o is not None), int(n.adaptive is not None)
        )
        self._counts += self._arrays["counts"].sum(1) if n.bits is None else self._digits(y, n, stages)

    def _digits(self, y: Tensor, n: Neuron, stages: Tensor) -> Tensor:
        """The counts of bursts that go as binary digits; y (steps·B, C, …)."""
        c, total = self._struct, torch.zeros(self._struct.B, 4, dtype=torch.float64)
        for each, stage in zip(y.split(c.B), stages.tolist(), strict=True):
            counts = torch.zeros_like(total)
            levels_library().count_digits(
                ctypes.c_void_p(each.data_ptr()),
                *(ctypes.c_int64(number) for number in (c.B, c.N, c.period)),
                ctypes.c_void_p(c.theta),
                ctypes.c_float(stage),
                ctypes.c_int32(n.bits),
                ctypes.c_void_p(c.fanout),
                ctypes.c_void_p(counts.data_ptr()),
            )
            total += counts
        return total + 0 * self._arrays["counts"].sum(1)  # NaN stays


def pool_in_triton(x: Tensor) -> bool:
    """Whether Triton's kernel takes the differences of max pooling x (rows, C, H, W)."""
    return x.is_cuda and x.dtype == torch.float32 and on_gpu() is not None


def fused_pool(window: Window, like: Tensor, fanout: Tensor | None) -> Any:
    """A ``triton_pool.FusedPool``."""
    return on_gpu()[1].FusedPool(window, like, fanout)


def on_tensor_cores(conv: nn.Module, x: Tensor) -> Tensor | None:
    """``conv(x)`` by ``split``, or None where that does not pay or is not possible: call the module then."""
    if not (x.is_cuda and on_gpu() and split.fits(conv, x)):
        return None
    return split.convolution(conv, on_gpu()[2].split(x))


def as_product(conv: nn.Module, x: Tensor) -> Tensor | None:
    """``conv(x)`` by ``product``, or None where that does not pay or is not possible: call the module then."""
    return product.convolution(conv, x) if x.is_cuda and product.fits(conv, x) else None


def count_events(y: Tensor, fanout: Tensor) -> Tensor:
    """Σ[y≠0] and Σ[y≠0]·fan-out of each row of y (rows, C, …), as (rows, 2) float64 on its device. fanout: (C, …)."""
    if library() is None or y.device.type != "cpu" or y.dtype != torch.float32:
        events, reach = (y != 0).flatten(1).double(), fanout.to(y.device).expand(y.shape[1:]).flatten().double()
        return torch.stack((events.sum(1), events @ reach), 1)
    y, reach = y.contiguous(memory_format=_memory_format(y)), _laid_out(fanout, y)
    counts = torch.empty(len(y), 2, dtype=torch.float64)
    library().count_events(
        ctypes.c_void_p(y.data_ptr()),
        *(ctypes.c_int64(n) for n in (len(y), y[0].numel())),
        *(ctypes.c_void_p(a.data_ptr()) for a in (reach, counts)),
    )
    return counts


def observe_channels(x: Tensor, axis: int | None, shift: int, first: int, histogram: Tensor, maximum: Tensor) -> None:
    """Add |x| (B, …) to the histograms (C, bins) int32 and maxima (C,) of ``methods.observe.Site`` by channel.

    axis: the dimension of the channels, None where all values belong to one.
    """
    channels, bins = histogram.shape
    if library() is None or x.device.type != "cpu" or x.dtype != torch.float32:
        rows = rows_by_channel(x.abs().float(), axis)
        index = ((rows.contiguous().view(torch.int32) >> shift) - (first - 1)).clamp_(0, bins - 1)
        index += bins * torch.arange(channels, dtype=torch.int32, device=x.device)[:, None]
        found = torch.bincount(index.flatten(), minlength=channels * bins).view(channels, bins)
        histogram += found.to(histogram.device, torch.int32)
        torch.maximum(maximum, rows.amax(1).to(maximum.device), out=maximum)
        return
    last = _memory_format(x) is torch.channels_last and axis in (1, None)
    x = x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    inner = 1 if last and axis else x[0].numel() if axis is None else math.prod(x.shape[axis + 1 :])
    library().observe_channels(
        ctypes.c_void_p(x.data_ptr()),
        *(ctypes.c_int64(n) for n in (x.numel() // (channels * inner), channels, inner)),
        *(ctypes.c_int32(n) for n in (shift, first, bins)),
        ctypes.c_void_p(histogram.data_ptr()),
        ctypes.c_void_p(maximum.data_ptr()),
    )


def _memory_format(x: Tensor) -> torch.memory_format:
    channels_last = x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last else torch.contiguous_format


def period_of(neuron: Neuron, x: Tensor, layout: torch.memory_format) -> int:
    """After how many neurons the values per channel of currents (B, C, …) come again in memory; one image's
    where channels do not lie side by side."""
    innermost = 1 if layout is torch.channels_last else x.dim() - 1
    return x.shape[innermost] if neuron.axis in (innermost, None) else x[0].numel()


def laid_out_by_channel(value: Tensor | float, x: Tensor, period: int, group: int) -> Tensor:
    """A value per channel: where channels lie side by side once, and on for a ``group``; else for every neuron."""
    value = torch.as_tensor(value)
    if period == x[0].numel():
        return _laid_out(value, x)
    channels = value.float().flatten().expand(period)
    return channels.repeat(-(-(period + group) // period))


def _laid_out(value: Tensor, like: Tensor) -> Tensor:
    """A value for every neuron (or one that broadcasts to it), in the memory order of one image of ``like``."""
    return value.float().expand(like.shape[1:]).unsqueeze(0).contiguous(memory_format=_memory_format(like))
