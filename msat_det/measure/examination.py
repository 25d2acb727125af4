"""Every method of a configuration taken apart on calibration images: ledger, causes, mends."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from msat_det.base import ranks
from msat_det.base.config import Config, method_options
from msat_det.base.progress import Progress
from msat_det.graph.inputs import cut
from msat_det.measure.diagnosis import Finding, Patient
from msat_det.measure.ledger import Ledger, ledger
from msat_det.methods.convert import Conversion
from msat_det.methods.observe import Observation


@dataclass
class Examination(Ledger):
    """What was found of one method: its ledger over all recorded t. t: the last one, to which findings, residuals and
    traces belong."""

    label: str = ""
    t: int = 0
    findings: list[Finding] = field(default_factory=list)


def examine(
    config: Config, observation: Observation, conversions: Sequence[Conversion], images: int
) -> list[Examination]:
    """Take every conversion apart on the first ``images`` calibration images and look for mends at its last t."""
    batches = list(cut(observation.first(images), config.batch))
    entries = {entry["label"]: entry for entry in config.methods}
    found: dict[str, Examination] = {}
    last = {c.label: c for c in conversions}
    for conversion in Progress(conversions, "examining", unit="method", leave=False, disable=ranks.rank() > 0):
        label, snn, record = conversion.label, conversion.snn, conversion.record
        one, end = found.setdefault(label, Examination(label=label)), conversion is last[label]
        book = ledger(snn, batches, record[-1], record, effects=end)
        one.entries += book.entries
        one.outputs |= book.outputs
        if end:
            one.t, one.residuals, one.traces = record[-1], book.residuals, book.traces
            method, options = entries[label]["method"], method_options(entries[label])
            patient = Patient(method, options, observation, batches, book, snn.graph, one.t, config.seed)
            one.findings = patient.diagnose()
    return list(found.values())
