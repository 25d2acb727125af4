"""The benchmark's command line, the shape of what it writes, and that its ratios and peaks are what they are called."""

import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks import bench, evaluation, last_bits, memory, networks, rival, scan, timing
from msat_det.base.errors import InputError
from msat_det.base.settings import PROJECT

MB = 1 << 20


def tiny() -> networks.Source:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    return networks.Source(net, 8, "random")


@pytest.fixture(autouse=True)
def fakes(monkeypatch) -> None:
    """A network of four channels as every network, and each ratio measured once."""
    networks.load.cache_clear()
    monkeypatch.setattr(networks, "NETWORKS", dict.fromkeys(networks.NETWORKS, tiny))
    monkeypatch.setattr(timing, "MOST", 1)
    monkeypatch.setattr(timing, "SHORTEST", 0.0)
    yield
    networks.load.cache_clear()


# ---- the command line


def test_full_and_quick_runs_are_what_the_help_says() -> None:
    full, quick = bench.parse([]), bench.parse(["--quick"])
    assert (full.part, full.batch, full.T) == (list(bench.PARTS), [1, 16], [8, 64])
    assert (quick.part, quick.network) == (["rows"], ["ssd-mobilenet"])
    assert full.neuron == quick.neuron == ["if", "if-signed-burst", "msat", "msat-signed"]
    assert bench.FOUR == ["ssd-mobilenet", "yolo-nano", "resnet20", "ssd300-vgg16"]


def test_options_run_a_part() -> None:
    words = "--quick --network yolo-nano resnet20 --neuron msat --batch 1 2 --T 4 --part rows scan --seconds 1"
    args = bench.parse(words.split())
    assert (args.network, args.neuron, args.batch) == (["yolo-nano", "resnet20"], ["msat"], [1, 2])
    assert (args.T, args.part, args.seconds) == ([4], ["rows", "scan"], 1.0)


@pytest.mark.parametrize("words", ["--network resnet", "--neuron lif", "--batch 0", "--batch 17", "--T 0", "--part x"])
def test_wrong_values_are_refused(words: str) -> None:
    with pytest.raises(InputError, match=words.split()[0]) as caught:
        bench.parse(words.split())
    assert "\n" not in str(caught.value)


# ---- what it writes


def test_json_and_markdown(tmp_path: Path, capsys) -> None:
    target = tmp_path / "bench.json"
    words = ["--network", "ssd-mobilenet", "--batch", "1", "2", "--T", "3", "--part", "rows"]
    words += ["--neuron", "if", "msat-signed", "--json", str(target)]
    assert bench.main(words) == 0
    results = json.loads(target.read_text())
    keys = [(row["network"], row["neuron"], row["batch"], row["T"]) for row in results["rows"]]
    assert keys == [("ssd-mobilenet", neuron, batch, 3) for batch in (1, 2) for neuron in ("if", "msat-signed")]
    for row in results["rows"]:
        assert row["low"] <= row["cost_per_step_over_float"] <= row["high"]
        assert 0 < row["cost_per_step_over_float"] < float("inf")
        assert row["peak_mb"] > 50  # more than Python and PyTorch hold would be 0 or a wrong unit
        assert (row["weights"], row["repeats"]) == ("random", 1)
    text = target.with_suffix(".md").read_text()
    assert text.count("\n| ssd-mobilenet |") == 4
    assert "| cost_per_step_over_float |" in text


def test_a_network_without_its_file_is_left_out_but_refused_when_asked_for(monkeypatch, tmp_path, capsys) -> None:
    def missing() -> networks.Source:
        raise InputError("yolo-nano needs a file")

    monkeypatch.setitem(networks.NETWORKS, "yolo-nano", missing)
    target, words = tmp_path / "bench.json", "--part rows --batch 1 --T 1 --neuron if --json".split()
    assert bench.main([*words, str(target)]) == 0
    assert "left out: yolo-nano needs a file" in capsys.readouterr().err
    assert [row["network"] for row in json.loads(target.read_text())["rows"]] == [n for n in bench.FOUR if n[0] != "y"]
    assert bench.main([*words, str(target), "--network", "yolo-nano"]) == 2
    assert capsys.readouterr().err == "error: yolo-nano needs a file\n"


def test_table() -> None:
    assert bench.table([{"a": 1.23456, "b": "x"}, {"a": 1234.5, "b": None}]) == (
        "| a | b |\n| --- | --- |\n| 1.23 | x |\n| 1234 |  |"
    )


# ---- ratios, by a clock that the measured functions set


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def takes(self, *lengths: float):
        """A function whose calls take these seconds, the last of them again and again."""
        left = list(lengths)

        def call() -> None:
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return call


def measure(clock: Clock, call, baseline, budget: float, most: int = 9, shortest: float = 0.0) -> timing.Ratio:
    timing.MOST, timing.SHORTEST = most, shortest  # the fixture puts them back
    return timing.ratio(call, baseline, budget, clock)


