"""The examinations of a run: files, pictures, TensorBoard, and what the terminal says of them."""

from dataclasses import asdict
from itertools import zip_longest

from msat_det.measure.examination import Examination
from msat_det.measure.ledger import PARTS
from msat_det.report.directory import RunDirectory
from msat_det.report.ledger_pictures import draw_ledgers
from msat_det.report.tensorboard import add_ledgers, events


def write_examinations(directory: RunDirectory, examinations: list[Examination]) -> None:
    """ledger.json: the entries with their method. doctor.json: {label: findings, the worst first}. Below doctor/ the
    pictures and TensorBoard's events."""
    rows = [{"method": one.label} | asdict(entry) for one in examinations for entry in one.entries]
    directory.write_json("ledger.json", rows)
    directory.write_json("doctor.json", {one.label: list(map(asdict, one.findings)) for one in examinations})
    figures = draw_ledgers(examinations)
    for name, figure in figures.items():
        directory.save(f"doctor/{name}.png", figure)
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
