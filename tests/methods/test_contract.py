"""What every method promises on every kind of network; a method joins by being registered."""

import functools
from typing import Any

import pytest
import torch
from support.networks import NETWORKS, BruteForce, build, images, observed
from support.options import OPTIONS, REFUSED, REFUSED_THERE
from support.simulations import Spikes, assert_alike, assert_same, plain_convolutions
from torch import Tensor
from torch.utils import _pytree as pytree

from msat_det.base.errors import InputError
from msat_det.graph.facts import facts
from msat_det.methods import METHODS
from msat_det.methods.convert import spiking_network
from msat_det.methods.fitted import DeltaFit
from msat_det.methods.layerwise import LayerByLayer
from msat_det.methods.observe import Observation, observe
from msat_det.spiking.network import SpikingNetwork

T = 16
CHUNK = 128  # timesteps at once in long runs: of networks as small as these a chunk costs as much whatever its length


def coding(method: str) -> str:
    return METHODS[method].options().coding or "rate"  # left open, as delta it is delta-fit


# every method under its own coding, and under the other one where it has both and is no other method then
OTHER = {
    f"{name} as delta": name for name, made in METHODS.items() if made.codings[1:] and made.options().coding == "rate"
}
PAIRS = [(method, network) for method in [*METHODS, *OTHER] for network in NETWORKS]
every_pair = pytest.mark.parametrize(("method", "network"), PAIRS, ids=[f"{m} {n}" for m, n in PAIRS])
every_method = pytest.mark.parametrize("method", METHODS)


@functools.cache
def converted(method: str, network: str, timesteps: int = T, chunk: int | None = None) -> SpikingNetwork:
    options = {"coding": "delta" if method in OTHER else coding(method)}
    return spiking_network(OTHER.get(method, method), options, observed(network), timesteps, seed=5, chunk=chunk)


@functools.cache
def brute_force(network: str) -> BruteForce:
    return BruteForce(build(network), images())


def outputs_at(method: str, network: str, times: list[int]) -> dict[int, Any]:
    """Outputs at the times, by one run, or one conversion for each where the method is made for a T."""
    if METHODS[OTHER.get(method, method)].needs_t:
        return {t: converted(method, network, t, CHUNK).run(images(), t)[t] for t in times}
    return converted(method, network, chunk=CHUNK).run(images(), times[-1], record=times)


def error(got: Any, expected: Any) -> float:
    """The worst output's distance from the float network's, relative to its size."""
    pairs = zip(pytree.tree_leaves(got), pytree.tree_leaves(expected), strict=True)
    return max(((a - b).norm() / b.norm()).item() for a, b in pairs)


@every_pair
def test_outputs_approach_the_float_networks(method: str, network: str) -> None:
    """All but those that clip, and say why; they are finite all the same."""
    expected = build(network)(images())
    outputs = outputs_at(method, network, [8, 128])
    for got in outputs.values():
        assert pytree.tree_structure(got) == pytree.tree_structure(expected)
        assert all(x.isfinite().all() for x in pytree.tree_leaves(got))
    made = METHODS[OTHER.get(method, method)]
    before, after = (error(outputs[t], expected) for t in (8, 128))
    if not made.clips:
        assert after < 0.8 * before or after < 0.005  # some are as good as done after eight timesteps


def dim(count: int, seed: int) -> Tensor:
    """Pictures for calibration that are five times darker than those of ``images`` and lack one colour."""
    x = 0.2 * images(count, seed)
    x[:, 0] = -0.4
    return x


@functools.cache
def observed_dimly(network: str) -> Observation:
    return observe(build(network), [dim(4, 100), dim(4, 101)])


# Charge that a reset to zero has lost is sent once it makes OVERFLOW thresholds, which takes its time.
# Of thresholds down to a quarter and bursts of 15 what overflows is sent in fifteens.
LONGER = {"spike-norm": 16, "staged-4": 4, "msat-fit-anytime": 2}
FEWER = {"adafire": {"bursts": (2, 7)}}  # each is tried at every call site
COARSE = {"delta-2": 2}  # its levels lie twice as far apart as delta's


CONVERGING = [(m, n) for m, n in PAIRS if not METHODS[OTHER.get(m, m)].clips]


