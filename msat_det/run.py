"""One experiment: a float network, its conversions, the evaluated images → a run directory (DESIGN §1, §9)."""

import sys
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from msat_det.config import Config
from msat_det.convert.conversion import spiking_network
from msat_det.convert.coverage import coverage
from msat_det.convert.methods import find_method, parse_options
from msat_det.convert.observe import Cached, Observation, observe
from msat_det.data import Dataset, Sample, build_dataset, select, subset
from msat_det.errors import InputError
from msat_det.evaluate import make_evaluator
from msat_det.files import CorruptImage
from msat_det.report import CurveRow, RunDirectory, commit_id
from msat_det.simulate import SpikingNetwork

Task = Literal["detection", "classification"]


@dataclass
class Conversion:
    """One network to simulate: a label's, or for a method that needs T its version for one timestep."""

    label: str
    snn: SpikingNetwork
    record: list[int]


@dataclass
class Costs:
    """Sums over images of spikes per neuron, synaptic operations per multiply-add and energy ratio."""

    sums: Tensor = field(default_factory=lambda: torch.zeros(3, dtype=torch.float64))

    def add(self, counts: Any) -> None:
        ratios = (counts.spikes / counts.neurons, counts.sops / counts.macs, counts.energy / counts.float_energy)
        self.sums += torch.stack([ratio.sum() for ratio in ratios])


def run(config: Config, task: Task = "detection") -> list[CurveRow]:
    """Run an experiment and leave its files in ``config.out``. Returns the rows of the curve, the float row first.

    Raises InputError for bad input of any kind; what was computed before lies in the run directory.
    """
    directory = RunDirectory(config.out)
    directory.write_config(config.to_yaml())
    torch.set_num_threads(config.threads or torch.get_num_threads())
    torch.manual_seed(config.seed)
    for entry in config.methods:  # options are checked before anything long begins
        parse_options(entry["method"], method_options(entry))

    model = build_model(config, task)
    dataset = subset(
        build_dataset(config.data.kind, config.data.root, config.data.split, config.data.year),
        config.data.limit,
        config.seed,
    )
    make_evaluator(dataset, model.classes)  # classes that do not fit are told now, not after the simulation
    observation = observe(model.net, calibration_batches(config, model), progress=True)
    conversions = list(convert_all(config, observation))
    directory.write_coverage(coverage(observation, {c.label: c.snn for c in conversions}))

    results, costs, corrupt = evaluate_images(config, model, dataset, observation, conversions)
    good = select(dataset, [id for id in dataset.ids if id in results["float", None]])
    rows = score(good, model.classes, conversions, results, costs)
    directory.write_curve(rows)
    facts = {
        "images": len(good),
        "corrupt_images": corrupt,
        "seed": config.seed,
        "analog_mac_share": observation.fanout.analog_share,
        "commit": commit_id(),
    }
    # options of a method (analog, spiking_linear) may change its own share
    own = {c.label: c.snn.fanout.analog_share for c in conversions if c.snn.graph is not observation.graph}
    directory.write_summary(rows, **facts, **({"analog_mac_share_of": own} if own else {}))
    directory.write_scalars(rows)
    title = f"{config.model.name}, {len(good)} images of {config.data.kind}"
    directory.write_plot(rows, title)
    if task == "detection":
        draw(directory, config, good, model, rows, results)
    tell(directory, rows)
    return rows


def method_options(entry: dict) -> dict:
    """An entry of ``config.methods`` without what is not the method's own."""
    return {key: value for key, value in entry.items() if key not in ("label", "method", "record")}


