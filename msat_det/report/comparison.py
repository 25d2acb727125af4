"""The methods of one experiment side by side, read from its run directory: as Markdown and as CSV."""

import csv
import io
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from textwrap import fill
from typing import Any

import yaml

from msat_det.base.config import Config
from msat_det.base.settings import read_config
from msat_det.measure.accuracy.agreement import FOUND
from msat_det.measure.lost import lost
from msat_det.measure.rows import COSTS, DISPLAY, CurveRow, read_summary
from msat_det.report.paper import SOURCE, TABLE_1, TIMES, Reported

HEADINGS = ("spikes/neuron", "SOPs/MAC", "energy ratio", "events/neuron", "energy/int8")  # of COSTS
NEAR = 0.95  # of the float network's accuracy
KEPT = (0.99, 0.95, 0.90)
EACH = "Spikes per neuron / SOPs per MAC / energy ratio / events per neuron / energy over int8 up to each t:"
FRONTIER = "Where a method first keeps a share of the float figure, and the least energy ratio at which it does:"
READING = """\
{name} in percent after t timesteps, the best of each t in bold. Costs are those of one image after the last t: spikes
per neuron; synaptic operations over the float network's multiply-adds; energy, estimated with 45 nm figures, over the
float network's; events per neuron; energy with 8-bit weights over that of the 8-bit network (int8). To 95 %: the first
t that keeps 95 % of the float figure, and its SOPs/MAC."""
AGREEMENT = """\
Agreement with the float network at each t: mAP where the boxes that it found (score ≥ {score}) are the truth."""
APART = "{difference:+.1f} ({low:+.1f}, {high:+.1f})"
DIFFERENCES = """\
{name} of each method minus that of `{against}` at the same t, in points, and in brackets what {share:.0%} of {draws}
bootstrap samples of the images hold:"""
PAPER = """\
**The paper's own figures for {network}**, not measured here ({source}). Network and data are others than above, and a
method's float network is the one of its own publication."""


@dataclass(frozen=True)
class Comparison:
    """An experiment that was run. rows: the float row first. facts: what else summary.json holds."""

    config: Config
    rows: list[CurveRow]
    facts: dict[str, Any]

    @property
    def metric(self) -> str:
        """The main accuracy: map or top1."""
        return self.rows[0].metric

    @property
    def labels(self) -> list[str]:
        return list(dict.fromkeys(row.method for row in self.rows[1:]))

    @property
    def times(self) -> list[int]:
        return sorted({row.steps for row in self.rows[1:]})

    @property
    def lost(self) -> list[str]:
        """The labels of methods that find next to nothing at any t."""
        return lost(self.rows)

    @property
    def network(self) -> str:
        model = self.config.model
        return Path(model.cfg).stem if model.cfg else model.name

    @property
    def title(self) -> str:
        data = self.config.data
        folder = "/".join(filter(None, (Path(data.root).name, data.split)))
        seen = self.facts.get("seen_in_calibration")
        shared = f" ({seen} of them calibration images)" if seen else ", held out" if data.held_out else ""
        return f"{self.network} on {self.facts['images']} images of {folder}{shared}"

    def curve(self, label: str) -> list[CurveRow]:
        """A method's rows, the first t first."""
        return sorted((row for row in self.rows[1:] if row.method == label), key=lambda row: row.steps)

    def near(self, label: str, share: float = NEAR) -> CurveRow | None:
        """The first t at which a method keeps a share of the float's main accuracy; None where it never does."""
        wanted = share * self.rows[0].metrics[self.metric]
        return next((row for row in self.curve(label) if row.metrics[self.metric] >= wanted), None)

    def accuracy(self, label: str, t: int) -> float | None:
        """The main accuracy of a method at t, percent; None where it was not recorded."""
        return next((row.metrics[self.metric] for row in self.rows if (row.method, row.t) == (label, t)), None)


def read_comparison(folder: Path) -> Comparison:
    """The experiment that a run directory holds. Raises InputError where it holds none."""
    rows, facts = read_summary(folder)
    return Comparison(read_config(folder / "config.yaml"), rows, facts)


def reported(comparison: Comparison, network: str) -> dict[str, Reported]:
    """What the paper reports of one of its networks for the labels that are a method's own name; of detectors nothing.

    A label of another name stands for options that the paper does not have.
    """
    if comparison.metric != "top1":
        return {}
    return {label: TABLE_1[network][label] for label in comparison.labels if label in TABLE_1[network]}


