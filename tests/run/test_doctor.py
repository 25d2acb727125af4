"""The doctor: a planted fault is found where it was planted, and the advice, followed, makes the error smaller."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.networks import images, observed
from support.small_runs import contents, run_quietly, tiny
from torch import nn

from msat_det.base.settings import PROJECT, read_config
from msat_det.measure.diagnosis import CLIPPED, COARSE, INHERITED, OVER, Finding, Patient, cause_of, mends_for
from msat_det.measure.effects import output_error
from msat_det.measure.ledger import PARTS, ledger
from msat_det.methods import METHODS, parse_options
from msat_det.methods.convert import spiking_network
from msat_det.methods.observe import Observation, observe
from msat_det.report.directory import RunDirectory
from msat_det.run import prepare
from msat_det.run.cli import main
from msat_det.run.compare import write_comparison
from msat_det.spiking.network import SpikingNetwork

FINE = {"scale": "channel", "signed": True, "initial": "half", "gamma": 3}
BATCHES = [images(4, seed=100), images(4, seed=101)]  # the calibration images of ``observed``
OTHERS = [images(4, seed=7)]


def diagnose(method: str, options: dict, observation: Observation, T: int) -> list[Finding]:
    snn = spiking_network(method, options, observation, T)
    book = ledger(snn, BATCHES, T)
    return Patient(method, options, observation, BATCHES, book, snn.graph, T).diagnose()


def error(method: str, options: dict, observation: Observation, T: int) -> float:
    """Of the outputs, on images that the doctor has not seen."""
    return output_error(spiking_network(method, options, observation, T), OTHERS, T)


FAULTS = [
    ("clipped", CLIPPED, FINE | {"gamma": 1, "percentile": 80.0}, 32),
    ("unsigned", OVER, {"scale": "channel", "initial": "half", "gamma": 15}, 32),
    ("too few timesteps", COARSE, FINE, 2),
    ("rough thresholds", COARSE, {"factor": 3.0}, 16),
]


@pytest.mark.parametrize("network", ["yolo", "bottleneck"])
@pytest.mark.parametrize(("name", "cause", "options", "T"), FAULTS, ids=[fault[0] for fault in FAULTS])
def test_following_the_advice_mends_a_planted_fault(network: str, name: str, cause: str, options: dict, T: int) -> None:
    observation = observed(network)
    findings = diagnose("constant", options, observation, T)
    assert len(findings) == 3
    named = [finding for finding in findings if finding.cause.startswith(cause)]
    assert named, [finding.cause for finding in findings]
    before = error("constant", options, observation, T)
    for finding in named:
        change = dict(finding.change)
        t = change.pop("t", T)
        assert error("constant", options | change, observation, t) < before
        assert finding.after < finding.before
    assert findings[0].effect == max(finding.effect for finding in findings)


def test_clipping_is_mended_by_reach_and_over_firing_by_signed_spikes() -> None:
    clipped = diagnose("constant", FAULTS[0][2], observed("bottleneck"), 32)[0]
    assert re.match(r"Try percentile 99\S*: error \d\S* → \d\S*; or ", clipped.mend)
    unsigned = next(f for f in diagnose("constant", FAULTS[1][2], observed("bottleneck"), 32) if OVER in f.cause)
    before, after = f"{unsigned.before:.3g}", f"{unsigned.after:.3g}"
    assert unsigned.mend.startswith(f"Try signed: true: error {before} → {after}")
    assert unsigned.change == {"signed": True}


@pytest.mark.parametrize("network", ["plain", "bottleneck"])
def test_longer_helps_where_too_coarse(network: str) -> None:
    """Among the tries stands t doubled, and it is as good as is said."""
    assert {"t": 4} in mends_for(COARSE, parse_options("constant", FINE), 2)
    assert error("constant", FINE, observed(network), 4) < 0.97 * error("constant", FINE, observed(network), 2)


def test_a_layer_that_only_hands_on_is_told_to_look_before_itself() -> None:
    """The first call site alone clips; what follows inherits that, and is well once the first one is.

    It reaches half of the largest activation. A lower threshold would overflow, which hands on less than it clips.
    """
    observation, fine = observed("plain"), FINE | {"factor": 0.25, "gamma": 15}
    good = spiking_network("constant", fine, observation, 32)
    first, *others = (node.name for node in good.graph.sites)
    low = {first: replace(good.neurons[first], gamma=2)}
    bad = SpikingNetwork(good.graph, good.neurons | low, good.fanout)
    books = [ledger(snn, BATCHES, 32) for snn in (good, bad)]
    findings = Patient("constant", fine, observation, BATCHES, books[1], bad.graph, 32).diagnose()
    assert findings[0].site == first
    assert findings[0].cause.startswith(CLIPPED)
    assert {finding.site for finding in findings[1:]} == set(others)
    for finding in findings[1:]:
        assert finding.cause.startswith(INHERITED)
        assert (finding.mend, finding.change) == (f"look at {first} first", {})
        well, ill = ({entry.site: entry.total for entry in book.entries}[finding.site] for book in books)
        assert well < 0.1 * ill


def test_where_nothing_helps_that_is_what_is_said() -> None:
    """Thresholds so fine and timesteps so many that only rounding is left."""

    class Deaf(Patient):
        def _error_with(self, change: dict[str, Any]) -> float:
            return self.book.outputs[self.t]

    snn = spiking_network("constant", FINE, observed("plain"), 8)
    book = ledger(snn, BATCHES, 8)
    findings = Deaf("constant", FINE, observed("plain"), BATCHES, book, snn.graph, 8).diagnose()
    assert all(finding.mend.startswith("no single option (tried: ") for finding in findings)
    assert all(finding.change == {} for finding in findings)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_be_examined(method: str) -> None:
    findings = diagnose(method, {}, observed("residual"), 8)
    assert len(findings) == 3
    for finding in findings:
        assert finding.mend
        assert finding.cause.startswith((CLIPPED, OVER, COARSE, INHERITED))
        if finding.change:
            assert finding.after < finding.before


@pytest.mark.parametrize("cause", [CLIPPED, COARSE])
@pytest.mark.parametrize(("method", "given"), [("h-mt", {}), ("delta", {}), ("constant", {"levels": "binary"})])
def test_what_is_tried_is_of_the_levels(method: str, given: dict, cause: str) -> None:
    """Bursts have a length, binary levels have terms and bits; what would be refused is not advised."""
    mends = mends_for(cause, parse_options(method, given), 8)
    assert any({"terms", "bits"} & change.keys() for change in mends)
    for change in mends:
        assert parse_options(method, given | {name: value for name, value in change.items() if name != "t"})


def test_what_cannot_be_had_is_not_said_to_be_tried() -> None:
    """Of spike-norm a channel's scale, where all is ReLU."""
    options = parse_options("spike-norm", {})
    assert {"scale": "channel"} in mends_for(COARSE, options, 8)
    assert all("scale" not in finding.mend for finding in diagnose("spike-norm", {}, observed("plain"), 8))


