"""Values that hold tensors: each equals itself alone, as a tensor's own ``==`` would not say."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

import msat_det
from msat_det.data.base import Sample, make_target
from msat_det.graph.ops import Activation
from msat_det.methods.observe import Site
from msat_det.spiking.neurons import Neuron

BOXES = [[0.0, 0, 4, 4], [1, 1, 3, 3]]


def counts() -> Any:
    torch.manual_seed(0)
    snn = msat_det.convert(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), torch.rand(2, 4), T=1)
    snn.run(torch.rand(2, 4), T=1)
    return snn.counts[1]


VALUES = {
    "Counts": counts,
    "Cost": lambda: next(iter(counts().costs.values())),
    "Detections": lambda: msat_det.Detections(torch.tensor(BOXES), torch.ones(2), torch.zeros(2, dtype=torch.int64)),
    "Target": lambda: make_target(BOXES, [0, 1], [False, True]),
    "Sample": lambda: Sample(1, torch.zeros(3, 4, 4, dtype=torch.uint8), None),
    "Site": lambda: Site.empty(3),
    "Observation": lambda: msat_det.observe(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), torch.rand(2, 4)),
    "Neuron": lambda: Neuron(torch.ones(3), Activation("relu", torch.relu, True), axis=1),
}


@pytest.mark.parametrize("name", VALUES)
def test_it_can_be_looked_for_among_others(name: str) -> None:
    """It raised "Boolean value of Tensor with more than one value is ambiguous"."""
    one, other = VALUES[name](), VALUES[name]()
    assert type(one).__name__ == name
    assert [other, one].index(one) == 1
    assert one not in [other, copy.copy(one)]
    assert {one: 1, other: 2}[one] == 1
