"""Every method of a configuration taken apart on calibration images: ledger, causes, mends."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch.utils._pytree as pytree
from torch import Tensor

from msat_det.base import ranks
from msat_det.base.config import Config, method_options
from msat_det.base.progress import Progress
from msat_det.graph.graph import Batch
from msat_det.measure.diagnosis import Finding, Patient
from msat_det.measure.ledger import Entry, ledger
from msat_det.methods.convert import Conversion
from msat_det.methods.observe import Observation


@dataclass
class Examination:
    """What was found of one method. t: its last recorded timestep, to which findings, residuals and traces belong.

    entries, outputs, residuals, traces: as in ``ledger.Ledger``, entries and outputs of all recorded t.
    """

    label: str
    t: int = 0
    entries: list[Entry] = field(default_factory=list)
    outputs: dict[int, float] = field(default_factory=dict)
    residuals: dict[str, Tensor] = field(default_factory=dict)
    traces: dict[str, Tensor] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def at(self, t: int) -> list[Entry]:
        """The call sites at one recorded t, by depth."""
        return [entry for entry in self.entries if entry.t == t]


def examine(
    config: Config, observation: Observation, conversions: Sequence[Conversion], images: int
) -> list[Examination]:
    """Take every conversion apart on the first ``images`` calibration images and look for mends at its last t."""
    batches = list(_batches(observation.first(images), config.batch))
    entries = {entry["label"]: entry for entry in config.methods}
    found: dict[str, Examination] = {}
    last = {c.label: c for c in conversions}
    for conversion in Progress(conversions, "examining", unit="method", leave=False, disable=ranks.rank() > 0):
        label, snn, record = conversion.label, conversion.snn, conversion.record
        one, end = found.setdefault(label, Examination(label)), conversion is last[label]
        book = ledger(snn, batches, record[-1], record, effects=end)
        one.entries += book.entries
        one.outputs |= book.outputs
        if end:
            one.t, one.residuals, one.traces = record[-1], book.residuals, book.traces
            method, options = entries[label]["method"], method_options(entries[label])
            patient = Patient(method, options, observation, batches, book, snn.graph, one.t, config.seed)
            one.findings = patient.diagnose()
    return list(found.values())


def _batches(images: Batch, size: int) -> Iterable[Batch]:
    count = pytree.tree_leaves(images)[0].shape[0]
    for first in range(0, count, size):
        yield pytree.tree_map(lambda value, first=first: value[first : first + size], images)