def markdown(comparison: Comparison) -> str:
    """The comparison as Markdown without a heading: measured figures, what the labels mean, the paper's figures."""
    level = comparison.rows[0]
    floats = ", ".join(f"{DISPLAY[name]} {value:.1f} %" for name, value in level.accuracies.items())
    parts = [
        f"Float network: **{floats}**.",
        fill(READING.format(name={"map": "mAP", "top1": "Top-1 accuracy"}[comparison.metric]), 120),
        _measured(comparison),
        _frontier(comparison),
        _agreement(comparison),
        _differences(comparison),
        _costs(comparison),
        _meanings(comparison),
        *(_paper(comparison, network) for network in TABLE_1),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def table(comparison: Comparison) -> str:
    """The comparison as CSV, one row per method and t, the paper's rows marked in ``source``.

    t is empty for a float network; the paper has one for each method.
    """
    accuracies = list(comparison.rows[0].accuracies)
    methods = {entry["label"]: entry["method"] for entry in comparison.config.methods}
    text = io.StringIO()
    writer = csv.DictWriter(
        text, ["source", "network", "label", "method", "t", *accuracies, *COSTS], restval="", lineterminator="\n"
    )
    writer.writeheader()
    for row in comparison.rows:
        names = {"label": row.method, "method": methods.get(row.method, row.method), "t": row.t}
        figures = {name: value for name, value in row.figures().items() if name in (*accuracies, *COSTS)}
        writer.writerow({"source": "measured", "network": comparison.network} | names | figures)
    for network in TABLE_1:
        for label, line in reported(comparison, network).items():
            for t, accuracy in [("", line.ann), *line.at.items()]:
                names = {"source": "paper", "network": network, "label": label, "method": label, "t": t}
                writer.writerow(names | {comparison.metric: accuracy})
    return text.getvalue()


def _measured(comparison: Comparison) -> str:
    level, *rows = comparison.rows
    metric, times = comparison.metric, comparison.times
    best = {t: max(row.metrics[metric] for row in rows if row.t == t) for t in times}
    lines = [["float network", *[f"{level.metrics[metric]:.1f}"] * len(times), "", "1", "1", "", "", ""]]
    for label in comparison.labels:
        curve = {row.steps: row for row in comparison.curve(label)}
        cells = []
        for t in times:
            text = f"{curve[t].metrics[metric]:.1f}" if t in curve else ""
            cells.append(f"**{text}**" if text and curve[t].metrics[metric] == best[t] > 0 else text)
        last = curve[max(curve)]
        costs = _figures(last)
        costs[0] += f" (t = {last.t})" if last.steps < times[-1] else ""
        near = comparison.near(label)
        costs.append(f"t = {near.t}: {near.sops_per_mac:.2f}" if near else "–")
        lines.append([f"`{label}`", *cells, *costs])
    header = ["method", *(f"t = {t}" for t in times), *HEADINGS, "to 95 %"]
    return pipe_table(header, lines)


def _costs(comparison: Comparison) -> str:
    """What every method costs at each t; nothing where the table of accuracies, at one t, says it already."""
    if len(comparison.times) == 1:
        return ""
    cells = {(r.method, r.steps): " / ".join(filter(None, _figures(r))) for r in comparison.rows[1:]}
    return f"{EACH}\n\n{_over_time('costs', cells)}"


def _figures(row: CurveRow) -> list[str]:
    return ["" if cost is None else f"{cost:.2f}" for cost in row.costs.values()]


def _over_time(corner: str, cells: dict[tuple[str, int], str]) -> str:
    """A table of {(label, t): cell}, a line a method and a column a timestep."""
    times = sorted({t for _, t in cells})
    labels = dict.fromkeys(label for label, _ in cells)
    lines = [[f"`{label}`", *(cells.get((label, t), "") for t in times)] for label in labels]
    return pipe_table([corner, *(f"t = {t}" for t in times)], lines)


def _frontier(comparison: Comparison) -> str:
    """The smallest t and smallest energy at which each method keeps shares of the float figure, over the recorded t;
    methods that keep none of them are left out."""
    level, *rows = comparison.rows
    metric, lines = comparison.metric, []
    for label in comparison.labels:
        cells = []
        for share in KEPT:
            kept = [r for r in rows if r.method == label and r.metrics[metric] >= share * level.metrics[metric]]
            cells.append(f"t = {min(r.steps for r in kept)}" if kept else "–")
            cells.append(f"{min(r.energy_ratio for r in kept):.2f}" if kept else "–")
        if cells[-1] != "–":
            lines.append([f"`{label}`", *cells])
    if not lines:
        return f"No method keeps {KEPT[-1]:.0%} of the float figure at a recorded t."
    header = [f"{share:.0%}: {what}" for share in KEPT for what in ("first t", "least energy")]
    return f"{FRONTIER}\n\n{pipe_table(['keeps', *header], lines)}"


def _agreement(comparison: Comparison) -> str:
    """How well a detector's methods agree with its float network at each t."""
    rows = [row for row in comparison.rows[1:] if "agreement" in row.metrics]
    if not rows:
        return ""
    cells = {(row.method, row.steps): f"{row.metrics['agreement']:.1f}" for row in rows}
    return f"{fill(AGREEMENT.format(score=FOUND), 120)}\n\n{_over_time('agreement', cells)}"


def _differences(comparison: Comparison) -> str:
    """How far each method is ahead of the one that the configuration's ``bootstrap`` names, with its interval."""
    settings, rows = comparison.config.bootstrap, comparison.facts.get("differences", [])
    parts = []
    for metric in dict.fromkeys(row["metric"] for row in rows):
        cells = {(row["method"], row["t"]): APART.format(**row) for row in rows if row["metric"] == metric}
        text = DIFFERENCES.format(
            against=settings.against,
            name=DISPLAY.get(metric, metric.capitalize()),
            share=settings.confidence,
            draws=settings.draws,
        )
        parts += [fill(text, 120), _over_time("ahead by", cells)]
    return "\n\n".join(parts)


def _meanings(comparison: Comparison) -> str:
    """What the labels stand for that are more than a method's name, as a configuration writes it."""
    lines = []
    for entry in comparison.config.methods:
        plain = {key: value for key, value in entry.items() if key not in ("label", "record")}
        if entry["label"] in comparison.labels and plain != {"method": entry["label"]}:
            text = yaml.safe_dump(plain, default_flow_style=True, sort_keys=False, width=1000).strip()
            lines.append(f"- `{entry['label']}`: `{text}`")
    if any(entry["method"] == "tsc" for entry in comparison.config.methods):
        lines.append("- tsc: t is the length of a window; a layer waits for the windows of all layers before it.")
    return "\n".join(lines)


def _paper(comparison: Comparison, network: str) -> str:
    """What the paper reports of one of its networks, and in how far its order of the methods is met here."""
    known = reported(comparison, network)
    if not known:
        return ""
    lines = []
    for label, line in known.items():
        figures = [line.ann, *(line.at.get(t) for t in TIMES), line.best]
        lines.append([f"`{label}`", *("" if figure is None else f"{figure:.1f}" for figure in figures)])
    parts = [
        fill(PAPER.format(source=SOURCE, network=network), 120),
        pipe_table(["method", "float", *(f"T = {t}" for t in TIMES), "best"], lines),
        "\n".join(filter(None, (_order(comparison, known, t) for t in TIMES))),
    ]
    return "\n\n".join(filter(None, parts))


def _order(comparison: Comparison, known: dict[str, Reported], t: int) -> str:
    """The methods by accuracy at t, here and in the paper, and how many of their pairs stand in the same order."""
    told = [label for label in known if t in known[label].at]
    here = {label: found for label in told if (found := comparison.accuracy(label, t)) is not None}
    paper = {label: known[label].at[t] for label in here}
    pairs = list(combinations(here, 2))
    if not pairs:
        return ""
    same = sum((here[a] - here[b]) * (paper[a] - paper[b]) > 0 for a, b in pairs)
    ranked = [", ".join(sorted(figures, key=figures.__getitem__, reverse=True)) for figures in (here, paper)]
    return f"- T = {t}, best first: here {ranked[0]}; the paper {ranked[1]}; {same} of {len(pairs)} pairs agree."


def pipe_table(header: list[str], lines: list[list[str]]) -> str:
    """A Markdown table, the first column to the left, figures to the right, columns padded to equal width."""
    columns = list(zip(header, *lines, strict=True))
    widths = [max(3, *map(len, column)) for column in columns]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    padded = []
    for line in (header, rule, *lines):
        first, *others = zip(line, widths, strict=True)
        padded.append([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)])
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)
