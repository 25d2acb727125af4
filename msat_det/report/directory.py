"""What a run leaves behind: the files of one run directory, each written whole or not at all."""

import json
import math
import re
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from msat_det.base import ranks
from msat_det.base.errors import InputError
from msat_det.base.files import csv_text, drop_empty, make_folders, part_of, remove, write_whole
from msat_det.measure.rows import COSTS, CurveRow
from msat_det.report.coverage_picture import draw_graph
from msat_det.report.coverage_table import coverage_text

CONFIG = "config.yaml"
# Whatever run, compare, inspect and doctor leave behind, as patterns; first what says that the rest is complete.
RESULTS = (
    "summary.json curve.csv curve.png coverage.json coverage.txt coverage.svg ledger.json doctor.json doctor "
    "report.html report.json boxes.gif detections exit.csv exit.png differences.csv compare.md compare.csv pareto.png "
    "plans hparams events.out.tfevents.* .events.part"
).split()


class RunDirectory:
    """One run's output folder; as a context one that goes again where it was made for nothing. Raises InputError where
    it cannot be made or written.

    names: of the files that may be written into it, and of the folders of such.
    """

    names: Sequence[str] = (CONFIG, *RESULTS)

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.lock = self.path / ".lock"  # which a run holds open, see ``run.ownership``
        self.parts = self.path / "parts"  # what an unfinished run has computed (``measure.batch_files``)
        self.begun = self.parts / "begun.safetensors"  # what it was begun from (``run.resume``)
        self.summary = self.path / "summary.json"  # what a finished run has found
        try:
            self.made = make_folders(self.path)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"cannot write into {self.path}: {reason}; give another folder with --out DIR") from None

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(OSError):  # Windows keeps the lock while it is open
            if ranks.rank() == 0 and {path.name for path in self.path.iterdir()} <= {self.lock.name}:
                self.lock.unlink(missing_ok=True)
                drop_empty(self.made)

    def plan(self, label: str, t: int) -> Path:
        """Where the neurons of a method that was fitted for T = t are kept (``spiking.formats.plan``)."""
        return self._place(f"plans/{label}-t{t}.safetensors")

    def found(self, names: Iterable[str] = RESULTS) -> list[Path]:
        """What is there by these names, in their order."""
        return [path for name in names for path in sorted(self.path.glob(name))]

    def clear(self) -> None:
        """Remove an earlier run's results, whole and half-written. Raises OSError."""
        for path in self.found([*RESULTS, *(part_of(Path(name)).name for name in self.names)]):
            remove(path)

    def write_curve(self, rows: list[CurveRow]) -> None:
        """curve.csv: the float row first, then a row per method and recorded t. May be rewritten as rows come in."""
        accuracies = list(rows[0].accuracies)
        lines: list[dict[str, Any]] = []
        for row in rows:
            metrics = {name: f"{row.metrics[name]:.3f}" for name in accuracies}
            lines.append({"method": row.method, "t": row.t, **metrics, **row.costs})
        self.write("curve.csv", csv_text(["method", "t", *accuracies, *COSTS], lines, 5))

    def write_summary(self, rows: list[CurveRow], **facts: Any) -> None:
        """summary.json: {"float": figures, **facts, "methods": {label: {t: figures}}}; ``facts``: images, seed …"""
        methods: dict[str, dict] = {}
        for row in rows[1:]:
            methods.setdefault(row.method, {})[str(row.t)] = row.figures()
        self.write_json("summary.json", {"float": rows[0].figures(), **facts, "methods": methods})

    def write_coverage(self, nodes: list[dict]) -> None:
        """coverage.json, coverage.txt and coverage.svg: what every node became, as data, as a table, as a picture.

        nodes: rows of ``measure.coverage.coverage``.
        """
        self.write_json("coverage.json", nodes)
        self.write("coverage.txt", coverage_text(nodes))
        self.write("coverage.svg", draw_graph(nodes))

    def write_detections(self, sample: Any, classes: list[str], columns: dict, names: list[str], title: str) -> None:
        """detections/<image id>.png: ground truth, then each of ``columns`` (heading → Detections) side by side.

        sample: ``data.Sample`` whose target's labels index ``classes``; the Detections' labels index ``names``.
        """
        from msat_det.report.boxes import draw_detections

        name = re.sub(r"[^\w-]", "_", str(sample.id))[:100]
        while (self.path / f"detections/{name}.png").exists():  # of a/b, say, beside a_b
            name += "_"
        self.save(f"detections/{name}.png", draw_detections(sample, classes, columns, names, title))

    def write(self, name: str, content: str | bytes) -> None:
        """A file of that name in the folder."""
        data = content.encode() if isinstance(content, str) else content
        write_whole(self._place(name), lambda file: file.write_bytes(data))

    def write_json(self, name: str, value: Any, indent: int | None = 2) -> None:
        """A JSON file, in which floats have six decimals and NaN is null."""
        self.write(name, json.dumps(_plain(value), indent=indent, ensure_ascii=False, allow_nan=False) + "\n")

    def save(self, name: str, figure: Any) -> None:
        """A figure of matplotlib's as PNG, without its version, so that equal runs give equal files."""
        how = {"format": "png", "metadata": {"Software": None}, "bbox_inches": "tight", "pad_inches": 0.08}
        write_whole(self._place(name), lambda file: figure.savefig(file, **how))

    def _place(self, name: str) -> Path:
        """Where a file goes, its folder made. Raises ValueError for one that ``clear`` would leave behind."""
        if name.split("/")[0] not in self.names:
            raise ValueError(f"{name} is none of {', '.join(self.names)}")
        path = self.path / name
        path.parent.mkdir(exist_ok=True)
        return path


def _plain(value: Any) -> Any:
    """The value as JSON holds it: floats rounded to six decimals so that files compare, NaN as null."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):  # a NumPy or Torch scalar
        value = value.item()
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value