def test_a_tried_option_that_is_no_option_there_is_passed_over() -> None:
    """tsc's windows take no more timesteps than theirs; whatever cannot be converted is no mend."""
    snn = spiking_network("constant", FINE, observed("plain"), 4)
    patient = Patient("constant", FINE, observed("plain"), BATCHES, ledger(snn, BATCHES, 4), snn.graph, 4)
    assert patient._error_with({"gamma": 0}) == float("inf")


def test_the_cause_is_the_largest_part() -> None:
    book = ledger(spiking_network("constant", FINE, observed("plain"), 8), BATCHES, 8)
    for entry in book.entries:
        assert cause_of(entry) in (COARSE, INHERITED)
    silent = observe(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval(), [images()])
    with torch.no_grad():
        silent.graph.module.get_submodule("0").weight.zero_()
        silent.graph.module.get_submodule("0").bias.fill_(-1.0)
    snn = spiking_network("constant", {}, silent, 4)
    assert Patient("constant", {}, silent, [images()], ledger(snn, [images()], 4), snn.graph, 4).diagnose() == []


def test_the_command_writes_what_it_says(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "run"
    words = "--methods msat,signed,staged-4 --sim.record 2,4 --images 3 --calib.limit 6 --threads 1 --batch 2".split()
    assert main(["doctor", "--cfg", str(PROJECT / "configs/vgg_demo.yaml"), "--out", str(out), *words]) == 0
    rows = json.loads((out / "ledger.json").read_text())
    assert {(row["method"], row["t"]) for row in rows} == {
        ("msat", 2), ("msat", 4), ("signed", 2), ("signed", 4), ("staged-4", 4)
    }  # fmt: skip
    config = prepare.settle(read_config(PROJECT / "configs/vgg_demo.yaml"))
    observation = observe(prepare.build_model(config, "classification").net, [images(2, size=32)])
    fanout = observation.fanout.spikes
    reached = {n.name: fanout[n].sum().item() if n in fanout else 0 for n in observation.graph.sites}
    for row in rows:
        assert sum(row[part] for part in PARTS) == pytest.approx(row["total"], abs=1e-5)
        assert (row["effect"] is None) == (row["t"] == 2)
        assert row["float_macs"] == reached[row["site"]]
    assert sum(reached.values()) > 1e6
    advice = json.loads((out / "doctor.json").read_text())
    assert list(advice) == ["msat", "signed", "staged-4"]
    printed = capsys.readouterr().out
    for label, findings in advice.items():
        assert f"{label}, t = 4" in printed
        for finding in findings:
            assert {"site", "cause", "mend"} <= set(finding)
            assert finding["cause"] in printed
    names = {path.name for path in (out / "doctor").glob("*.png")}
    assert names == {"errors.png", "sin.png", "spikes.png", "thresholds.png", "residuals.png"}
    assert list((out / "doctor").glob("events.out.tfevents.*"))


def test_a_run_does_it_at_its_end_where_asked_and_a_new_one_clears_it_away(tmp_path: Path) -> None:
    run_quietly(tiny(tmp_path, "--ledger.images", "2"))
    files = contents(tmp_path)
    assert {"ledger.json", "doctor.json", "doctor/errors.png"} <= set(files)
    assert {row["t"] for row in json.loads(files["ledger.json"])} == {1, 4}
    write_comparison(RunDirectory(tmp_path))
    RunDirectory(tmp_path).clear()
    assert set(contents(tmp_path)) == {"config.yaml"}
    assert not list(tmp_path.glob("events.*"))
    with pytest.raises(ValueError, match=r"notes\.txt is none of config\.yaml, summary\.json, "):
        RunDirectory(tmp_path).write("notes.txt", "what clear does not know")


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    cfg = ["doctor", "--cfg", str(PROJECT / "configs/vgg_demo.yaml"), "--out", str(tmp_path)]
    for words in (["--images", "-1"], ["--energy", "7nm"], ["--methods", "none-such"], ["--sim.record", "3"]):
        extra = ["--methods", "staged-4"] if words[0] == "--sim.record" else []
        assert main([*cfg, *words, *extra]) == 2, words
        assert capsys.readouterr().err.strip().splitlines()[-1].startswith("error: ")
