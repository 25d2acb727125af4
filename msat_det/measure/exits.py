"""What anytime exit brings: accuracy and costs of images that stop when they have settled, beside a fixed t."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from msat_det.base.config import Config
from msat_det.base.files import csv_text
from msat_det.measure.anytime import Rule, exits, fit_rule
from msat_det.measure.batch_files import Parts
from msat_det.measure.rows import CurveRow
from msat_det.methods.convert import Conversion
from msat_det.methods.observe import Observation


@dataclass(frozen=True, kw_only=True)
class ExitRow(CurveRow):
    """A method's figures when each image stops where its change falls to ``tolerance``. fitted: the rule's own
    tolerance. mean_t: timesteps done, on average over images; t: None, for there is no single one."""

    tolerance: float
    fitted: bool
    mean_t: float

    def figures(self) -> dict[str, Any]:
        """Column → value of exit.csv."""
        stops = {"tolerance": self.tolerance, "fitted": self.fitted, "mean_t": self.mean_t}
        return {"method": self.method} | stops | self.accuracies | self.costs


def exit_rows(
    config: Config,
    conversions: list[Conversion],
    observation: Observation,
    parts: Parts,
    evaluator: Callable[[dict], dict[str, Any]],
) -> list[ExitRow]:
    """For each method of ``config.exit`` the trade-off curve, and on it the rule that calibration images give."""
    rows = []
    for conversion in conversions:
        if conversion.label in config.exit.methods:
            settings = config.exit.images, config.exit.allowance
            rule = fit_rule(conversion.snn, observation, conversion.record, *settings)
            rows += _curve(conversion.label, rule, parts, evaluator)
    return rows


def _curve(label: str, rule: Rule, parts: Parts, evaluator: Callable[[dict], dict[str, Any]]) -> list[ExitRow]:
    ids, change = parts.ids(), parts.changes(label, len(rule.record)).T
    found = {t: parts.found(label, t) for t in rule.record}
    costs = {t: parts.each(label, t) for t in rule.record}
    rows = []
    for tolerance in sorted({rule.tolerance, *rule.curve}):
        times = [rule.record[i] for i in exits(change, tolerance).tolist()]
        metrics = evaluator({id: found[t][id] for id, t in zip(ids, times, strict=True)})
        spent: Any = sum(costs[t][i] for i, t in enumerate(times)) / len(ids)
        stops: dict[str, Any] = {
            "tolerance": tolerance,
            "fitted": tolerance == rule.tolerance,
            "mean_t": sum(times) / len(ids),
        }
        rows.append(ExitRow(label, None, metrics, *spent.tolist(), **stops))
    return rows


def exit_table(rows: list[ExitRow]) -> str:
    """exit.csv: a row for each method and tolerance, from the strictest on."""
    lines = [row.figures() for row in rows]
    return csv_text(list(lines[0]), lines, 5)
