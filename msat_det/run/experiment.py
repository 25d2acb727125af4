"""One experiment: a float network, its conversions, the evaluated images → a run directory (DESIGN §1, §9)."""

import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from msat_det.base import ranks
from msat_det.base.config import Config, method_options
from msat_det.base.errors import InputError
from msat_det.data import Dataset, Sample, build_dataset, select, subset
from msat_det.data.augment import augmented
from msat_det.data.corrupt import corrupted
from msat_det.measure.accuracy import AgreementEvaluator, VocEvaluator, has_boxes, make_evaluator
from msat_det.measure.coverage import coverage
from msat_det.measure.differences import difference_rows, difference_table, require_bootstrap
from msat_det.measure.examination import examine
from msat_det.measure.exits import exit_rows, exit_table
from msat_det.measure.parts import Parts
from msat_det.measure.rows import CurveRow, read_summary
from msat_det.methods import find_method, parse_options
from msat_det.methods.convert import Conversion, spiking_network
from msat_det.methods.layerwise import LayerByLayer
from msat_det.methods.observe import Cached, Observation, observe
from msat_det.report.curves import draw_exits
from msat_det.report.directory import RunDirectory
from msat_det.report.drawn import write_about
from msat_det.report.page.page import write_report
from msat_det.report.tensorboard import (
    add_boxes,
    add_curves,
    add_histograms,
    add_hyperparameters,
    add_precision_recall,
    add_truth,
    events,
)
from msat_det.run.batches import simulate
from msat_det.run.examine import write_examinations
from msat_det.run.resume import begin, finish, is_finished, owned
from msat_det.spiking.energy import prices
from msat_det.spiking.formats.plan import save_plan

Task = Literal["detection", "classification"]


def run(config: Config, task: Task = "detection") -> list[CurveRow]:
    """Run an experiment and leave its files in ``config.out``. Returns the rows of the curve, the float row first.

    Under torchrun the ranks share the batches; the rows come from rank 0, the others return none.
    Raises InputError for bad input of any kind; what was computed before lies in the run directory, and
    ``config.resume`` goes on with it.
    """
    torch.set_num_threads(config.threads or torch.get_num_threads())
    torch.manual_seed(config.seed)
    config = replace(config, threads=torch.get_num_threads())  # the last bits may depend on them
    prices(config.energy)
    for entry in config.methods:  # options are checked before anything long begins
        parse_options(entry["method"], method_options(entry))
        if entry["label"] in config.exit.methods:
            require_one_network(config, entry)

    ranks.join()
    directory = RunDirectory(config.out)
    with owned(directory):
        if ranks.from_first(lambda: is_finished(directory, config)):
            rows, _ = read_summary(directory.path)
        else:
            rows = compute(config, task, directory)
        ranks.wait()
    if rows and ranks.rank() == 0:
        tell(directory, rows)
    return rows


