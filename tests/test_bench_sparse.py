"""The event-driven convolution is a convolution, and the benchmark counts what it says it does."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks import bench, networks, sparse
from msat_det.convert.conversion import spiking_network
from msat_det.errors import InputError
from msat_det.kernels import compiled


def compiles() -> bool:
    try:
        return bool(sparse.kernel())
    except InputError:
        return False


needs_compiler = pytest.mark.skipif(not compiles(), reason="no C++ compiler here")


def spikes(*shape: int, density: float = 0.3) -> Tensor:
    torch.manual_seed(1)
    return torch.where(torch.rand(shape) < density, torch.randn(shape), 0.0)


@needs_compiler
@pytest.mark.parametrize(
    ("channels", "options"),
    [
        ((5, 7, 3), dict(padding=1, stride=2)),
        ((16, 75, 1), dict(bias=False)),
        ((6, 20, 1), dict(stride=2)),
        ((33, 130, 3), dict(padding=(2, 1), dilation=(2, 1))),
        ((4, 40, (1, 5)), dict(padding=3, dilation=(1, 2))),
        ((18, 18, 3), dict(groups=18, padding=1)),
        ((12, 12, 3), dict(groups=12, padding=1, stride=2)),
        ((7, 7, (5, 1)), dict(groups=7, padding=4, dilation=2)),
        ((12, 24, 3), dict(groups=3)),
        ((4, 8, 3), dict(groups=4, padding=1, stride=(2, 3), bias=False)),
    ],
    ids=str,
)
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_events_give_the_convolution(channels: tuple, options: dict, density: float) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(*channels, **options)
    x = spikes(2, channels[0], 11, 13, density=density).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        torch.testing.assert_close(sparse.EventConvolution(conv)(x), conv(x), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("seconds", "where"),
    [([1.0, 3.0, 7.0], 0.15), ([5.0], 0.0), ([1.0, 2.0, 3.9], 0.3), ([1.0, 2.0, 4.0], 0.3), ([3.0, 5.0], 0.05)],
)
def test_crossing(seconds: list[float], where: float) -> None:
    assert sparse.crossing([0.0, 0.1, 0.3], seconds, dense=4.0) == pytest.approx(where)


@needs_compiler
def test_rows_watch_the_layers_that_spikes_enter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "shortest", lambda call: call() is not None or 1.0)
    monkeypatch.setattr(networks, "NETWORKS", {"net": net})
    networks.load.cache_clear()
    try:
        loaded = networks.load("net")
        args = bench.parse("--part sparse --neuron if msat".split())
        monkeypatch.setattr(bench, "FOUR", ["net"])
        first, second = bench.part_rows("sparse", args)
    finally:
        networks.load.cache_clear()
    assert (first["network"], first["neuron"], second["neuron"]) == ("net", "if", "msat")
    assert first["convolutions"] == 2  # neither the first, whose input is constant, nor the last, which runs once
    assert (first["crossover_pointwise"], first["crossover_depthwise"], first["crossover_other"]) == (1, 1, None)
    assert first["below"] == 2
    sent = {}
    snn = spiking_network(*networks.NEURONS["if"], loaded.observation, sparse.T)
    snn.run(loaded.images[:2], sparse.T, tap=lambda site, y: sent.setdefault(site, []).append((y != 0).float().mean()))
    depthwise, pointwise, _ = (float(torch.stack(shares).mean()) for shares in sent.values())
    macs = {"depthwise": 6 * 16 * 9, "pointwise": 6 * 16 * 4}
    expected = (depthwise * macs["depthwise"] + pointwise * macs["pointwise"]) / sum(macs.values())
    assert 0 < first["density"] == pytest.approx(expected)


def net() -> networks.Source:
    layers = [nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6), nn.ReLU()]
    layers += [nn.Conv2d(6, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)]
    return networks.Source(nn.Sequential(*layers), 8, "random")


def test_a_file_that_does_not_compile_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = tmp_path / "wrong.cpp"
    source.write_text("no C++")
    with pytest.raises(InputError, match=r"wrong\.cpp did not compile|no C\+\+ compiler"):
        compiled(source)
