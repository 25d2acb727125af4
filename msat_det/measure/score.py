"""From the parts of a run to the rows of its curve."""

from msat_det.base.progress import Progress
from msat_det.data import Dataset
from msat_det.measure.accuracy import AgreementEvaluator, has_boxes, make_evaluator
from msat_det.measure.batch_files import Parts
from msat_det.measure.rows import CurveRow
from msat_det.methods.convert import Conversion


def score(dataset: Dataset, classes: list[str], conversions: list[Conversion], parts: Parts) -> list[CurveRow]:
    """The accuracy of every (method, t), methods in the configuration's order; of a detector's also the agreement."""
    evaluator, level = make_evaluator(dataset, classes), parts.found("float", None)
    agreement = AgreementEvaluator(level, classes) if has_boxes(level) else None
    rows = [CurveRow("float", None, evaluator(level))]
    pairs = [(c.label, t) for c in conversions for t in c.record]
    for label, t in Progress(pairs, "scoring", unit="curve point", leave=False):
        costs = (parts.costs(label, t) / len(dataset)).tolist()
        found = parts.found(label, t)
        metrics = evaluator(found) | (agreement(found) if agreement else {})
        rows.append(CurveRow(label, t, metrics, *costs))
    return rows