def compute(config: Config, task: Task, directory: RunDirectory) -> list[CurveRow]:
    """Convert, simulate and write everything that the directory does not hold yet."""
    model = build_model(config, task)
    dataset = subset(
        build_dataset(config.data.kind, config.data.root, config.data.split, config.data.year),
        config.data.limit,
        config.seed,
    )
    dataset = corrupted(dataset, config.data.corrupt, config.seed)
    # classes that do not fit are told now, not after the simulation
    require_bootstrap(config, make_evaluator(dataset, model.classes))
    calibration = calibration_batches(config, model)
    observation = observe(model.net, calibration, ranks.rank() == 0, ranks.share(range(len(calibration))))
    sites = observation.sites.values()
    ranks.add_up([site.histogram for site in sites], [site.maximum for site in sites])
    conversions = list(convert_all(config, observation))

    batches = [dataset.ids[i : i + config.batch] for i in range(0, len(dataset), config.batch)]
    begun = ranks.from_first(lambda: begin(directory, config, observation, dataset, len(batches)))
    if ranks.rank() == 0:
        directory.write_coverage(coverage(observation, {c.label: c.snn for c in conversions}))
        keep_plans(directory, config, conversions)
    parts = Parts(directory.parts, batches, len(model.classes))
    simulate(config, model, dataset, batches, ranks.share(begun.todo), observation, conversions, parts)
    if ranks.rank() > 0:
        return []

    ids, corrupt = parts.ids(), parts.corrupt()
    if not ids:
        finish(directory)  # nothing to go on with
        raise InputError(f"none of the {len(dataset)} images could be read; the first: {corrupt[0]}")
    good = select(dataset, ids)
    rows = score(good, model.classes, conversions, parts)
    directory.write_curve(rows)
    directory.write_plot(rows, f"{config.model.name}, {len(good)} images of {config.data.kind}")
    with events(directory.path) as board:
        add_curves(board, rows)
        add_hyperparameters(board, config, rows)
        for label, (snn, t) in {c.label: (c.snn, c.record[-1]) for c in conversions}.items():
            add_histograms(board, label, snn, observation.first(1), t)
        if task == "detection":
            show(directory, board, config, good, model, rows, parts)
    write_about(directory, config, good, model.classes, parts, rows, drawn_method(config, rows))
    if config.ledger.images:
        write_examinations(directory, examine(config, observation, conversions, config.ledger.images))
    facts = {
        "images": len(good),
        "corrupt_images": corrupt,
        "seed": config.seed,
        "analog_mac_share": observation.fanout.analog_share,
        "energy": asdict(prices(config.energy)),
        "commit": begun.commit,
    }
    # options of a method (analog, spiking_linear) may change its own share
    own = {c.label: c.snn.fanout.analog_share for c in conversions if c.snn.graph is not observation.graph}
    if own:
        facts["analog_mac_share_of"] = own
    if config.exit.methods:
        stopped = exit_rows(config, conversions, observation, parts, make_evaluator(good, model.classes))
        directory.write_exits(exit_table(stopped), draw_exits(stopped, rows, config.model.name))
        facts["exit"] = {row.method: row.figures() for row in stopped if row.fitted}
    if config.bootstrap.against:
        apart = difference_rows(config, conversions, parts, good, model.classes)
        directory.write_differences(difference_table(apart))
        facts["differences"] = [asdict(row) for row in apart]
    directory.write_summary(rows, **facts)
    write_report([directory.path])
    finish(directory)
    return rows


def build_model(config: Config, task: Task) -> Any:
    """The network with its preprocessing and decoding."""
    if task == "detection":
        from msat_det.models import build_detector

        return build_detector(config.model)
    from msat_det.models.classifiers import build_classifier

    return build_classifier(config.model)