@pytest.mark.parametrize(("method", "network"), CONVERGING)
def test_what_calibration_has_not_seen_converges(method: str, network: str) -> None:
    """Channels without any activation in calibration, and activations five times those that were seen."""
    observation, x = observed_dimly(network), images()
    assert any((site.maximum == 0).any() for site in observation.sites.values())
    name = OTHER.get(method, method)
    options = {"images": 2} if issubclass(METHODS[name].options, LayerByLayer) else {}
    options |= {"coding": "delta" if method in OTHER else coding(method)} | FEWER.get(method, {})
    expected = build(network)(x)
    times = [t * LONGER.get(method, 1) for t in ((32, 256) if options["coding"] == "delta" else (64, 512))]
    made = {t: spiking_network(name, options, observation, t, chunk=CHUNK) for t in times}
    before, after = (error(snn.run(x, t)[t], expected) for t, snn in made.items())
    assert after < 0.05
    assert after < 0.3 * before or after < 0.02 * COARSE.get(method, 1)


@every_pair
def test_every_site_has_a_neuron_with_a_sound_threshold(method: str, network: str) -> None:
    snn, observation = converted(method, network), observed(network)
    assert list(snn.neurons) == [site.name for site in snn.graph.sites]
    own = [site.name for site in snn.graph.sites if facts(site).activation.name != "identity"]  # the control adds some
    assert own == list(observation.sites)
    for site in snn.graph.sites:
        neuron, channels = snn.neurons[site.name], facts(site).shape[0]
        assert neuron.activation is facts(site).activation
        assert neuron.theta.shape in ((), (channels,))
        assert neuron.theta.isfinite().all()
        assert (neuron.theta > 0).all()


@every_pair
def test_images_do_not_see_each_other(method: str, network: str) -> None:
    """The same spikes but for ties, whatever the batch, its order and the chunk."""
    snn, batch, ids = converted(method, network), images(3), [4, "b", 9]
    with plain_convolutions():
        expected = Spikes()
        outputs = snn.run(batch, T, images=ids, tap=expected)[T]
        counts = snn.counts[T]
        for order in ([1], [2, 0, 1]):
            spikes = Spikes()
            got = snn.run(batch[order], T, images=[ids[i] for i in order], tap=spikes)[T]
            if assert_alike(spikes, expected, order):
                assert_same(got, pytree.tree_map(lambda x, order=order: x[order], outputs), 1e-4)
                assert torch.equal(snn.counts[T].spikes, counts.spikes[order])
        other = SpikingNetwork(snn.graph, snn.neurons, snn.fanout, snn.seed, chunk=3)
        spikes = Spikes()
        got = other.run(batch, T, images=ids, tap=spikes)[T]
        if assert_alike(spikes, expected):
            assert_same(got, outputs, 1e-4)


@every_pair
def test_runs_leave_nothing_behind(method: str, network: str) -> None:
    snn = converted(method, network)
    first = snn.run(images(), T)[T]
    counts = snn.counts[T]
    snn.run(images(3, seed=9), T)
    assert_same(snn.run(images(), T)[T], first)
    assert torch.equal(snn.counts[T].energy, counts.energy)


@every_pair
def test_counts_are_those_of_brute_force(method: str, network: str) -> None:
    """Spikes by what the neurons were seen to send, fan-out by setting each neuron alone."""
    snn, brute, sent = converted(method, network), brute_force(network), Spikes()
    snn.run(images(), T, tap=sent)
    counts, spikes = snn.counts[T], torch.zeros(2, dtype=torch.float64)
    assert counts.macs == sum(brute.macs.values())
    if method == "int8":
        assert not counts.spikes.any()
        assert counts.energy.tolist() == pytest.approx([0.3 * counts.macs] * 2)
        return
    for site, y in sent.items():
        neuron, reach = snn.neurons[site], brute.reach[site]
        bursts, burst_ops, events, event_ops = counts.sites[site].unbind(1)
        fired = (y != 0).double().sum(0)
        whole = pairs(neuron, y) if neuron.window else fired
        assert torch.equal(events, summed(whole))
        assert torch.equal(event_ops, summed(whole * reach))
        if neuron.graded and neuron.gamma > 1:  # the height differs, so that a burst's size does not show
            assert (events <= bursts).all()
            assert (bursts <= neuron.gamma * events).all()
        elif neuron.bits:
            size = terms(neuron, y)
            assert torch.equal(bursts, summed(size))
            assert torch.equal(burst_ops, summed(size * reach))
        else:
            size = fired if neuron.graded else sizes(neuron, y)
            assert torch.equal(bursts, summed(size))
            assert torch.equal(burst_ops, summed(size * reach))
        spikes += 2 * events if neuron.window else bursts  # temporal coding: one opens a window, one closes it
    assert torch.equal(counts.spikes, spikes)
    assert (counts.energy >= 4.6 * (brute.once + T * sum(brute.analog.values()))).all()


def summed(x: Tensor) -> Tensor:
    """(B, C, …) → (B,)."""
    return x.flatten(1).sum(1)


