"""The rows of a curve: a method at one t, its accuracies and costs; and the reader of those that a run left behind."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msat_det.base.errors import InputError
from msat_det.base.files import text_of

COSTS = ("spikes_per_neuron", "sops_per_mac", "energy_ratio", "events_per_neuron", "energy_ratio_int8")
DIFFERENCE = ("method", "against", "metric"), ("t", "difference", "low", "high")  # of ``differences.DifferenceRow``
DISPLAY = {"map": "mAP", "map50": "mAP50", "top1": "top1", "top5": "top5"}
MAIN = {"map": "mAP", "top1": "top-1 accuracy"}  # the main accuracies in words


@dataclass(frozen=True)
class CurveRow:
    """One line of the curve: a method at one recorded timestep, or the float network.

    method: label of the method, ``float`` for the float network.
    t: number of timesteps done; None for the float network.
    metrics: accuracies in percent: map and map50, or top1 and top5 first, then extras that only summary.json shows.
    spikes_per_neuron: Σ|s| over all timesteps so far, per neuron and image; None for the float network.
    sops_per_mac: synaptic operations so far over the float network's multiply-adds.
    energy_ratio: estimated energy so far over the float network's.
    events_per_neuron: outputs that are not 0 (of binary levels each term) so far; None for the float network.
    energy_ratio_int8: energy with 8-bit weights over that of the network with 8-bit weights and activations, both by
    table 45nm-int8; None for the float network.
    """

    method: str
    t: int | None
    metrics: dict[str, Any]
    spikes_per_neuron: float | None = None
    sops_per_mac: float = 1.0
    energy_ratio: float = 1.0
    events_per_neuron: float | None = None
    energy_ratio_int8: float | None = None

    @property
    def steps(self) -> int:
        """The number of timesteps done; 0 for the float network."""
        return self.t or 0

    @property
    def costs(self) -> dict[str, float | None]:
        """Its figures of ``COSTS``."""
        return {name: getattr(self, name) for name in COSTS}

    @property
    def metric(self) -> str:
        """The main accuracy, map or top1."""
        return next(iter(self.accuracies))

    @property
    def accuracies(self) -> dict[str, float]:
        """The two accuracies of curve.csv, the main one first."""
        return {name: self.metrics[name] for name in DISPLAY if name in self.metrics}

    def figures(self) -> dict[str, Any]:
        """All figures of the row, as summary.json shows them."""
        return self.metrics | self.costs


def read_summary(folder: Path) -> tuple[list[CurveRow], dict[str, Any]]:
    """The rows and the facts that ``write_summary`` wrote into a run directory. Raises InputError where it is none."""
    file = folder / "summary.json"
    try:
        facts = json.loads(text_of(file))
        curves = {("float", None): facts.pop("float")}
        curves |= {(label, int(t)): row for label, curve in facts.pop("methods").items() for t, row in curve.items()}
        rows = [  # runs of older versions lack the last two costs
            CurveRow(
                label,
                t,
                {k: v for k, v in row.items() if k not in COSTS},
                *(row[name] for name in COSTS[:3]),
                *(row.get(name) for name in COSTS[3:]),
            )
            for (label, t), row in curves.items()
        ]
        _check_rows(rows)
        _check_facts(facts)
    except FileNotFoundError:
        begun = (file.parent / "config.yaml").exists()
        mend = "the run did not end; go on with --resume" if begun else "give the directory of a run, runs/NAME"
        raise InputError(f"no {file}: {mend}") from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError):
        raise InputError(f"{file} is not what a run writes: make it anew") from None
    return rows, facts


def _check_rows(rows: list[CurveRow]) -> None:
    """Raise ValueError or TypeError for figures that no run has."""
    names = list(rows[0].accuracies)
    figures: list[Any] = [row.metrics[name] for row in rows for name in names]
    figures += [cost for row in rows for cost in row.costs.values() if cost is not None]
    figures += [row.metrics["agreement"] for row in rows if "agreement" in row.metrics]
    figures += [cost for row in rows for cost in (row.sops_per_mac, row.energy_ratio)]  # unlike the others never None
    figures += [row.spikes_per_neuron for row in rows[1:]]
    if names[:1] not in (["map"], ["top1"]) or not all(math.isfinite(figure) and figure >= 0 for figure in figures):
        raise ValueError(names)
    if not all(row.t and 0 < row.t < 2**31 for row in rows[1:]):
        raise ValueError(rows)


def _check_facts(facts: dict[str, Any]) -> None:
    """Raise ValueError, TypeError or KeyError for facts of another kind than a run's."""
    lists = [facts.get(name, []) for name in ("corrupt_images", "misfit_images")]
    found = (
        facts["images"],
        facts.get("seen_in_calibration", 0),
        *lists,
        facts.get("energy", {}),
        facts.get("files", {}),
    )
    if [type(fact) for fact in found] != [int, int, list, list, dict, dict]:
        raise ValueError(found)
    for row in facts.get("differences", []):
        texts, numbers = ([row[name] for name in names] for names in DIFFERENCE)
        if not all(isinstance(text, str) for text in texts) or not all(map(math.isfinite, numbers)):
            raise ValueError(row)


def cautions(facts: dict[str, Any]) -> list[str]:
    """What a reader of a run's figures must know, in a sentence each: images that could not be read, objects on images
    of another size, calibration images among the evaluated ones. facts: of summary.json."""
    corrupt, misfit = facts.get("corrupt_images") or [], facts.get("misfit_images") or []
    texts = []
    if corrupt:
        total = facts["images"] + len(corrupt)
        texts.append(f"{len(corrupt)} of {total} images could not be read and are left out, the first: {corrupt[0]}")
    if misfit:
        texts.append(
            f"{len(misfit)} of {facts['images']} images have another size than their annotation says, so that their "
            f"boxes lie elsewhere; the first: {misfit[0]}: bring back the images that were annotated, or annotate these"
        )
    if seen := facts.get("seen_in_calibration"):
        texts.append(
            f"{seen} of the {facts['images']} evaluated images are calibration images: --data.held_out true evaluates "
            "the others alone"
        )
    return texts
