"""What the output sum of a tracking neuron shall be, for kernels that do not have its activation."""

import torch
from torch import Tensor

from msat_det.spiking.neurons import Neuron, per_channel


def is_enough(neuron: Neuron) -> bool:
    """Whether a tracking neuron needs nothing of its currents besides: an evoked threshold may be driven by them."""
    adaptive = neuron.adaptive
    return neuron.tracking and (adaptive is None or not adaptive.det or adaptive.drive == "depolarisation")


def write_targets(neuron: Neuron, total: Tensor, x: Tensor, y: Tensor, t0: int) -> None:
    """Write into y what the output sum shall be after each timestep from t0 on, n·f(X̄), as ``neurons.step`` has it.

    total: the input sum (B, C, …), which goes on. x: currents (steps·B, C, …), or (B, C, …) where constant in time;
    y: (steps·B, C, …), which may be x. A bias over time is in the currents already.
    """
    f, bias, constant = neuron.activation.fn, neuron.steady_bias, len(x) < len(y)
    for n, target in enumerate(y.split(len(total)), t0 + 1):
        current = x if constant else x[(n - 1 - t0) * len(total) :][: len(total)]
        total += current if bias is None else current + per_channel(bias, current, neuron.axis)
        torch.mul(f(total / n), n, out=target)
