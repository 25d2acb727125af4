"""The event-driven convolution is a convolution, and it runs where it pays and nowhere else."""

import pytest
import torch
from torch import Tensor, nn

from msat_det.methods.convert import spiking_network
from msat_det.methods.observe import observe
from msat_det.spiking.kernels import events

needs_kernel = pytest.mark.skipif(events.library() is None, reason="no C++ compiler here")
LARGE = nn.Conv2d(256, 64, 1)


def spikes(*shape: int, density: float = 0.3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    fired = torch.rand(shape, generator=generator) < density
    x = torch.where(fired, torch.randn(shape, generator=generator), 0.0)
    return x.contiguous(memory_format=torch.channels_last)


@needs_kernel
@pytest.mark.parametrize(
    ("channels", "options"),
    [
        ((5, 7, 3), dict(padding=1, stride=2)),
        ((16, 75, 1), dict(bias=False)),
        ((6, 20, 1), dict(stride=2)),
        ((33, 130, 3), dict(padding=(2, 1), dilation=(2, 1))),
        ((4, 40, (1, 5)), dict(padding=3, dilation=(1, 2))),
        ((3, 64, (5, 2)), dict(padding=(6, 0), stride=(3, 2))),
    ],
    ids=str,
)
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("threads", [1, 3])
def test_events_give_the_convolution(channels: tuple, options: dict, density: float, threads: int) -> None:
    torch.manual_seed(0)
    conv, x = nn.Conv2d(*channels, **options), spikes(2, channels[0], 11, 13, density=density)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            y = events.EventConvolution(conv)(x)
            torch.testing.assert_close(y, conv(x), atol=1e-5, rtol=0)
    finally:
        torch.set_num_threads(before)
    assert y.is_contiguous(memory_format=torch.channels_last)


@needs_kernel
@pytest.mark.parametrize(("channels", "options"), [((9, 75, 1), {}), ((9, 64, 3), dict(padding=1, stride=2))], ids=str)
def test_events_are_added_where_the_convolution_lies(channels: tuple, options: dict) -> None:
    torch.manual_seed(0)
    conv, x, change = nn.Conv2d(*channels, **options), spikes(2, 9, 9, 9), spikes(2, 9, 9, 9, density=0.1)
    change[:, :, :, 4:] = 0.0
    with torch.inference_mode():
        before = conv(x)
        value = before.clone(memory_format=torch.channels_last)
        assert events.update(conv, change, value)
        torch.testing.assert_close(value, conv(x + change), atol=1e-5, rtol=0)
        assert torch.equal(value[..., 5:], before[..., 5:])
        assert not events.update(conv, change, before.contiguous())


@needs_kernel
def test_nan_spreads_as_in_the_convolution() -> None:
    x = spikes(1, 256, 4, 4)
    x[0, 3, 1, 2] = float("nan")
    with torch.inference_mode():
        assert torch.equal(events.convolution(LARGE, x).isnan(), LARGE(x).isnan())


@needs_kernel
def test_density_of_a_few_and_of_a_sample() -> None:
    x = spikes(2, 6, 5, 5, density=0.4)
    assert events.density(x) == pytest.approx((x != 0).float().mean().item())
    large = spikes(2, 64, 60, 60, density=0.4)
    assert events.density(large) == pytest.approx(0.4, abs=0.01)


@needs_kernel
def test_it_runs_where_it_pays() -> None:
    with torch.inference_mode():
        assert events.convolution(LARGE, spikes(2, 256, 9, 9, density=0.2)) is not None
        assert events.convolution(LARGE, spikes(2, 256, 9, 9, density=0.7)) is None
    assert events.crossover(nn.Conv2d(16, 16, 3)) < 0 < events.crossover(nn.Conv2d(64, 64, 3)) < events.crossover(LARGE)


@needs_kernel
@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Conv2d(256, 256, 1, groups=2), spikes(1, 256, 4, 4, density=0.1)),
        (nn.Conv2d(256, 64, 3, padding="same"), spikes(1, 256, 4, 4, density=0.1)),
        (nn.Conv2d(256, 64, 3, padding=1, padding_mode="reflect"), spikes(1, 256, 4, 4, density=0.1)),
        (nn.Conv2d(256, 64, 1).double(), spikes(1, 256, 4, 4, density=0.1).double()),
        (nn.Conv2d(256, 64, 1), spikes(1, 256, 4, 4, density=0.1).contiguous()),
        (nn.Conv2d(256, 64, 1), spikes(1, 256, 4, 4, density=0.1)[0]),
        (nn.Linear(4, 4), spikes(1, 256, 4, 4, density=0.1)),
    ],
)
def test_what_it_does_not_hold_is_left_to_the_module(layer: nn.Module, x: Tensor) -> None:
    with torch.inference_mode():
        assert events.convolution(layer, x) is None


@needs_kernel
def test_weights_that_change_are_packed_anew() -> None:
    conv, x = nn.Conv2d(256, 64, 1), spikes(1, 256, 4, 4, density=0.1)
    with torch.no_grad():
        first = events.convolution(conv, x)
        conv.weight.mul_(2.0)
        conv.bias.zero_()
        torch.testing.assert_close(events.convolution(conv, x), conv(x))
    assert not torch.equal(first, conv(x))


@needs_kernel
def test_a_network_runs_by_events_as_it_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 256, 3), nn.ReLU(), nn.Conv2d(256, 64, 1), nn.ReLU(), nn.Conv2d(64, 2, 1)).eval()
    images = torch.randn(2, 3, 12, 12)
    snn = spiking_network("constant", {"signed": True, "gamma": 3}, observe(net, [images]), 8)
    called, convolution = [], events.convolution

    def counted(*arguments: object) -> Tensor | None:
        called.append(convolution(*arguments))
        return called[-1]

    monkeypatch.setattr(events, "convolution", counted)
    by_events, counts = snn.run(images, 8)[8], snn.counts[8].spikes_per_neuron
    assert sum(y is not None for y in called) > 0
    monkeypatch.setattr(events, "convolution", lambda *_: None)
    torch.testing.assert_close(by_events, snn.run(images, 8)[8], atol=1e-4, rtol=0)
    assert counts == pytest.approx(snn.counts[8].spikes_per_neuron, rel=1e-4)
