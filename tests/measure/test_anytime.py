"""Anytime exit: what counts as settled, and how the rule is fitted."""

import csv
import json
from pathlib import Path

import pytest
import torch
from support.networks import images, observed

from msat_det.base.errors import InputError
from msat_det.base.settings import PROJECT
from msat_det.measure.anytime import changes, distance, exits, fit_rule
from msat_det.methods.convert import spiking_network
from msat_det.run import cli

RECORD = (2, 4, 8, 16, 32)


def test_distance_is_relative_for_each_image_and_averaged_over_tensors() -> None:
    a = {"x": torch.tensor([[3.0, 4.0], [1.0, 0.0]]), "y": torch.tensor([[[2.0]], [[2.0]]])}
    b = {"x": torch.tensor([[0.0, 4.0], [1.0, 0.0]]), "y": torch.tensor([[[1.0]], [[2.0]]])}
    assert distance(a, b).tolist() == [(0.75 + 1.0) / 2, 0.0]


def test_an_image_stops_where_its_outputs_have_settled() -> None:
    outputs = {2: torch.tensor([[1.0], [1.0], [1.0]]), 4: torch.tensor([[1.0], [2.0], [2.0]]), 8: torch.ones(3, 1)}
    change = changes(outputs)
    assert change[0].isinf().all()
    assert change[1:].tolist() == [[0.0, 1.0, 1.0], [0.0, 0.5, 0.5]]
    assert exits(change, 0.0).tolist() == [1, 2, 2]
    assert exits(change, 0.5).tolist() == [1, 2, 2]
    assert exits(change, 1.0).tolist() == [1, 1, 1]
    assert exits(change, -1.0).tolist() == [2, 2, 2]  # never settled: the last


@pytest.mark.parametrize("network", ["plain", "yolo"])
def test_the_rule_keeps_what_it_promises_on_the_images_it_is_fitted_on(network: str) -> None:
    observation = observed(network)
    options = {"scale": "channel", "initial": "half", "signed": True, "gamma": 3}
    snn = spiking_network("constant", options, observation, 32)
    x = observation.first(8)
    goal, outputs = observation.graph(x), snn.run(x, 32, RECORD)
    error = torch.stack([distance(outputs[t], goal) for t in RECORD])
    for allowance in (0.0, 0.2, 1.0, 1e9):
        rule = fit_rule(snn, observation, RECORD, images=8, allowance=allowance)
        index = exits(changes(outputs), rule.tolerance)
        assert error.gather(0, index[None]).mean() <= (1 + allowance) * error[-1].mean() * (1 + 1e-9)
        assert rule.record == RECORD
        assert list(rule.curve) == sorted(rule.curve)
    assert (index == 1).all()  # whatever is allowed, two outputs are compared
    loose = exits(changes(snn.run(images(4), 32, RECORD)), rule.tolerance).float().mean()
    strict = fit_rule(snn, observation, RECORD, images=8, allowance=0.0).tolerance
    assert exits(changes(snn.run(images(4), 32, RECORD)), strict).float().mean() > loose


def test_a_rule_ends_the_simulation_where_the_last_image_has_settled() -> None:
    observation = observed("yolo")
    snn = spiking_network("constant", {"scale": "channel", "initial": "half", "signed": True}, observation, 32)
    rule = fit_rule(snn, observation, RECORD, images=8, allowance=1.0)
    x = images(4)
    whole = snn.run(x, 32, RECORD)
    last = RECORD[exits(changes(whole), rule.tolerance).max()]
    assert 2 < last < 32
    stopped = snn.run(x, 32, RECORD, stop=rule)
    assert list(stopped) == list(snn.counts) == [t for t in RECORD if t <= last]
    for t, outputs in stopped.items():
        assert all(torch.equal(a, b) for a, b in zip(leaves(outputs), leaves(whole[t]), strict=True))


def leaves(outputs: object) -> list:
    return torch.utils._pytree.tree_leaves(outputs)


