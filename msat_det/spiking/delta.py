"""Delta coding: the value is the running sum of the output; silence means unchanged, what is sent are corrections.

A call site knows the sum X of its input (bias and constant input once in it, not once a timestep) and the sum O of its
output, and sends s = Q((f(X(t)) − O(t−1)) / θ(t)), ``levels.quantise``. O may start at a value that the channel rests
at, a constant that goes into the biases behind it. Another node g passes on g(X(t)) − g(X(t−1)), so that the sum of its
output is g of the sum of its input, whatever g is: a timestep is a float forward pass in which each activation is
replaced by its O. ``delta_step`` is the readable form of the neuron; ``delta_engine`` the simulation.
"""

import math

import torch
from torch import Tensor

from msat_det.spiking.levels import quantise
from msat_det.spiking.neurons import Neuron, State, adaptive_threshold, at, per_channel, threshold


def new_delta_state(neuron: Neuron, like: Tensor) -> State:
    """The state before the first timestep of a batch whose input sums look like ``like`` (B, C, …)."""
    kept = {name: torch.zeros_like(like) for name in neuron.keeps}
    kept["o"] += resting_output(neuron, like)
    return State(**kept)


def resting_output(neuron: Neuron, like: Tensor) -> Tensor:
    """O(−1), shaped like one image's activation: the potential is the error that is left, so it is −V(−1)."""
    return -per_channel(neuron.initial, like, neuron.axis) * per_channel(neuron.theta, like, neuron.axis)


def target(neuron: Neuron, X: Tensor, t: int | Tensor = 0) -> Tensor:
    """f(X), what the output sum shall be; a neuron's bias enters the sum once, that of t in place of the one before."""
    if neuron.bias is not None:
        X = X + per_channel(neuron.bias_at(t), X, neuron.axis)
    return neuron.activation.fn(X)


def delta_step(neuron: Neuron, state: State, X: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One timestep of a population.

    X: input sum (B, C, …) after timestep t. Advances ``state``, whose v is the error that is left. Returns s, the
    spikes that it takes (of a burst its size, else its terms), and the output s·θ(t), each (B, C, …).
    """
    before = target(neuron, X, t) - state.o
    theta = _threshold(neuron, state, X, before, t)
    most: float | Tensor = neuron.overflow
    if neuron.adaptive:  # θ(t) may be next to nothing, and the spikes beyond counting
        full = threshold(neuron, X) * neuron.stage(t)
        late = before.abs() >= most * full
        theta, most = torch.where(late, full, theta), torch.where(late, 0.0, math.inf)
    terms, zone = at(neuron.terms, t), at(neuron.zone, t)
    s, spikes = quantise(
        before / theta, neuron.bits, terms, zone, neuron.gamma, most=most, most_terms=max(neuron.terms)
    )
    y = s * theta
    state.o = state.o + y
    if state.mean is not None:
        state.v = before - y
        state.mean = state.mean + (state.v - state.mean) / (t + 1)
    if state.x is not None:
        state.x = X
    if state.before is not None:
        state.before = before
    return s, spikes, y


def coming_delta_threshold(neuron: Neuron, state: State, X: Tensor, t: int) -> Tensor:
    """θ(t), stage included, at which ``delta_step`` is about to fire on the input sum X; the state stays as it is."""
    before = target(neuron, X, t) - state.o if neuron.adaptive else X
    return _threshold(neuron, state, X, before, t)


def _threshold(neuron: Neuron, state: State, X: Tensor, before: Tensor, t: int | Tensor) -> Tensor:
    if neuron.adaptive is None:
        return threshold(neuron, X) * neuron.stage(t)
    x = X if state.x is None else X - state.x
    return adaptive_threshold(neuron, state, x, before, t) * neuron.stage(t)
