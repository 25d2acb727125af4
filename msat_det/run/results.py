"""What a run writes once all images are simulated: curve, pictures, TensorBoard, page, summary."""

import sys
from dataclasses import asdict, dataclass
from typing import Any

from msat_det.base.config import Config, method_options
from msat_det.data import Dataset, Sample
from msat_det.measure.accuracy import VocEvaluator, make_evaluator
from msat_det.measure.batch_files import Parts
from msat_det.measure.differences import difference_rows, difference_table
from msat_det.measure.effects import residuals
from msat_det.measure.examination import examine
from msat_det.measure.exits import exit_rows, exit_table
from msat_det.measure.lost import lost_notes
from msat_det.measure.rows import CurveRow, cautions, read_summary
from msat_det.methods import METHODS
from msat_det.methods.convert import Conversion
from msat_det.methods.layerwise import LayerByLayer
from msat_det.methods.observe import Observation
from msat_det.report.curves import draw_curve, draw_exits
from msat_det.report.directory import RunDirectory
from msat_det.report.examinations import write_examinations
from msat_det.report.example_boxes import write_about
from msat_det.report.page.page import write_report
from msat_det.report.tensorboard import (
    add_boxes,
    add_curves,
    add_histograms,
    add_methods,
    add_precision_recall,
    add_truth,
    events,
)
from msat_det.run.resume import Begun
from msat_det.spiking.energy import prices
from msat_det.spiking.formats.plan import save_plan


def keep_plans(directory: RunDirectory, config: Config, converted: list[Conversion]) -> None:
    """The neurons of methods that took a search, so that they can be looked at and used again."""
    entries = {entry["label"]: entry for entry in config.methods}
    for conversion in converted:
        entry, t, snn = entries[conversion.label], conversion.record[-1], conversion.snn
        if issubclass(METHODS.find(entry["method"]).options, LayerByLayer):
            notes = {"method": entry["method"], "options": method_options(entry), "t": t}
            save_plan(directory.plan(conversion.label, t), snn.neurons, snn.graph, **notes)


@dataclass(frozen=True)
class Outcome:
    """An experiment whose images are simulated and scored.

    dataset: the images that could be read. rows: of the curve, the float row first. seen: how many of the images are
    calibration images, too. begun: what it was made by and of.
    """

    config: Config
    model: Any
    dataset: Dataset
    observation: Observation
    conversions: list[Conversion]
    parts: Parts
    rows: list[CurveRow]
    seen: int
    begun: Begun

    @property
    def drawn(self) -> str | None:
        """The label of the method that pictures show: a curve shows more than a single point, so by default the best of
        the methods with the most drawn timesteps. None where no method was run."""
        config = self.config
        last = {row.method: row.metrics[row.metric] for row in self.rows[1:]}
        count = {entry["label"]: len(config.drawn_times(entry)) for entry in config.methods}
        if config.draw.method in last:
            return config.draw.method
        return max(last, key=lambda label: (count[label], last[label]), default=None)


def write_results(directory: RunDirectory, outcome: Outcome) -> None:
    """All files of the run directory that an outcome leads to; report.html, made of the others, last."""
    config, rows, model = outcome.config, outcome.rows, outcome.model
    directory.write_curve(rows)
    title = f"{config.model.name}, {len(outcome.dataset)} images of {config.data.kind}"
    directory.save("curve.png", draw_curve(rows, title))
    write_board(directory, outcome)
    versions = {name: version for name, version in outcome.begun.made_by.items() if name != "commit"}
    write_about(directory, config, outcome.dataset, model.classes, outcome.parts, rows, outcome.drawn, versions)
    if config.ledger.images:
        found = examine(config, outcome.observation, outcome.conversions, config.ledger.images)
        write_examinations(directory, found)
    facts = facts_of(outcome) | write_exits(directory, outcome) | write_differences(directory, outcome)
    directory.write_summary(rows, **facts)
    write_report([directory.path])


def facts_of(outcome: Outcome) -> dict[str, Any]:
    """What summary.json holds beside the rows."""
    observation = outcome.observation
    facts = {
        "images": len(outcome.dataset),
        "corrupt_images": outcome.parts.corrupt(),
        "misfit_images": outcome.parts.misfit(),
        "seen_in_calibration": outcome.seen,
        "seed": outcome.config.seed,
        "analog_mac_share": observation.fanout.analog_share,
        "energy": asdict(prices(outcome.config.energy)),
        "commit": outcome.begun.made_by["commit"],
        "files": outcome.begun.files,
    }
    # options of a method (analog, spiking_linear) may change its own share
    changed = [c for c in outcome.conversions if c.snn.graph is not observation.graph]
    own = {c.label: c.snn.fanout.analog_share for c in changed}
    return facts | ({"analog_mac_share_of": own} if own else {})


