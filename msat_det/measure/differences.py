"""By how much each method is ahead of one of them at the same t, with the bootstrap's interval over images."""

from dataclasses import asdict, dataclass
from typing import Any

from msat_det.base.config import Config
from msat_det.base.errors import InputError
from msat_det.base.files import csv_text
from msat_det.base.progress import Progress
from msat_det.data import Dataset
from msat_det.measure.accuracy import AgreementEvaluator, Resampling, TopKEvaluator, has_boxes, make_evaluator
from msat_det.measure.batch_files import Parts
from msat_det.methods.convert import Conversion


@dataclass(frozen=True)
class DifferenceRow:
    """A method's accuracy after t timesteps minus that of ``against``, in points of percent, and its interval.

    metric: map, top1, or a detector's agreement with the float network.
    """

    method: str
    against: str
    t: int
    metric: str
    difference: float
    low: float
    high: float


def require_bootstrap(config: Config, evaluator: Any) -> None:
    """Raise InputError, before anything is simulated, where the intervals that are asked for cannot be had."""
    if config.bootstrap.against and not hasattr(evaluator, "difference"):
        raise InputError(f"bootstrap.against: data of kind {config.data.kind} have no intervals: leave it out")
    if config.bootstrap.against and getattr(evaluator, "engine", None) == "pycocotools":
        raise InputError("bootstrap.against takes hotcoco for COCO's mAP: pip install 'msat-det[fast]'")


def difference_rows(
    config: Config, conversions: list[Conversion], parts: Parts, dataset: Dataset, classes: list[str]
) -> list[DifferenceRow]:
    """Every method beside ``config.bootstrap.against`` at each t that both record, in the configuration's order."""
    settings, level = config.bootstrap, parts.found("float", None)
    against = settings.against or ""
    resampling = Resampling(settings.draws, settings.confidence, config.seed)
    main = make_evaluator(dataset, classes)
    evaluators: dict[str, Any] = {"top1" if isinstance(main, TopKEvaluator) else "map": main}
    if has_boxes(level):
        agreement = AgreementEvaluator(level, classes)
        if agreement.engine == "hotcoco":
            evaluators["agreement"] = agreement
    held = {t for c in conversions if c.label == against for t in c.record}
    pairs = [(c.label, t) for c in conversions if c.label != against for t in c.record if t in held]
    rows = []
    for label, t in Progress(pairs, "bootstrap", unit="difference", leave=False):
        ours, theirs = parts.found(label, t), parts.found(against, t)
        for metric, evaluator in evaluators.items():
            found = evaluator.difference(ours, theirs, resampling)
            rows.append(DifferenceRow(label, against, t, metric, found.value, found.low, found.high))
    return rows


def difference_table(rows: list[DifferenceRow]) -> str:
    """differences.csv: a row for each method and t."""
    return csv_text(list(DifferenceRow.__dataclass_fields__), [asdict(row) for row in rows], 3)
