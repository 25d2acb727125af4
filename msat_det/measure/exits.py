"""What anytime exit brings: accuracy and costs of images that stop when they have settled, beside a fixed t."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from msat_det.base.config import Config
from msat_det.measure.anytime import Rule, exits, fit_rule
from msat_det.measure.parts import Parts
from msat_det.methods.observe import Observation
from msat_det.report.directory import CurveRow, csv_text
from msat_det.report.pictures import ACCURACY, COST_AXES, INK, curve_style, quiet
from msat_det.run.batches import Conversion


@dataclass(frozen=True)
class ExitRow:
    """A method's figures when each image stops where its change falls to ``tolerance``. fitted: the rule's own
    tolerance. mean_t: timesteps done, on average over images; metrics and costs as a ``CurveRow``'s."""

    method: str
    tolerance: float
    fitted: bool
    mean_t: float
    metrics: dict[str, Any]
    spikes_per_neuron: float
    sops_per_mac: float
    energy_ratio: float

    def figures(self) -> dict[str, Any]:
        """Column → value of exit.csv."""
        accuracies = CurveRow(self.method, None, self.metrics).accuracies
        costs = {name: getattr(self, name) for name in ("spikes_per_neuron", "sops_per_mac", "energy_ratio")}
        return {
            "method": self.method,
            "tolerance": self.tolerance,
            "fitted": self.fitted,
            "mean_t": self.mean_t,
            **accuracies,
            **costs,
        }


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
        spent = sum(costs[t][i] for i, t in enumerate(times)) / len(ids)
        mean = sum(times) / len(ids)
        rows.append(ExitRow(label, tolerance, tolerance == rule.tolerance, mean, metrics, *spent.tolist()))
    return rows


def exit_table(rows: list[ExitRow]) -> str:
    """exit.csv: a row for each method and tolerance, from the strictest on."""
    lines = [row.figures() for row in rows]
    return csv_text(list(lines[0]), lines, 5)


def draw_exits(rows: list[ExitRow], fixed: list[CurveRow], title: str = "") -> Figure:
    """Accuracy over mean t and over energy: a fixed t (line), exits (broken line) and the fitted rule (large)."""
    metric = next(iter(fixed[0].accuracies))
    figure = Figure(figsize=(11, 5), dpi=140, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, at, cost in zip(panels, ("mean_t", "energy_ratio"), ("t", "energy_ratio"), strict=True):
        for i, label in enumerate(dict.fromkeys(row.method for row in rows)):
            held = [row for row in fixed if row.method == label]
            own = [row for row in rows if row.method == label]
            style = curve_style(i, len(held))
            axes.plot([getattr(r, cost) for r in held], [r.metrics[metric] for r in held], label=label, **style)
            broken = style | {"linestyle": ":", "marker": None}
            axes.plot([getattr(r, at) for r in own], [r.metrics[metric] for r in own], label=f"{label}, exit", **broken)
            fitted = [row for row in own if row.fitted]
            large = style | {"linestyle": "none", "markersize": 12}
            axes.plot([getattr(r, at) for r in fitted], [r.metrics[metric] for r in fitted], **large)
        axes.axhline(fixed[0].metrics[metric], color=INK, linestyle="--", linewidth=1.3)
        axes.set_xscale("log", base=2 if cost == "t" else 10)
        axes.set_xlabel("timesteps, mean over images" if cost == "t" else COST_AXES[cost])
        quiet(axes)
    panels[0].set_ylabel(f"{ACCURACY[metric]}, %")
    panels[0].set_ylim(bottom=0)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    if title:
        figure.suptitle(title, color=INK, fontsize=12, fontweight="bold")
    return figure