def pairs(neuron: Any, y: Tensor) -> Tensor:
    """(T, B, C, …) outputs of temporal coding → pairs of spikes (B, C, …): a value beyond its window takes several."""
    stages = torch.tensor([neuron.stage(t) for t in range(len(y))]).reshape(-1, *([1] * (y.dim() - 1)))
    full = neuron.gamma * neuron.theta.reshape(-1, *([1] * (y.dim() - 3))) * stages
    return (y.abs() / full - 1e-4).ceil().clamp(min=0).double().sum(0)


def sizes(neuron: Any, y: Tensor) -> Tensor:
    """(T, B, C, …) outputs of a neuron with constant θ → Σ|s| (B, C, …)."""
    stages = torch.tensor([neuron.stage(t) for t in range(len(y))]).reshape(-1, *([1] * (y.dim() - 1)))
    theta = neuron.theta.reshape(-1, *([1] * (y.dim() - 3))) * stages
    size = torch.where(theta > 0, y / theta, y).abs().double()
    assert (size - size.round()).abs().max() < 1e-3
    return size.round().sum(0)


def terms(neuron: Any, y: Tensor) -> Tensor:
    """(T, B, C, …) outputs of a neuron with binary levels → its terms (B, C, …): under delta coding the fewest powers
    of two, added and taken off, that make a whole number, which never use two neighbours; else its binary digits."""
    stages = torch.tensor([neuron.stage(t) for t in range(len(y))]).reshape(-1, *([1] * (y.dim() - 1)))
    theta = neuron.theta.reshape(-1, *([1] * (y.dim() - 3))) * stages
    size = torch.where(theta > 0, y / theta, y).abs().round().long()
    found, top = torch.zeros_like(size), 2 ** (neuron.bits - 1)
    while (size >= 1.5 * top).any() and neuron.coding == "delta":  # what lies beyond takes the top level again
        found += size >= 1.5 * top
        size = torch.where(size >= 1.5 * top, size - top, size)
    while size.any():
        odd = size % 2
        found += odd
        up = (size % 4 == 3) & (neuron.coding == "delta")
        size = torch.where(up, size + 1, size - odd) // 2
    return found.double().sum(0)


@every_pair
def test_conversion_is_repeatable_and_leaves_the_observation_alone(method: str, network: str) -> None:
    before = observed(network)
    statistics = {name: (site.maximum.clone(), site.histogram.clone()) for name, site in before.sites.items()}
    options = {"coding": "delta" if method in OTHER else coding(method)}
    again = spiking_network(OTHER.get(method, method), options, before, T, seed=5)
    for name, neuron in converted(method, network).neurons.items():
        assert torch.equal(neuron.theta, again.neurons[name].theta)
        assert torch.equal(torch.as_tensor(neuron.initial), torch.as_tensor(again.neurons[name].initial))
    for name, (maximum, histogram) in statistics.items():
        assert torch.equal(before.sites[name].maximum, maximum)
        assert torch.equal(before.sites[name].histogram, histogram)


@every_method
@pytest.mark.parametrize("options", OPTIONS, ids=["threshold", "signed", "stages", "alone", "estimate", "confidence"])
def test_every_method_takes_the_common_options(method: str, options: dict) -> None:
    if coding(method) == "delta" and set(options) & {"initial", "confidence", "rounding", "margin", "signed"}:
        with pytest.raises(InputError, match="it is for coding rate"):
            spiking_network(method, options, observed("residual"), T)
        return
    if issubclass(METHODS[method].options, DeltaFit) and "stages" in options:
        with pytest.raises(InputError, match="it is what is fitted"):
            spiking_network(method, options, observed("residual"), T)
        return
    without = {*REFUSED.get(method, ()), *REFUSED_THERE.get(method, ())}  # see test_options
    options = {name: value for name, value in options.items() if name not in without}
    options |= {"coding": "rate"} if METHODS[method].options().coding is None else {}
    snn = spiking_network(method, options, observed("residual"), T)
    outputs = snn.run(images(), T)[T]
    assert outputs.isfinite().all()
    neurons = list(snn.neurons.values())
    if "confidence" in options:
        assert 0 < neurons[-1].confidence <= 1
        assert [neuron.confidence for neuron in neurons[:-1]] == [1.0] * (len(neurons) - 1)
        assert neurons[-1].drop == options.get("drop", "keep")
    elif "stages" in options:
        assert all(tuple(neuron.stages) == (2.0, 1.0, 0.5, 0.25) for neuron in neurons)
        assert coding(method) == "delta" or all(neuron.rounding == "track" for neuron in neurons)
    assert all(neuron.signed == options.get("signed", METHODS[method].options().signed) for neuron in neurons)
