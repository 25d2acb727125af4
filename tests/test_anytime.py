"""Anytime exit: what counts as settled, and how the rule is fitted."""

import pytest
import torch
from networks import images, observed

from msat_det.anytime import changes, distance, exits, fit_rule
from msat_det.convert.conversion import spiking_network
from msat_det.errors import InputError

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


def test_one_timestep_cannot_settle() -> None:
    snn = spiking_network("constant", {}, observed("plain"), 8)
    with pytest.raises(InputError, match="record more"):
        fit_rule(snn, observed("plain"), [8])
