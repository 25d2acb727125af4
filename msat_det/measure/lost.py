"""Methods that keep next to nothing of the float network at any recorded t, and why."""

from collections.abc import Iterable
from contextlib import suppress

from msat_det.base.config import Config, method_options
from msat_det.base.errors import InputError
from msat_det.measure.rows import CurveRow
from msat_det.methods import parse_options
from msat_det.methods.direct import MsatOptions

NOTHING = 0.05  # of the float network's accuracy: below it a curve says nothing


def lost(rows: list[CurveRow]) -> list[str]:
    """The methods that stay below NOTHING of the float network's accuracy at every t. rows: the float row first."""
    level, *rows = rows
    best: dict[str, float] = {}
    for row in rows:
        best[row.method] = max(best.get(row.method, 0.0), row.metrics[level.metric])
    return [method for method, accuracy in best.items() if accuracy < NOTHING * level.metrics[level.metric]]


def reasons(config: Config, labels: Iterable[str]) -> dict[str, list[str]]:
    """{reason: the labels that it holds back}. A method or an option that is not known here, of a run of another
    version, has none."""
    entries = {entry["label"]: entry for entry in config.methods}
    found: dict[str, list[str]] = {}
    for label in labels:
        if label in entries:
            with suppress(InputError):
                found.setdefault(reason(entries[label]), []).append(label)
    return found


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
    found = reasons(config, lost(rows))
    more = "`msat-det doctor` names the layers, and docs/findings.md of the project has the measurements"
    return [f"{', '.join(labels)} at next to nothing: {why}; {more}" for why, labels in found.items()]
