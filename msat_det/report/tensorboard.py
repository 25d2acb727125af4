"""What TensorBoard shows of a run: curves over t, boxes, precision over recall, thresholds, residuals, hyperparameters.

Tags end in a method's label; beside that each method is a run of its own, with tags that have no label. The step is t;
of the histograms it is the number of the call site, so that TensorBoard's stack of histograms goes through the network
from its first layer to its last.
"""

import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from msat_det.base.colours import COLOURS
from msat_det.base.config import Config
from msat_det.base.errors import InputError
from msat_det.data import Sample
from msat_det.measure.ledger import BINS, RESIDUAL
from msat_det.measure.rows import DISPLAY, CurveRow
from msat_det.methods import METHODS
from msat_det.models.detector import Detections
from msat_det.models.drawing import draw_boxes
from msat_det.models.pictures import picture
from msat_det.report.boxes import shown
from msat_det.report.style import class_colours

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter  # takes half a second to import, needed only at a run's end

    from msat_det.measure.examination import Examination

SAMPLE = 20_000  # values of a call site that enter a histogram of residuals
SIDE = 640  # pixels up to which a small image is enlarged
COSTS_SHOWN = ("spikes_per_neuron", "sops_per_mac")
LEVELS = 127  # score thresholds of a precision-recall curve, TensorBoard's own number


@contextmanager
def events(folder: Path) -> "Iterator[SummaryWriter]":
    """A writer whose events take the place of the folder's older ones when all of them are there.

    Raises InputError where the disk does not take them.
    """
    from torch.utils.tensorboard import SummaryWriter

    part = folder / ".events.part"
    shutil.rmtree(part, ignore_errors=True)
    try:
        with _errors_told_once(), SummaryWriter(str(part)) as writer:
            yield writer
    except OSError as error:
        reason = error.strerror or error
        raise InputError(
            f"cannot write TensorBoard's events into {folder}: {reason}; free space or give --out DIR"
        ) from None
    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
    shutil.rmtree(folder / "hparams", ignore_errors=True)
    for new in part.iterdir():
        new.replace(folder / new.name)
    part.rmdir()


@contextmanager
def _errors_told_once() -> Iterator[None]:
    """TensorBoard's writing thread ends in an OSError, which the next call raises again: the first one keeps quiet."""
    before = threading.excepthook
    threading.excepthook = lambda args: None if issubclass(args.exc_type, OSError) else before(args)
    try:
        yield
    finally:
        threading.excepthook = before


def add_curves(writer: "SummaryWriter", rows: list[CurveRow]) -> None:
    """mAP/<label>, mAP50/<label> (or top1, top5) and the costs over t, the float figure as a level line mAP/float.

    CUSTOM SCALARS shows all methods in one chart.
    """
    steps = sorted({row.steps for row in rows[1:]})
    tags = [*(DISPLAY[name] for name in rows[0].accuracies), "energy_ratio", *COSTS_SHOWN, "agreement"]
    writer.add_custom_scalars({"all methods": {tag: ["Multiline", [f"{tag}/.+"]] for tag in tags}})
    for name, level in rows[0].accuracies.items():
        for t in steps:
            writer.add_scalar(f"{DISPLAY[name]}/float", level, t)
    for row in rows[1:]:
        for name, value in _figures(row).items():
            writer.add_scalar(f"{name}/{row.method}", value, row.t)


def add_methods(writer: "SummaryWriter", config: Config, rows: list[CurveRow]) -> None:
    """A run for each method, hparams/<label>, and one for the float network: accuracies, costs and agreement over t
    under the same tags, mAP, energy_ratio …, so that a chart has them all; for HPARAMS the method's options and the
    run's, and what it reaches at its last t."""
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    entries = {entry["label"]: entry for entry in config.methods}
    steps = sorted({row.steps for row in rows[1:]})
    curves = {"float": [replace(rows[0], t=t) for t in steps]}
    for row in rows[1:]:
        curves.setdefault(row.method, []).append(row)
    for label, curve in curves.items():
        with SummaryWriter(f"{writer.log_dir}/hparams/{label}") as own:
            if label in entries:
                given, reached = _session(config, entries[label], curve[-1])
                for summary in hparams(given, reached):
                    own.file_writer.add_summary(summary)
                for name, value in reached.items():
                    own.add_scalar(name, value)
            for row in curve:
                for name, value in _figures(row).items():
                    own.add_scalar(name, value, row.t)


def _figures(row: CurveRow) -> dict[str, float]:
    """What TensorBoard shows of a row: accuracies, costs (a method's), and how far it agrees with the float network."""
    costs = {} if row.method == "float" else {name: getattr(row, name) for name in ("energy_ratio", *COSTS_SHOWN)}
    agreement = {name: row.metrics[name] for name in ("agreement",) if name in row.metrics}
    return {DISPLAY[name]: accuracy for name, accuracy in row.accuracies.items()} | costs | agreement


