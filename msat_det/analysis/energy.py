"""Spikes, operations and energy of a run, beside the float network's (DESIGN §8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.fx.node import Node

from msat_det.convert.graph import elements

if TYPE_CHECKING:
    from msat_det.simulate import SpikingNetwork

# Energy of a 32-bit float operation in pJ at 45 nm: Horowitz, "Computing's energy problem", ISSCC 2014 (multiply 3.7,
# add 0.9; a multiply-add is their sum).
PICOJOULES = {"45nm": {"mac": 4.6, "ac": 0.9}}
# One MSAT threshold update counts as nine multiply-adds: five for eqs. 15-16 and the running mean, and one for each of
# its four function evaluations (softplus takes two), a bound in MSAT's favour.
UPDATE_MACS = 9


@dataclass(frozen=True)
class Counts:
    """Sums over the first t timesteps, for each of the B images of a batch, float64.

    spikes: (B,) Σ|s| over all neurons, a burst of k counting k. sops: (B,) synaptic operations: the multiply-adds that
    spikes reach. energy: (B,) pJ. sites: {call site: (B, 4) Σ|s|, Σ|s|·fan-out, Σ[s≠0], Σ[s≠0]·fan-out}. neurons: their
    number. macs: multiply-adds of one float forward of one image; float_energy: its pJ.
    """

    spikes: Tensor
    sops: Tensor
    energy: Tensor
    sites: dict[str, Tensor]
    neurons: int
    macs: int
    float_energy: float

    @property
    def spikes_per_neuron(self) -> float:
        return self.spikes.mean().item() / max(self.neurons, 1)

    @property
    def sops_per_mac(self) -> float:
        return self.sops.mean().item() / max(self.macs, 1)

    @property
    def energy_ratio(self) -> float:
        return self.energy.mean().item() / max(self.float_energy, 1e-12)


def count(
    snn: SpikingNetwork, sites: dict[str, Tensor], pools: dict[Node, Tensor], t: int, table: str = "45nm"
) -> Counts:
    """Price the spikes that a run has counted up to timestep t.

    sites: counts of each call site as ``kernels.Scan`` keeps them. pools: of each max pooling, (B, 2) differences that
    are not zero, plain and times their fan-out.
    A graded spike (its height differs by neuron and time) costs one multiply-add per connection, whatever its height; a
    spike of constant height costs |s| accumulations; a difference of max pooling costs one multiply-add. What is analog
    is paid at full price in every timestep, what is constant in time once; an element that a differential node or a
    neuron's curved activation evaluates counts as one multiply-add. Under temporal switch coding a value costs
    its opening and its closing spike, and every neuron adds its current to its potential in each timestep.
    """
    price = PICOJOULES[table]
    differences = sum((p[:, 1] for p in pools.values()), torch.zeros((), dtype=torch.float64))
    macs = snn.fanout.once + t * (sum(snn.fanout.analog.values()) + snn.fanout.evaluations) + differences
    spikes = accumulations = torch.zeros((), dtype=torch.float64)
    sops = differences
    for node in snn.graph.sites:
        neuron, size = snn.neurons[node.name], elements(node)
        bursts, burst_ops, events, event_ops = sites[node.name].unbind(1)
        if neuron.window:
            bursts, burst_ops = 2 * events, 2 * event_ops
            accumulations = accumulations + size * t
        spikes, sops = spikes + bursts, sops + burst_ops
        if neuron.graded:
            macs = macs + event_ops
        else:
            accumulations = accumulations + burst_ops
        macs = macs + size * ((UPDATE_MACS * (t - 1) if neuron.adaptive else 0) + t * neuron.activation.curved)
    energy = price["mac"] * macs + price["ac"] * accumulations
    return Counts(
        spikes=spikes,
        sops=sops,
        energy=energy,
        sites={name: c.clone() for name, c in sites.items()},
        neurons=sum(map(elements, snn.graph.sites)),
        macs=snn.fanout.total,
        float_energy=price["mac"] * snn.fanout.total,
    )
