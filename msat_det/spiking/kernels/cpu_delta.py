"""``levels.cpp``, compiled once per machine: a timestep of neurons under delta coding, on a CPU."""

import ctypes
import functools
import math

import torch
from torch import Tensor

from msat_det.base.checks import present
from msat_det.spiking.kernels.cpu import PIECEWISE, levels_library
from msat_det.spiking.kernels.layout import laid_out_by_channel, period_of
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


def holds(neuron: Neuron) -> bool:
    """Whether the kernel computes this neuron, and is there."""
    return neuron.adaptive is None and library() is not None


class Compiled:
    """The kernel's arguments for one population; ``Corrections`` holds the state.

    follows: whether it has the activation; else sums are to be those of it. counts: (B, 4), see ``Corrections``.
    """

    def __init__(self, neuron: Neuron, sums: Tensor, fanout: Tensor):
        """sums: (B, C, …) float32, dense in the memory format of the state. fanout: (N,) in memory order."""
        self.neuron = neuron
        self.counts = torch.zeros(len(sums), 4, dtype=torch.float64)
        self._struct = self._layout(sums, fanout)

    def _layout(self, x: Tensor, fanout: Tensor) -> _Correct:
        n, lib, activation = self.neuron, present(library()), self.neuron.activation
        size, period = x[0].numel(), period_of(n, x)
        self.follows = activation.rectified or activation.name in PIECEWISE
        slope, low, high = PIECEWISE.get(activation.name, (0.0, -math.inf, activation.upper))
        if not self.follows:
            slope, low, high = PIECEWISE["identity"]
        self._partial = torch.zeros(len(x), lib.correct_units(size), 4, dtype=torch.float64)
        self._arrays = {  # the structure holds bare pointers: this keeps them alive
            "theta": laid_out_by_channel(threshold(n, x), x, period, lib.correct_group()),
            "bias": None if n.bias is None or not self.follows else self._periodic(n.bias_at(0), x, period),
            "fanout": fanout,
            "counts": self._partial,
            "awake": torch.ones(len(x), -(-size // lib.correct_group()), dtype=torch.uint8),
        }
        pointers = {name: None if a is None else a.data_ptr() for name, a in self._arrays.items()}
        return _Correct(
            B=len(x), N=size, period=period, slope=activation.slope or slope, low=low, high=high, gamma=n.gamma,
            overflow=n.overflow, per_ratio=1 / NEAREST, bits=n.bits or 0, **pointers,
        )  # fmt: skip

    def _periodic(self, value: Tensor, x: Tensor, period: int) -> Tensor:
        """A value (C,) of channels as the kernel takes it, for sums x."""
        group = present(library()).correct_group()
        return laid_out_by_channel(per_channel(value, x, self.neuron.axis), x, period, group)

    def restart(self) -> None:
        """Counts from 0."""
        self.counts.zero_()

    def advance(self, x: Tensor, y: Tensor | None, state: State, t: int, first: bool, same: bool) -> None:
        """x: (B, C, …), input sums; y: what is sent now, where anybody asks. first: the output sum is 0, and may be x.
        same: nothing but the output sum may differ from the timestep before."""
        c, n = self._struct, self.neuron
        if self._arrays["bias"] is not None and present(n.bias).dim() == 2:
            self._arrays["bias"].copy_(self._periodic(n.bias_at(t), x, c.period))
        c.stage, c.terms, c.zone = n.stage(t), at(n.terms, t), edge(at(n.zone, t))
        c.first, c.same = first, same
        c.x, c.o, c.y = x.data_ptr(), state.o.data_ptr(), None if y is None else y.data_ptr()
        present(library()).correct_step(ctypes.byref(c))
        self.counts += self._partial.sum(1)