def _session(config: Config, entry: dict, row: CurveRow) -> tuple[dict[str, Any], dict[str, float]]:
    """A method's options beside the run's, and what it reaches at its last t."""
    run = {"model": config.model.name, "data": config.data.kind, "images": config.data.limit, "seed": config.seed}
    options = dict(METHODS.find(entry["method"]).preset) | entry
    given = {key: value for key, value in (run | options).items() if value is not None} | {"t": row.t}
    plain = {key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in given.items()}
    return plain, {f"last/{name}": float(value) for name, value in _figures(row).items()}


def add_histograms(
    writer: "SummaryWriter", label: str, thresholds: dict[str, Tensor], residuals: dict[str, Tensor]
) -> None:
    """threshold/<label>: θ of every channel. residual/<label>: of every call site what is left of its error, see
    ``measure.effects.residuals``.
    """
    for number, (site, residual) in enumerate(residuals.items()):
        writer.add_histogram(f"threshold/{label}", thresholds[site].flatten(), number)
        error = residual.flatten()
        writer.add_histogram(f"residual/{label}", error[:: max(1, len(error) // SAMPLE)], number)


def add_boxes(
    writer: "SummaryWriter", tag: str, sample: Sample, found: Detections, names: list[str], t: int | None = None
) -> None:
    """boxes <image>/<tag>: the surer boxes on one image, a colour for each class."""
    best = shown(found)
    labels = best.labels.tolist()
    captions = [f"{names[label]} {score:.2f}" for label, score in zip(labels, best.scores.tolist(), strict=True)]
    writer.add_image(f"boxes {sample.id}/{tag}", _picture(sample.image, best.boxes, labels, captions), t)


def add_truth(writer: "SummaryWriter", sample: Sample, classes: list[str], names: Sequence[str] = ()) -> None:
    """boxes <image>/truth: the objects that were to be found, of the dataset's ``classes``, with the colours that the
    detector's ``names`` give them."""
    captions = [classes[label] for label in sample.objects.labels.tolist()]
    numbers = class_colours(names, classes)
    colours = [numbers[caption] for caption in captions]
    writer.add_image(f"boxes {sample.id}/truth", _picture(sample.image, sample.objects.boxes, colours, captions))


def _picture(image: Tensor, boxes: Tensor, colours: list[int], captions: list[str]) -> Tensor:
    """uint8 (3, H, W); a small image is enlarged, so that its captions can be read."""
    factor = max(1, SIDE // max(image.shape[1:]))
    image = image.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    photo = Image.fromarray(image.permute(1, 2, 0).numpy())
    hues = [COLOURS[number % len(COLOURS)] for number in colours]
    return picture(draw_boxes(photo, (boxes * factor).tolist(), captions, hues))


def add_precision_recall(
    writer: "SummaryWriter", label: str, scores: np.ndarray, right: np.ndarray, positives: int, t: int | None
) -> None:
    """precision over recall/<label>. scores, right: (D,) of all classes' detections; positives: objects to be found."""
    levels = np.linspace(0, 1, LEVELS)
    passing = scores[None] >= levels[:, None]
    true, all_passing = (passing & right).sum(1), passing.sum(1)
    precision = np.where(all_passing > 0, true / np.maximum(all_passing, 1), 1.0)
    none = np.zeros(LEVELS)
    writer.add_pr_curve_raw(
        f"precision over recall/{label}", true, all_passing - true, none, positives - true, precision,
        true / positives, t, LEVELS,
    )  # fmt: skip


def add_ledgers(writer: "SummaryWriter", examinations: "list[Examination]", figures: dict[str, Figure]) -> None:
    """What ``msat-det doctor`` finds: error/<label> of the outputs over t; own_error, sin_ratio and spikes_by_depth of
    every call site at the last t, and its histogram of residual potentials in thresholds, the step its number; and the
    pictures.
    """
    edges = np.linspace(-RESIDUAL, RESIDUAL, BINS + 1)
    centres = (edges[1:] + edges[:-1]) / 2
    for one in examinations:
        for t, error in one.outputs.items():
            writer.add_scalar(f"error/{one.label}", error, t)
        for number, entry in enumerate(one.at(one.t)):
            writer.add_scalar(f"own_error/{one.label}", entry.own_norm, number)
            writer.add_scalar(f"sin_ratio/{one.label}", entry.sin_ratio, number)
            writer.add_scalar(f"spikes_by_depth/{one.label}", entry.spikes_per_neuron, number)
        for number, shares in enumerate(one.residuals.values()):
            share = shares.numpy()
            sums = {"sum": float(share @ centres), "sum_squares": float(share @ centres**2), "num": 1}
            limits, counts = edges[1:].tolist(), share.tolist()
            writer.add_histogram_raw(
                f"potential/{one.label}", -RESIDUAL, RESIDUAL, **sums, bucket_limits=limits, bucket_counts=counts,
                global_step=number,
            )  # fmt: skip
    for name, figure in figures.items():
        writer.add_figure(f"doctor/{name}", figure)