def test_one_timestep_cannot_settle() -> None:
    snn = spiking_network("constant", {}, observed("plain"), 8)
    for record in ([8], 8, [8, 8.0]):
        with pytest.raises(InputError, match="record more"):
            fit_rule(snn, observed("plain"), record)


def test_timesteps_of_a_rule_are_whole_numbers_of_any_kind() -> None:
    snn = spiking_network("constant", {"signed": True}, observed("plain"), 8)
    rule = fit_rule(snn, observed("plain"), torch.tensor([8.0, 2.0, 4.0]), images=4)
    assert rule == fit_rule(snn, observed("plain"), [2, 4, 8], images=4)
    with pytest.raises(InputError, match=r"recorded timesteps is 2\.5: give a whole number"):
        fit_rule(snn, observed("plain"), [2.5, 8])


CFG = str(PROJECT / "configs" / "yolo_voc.yaml")
SMALL = "--data.limit 6 --calib.limit 4 --batch 4 --draw.images 0 --threads 1 --sim.record 2,4,8".split()


def test_a_run_tells_what_stopping_brings(tmp_path: Path) -> None:
    words = ["--cfg", CFG, "--out", str(tmp_path), "--methods", "signed-b3", "--exit.methods", "signed-b3", *SMALL]
    words += ["--data.split", "trainval", "--data.limit", "4"]  # the images that the rule is fitted on
    assert cli.run([*words, "--exit.images", "4", "--exit.allowance", "0.2"]) == 0
    with (tmp_path / "exit.csv").open() as file:
        rows = list(csv.DictReader(file))
    with (tmp_path / "curve.csv").open() as file:
        curve = {row["t"]: row for row in csv.DictReader(file)}
    assert [row["fitted"] for row in rows].count("True") == 1
    times = [float(row["mean_t"]) for row in rows]
    assert times == sorted(times, reverse=True)
    assert all(4 <= t <= 8 for t in times)
    energy = [float(row["energy_ratio"]) for row in rows]
    assert float(curve["4"]["energy_ratio"]) <= energy[-1] <= energy[0] <= float(curve["8"]["energy_ratio"])
    loosest = rows[-1]  # every image has settled at it, at the second recorded t
    assert times[-1] == 4.0
    for name in ("map", "map50", "sops_per_mac"):
        assert float(loosest[name]) == pytest.approx(float(curve["4"][name]), abs=1e-3)  # the curve has three decimals
    summary = json.loads((tmp_path / "summary.json").read_text())
    fitted = next(row for row in rows if row["fitted"] == "True")
    assert summary["exit"]["signed-b3"]["map"] == pytest.approx(float(fitted["map"]), abs=1e-4)
    assert (tmp_path / "exit.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--exit.methods", "nope"], "exit.methods names 'nope'"),
        (["--exit.methods", "signed-b3", "--exit.images", "0"], "exit.images is 0"),
        (["--exit.methods", "signed-b3", "--exit.allowance", "-1"], "exit.allowance is -1"),
        (["--exit.methods", "signed-b3", "--sim.record", "4"], "record more"),
        (["--exit.methods", "opt", "--methods", "opt"], "another network for each t"),
    ],
)
def test_an_exit_that_cannot_be_is_told(
    words: list[str], part: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    methods = [] if "--methods" in words else ["--methods", "signed-b3"]
    cfg = tmp_path / "cfg.yaml"
    text = Path(CFG).read_text(encoding="utf-8")
    cfg.write_text(text.replace("methods:\n", "methods:\n  - {label: opt, method: opt}\n", 1), encoding="utf-8")
    root = ["--data.root", str(PROJECT / "data/voc"), "--calib.root", str(PROJECT / "data/voc")]
    line = ["--cfg", str(cfg), "--out", str(tmp_path / "out"), *methods, *root, *SMALL[:-2]]
    assert cli.run([*line, *(["--sim.record", "2,4"] if "--sim.record" not in words else []), *words]) == 2
    assert part in capsys.readouterr().err
