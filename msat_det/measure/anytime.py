"""Anytime exit: an image stops once its outputs have settled, by a rule that is fitted on calibration images.

An output has settled at a recorded t when it has changed by no more than a tolerance since the recorded t before. The
tolerance is the largest one that costs the calibration images no more than an allowed share of the accuracy that they
have after the last t, accuracy being the distance from the float network's outputs: no label is needed.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from msat_det.base.device import wide
from msat_det.base.errors import InputError
from msat_det.graph.inputs import cut, timesteps
from msat_det.methods.observe import Observation
from msat_det.spiking.network import SpikingNetwork

CURVE = 9  # tolerances of the trade-off curve, spread over the changes that calibration images show


@dataclass(frozen=True)
class Rule:
    """When to stop. tolerance: largest relative change since the recorded t before; curve: others, ascending, for the
    trade-off. record: the timesteps at which outputs are read.

    It is a ``stop`` for ``SpikingNetwork.run``, which then ends where the last image of the batch has settled.
    """

    tolerance: float
    curve: tuple[float, ...]
    record: tuple[int, ...]

    def __call__(self, outputs: dict[int, Any]) -> bool:
        """Whether every image has settled by the last of the recorded t in ``outputs`` {t: outputs}."""
        return bool((changes(outputs) <= self.tolerance).any(0).all())


def distance(outputs: Any, others: Any) -> Tensor:
    """(B,) relative distance of two outputs, ‖a − b‖ / ‖b‖ of each tensor for each image, averaged over the tensors.

    On the CPU, wherever the outputs lie.
    """
    pairs = zip(*(map(_rows, pytree.tree_leaves(tree)) for tree in (outputs, others)), strict=True)
    return torch.stack([(a - b).norm(dim=1) / b.norm(dim=1).clamp(min=1e-12) for a, b in pairs]).mean(0).cpu()


def _rows(output: Tensor) -> Tensor:
    return wide(output.flatten(1))


def changes(outputs: dict[int, Any]) -> Tensor:
    """(K, B): how much the outputs at each recorded t differ from those before; infinite at the first one."""
    recorded = [outputs[t] for t in sorted(outputs)]
    later = [distance(new, old) for old, new in itertools.pairwise(recorded)]
    return torch.stack([torch.full_like(distance(recorded[0], recorded[0]), float("inf")), *later])


def exits(change: Tensor, tolerance: float) -> Tensor:
    """(B,): for each image the index of the recorded t at which it stops, the last one if it never settles."""
    settled = change <= tolerance
    settled[-1] = True
    return settled.int().argmax(0)


def fit_rule(
    snn: SpikingNetwork, observation: Observation, record: Sequence[int], images: int = 16, allowance: float = 0.05
) -> Rule:
    """The largest tolerance at which the calibration images' mean distance from the float outputs is at most
    1 + ``allowance`` times that at the last recorded t.

    Raises InputError where fewer than two timesteps are recorded.
    """
    record = tuple(timesteps(record))
    if len(record) < 2:
        raise InputError(f"an exit compares outputs at several timesteps, {list(record)} is one: record more")
    found: list[Tensor] = []
    errors: list[Tensor] = []
    for batch in cut(observation.first(images), 8):
        goal = observation.graph(batch)
        outputs = snn.run(batch, record[-1], record)
        found.append(changes(outputs))
        errors.append(torch.stack([distance(outputs[t], goal) for t in record]))
    change, error = torch.cat(found, 1), torch.cat(errors, 1)
    allowed = (1 + allowance) * error[-1].mean()
    candidates = change[1:].flatten().unique()
    kept = [c for c in candidates.tolist() if error.gather(0, exits(change, c)[None]).mean() <= allowed]
    curve = wide(candidates).quantile(torch.linspace(0, 1, CURVE, dtype=torch.float64)).unique()
    return Rule(max(kept, default=0.0), tuple(curve.tolist()), record)