def build_model(config: Config, task: Task) -> Any:
    """The network with its preprocessing and decoding."""
    if task == "detection":
        from msat_det.detectors import build_detector

        return build_detector(config.model)
    from msat_det.classifiers import build_classifier

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
    count = -(-len(dataset) // config.batch)

    def make(index: int) -> Tensor:
        first = index * config.batch
        images = [dataset[i].image for i in range(first, min(first + config.batch, len(dataset)))]
        return torch.stack([model.preprocess(image)[0] for image in images])

    return Cached(count, make)


def convert_all(config: Config, observation: Observation) -> Iterator[Conversion]:
    """Every method of the configuration, those that need T once for each recorded t."""
    for entry in tqdm(config.methods, "converting", unit="method", leave=False):
        record = config.record_of(entry)
        if not record:
            print(f"{entry['label']}: none of its timesteps is in sim.record, left out", file=sys.stderr)
            continue
        name, options = entry["method"], method_options(entry)
        for times in [[t] for t in record] if find_method(name).needs_t else [record]:
            snn = spiking_network(name, options, observation, times[-1], config.seed, config.sim.chunk)
            yield Conversion(entry["label"], snn, times)


@dataclass
class Loaded:
    """A batch of images ready for the network. corrupt: the messages of those that could not be read."""

    ids: list
    inputs: Tensor | None
    metas: list
    corrupt: list[str]


def load_batches(config: Config, model: Any, dataset: Dataset) -> Iterator[Loaded]:
    """The dataset in batches, the next one read while this one is simulated."""

    def load(first: int) -> Loaded:
        samples, corrupt = [], []
        for i in range(first, min(first + config.batch, len(dataset))):
            try:
                samples.append(dataset[i])
            except CorruptImage as error:
                if config.strict:
                    raise
                corrupt.append(str(error))
        made = [model.preprocess(sample.image) for sample in samples]
        inputs = torch.stack([image for image, _ in made]) if made else None
        return Loaded([s.id for s in samples], inputs, [meta for _, meta in made], corrupt)

    starts = range(0, len(dataset), config.batch)
    with ThreadPoolExecutor(1) as reader:
        following = reader.submit(load, starts[0])
        for first in [*starts[1:], None]:
            loaded = following.result()
            if first is not None:
                following = reader.submit(load, first)
            yield loaded


def evaluate_images(
    config: Config, model: Any, dataset: Dataset, observation: Observation, conversions: list[Conversion]
) -> tuple[dict, dict, list[str]]:
    """Float pass and all simulations over the images.

    Returns {(label, t): {image id: what was decoded}} with ("float", None) for the float network, {(label, t): Costs},
    and the messages of corrupt images.
    """
    results: dict[tuple[str, int | None], dict] = defaultdict(dict)
    costs: dict[tuple[str, int], Costs] = defaultdict(Costs)
    corrupt: list[str] = []
    bar = tqdm(total=len(dataset), desc="simulating", unit="image")
    with bar, torch.inference_mode():
        for batch in load_batches(config, model, dataset):
            for message in batch.corrupt:
                bar.write(f"skipped: {message}", file=sys.stderr)
            corrupt += batch.corrupt
            if batch.inputs is not None:
                keep(results["float", None], batch, model.decode(observation.graph(batch.inputs), batch.metas))
                for conversion in conversions:
                    bar.set_postfix_str(conversion.label)
                    outputs = conversion.snn.run(batch.inputs, conversion.record[-1], conversion.record, batch.ids)
                    for t, output in outputs.items():
                        keep(results[conversion.label, t], batch, model.decode(output, batch.metas))
                        costs[conversion.label, t].add(conversion.snn.counts[t])
            bar.update(len(batch.ids) + len(batch.corrupt))
        bar.set_postfix_str("")
    if not results["float", None]:
        raise InputError(f"none of the {len(dataset)} images could be read; the first: {corrupt[0]}")
    return results, costs, corrupt


def keep(results: dict, batch: Loaded, decoded: list) -> None:
    results.update(zip(batch.ids, decoded, strict=True))


def score(
    dataset: Dataset, classes: list[str], conversions: list[Conversion], results: dict, costs: dict
) -> list[CurveRow]:
    """The accuracy of every (method, t), methods in the configuration's order."""
    evaluator = make_evaluator(dataset, classes)
    rows = [CurveRow("float", None, evaluator(results["float", None]))]
    pairs = [(c.label, t) for c in conversions for t in c.record]
    for label, t in tqdm(pairs, "scoring", unit="curve point", leave=False):
        spikes, sops, energy = (costs[label, t].sums / len(dataset)).tolist()
        rows.append(CurveRow(label, t, evaluator(results[label, t]), spikes, sops, energy))
    return rows


def draw(
    directory: RunDirectory, config: Config, dataset: Dataset, model: Any, rows: list[CurveRow], results: dict
) -> None:
    """Pictures of the first images: ground truth, float and the drawn method at its drawn timesteps."""
    last = {row.method: row for row in rows[1:]}
    if not last or not config.draw.images:
        return
    entries = {entry["label"]: entry for entry in config.methods}
    # a curve shows more than a single point: the best of the methods with the most drawn timesteps
    label = config.draw.method or max(
        last, key=lambda name: (len(config.drawn_times(entries[name])), last[name].metrics["map"])
    )
    entry = entries[label]
    for i in range(min(config.draw.images, len(dataset))):
        sample: Sample = dataset[i]
        columns = {"float": results["float", None][sample.id]}
        for t in config.drawn_times(entry):
            columns[f"{label}, t = {t}"] = results[label, t][sample.id]
        directory.write_detections(sample, dataset.classes, columns, model.classes, f"image {sample.id}")


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
