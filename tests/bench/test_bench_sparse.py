"""The benchmark of event-driven convolutions counts what it says it does."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks import bench, corrections, networks, sparse
from msat_det.base.errors import InputError
from msat_det.methods.convert import spiking_network
from msat_det.spiking.kernels import events
from msat_det.spiking.kernels.build import compiled


@pytest.mark.parametrize(
    ("seconds", "where"),
    [([1.0, 3.0, 7.0], 0.15), ([5.0], 0.0), ([1.0, 2.0, 3.9], 0.3), ([1.0, 2.0, 4.0], 0.3), ([3.0, 5.0], 0.05)],
)
def test_crossing(seconds: list[float], where: float) -> None:
    assert sparse.crossing([0.0, 0.1, 0.3], seconds, dense=4.0) == pytest.approx(where)


@pytest.mark.skipif(events.library() is None, reason="no C++ compiler here")
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
    # neither the first, whose input is constant, nor the depthwise one, nor the last, which runs once
    assert first["convolutions"] == 1
    assert (first["crossover_pointwise"], first["crossover_larger"]) == (1, None)
    assert first["dense_ms"] == first["event_ms"] == first["chosen_ms"]
    sent = {}
    snn = spiking_network(*networks.NEURONS["if"], loaded.observation, sparse.T)
    snn.run(loaded.images[:2], sparse.T, tap=lambda site, y: sent.setdefault(site, []).append((y != 0).float().mean()))
    _, pointwise, _ = (float(torch.stack(shares).mean()) for shares in sent.values())
    assert 0 < first["density"] == pytest.approx(pointwise)


def test_dense_turns_events_off_for_a_while() -> None:
    conv = nn.Conv2d(256, 64, 1)
    with sparse.dense():
        assert events.crossover(conv) < 0
    assert events.crossover(conv) > 0


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


def test_timesteps_of_delta_coding_send_less_and_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "NETWORKS", {"net": net})
    networks.load.cache_clear()
    rows = [row for row in corrections.rows([("net", networks.load("net"))], [2]) if row["method"] == "delta-3"]
    assert [row["t"] for row in rows] == list(range(1, corrections.T + 1))
    assert rows[0]["events"] > rows[1]["events"] > rows[-1]["events"] >= 0
    assert all(row["cost_over_float"] > 0 for row in rows)
