"""Populations that the fused kernels are tried on, and what ``neurons.step`` gives for them."""

import functools
from dataclasses import replace

import torch
from support.neurons import IDENTITY, RELU, RELU6, noise
from torch import Tensor

from msat_det.spiking.kernels import Scan
from msat_det.spiking.neurons import Chances, Neuron, new_state, step

OPTIONS = {
    "plain": {},
    "half": {"initial": 0.5},
    "initial by channel": {"initial": torch.tensor([0.1, 0.5, -0.3, 0.2])},
    "signed": {"signed": True, "initial": 0.5},
    "signed, margin, bursts": {"signed": True, "margin": 0.8, "gamma": 3},
    "rounding, stages": {"rounding": "track", "stages": (2.0, 1.0, 0.5, 0.25), "signed": True, "gamma": 15},
    "reset to zero": {"reset": "zero"},
    "reset to zero, signed": {"reset": "zero", "signed": True, "gamma": 2},
    "bias": {"bias": torch.tensor([0.1, -0.2, 0.0, 0.3]), "gamma": 2},
}
ACTIVATIONS = {a.name: a for a in (RELU, replace(RELU6, upper=1.37, fn=lambda x: x.clamp(0, 1.37)), IDENTITY)}
THETAS = torch.tensor([0.6, 1.0, 0.0, 2.3])  # the third channel is dead
SHAPE = (2, 4, 5, 9)  # 180 neurons: full groups of the kernel and a rest
STEPS = 19
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def reference(neuron: Neuron, currents: Tensor, chances: Chances | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Spikes and outputs by ``neurons.step``, (T, B, C, …), and the last potential."""
    state = new_state(neuron, currents[0], with_output=True)
    results = [step(neuron, state, x, t, chances) for t, x in enumerate(currents)]
    return *(torch.stack(part) for part in zip(*results, strict=True)), state.v


def ties(neuron: Neuron, currents: Tensor) -> Tensor:
    """Neurons (B, C, …) that are near a tie at some time: their spikes change where the currents change by 2e-5."""
    spikes = [reference(neuron, currents * factor)[0] for factor in (1 - 2e-5, 1.0, 1 + 2e-5)]
    return ((spikes[0] != spikes[1]) | (spikes[1] != spikes[2])).any(0)


def scanned(scan: Scan, currents: Tensor, chunk: int, in_place: bool = False) -> Tensor:
    outputs = []
    for t0 in range(0, len(currents), chunk):
        part = currents[t0 : t0 + chunk]
        part = part.clone() if in_place else part
        outputs.append(scan.run(part, t0, len(part), in_place))
        assert not in_place or outputs[-1].data_ptr() == part.data_ptr()
    return torch.cat(outputs)


def fanout() -> Tensor:
    return torch.arange(180.0).reshape(SHAPE[1:])


@functools.cache
def currents_for(mean: float = 0.3) -> Tensor:
    """(T, B, C, …), other currents in every timestep."""
    return noise(STEPS, *SHAPE, mean=mean)


def counts(spikes: Tensor) -> Tensor:
    """(B, 4) Σ|s|, Σ|s|·fan-out, Σ[s≠0], Σ[s≠0]·fan-out."""
    size, events, reach = spikes.abs().double(), (spikes != 0).double(), fanout().double()
    return torch.stack([(v * f).sum((0, 2, 3, 4)) for v in (size, events) for f in (torch.ones(()), reach)], 1)
