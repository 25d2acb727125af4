"""Activation statistics: percentiles against torch.quantile, streaming, the rules of the percentiles, bad input."""

import functools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.networks import build, images, observed
from torch import Tensor, nn

from msat_det.base.errors import InputError
from msat_det.graph.inputs import Cached
from msat_det.graph.trace import trace
from msat_det.methods.convert import spiking_network
from msat_det.methods.observe import FLOOR, Observation, Site, observe

BOUND = 1 / 64  # of a percentile's relative error, as observe.py states it
PERCENTILES = [50.0, 90.0, 99.0, 99.9]


@functools.cache
def activations(channels: int = 5) -> Tensor:
    """(B, C, H, W) of magnitudes that differ by channel, half of them zero; one channel is dead."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(8, channels, 40, 50, generator=generator).relu()
    return values * torch.tensor([1.0, 40.0, 1e-3, 0.0, 7.0][:channels]).reshape(-1, 1, 1)


def site_of(*batches: Tensor) -> Site:
    site = Site.empty(batches[0].shape[1])
    for batch in batches:
        site.add(batch)
    return site


def bracket(values: Tensor, percentile: float) -> tuple[float, float]:
    """The order statistics around a percentile: whatever the definition, it lies between them."""
    q, one = percentile / 100, 1 / len(values)
    low = torch.quantile(values, max(q - one, 0), interpolation="lower")
    high = torch.quantile(values, min(q + one, 1), interpolation="higher")
    return low.item(), high.item()


@pytest.mark.parametrize("percentile", PERCENTILES)
@pytest.mark.parametrize("rule", ["all", "nonzero"])
def test_percentiles_of_channels(percentile: float, rule: str) -> None:
    values = activations()
    got = site_of(values).scale(percentile, rule, "channel")
    assert got.shape == (5,)
    for c, found in enumerate(got.tolist()):
        channel = values[:, c].flatten().abs()
        kept = channel[channel > 0] if rule == "nonzero" else channel
        low, high = bracket(kept, percentile) if len(kept) else (0.0, 0.0)
        if rule == "all":
            low, high = (max(v, FLOOR * channel.max().item()) for v in (low, high))
        assert low * (1 - BOUND) <= found <= high * (1 + BOUND)


@pytest.mark.parametrize("percentile", PERCENTILES)
@pytest.mark.parametrize("rule", ["all", "nonzero"])
def test_percentiles_of_the_layer_pool_its_channels(percentile: float, rule: str) -> None:
    values = activations()
    got = site_of(values).scale(percentile, rule, "layer")
    assert got.shape == ()
    pooled = values.flatten()
    pooled = pooled[pooled > 0] if rule == "nonzero" else pooled
    low, high = bracket(pooled, percentile)
    if rule == "all":
        low, high = (max(v, FLOOR * values.max().item()) for v in (low, high))
    assert low * (1 - BOUND) <= got.item() <= high * (1 + BOUND)


def test_100_is_the_exact_maximum() -> None:
    values = activations()
    site = site_of(values)
    assert torch.equal(site.scale(100.0, "all", "channel"), values.amax((0, 2, 3)))
    assert torch.equal(site.scale(100.0, "nonzero", "layer"), values.max())
    assert site.scale(99.99, "nonzero", "channel").le(site.maximum).all()


def test_a_percentile_over_all_values_is_at_least_5_percent_of_the_maximum() -> None:
    values = torch.zeros(1, 2, 100, 10)
    values[0, :, 0, 0] = torch.tensor([3.0, 8.0])  # one value of a thousand
    site = site_of(values)
    assert torch.allclose(site.scale(99.0, "all", "channel"), torch.tensor([0.15, 0.4]))
    assert torch.allclose(site.scale(99.0, "all", "layer"), torch.tensor(0.4))
    assert site.scale(99.0, "nonzero", "channel").tolist() == pytest.approx([3.0, 8.0], rel=BOUND)


def test_a_dead_channel_has_scale_zero() -> None:
    site = site_of(torch.zeros(2, 3, 4, 4))
    for rule in ("all", "nonzero"):
        for per in ("channel", "layer"):
            for percentile in (50.0, 99.9, 100.0):
                assert not site.scale(percentile, rule, per).any()


def test_magnitudes_count_whatever_the_sign() -> None:
    values = activations()
    assert torch.equal(site_of(values).histogram, site_of(-values).histogram)
    assert torch.equal(site_of(-values).maximum, site_of(values).maximum)


def test_neither_order_nor_batches_matter() -> None:
    values = activations()
    whole = site_of(values)
    for batches in (values.split(1), values.split(3), values.flip(0).split(2), values.split(20, 2)[::-1]):
        other = site_of(*batches)
        assert torch.equal(other.histogram, whole.histogram)
        assert torch.equal(other.maximum, whole.maximum)


def test_memory_does_not_grow_with_the_images() -> None:
    site = site_of(*activations().split(1))
    assert site.histogram.shape == Site.empty(5).histogram.shape
    assert site.histogram[0].numel() * site.histogram.element_size() < 11_000  # 10 kB a channel


@pytest.mark.parametrize("magnitude", [1e-6, 1e-3, 1.0, 1e3, 6e4])
def test_the_bound_holds_over_the_magnitudes_that_networks_have(magnitude: float) -> None:
    values = magnitude * torch.rand(1, 1, 100, 100, generator=torch.Generator().manual_seed(1)).add(0.05)
    low, high = bracket(values.flatten(), 99.0)
    assert low * (1 - BOUND) <= site_of(values).scale(99.0).item() <= high * (1 + BOUND)


def test_observation_sees_every_site_of_the_float_network() -> None:
    net, batches = build("residual"), [images(3, seed=5), images(2, seed=6)]
    observation = observe(net, batches)
    assert list(observation.sites) == [site.name for site in observation.graph.sites]
    with torch.inference_mode():
        x = torch.cat(batches)
        stem = net.stem(x)
        mid = F.relu6(stem + net.branch(stem))
        deep = F.relu6(net.deep(mid))
    for site, expected in zip(observation.sites.values(), (stem, mid, deep), strict=True):
        assert torch.allclose(site.maximum, expected.amax((0, 2, 3)), atol=1e-5)
        assert site.histogram.sum() == expected.numel()


def test_observation_of_other_activations_takes_their_magnitude() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Tanh()).eval()
    site = next(iter(observe(net, [images()]).sites.values()))
    with torch.inference_mode():
        assert torch.allclose(site.maximum, net(images()).abs().amax((0, 2, 3)))


def test_a_traced_graph_can_be_observed_again() -> None:
    graph = trace(build("plain"), images())
    again, fresh = observe(graph, [images()]), observe(build("plain"), [images()])
    assert again.graph is graph
    for a, b in zip(again.sites.values(), fresh.sites.values(), strict=True):
        assert torch.equal(a.histogram, b.histogram)


def test_what_looks_at_a_graph_leaves_it_alone(tmp_path: Path) -> None:
    """Nothing is noted in it by observing, converting, running, showing or saving."""
    graph = trace(build("bottleneck"), images())
    before = {node: dict(node.meta) for node in graph.nodes}
    observation = observe(graph, [images()])
    for options in ({}, {"spiking_linear": True}, {"coding": "delta"}, {"analog": [graph.sites[0].name]}):
        snn = spiking_network("constant", options, observation, 4)
        snn.run(images(), 4)
        snn.run(images(size=24), 4)
        assert snn.coverage
        snn.save(tmp_path / "a")
    assert {node: dict(node.meta) for node in graph.nodes} == before


def test_first_images_across_batches() -> None:
    batches = [images(3, seed=5), images(2, seed=6)]
    observation = Observation(observed("plain").graph, observed("plain").fanout, {}, batches)
    for count in (1, 3, 4, 9):
        assert torch.equal(observation.first(count), torch.cat(batches)[:count])


def test_bad_calibration() -> None:
    with pytest.raises(InputError, match="no calibration images"):
        observe(build("plain"), [])
    late = images()
    late[1, 0, 2, 3] = float("nan")
    for bad in (late, images().mul(float("inf"))):
        with pytest.raises(InputError, match=r"'features_0_2'.*not finite") as caught:
            observe(build("plain"), [images(), bad])
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="NaN"):
        observe(build("plain"), [late])
    with pytest.raises(InputError, match=r"'relu'.*channel"):
        observe(Scalar(), [images()])


class Scalar(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((1, 2, 3)).relu()


def test_cached_batches_are_made_when_asked_for() -> None:
    made = []

    def make(index: int) -> Tensor:
        made.append(index)
        return torch.full((1,), float(index))

    batches = Cached(4, make, keep=2)
    assert len(batches) == 4
    assert [batch.item() for batch in batches] == [0, 1, 2, 3]
    assert (batches[3], batches[2]) == (3, 2)
    assert made == [0, 1, 2, 3]
    assert batches[0] == 0
    assert made == [0, 1, 2, 3, 0]
    with pytest.raises(IndexError):
        batches[4]
