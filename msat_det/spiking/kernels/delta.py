"""A population under delta coding: in ``cpu_delta`` or ``triton_delta``, or by ``spiking.delta.delta_step``."""

import math
from typing import Any

import torch
from torch import Tensor

from msat_det.base.device import wide
from msat_det.spiking.delta import delta_step, new_delta_state, resting_output, target
from msat_det.spiking.kernels import cpu_delta, on_gpu
from msat_det.spiking.kernels.layout import counted, laid_out, memory_format
from msat_det.spiking.neurons import Neuron, State, at


def kernel_of(neuron: Neuron, sums: Tensor) -> Any:
    """What runs this neuron on sums like these (B, C, …): ``cpu_delta.Compiled``, ``triton_delta.Fused``, or None,
    the step."""
    if sums.dtype != torch.float32:
        return None
    if sums.is_cuda:
        return gpu.delta.Fused if (gpu := on_gpu()) else None
    return cpu_delta.Compiled if sums.device.type == "cpu" and cpu_delta.holds(neuron) else None


class Corrections:
    """The neurons of one call site for one batch: their output sums, and their counts.

    sums: an example of the input sums (B, C, …), whose memory format the state takes over. fanout: (C, …) multiply-adds
    that a spike of each neuron reaches. before: output sums (B, C, …) to go on from, by default what the neurons
    rest at; they stay as they are. sent: how many outputs of the last step were not 0; on a GPU, where to look would be
    to wait for it, infinity, until ``learn`` is told.
    """

    def __init__(self, neuron: Neuron, sums: Tensor, fanout: Tensor, before: Tensor | None = None):
        self.neuron, self.fanout = neuron, fanout.to(sums.device)
        self._format = memory_format(sums)
        like = sums.contiguous(memory_format=self._format)
        kernel = kernel_of(neuron, like)
        self._kernel = kernel and kernel(neuron, like, laid_out(self.fanout, like))
        self._begin(like)
        if before is not None:
            self.state.o = before.clone(memory_format=self._format)

    def _begin(self, like: Tensor) -> None:
        """At rest before the first timestep on sums like these, dense."""
        n = self.neuron
        self.sent = self._events = 0.0
        self._before: tuple[float, int, float] | None = None
        if self._kernel is None:
            self.state = new_delta_state(n, like)
            self._counts = wide(torch.zeros(like.shape[0], 4, device=like.device))
            self._latest = torch.zeros(1, dtype=torch.int32, device=like.device)
            return
        self.state = State(**{name: torch.zeros_like(like) for name in n.keeps if name != "o"})
        if isinstance(n.initial, Tensor) or n.initial or n.adaptive:  # else 0, and not read by the first step
            self.state.o = resting_output(n, like).expand_as(like).clone(memory_format=self._format)

    @property
    def repeats(self) -> bool:
        """Whether the same kernel runs for every batch, and nothing but its numbers differs."""
        return self._kernel is not None

    def restart(self) -> None:
        """Back to before the first timestep, with the same kernel."""
        self._kernel.restart()
        self._begin(self.state.o)

    @property
    def output(self) -> Tensor:
        """The output sums (B, C, …)."""
        return self.state.o

    @property
    def counts(self) -> Tensor:
        """(B, 4) float64, on the neurons' device where that has it: of each image so far spikes (of a burst its size,
        else its terms), spikes · fan-out, Σ[s≠0] and Σ[s≠0]·fan-out."""
        return self._counts if self._kernel is None else self._kernel.counts

    @property
    def latest(self) -> Tensor:
        """(1,) int32 on a GPU, the last timestep, counted from 1, in which anything was sent."""
        return self._latest if self._kernel is None else self._kernel.latest

    def rests(self, t: int) -> bool:
        """Whether a step at t on input sums that have not changed would send nothing: the last one did not."""
        return not self.sent and self._alike(t)

    def learn(self, latest: int, t: int) -> None:
        """Be told, before timestep t, when anything was sent last."""
        if latest < t:
            self.sent = 0.0

    def _alike(self, t: int) -> bool:
        """Whether all but sums and potentials is as in the timestep before t."""
        return self._before == self._now(t) and not self.neuron.adaptive and self._same_bias(t)

    def _same_bias(self, t: int) -> bool:
        n = self.neuron
        return n.bias is None or n.bias.dim() < 2 or t >= len(n.bias) or torch.equal(n.bias_at(t), n.bias_at(t - 1))

    def _now(self, t: int) -> tuple[float, int, float]:
        """What of the neuron depends on time."""
        n = self.neuron
        return n.stage(t), at(n.terms, t), at(n.zone, t)

    def step(self, sums: Tensor, t: int, wanted: bool, own: bool = False, moved: bool = True) -> Tensor | None:
        """Timestep t on the input sums (B, C, …).

        Returns what is sent (B, C, …), or None where it is not ``wanted``. own: the sums may be overwritten. moved:
        whether they are others than a timestep ago.
        """
        same = not moved and self._alike(t)
        self._before = self._now(t)
        y = self._by_step(sums, t) if self._kernel is None else self._by_kernel(sums, t, wanted, own, same)
        if sums.device.type == "cpu":
            events = self.counts[:, 2].sum().item()
            self.sent, self._events = events - self._events, events
        else:
            self.sent = math.inf
        return y

    def _by_step(self, sums: Tensor, t: int) -> Tensor:
        _, spikes, y = delta_step(self.neuron, self.state, sums, t)
        self._counts += counted(spikes, self.fanout)
        if sums.device.type != "cpu":
            self._latest = torch.where((spikes != 0).any(), t + 1, self._latest)
        return y

    def _by_kernel(self, sums: Tensor, t: int, wanted: bool, own: bool, same: bool) -> Tensor | None:
        x = sums.contiguous(memory_format=self._format)
        if not self._kernel.follows:
            x, own = target(self.neuron, x, t).contiguous(memory_format=self._format), True
        first = self.state.o is None
        if first:
            self.state.o = x if own else torch.empty_like(x)
        y = torch.empty_like(x) if wanted else None
        self._kernel.advance(x, y, self.state, t, first, same)
        return y
