"""Methods that keep next to nothing of the float network at any recorded t, and why."""

from msat_det.base.config import Config, method_options
from msat_det.measure.rows import CurveRow
from msat_det.methods import parse_options
from msat_det.methods.direct import MsatOptions

NOTHING = 0.05  # of the float network's accuracy: below it a curve says nothing


def lost(config: Config, rows: list[CurveRow]) -> dict[str, str]:
    """The labels whose main accuracy stays below NOTHING of the float network's, with the reason that their options
    give. rows: the float row first."""
    level, *rows = rows
    metric = next(iter(level.accuracies))
    best: dict[str, float] = {}
    for row in rows:
        best[row.method] = max(best.get(row.method, 0.0), row.metrics[metric])
    entries = {entry["label"]: entry for entry in config.methods}
    return {
        label: reason(entries[label])
        for label, accuracy in best.items()
        if label in entries and accuracy < NOTHING * level.metrics[metric]
    }


def reason(entry: dict) -> str:
    """Why the conversion that an entry of ``config.methods`` describes may find nothing (docs/findings.md)."""
    options = parse_options(entry["method"], method_options(entry))
    if options.coding == "rate" and not options.signed:
        raw = isinstance(options, MsatOptions) and options.variant != "normalised"
        units = ", and its thresholds count in raw volts, which do not fit this network's scales" if raw else ""
        return f"its neurons cannot take back spikes that came too early, which mislead every deeper layer{units}"
    return "so few timesteps, or so coarse thresholds, leave the first layers wrong and all others after them"


def lost_notes(config: Config, rows: list[CurveRow]) -> list[str]:
    """One line for each reason: the labels that it keeps at zero, and where to read on."""
    by_reason: dict[str, list[str]] = {}
    for label, why in lost(config, rows).items():
        by_reason.setdefault(why, []).append(label)
    more = "read docs/findings.md, or let `msat-det doctor` name the layers"
    return [f"{', '.join(labels)} at next to nothing: {why}; {more}" for why, labels in by_reason.items()]