def test_ratio_is_that_of_one_call_to_one_call() -> None:
    clock = Clock()
    found = measure(clock, clock.takes(6.0), clock.takes(0.02), 60, shortest=0.2)  # the baseline ten times in a row
    assert found.value == pytest.approx(300)
    assert (found.seconds, found.baseline) == pytest.approx((6, 0.02))


def test_ratio_is_the_median_and_follows_a_machine_that_slows_down() -> None:
    clock = Clock()
    assert measure(clock, clock.takes(3, 30, 6), clock.takes(1), 60, most=3).value == 6
    slower = [2**k for k in range(3) for _ in range(2)]  # each repeat's baselines: two calls before, two after
    found = measure(clock, clock.takes(9, 18), clock.takes(1, *slower), 1e9, most=2)
    assert (found.low, found.high) == pytest.approx((6, 6))


@pytest.mark.parametrize(("length", "budget", "repeats"), [(1, 1000, 9), (1, 5.5, 3), (4, 9, 3), (20, 9, 1)])
def test_repeats_fit_the_budget(length: float, budget: float, repeats: int) -> None:
    clock = Clock()
    assert measure(clock, clock.takes(length), clock.takes(0.5), budget).repeats == repeats


# ---- memory


def test_peak_is_forgotten_and_found_again() -> None:
    if memory.resident("VmHWM") is None:
        pytest.skip("this system has no /proc/self/status")
    block = torch.ones(64 * MB // 4)
    del block
    memory.forget_peak()
    low = memory.resident("VmHWM")
    block = torch.ones(64 * MB // 4)
    del block
    assert low + 56 < memory.resident("VmHWM") < low + 80
    memory.forget_peak()
    assert memory.resident("VmHWM") < low + 8


# ---- the other parts


def test_scan_rows() -> None:
    rows = {row["scan"]: row for row in scan.rows(1, (1, 4, 16, 16))}
    ours = [name for neuron in networks.NEURONS for name in (neuron, f"{neuron}, in place")]
    assert list(rows)[:9] == ["memcpy", *ours]
    assert rows["memcpy"]["of_memcpy"] == 1
    for row in rows.values():
        assert row["gb_per_s"] == pytest.approx(8 * row["elements_g_per_s"])
        assert row["of_memcpy"] == pytest.approx(row["gb_per_s"] / rows["memcpy"]["gb_per_s"])


def test_drawn_scenes_are_found_in_part() -> None:
    dataset, found = evaluation.drawn(20, 3, 10)
    score = evaluation.CocoEvaluator(dataset, dataset.classes, "pycocotools")(found)
    assert 5 < score["map"] < score["map50"] < 100


def test_spikingjelly_fires_as_integrate_and_fire_neurons_do() -> None:
    pytest.importorskip("spikingjelly", reason="SpikingJelly is not installed: pip install msat-det[bench]")
    loaded, T = networks.load("resnet20"), 5
    graph = loaded.observation.graph
    called = [graph.module.get_submodule(node.target) for node in graph.nodes if node.op == "call_module"]
    first, last = (module for module in called if isinstance(module, nn.Conv2d))
    theta = float(next(iter(loaded.observation.sites.values())).scale(99.9, per="layer"))
    x = loaded.images[:2]
    current, v, count = first(x), torch.zeros(()), torch.zeros(())
    for _ in range(T):
        v = v + current
        fired = (v >= theta).float()
        v, count = v - fired * theta, count + fired
    assert count.sum() > 0
    for node in rival.NODES:
        outputs = rival.simulation(loaded, f"spikingjelly/{node}/channels_last", 2, T)()
        torch.testing.assert_close(outputs, last(count / T))


def test_a_peer_that_lacks_something_is_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = ModuleType("spikingjelly")
    lacking.__path__ = []
    monkeypatch.setitem(sys.modules, "spikingjelly", lacking)  # installed, but not what it is made of
    assert "activation_based" in rival.missing()
    with pytest.raises(InputError, match=r"cannot run: .*pip install 'msat-det\[bench\]'"):
        next(rival.rows(["resnet20"], 1, 1.0))


def test_the_parts_that_help_names_are_there() -> None:
    named = re.findall(r"--part (\w+)", bench.__doc__)
    assert named
    assert set(named) <= set(bench.PARTS)


def test_last_bits_are_of_the_same_run(capsys: pytest.CaptureFixture[str]) -> None:
    words = "--methods delta-3 --sim.record 1 --data.limit 2 --calib.limit 4"
    one, other = (last_bits.rows(str(PROJECT / "configs/yolo_voc.yaml"), words, onednn) for onednn in (True, False))
    assert [(row.method, row.t) for row in one] == [(row.method, row.t) for row in other]
    assert one[1].spikes_per_neuron == pytest.approx(other[1].spikes_per_neuron, rel=1e-3)
    assert torch.backends.mkldnn.enabled