def write_exits(directory: RunDirectory, outcome: Outcome) -> dict[str, Any]:
    """exit.csv and exit.png where the configuration asks for them; the fitted rules' figures for summary.json."""
    config = outcome.config
    if not config.exit.methods:
        return {}
    evaluator = make_evaluator(outcome.dataset, outcome.model.classes)
    rows = exit_rows(config, outcome.conversions, outcome.observation, outcome.parts, evaluator)
    directory.write("exit.csv", exit_table(rows))
    directory.save("exit.png", draw_exits(rows, outcome.rows, config.model.name))
    return {"exit": {row.method: row.figures() for row in rows if row.fitted}}


def write_differences(directory: RunDirectory, outcome: Outcome) -> dict[str, Any]:
    """differences.csv where the configuration asks for it; the same for summary.json."""
    if not outcome.config.bootstrap.against:
        return {}
    rows = difference_rows(outcome.config, outcome.conversions, outcome.parts, outcome.dataset, outcome.model.classes)
    directory.write("differences.csv", difference_table(rows))
    return {"differences": [asdict(row) for row in rows]}


def write_board(directory: RunDirectory, outcome: Outcome) -> None:
    """TensorBoard's events; of a detector also detections/, the same boxes as pictures."""
    with events(directory.path) as board:
        add_curves(board, outcome.rows)
        add_methods(board, outcome.config, outcome.rows)
        for label, (snn, t) in {c.label: (c.snn, c.record[-1]) for c in outcome.conversions}.items():
            thresholds = {site: neuron.theta for site, neuron in snn.neurons.items()}
            add_histograms(board, label, thresholds, residuals(snn, outcome.observation.first(1), t))
        if "map" in outcome.rows[0].metrics:
            show_precision(board, outcome)
            show_boxes(directory, board, outcome)


def show_precision(board: Any, outcome: Outcome) -> None:
    """Precision over recall of every method at its last t."""
    judge = VocEvaluator(outcome.dataset, outcome.model.classes)
    for row in {row.method: row for row in outcome.rows}.values():
        add_precision_recall(board, row.method, *judge.judged(outcome.parts.found(row.method, row.t)), row.t)


def show_boxes(directory: RunDirectory, board: Any, outcome: Outcome) -> None:
    """Ground truth, float and the drawn method at its drawn timesteps on the first images."""
    config, dataset, parts, label = outcome.config, outcome.dataset, outcome.parts, outcome.drawn
    if not label or not config.draw.images:
        return
    names = outcome.model.classes
    times = next(config.drawn_times(entry) for entry in config.methods if entry["label"] == label)
    level, found = parts.found("float", None), {t: parts.found(label, t) for t in times}
    for i in range(min(config.draw.images, len(dataset))):
        sample: Sample = dataset[i]
        columns = {"float": level[sample.id]} | {f"{label}, t = {t}": found[t][sample.id] for t in found}
        directory.write_detections(sample, dataset.classes, columns, names, f"image {sample.id}")
        add_truth(board, sample, dataset.classes, names)
        add_boxes(board, "float", sample, level[sample.id], names)
        for t in found:
            add_boxes(board, label, sample, found[t][sample.id], names, t)


def tell(directory: RunDirectory, config: Config, rows: list[CurveRow]) -> None:
    """A short table on the terminal, what it is not about, why a method is at zero, and where the files are."""
    _, facts = read_summary(directory.path)
    names = list(rows[0].accuracies)
    width = max(len(row.method) for row in rows)
    headings = "  spikes/neuron  SOPs/MAC  energy ratio  of int8"
    print(f"{'method':{width}}    t " + " ".join(f"{n:>7}" for n in names) + headings)
    for row in rows:
        accuracies = " ".join(f"{row.accuracies[name]:7.1f}" for name in names)
        spikes = "" if row.spikes_per_neuron is None else f"{row.spikes_per_neuron:.2f}"
        t = "" if row.t is None else row.t
        of_int8 = "" if row.energy_ratio_int8 is None else f"  {row.energy_ratio_int8:7.2f}"
        costs = f"{spikes:>13}  {row.sops_per_mac:8.2f}  {row.energy_ratio:12.2f}{of_int8}"
        print(f"{row.method:{width}} {t:>4} {accuracies}  {costs}")
    for text in cautions(facts):
        print(f"warning: {text}", file=sys.stderr)
    for text in lost_notes(config, rows):
        print(f"note: {text}", file=sys.stderr)
    print(f"all files are in {directory.path}")
