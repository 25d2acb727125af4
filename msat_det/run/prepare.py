"""What every command does first: check the settings, build the network, observe calibration images, convert."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from msat_det.base import ranks
from msat_det.base.config import Config, Data, Draw, method_options
from msat_det.base.device import find_device
from msat_det.base.errors import InputError
from msat_det.base.progress import Progress
from msat_det.data import DATASETS, Dataset, build_dataset, corrupt, select, subset
from msat_det.data.augment import augmented
from msat_det.data.overlap import overlap
from msat_det.graph.inputs import Cached
from msat_det.methods import METHODS, parse_options
from msat_det.methods.convert import Conversion, spiking_network
from msat_det.methods.notes import tell
from msat_det.methods.observe import Observation, observe
from msat_det.models import DETECTORS, build_detector
from msat_det.models.classifiers import build_classifier
from msat_det.spiking.energy import prices

Task = Literal["detection", "classification"]


def settle(config: Config) -> Config:
    """The configuration with its number of threads and its device, on which last bits may depend; PyTorch set to the
    threads and to the seed. A batch is free on a GPU only, see ``batches.batch_size``.

    Raises InputError for a device, options, prices and kinds of data that can't be used, before anything long begins.
    """
    torch.set_num_threads(config.threads or torch.get_num_threads())
    torch.manual_seed(config.seed)
    device = str(find_device(config.device))
    prices(config.energy)
    for kind in (config.data.kind, config.calib.kind):
        DATASETS.find(kind)
    if config.data.year != Data.year and "voc" not in (config.data.kind, config.calib.kind):
        raise InputError(
            f"data.year is {config.data.year}, which is for kind voc, not {config.data.kind}: leave it out"
        )
    if task_of(config) == "classification" and (config.draw.t or config.draw.images not in (0, Draw.images)):
        key = "t" if config.draw.t else "images"
        raise InputError(f"draw.{key} is {getattr(config.draw, key)}, and a classifier has no boxes: leave it out")
    if config.data.corrupt:
        corrupt.parse(config.data.corrupt)
    for entry in config.methods:
        parse_options(entry["method"], method_options(entry))
        if entry["label"] in config.exit.methods:
            _require_one_network(config, entry)
    free_batch = config.free_batch and device.startswith("cuda")
    return replace(config, threads=torch.get_num_threads(), device=device, free_batch=free_batch)


def _require_one_network(config: Config, entry: dict) -> None:
    """Raise InputError for a method whose images can't stop at one of several t."""
    if METHODS.find(entry["method"]).needs_t:
        raise InputError(f"exit.methods names {entry['label']}, which is another network for each t: give other labels")
    if len(config.record_of(entry)) < 2:
        raise InputError(f"exit.methods names {entry['label']}, which is read at one timestep: record more")


def task_of(config: Config) -> Task:
    """What the evaluated data are annotated with, boxes or classes; of plain images what the network is for."""
    if config.data.kind == "images":
        model = config.model
        return "detection" if model.name in DETECTORS or model.head or model.cfg else "classification"
    return "detection" if config.data.kind in ("voc", "coco", "yolo") else "classification"


def build_model(config: Config, task: Task) -> Any:
    """The network, on its device, with its preprocessing and decoding."""
    model = build_detector(config.model) if task == "detection" else build_classifier(config.model)
    model.net.to("cpu" if config.device == "auto" else config.device)
    return model


def annotated_images(config: Config, classes: list[str]) -> Dataset:
    """All images of the data set that ``config.data`` names. classes: what the network tells apart."""
    data = config.data
    places: dict[str, Any] = {"annotations": data.annotations, "images": data.images}
    return build_dataset(data.kind, data.root, data.split, data.year, classes=classes, **places)


def evaluated_images(config: Config, dataset: Dataset, calibration: Dataset) -> Dataset:
    """Those of a data set that ``config.data`` asks for, corrupted where it says so."""
    data = config.data
    if data.held_out:
        seen = set(overlap(dataset, calibration))
        if len(seen) == len(dataset):
            raise InputError(
                f"data.held_out: all {len(seen)} images are calibration images: give others with calib.root"
            )
        dataset = select(dataset, [id for id in dataset.ids if id not in seen])
    return corrupt.corrupted(subset(dataset, data.limit, config.seed), data.corrupt, config.seed)


def calibration_images(config: Config) -> Dataset:
    """The images that ``config.calib`` names."""
    calib = config.calib
    places: dict[str, Any] = {"annotations": calib.annotations, "images": calib.images}
    dataset = build_dataset(calib.kind, calib.root, calib.split, config.data.year, option="--calib.root", **places)
    return subset(dataset, calib.limit, config.seed, calib.skip)


def calibration_batches(config: Config, model: Any, images: Dataset) -> Cached:
    """The calibration images, preprocessed, in batches; an unreadable one is an error: it would shift thresholds."""
    dataset = augmented(images, config.calib.augment, config.seed)

    def make(index: int) -> Tensor:
        ids = dataset.ids[index * config.batch : (index + 1) * config.batch]
        return torch.stack([model.preprocess(dataset.image(id))[0] for id in ids])

    return Cached(-(-len(dataset) // config.batch), make)


def observed(config: Config, model: Any, calibration: Dataset | None = None) -> Observation:
    """The traced network with its activations on the calibration images, over which the ranks share.

    calibration: of ``calibration_images``, where it is at hand.
    """
    batches = calibration_batches(config, model, calibration_images(config) if calibration is None else calibration)
    observation = observe(model.net, batches, ranks.rank() == 0, ranks.share(range(len(batches))))
    observation.detector = model
    sites = observation.sites.values()
    ranks.add_up([site.histogram for site in sites], [site.maximum for site in sites])
    if ranks.rank() == 0:
        tell(observation)
    return observation


def conversions(config: Config, observation: Observation) -> Iterator[Conversion]:
    """Every method of the configuration, those that need T once for each recorded t."""
    quiet = ranks.rank() > 0
    for entry in Progress(config.methods, "converting", unit="method", leave=False, disable=quiet):
        record = config.record_of(entry)
        if not record:
            if not quiet:
                print(f"{entry['label']}: none of its timesteps is in sim.record, left out", file=sys.stderr)
            continue
        for times in [[t] for t in record] if METHODS.find(entry["method"]).needs_t else [record]:
            yield Conversion(entry["label"], convert(config, entry, observation, times[-1]), times)


def convert(config: Config, entry: dict, observation: Observation, T: int) -> Any:
    """The spiking network of one entry of ``config.methods``, made for timestep T."""
    own = config.seed, config.sim.chunk, config.energy, config.precision
    return spiking_network(entry["method"], method_options(entry), observation, T, *own)