def calibration_batches(config: Config, model: Any) -> Cached:
    """The calibration images, preprocessed, in batches; an unreadable one is an error: it would shift thresholds."""
    calib = config.calib
    dataset = subset(
        build_dataset(calib.kind, calib.root, calib.split, config.data.year, option="--calib.root"),
        calib.limit,
        config.seed,
        calib.skip,
    )
    dataset = augmented(dataset, calib.augment, config.seed)
    count = -(-len(dataset) // config.batch)

    def make(index: int) -> Tensor:
        first = index * config.batch
        images = [dataset.image(id) for id in dataset.ids[first : first + config.batch]]
        return torch.stack([model.preprocess(image)[0] for image in images])

    return Cached(count, make)


def convert_all(config: Config, observation: Observation) -> Iterator[Conversion]:
    """Every method of the configuration, those that need T once for each recorded t."""
    quiet = ranks.rank() > 0
    for entry in tqdm(config.methods, "converting", unit="method", leave=False, disable=quiet):
        record = config.record_of(entry)
        if not record:
            if not quiet:
                print(f"{entry['label']}: none of its timesteps is in sim.record, left out", file=sys.stderr)
            continue
        name, options = entry["method"], method_options(entry)
        for times in [[t] for t in record] if find_method(name).needs_t else [record]:
            snn = spiking_network(name, options, observation, times[-1], config.seed, config.sim.chunk)
            snn.energy = config.energy
            yield Conversion(entry["label"], snn, times)


def require_one_network(config: Config, entry: dict) -> None:
    """Raise InputError for a method whose images can't stop at one of several t."""
    if find_method(entry["method"]).needs_t:
        raise InputError(f"exit.methods names {entry['label']}, which is another network for each t: give other labels")
    if len(config.record_of(entry)) < 2:
        raise InputError(f"exit.methods names {entry['label']}, which is read at one timestep: record more")


def keep_plans(directory: RunDirectory, config: Config, conversions: list[Conversion]) -> None:
    """The neurons of methods that took a search, so that they can be looked at and used again."""
    entries = {entry["label"]: entry for entry in config.methods}
    for conversion in conversions:
        entry, t, snn = entries[conversion.label], conversion.record[-1], conversion.snn
        if issubclass(find_method(entry["method"]).options, LayerByLayer):
            notes = {"method": entry["method"], "options": method_options(entry), "t": t}
            save_plan(directory.plan(conversion.label, t), snn.neurons, snn.graph, **notes)


def score(dataset: Dataset, classes: list[str], conversions: list[Conversion], parts: Parts) -> list[CurveRow]:
    """The accuracy of every (method, t), methods in the configuration's order; of a detector's also the agreement."""
    evaluator, level = make_evaluator(dataset, classes), parts.found("float", None)
    agreement = AgreementEvaluator(level, classes) if has_boxes(level) else None
    rows = [CurveRow("float", None, evaluator(level))]
    pairs = [(c.label, t) for c in conversions for t in c.record]
    for label, t in tqdm(pairs, "scoring", unit="curve point", leave=False):
        spikes, sops, energy = (parts.costs(label, t) / len(dataset)).tolist()
        found = parts.found(label, t)
        metrics = evaluator(found) | ({"agreement": agreement(found)} if agreement else {})
        rows.append(CurveRow(label, t, metrics, spikes, sops, energy))
    return rows


def show(
    directory: RunDirectory,
    board: Any,
    config: Config,
    dataset: Dataset,
    model: Any,
    rows: list[CurveRow],
    parts: Parts,
) -> None:
    """What a detector finds: precision over recall of every method, and boxes on the first images.

    The pictures hold ground truth, float and the drawn method at its drawn timesteps.
    """
    last = {row.method: row for row in rows}
    judge = VocEvaluator(dataset, model.classes)
    for row in last.values():
        add_precision_recall(board, row.method, *judge.judged(parts.found(row.method, row.t)), row.t)
    label = drawn_method(config, rows)
    if not label or not config.draw.images:
        return
    times = next(config.drawn_times(entry) for entry in config.methods if entry["label"] == label)
    level, found = parts.found("float", None), {t: parts.found(label, t) for t in times}
    for i in range(min(config.draw.images, len(dataset))):
        sample: Sample = dataset[i]
        columns = {"float": level[sample.id]} | {f"{label}, t = {t}": found[t][sample.id] for t in found}
        directory.write_detections(sample, dataset.classes, columns, model.classes, f"image {sample.id}")
        add_truth(board, sample, dataset.classes)
        add_boxes(board, "float", sample, level[sample.id], model.classes)
        for t in found:
            add_boxes(board, label, sample, found[t][sample.id], model.classes, t)


def drawn_method(config: Config, rows: list[CurveRow]) -> str | None:
    """The label of the method that pictures show: a curve shows more than a single point, so by default the best of the
    methods with the most drawn timesteps. None where no method was run."""
    last = {row.method: next(iter(row.accuracies.values())) for row in rows[1:]}
    count = {entry["label"]: len(config.drawn_times(entry)) for entry in config.methods}
    if config.draw.method in last:
        return config.draw.method
    return max(last, key=lambda label: (count[label], last[label]), default=None)


def tell(directory: RunDirectory, rows: list[CurveRow]) -> None:
    """A short table on the terminal, and where the files are."""
    names = list(rows[0].accuracies)
    width = max(len(row.method) for row in rows)
    print(f"{'method':{width}}    t " + " ".join(f"{n:>7}" for n in names) + "  spikes/neuron  SOPs/MAC  energy ratio")
    for row in rows:
        accuracies = " ".join(f"{row.accuracies[name]:7.1f}" for name in names)
        spikes = "" if row.spikes_per_neuron is None else f"{row.spikes_per_neuron:.2f}"
        t = "" if row.t is None else row.t
        print(
            f"{row.method:{width}} {t:>4} {accuracies}  {spikes:>13}  {row.sops_per_mac:8.2f}  {row.energy_ratio:12.2f}"
        )
    print(f"all files are in {directory.path}")
