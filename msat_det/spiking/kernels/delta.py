"""A population under delta coding: ``levels.cpp`` where it holds the neuron, else ``spiking.delta.delta_step``."""

import ctypes
import functools
import math

import torch
from torch import Tensor

from msat_det.base.checks import present
from msat_det.spiking.delta import delta_step, new_delta_state, resting_output, target
from msat_det.spiking.kernels.cpu import PIECEWISE, levels_library
from msat_det.spiking.kernels.layout import counted, laid_out, laid_out_by_channel, memory_format, period_of
from msat_det.spiking.levels import NEAREST, edge
from msat_det.spiking.neurons import Neuron, State, at, per_channel, threshold

_POINTERS = "x o y theta bias fanout counts awake".split()
_FLOATS = "slope low high stage zone gamma overflow per_ratio".split()


class _Correct(ctypes.Structure):
    _fields_ = (
        [(name, ctypes.c_int64) for name in ("B", "N", "period")]
        + [(name, ctypes.c_void_p) for name in _POINTERS]
        + [(name, ctypes.c_float) for name in _FLOATS]
        + [(name, ctypes.c_int32) for name in ("bits", "terms", "first", "same")]
    )


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernel, or None with a one-line notice on stderr where it cannot be had."""
    lib = levels_library()
    if lib is None:
        return None
    for name in ("correct_units", "correct_group", "correct_struct_size"):
        getattr(lib, name).restype = ctypes.c_int64
    lib.correct_units.argtypes = [ctypes.c_int64]
    assert lib.correct_struct_size() == ctypes.sizeof(_Correct)
    return lib


class Corrections:
    """The neurons of one call site for one batch: their output sums, and their counts.

    sums: an example of the input sums (B, C, …), whose memory format the state takes over. fanout: (C, …) multiply-adds
    that a spike of each neuron reaches. before: output sums (B, C, …) to go on from, by default what the neurons
    rest at; they stay as they are. counts: (B, 4) float64, spikes (of a burst its size, else its terms), spikes ·
    fan-out, Σ[s≠0] and Σ[s≠0]·fan-out of each image so far. sent: how many outputs of the last step were not 0.
    """

    def __init__(self, neuron: Neuron, sums: Tensor, fanout: Tensor, before: Tensor | None = None):
        self.neuron, self.fanout = neuron, fanout.to(sums.device)
        self._format = memory_format(sums)
        self.counts = torch.zeros(sums.shape[0], 4, dtype=torch.float64)
        self.sent = 0.0
        self._before: tuple[float, int, float] | None = None
        self._struct: _Correct | None = None
        if self._fits_kernel(sums):
            self._struct = self._layout(sums)
            self.state = State()
        else:
            self.state = new_delta_state(neuron, sums)
        if before is None and isinstance(neuron.initial, Tensor):
            before = resting_output(neuron, sums).expand_as(sums)
        if before is not None:
            self.state.o = before.clone(memory_format=self._format)

    @property
    def output(self) -> Tensor:
        """The output sums (B, C, …)."""
        return self.state.o

    def rests(self, t: int) -> bool:
        """Whether a step at t on input sums that have not changed would send nothing: the last one did not."""
        return not self.sent and self._alike(t)

    def _alike(self, t: int) -> bool:
        """Whether all but sums and potentials is as in the timestep before t."""
        return self._before == self._now(t) and not self.neuron.adaptive and self._same_bias(t)

    def _same_bias(self, t: int) -> bool:
        bias = self.neuron.bias
        return bias is None or bias.dim() < 2 or torch.equal(self.neuron.bias_at(t), self.neuron.bias_at(t - 1))

    def _now(self, t: int) -> tuple[float, int, float]:
        """What of the neuron depends on time."""
        n = self.neuron
        return n.stage(t), at(n.terms, t), at(n.zone, t)

    def step(self, sums: Tensor, t: int, wanted: bool, own: bool = False, moved: bool = True) -> Tensor | None:
        """Timestep t on the input sums (B, C, …).

        Returns what is sent (B, C, …), or None where it is not ``wanted``. own: the sums may be overwritten. moved:
        whether they are others than a timestep ago.
        """
        counted = self.counts[:, 2].sum().item()
        same = not moved and self._alike(t)
        self._before = self._now(t)
        if self._struct is None:
            sent: Tensor | None = self._eager(sums, t)
        else:
            sent = self._kernel(self._struct, sums.contiguous(memory_format=self._format), t, wanted, own, same)
        self.sent = self.counts[:, 2].sum().item() - counted
        return sent

    def _eager(self, sums: Tensor, t: int) -> Tensor:
        _, spikes, y = delta_step(self.neuron, self.state, sums, t)
        self.counts += counted(spikes, self.fanout).cpu()
        return y

    def _fits_kernel(self, x: Tensor) -> bool:
        plain = x.device.type == "cpu" and x.dtype == torch.float32 and self.neuron.adaptive is None
        return plain and library() is not None

    def _layout(self, x: Tensor) -> _Correct:
        n, lib, activation = self.neuron, present(library()), self.neuron.activation
        size = x[0].numel()
        period = period_of(n, x)

        self.follows = activation.rectified or activation.name in PIECEWISE
        slope, low, high = PIECEWISE.get(activation.name, (0.0, -math.inf, activation.upper))
        if not self.follows:
            slope, low, high = PIECEWISE["identity"]
        self._partial = torch.zeros(x.shape[0], lib.correct_units(size), 4, dtype=torch.float64)
        self._arrays = {  # the structure holds bare pointers: this keeps them alive
            "theta": laid_out_by_channel(threshold(n, x), x, period, lib.correct_group()),
            "bias": None if n.bias is None or not self.follows else self._periodic(n.bias_at(0), x, period),
            "fanout": laid_out(self.fanout, x),
            "counts": self._partial,
            "awake": torch.ones(x.shape[0], -(-size // lib.correct_group()), dtype=torch.uint8),
        }
        pointers = {name: None if a is None else a.data_ptr() for name, a in self._arrays.items()}
        return _Correct(
            B=x.shape[0], N=size, period=period, slope=activation.slope or slope, low=low, high=high, gamma=n.gamma,
            overflow=n.overflow, per_ratio=1 / NEAREST, bits=n.bits or 0, **pointers,
        )  # fmt: skip

    def _periodic(self, value: Tensor, x: Tensor, period: int) -> Tensor:
        """A value (C,) of channels as the kernel takes it, for sums x."""
        group = present(library()).correct_group()
        return laid_out_by_channel(per_channel(value, x, self.neuron.axis), x, period, group)

    def _kernel(self, c: _Correct, x: Tensor, t: int, wanted: bool, own: bool, same: bool) -> Tensor | None:
        if not self.follows:
            x, own = target(self.neuron, x, t).contiguous(memory_format=self._format), True
        elif self.neuron.bias is not None and self.neuron.bias.dim() == 2:
            present(self._arrays["bias"]).copy_(self._periodic(self.neuron.bias_at(t), x, c.period))
        c.stage, c.terms, zone = self._now(t)
        c.zone = edge(zone)
        c.first, c.same = self.state.o is None, same
        if c.first:
            self.state.o = x if own else torch.empty_like(x)
        y = torch.empty_like(x) if wanted else None
        c.x, c.o, c.y = x.data_ptr(), self.state.o.data_ptr(), None if y is None else y.data_ptr()
        present(library()).correct_step(ctypes.byref(c))
        self.counts += self._partial.sum(1)
        return y
