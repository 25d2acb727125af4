"""Every method of a configuration taken apart on calibration images: ledgers, causes, mends, pictures, files."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import zip_longest

import torch.utils._pytree as pytree
from torch import Tensor
from tqdm import tqdm

from msat_det.base import ranks
from msat_det.base.config import Config, method_options
from msat_det.graph.graph import Batch
from msat_det.measure.diagnosis import Finding, Patient
from msat_det.measure.ledger import PARTS, Entry, ledger
from msat_det.methods.observe import Observation
from msat_det.report.directory import RunDirectory
from msat_det.report.ledger_pictures import draw_ledgers
from msat_det.report.tensorboard import add_ledgers, events
from msat_det.run.batches import Conversion


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
    for conversion in tqdm(conversions, "examining", unit="method", leave=False, disable=ranks.rank() > 0):
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


def write_examinations(directory: RunDirectory, examinations: list[Examination]) -> None:
    """ledger.json, doctor.json, and below doctor/ the pictures and TensorBoard's events."""
    rows = [{"method": one.label} | asdict(entry) for one in examinations for entry in one.entries]
    findings = {one.label: [asdict(finding) for finding in one.findings] for one in examinations}
    figures = draw_ledgers(examinations)
    directory.write_ledger(rows, findings, figures)
    with events(directory.path / "doctor") as board:
        add_ledgers(board, examinations, figures)


def examination_text(examinations: list[Examination]) -> str:
    """For the terminal: of each method the error of its outputs, and of its worst call sites parts, cause and mend."""
    lines = []
    for one in examinations:
        entries = {entry.site: entry for entry in one.at(one.t)}
        width = max([len("call site"), *(len(finding.site) for finding in one.findings)])
        parts = "  ".join(f"{part[:12]:>12}" for part in PARTS)
        lines.append(f"{one.label}, t = {one.t}: error of the outputs {one.outputs[one.t]:.3g} (1: as bad as silence)")
        lines.append(f"  {'call site':{width}}  effect  error = {parts}")
        for finding, after in zip_longest(one.findings, one.findings[1:]):
            entry = entries[finding.site]
            figures = "  ".join(f"{getattr(entry, part):12.3f}" for part in PARTS)
            lines.append(f"  {finding.site:{width}}  {finding.effect:6.3f}  {entry.total:5.3f}   {figures}")
            lines.append(f"  {'':{width}}  {finding.cause}")
            if after is None or after.mend != finding.mend:  # one mend for several sites stands once
                lines.append(f"  {'':{width}}  → {finding.mend}")
    return "\n".join(lines) + "\n"
