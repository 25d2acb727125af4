"""report.html: a run directory as one page that needs nothing else, and several run directories side by side.

The page is made of the directory's files alone and holds nothing that differs between equal runs. None of the files is
trusted: jinja2 escapes whatever it writes, and a content security policy lets no script run but ours and nothing load.
"""

import base64
import hashlib
import math
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from msat_det.base.errors import InputError
from msat_det.base.files import write_whole
from msat_det.measure.lost import reasons
from msat_det.measure.rows import DISPLAY, MAIN, CurveRow
from msat_det.report.comparison import APART, KEPT, NEAR, Comparison, read_comparison
from msat_det.report.page import run_files
from msat_det.report.page.chart import COLOURS, Curve, charts

PAGE = Path(__file__).parent


def write_report(folders: list[Path], target: Path | None = None) -> Path:
    """The page of one run directory, made anew, or of several side by side. Returns where it is: ``target``, or
    report.html in the one directory, comparison.html in the working directory for several.

    Raises InputError where a folder holds no finished run or a damaged file, and where runs can't be compared.
    """
    alone = len(folders) == 1
    page = run_page(folders[0]) if alone else comparison_page(folders)
    target = target or (folders[0] / "report.html" if alone else Path("comparison.html"))
    write_whole(target, lambda file: file.write_bytes(page.encode()))
    return target


def run_page(folder: Path) -> str:
    """The page of one run directory."""
    run = read_comparison(folder)
    about, ledger = run_files.about(folder), run_files.ledger(folder)
    curves = [
        Curve(label, run.curve(label), i, i, i, i // COLOURS, label in run.lost) for i, label in enumerate(run.labels)
    ]
    name, level, found = MAIN[run.metric], run.rows[0], verdict(run)
    opening = _opening(run, found)
    return _render(
        "run.html",
        title=run.title,
        runs=[entry(run)],
        charts=charts(curves, {f"float {level.metrics[run.metric]:.1f}": level.metrics[run.metric]}, run.metric, name),
        curves=curves,
        lines=[method_line(run, curve) for curve in curves],
        boxes=_boxes(run, about, curves, opening),
        failures=reasons(run.config, found["failing"]),
        coverage=run_files.coverage(folder),
        ledger=ledger,
        opened=_opened(ledger, opening),
        doctor=run_files.doctor(folder),
        about=about,
        config=(folder / "config.yaml").read_text("utf-8"),
    )


def comparison_page(folders: list[Path]) -> str:
    """The page of several run directories. Raises InputError where metrics or images differ."""
    runs = [read_comparison(folder) for folder in folders]
    evaluated = [run_files.about(folder)["evaluated"] for folder in folders]
    for i in range(1, len(runs)):
        _require_same(runs[0], runs[i], evaluated[0], evaluated[i], folders[0], folders[i])
    short = [folder.resolve().name for folder in folders]
    names = [name if short.count(name) == 1 else str(folder) for name, folder in zip(short, folders, strict=True)]
    if len(set(names)) < len(names):
        raise InputError(f"{next(n for n in names if names.count(n) > 1)} is given twice: give each run once")
    pairs = [(k, run, label) for k, run in enumerate(runs) for label in run.labels]
    labels = list(dict.fromkeys(label for _, _, label in pairs))
    curves = [  # a label's colour is the same in every run, a run's marker and dashes the same for every label
        Curve(f"{names[k]} · {label}", run.curve(label), i, labels.index(label), k, k, label in run.lost)
        for i, (k, run, label) in enumerate(pairs)
    ]
    metric = runs[0].metric
    levels: dict[float, list[str]] = {}
    for name, run in zip(names, runs, strict=True):
        levels.setdefault(run.rows[0].metrics[metric], []).append(name)
    same = len(levels) == 1
    texts = {f"float {y:.1f}" if same else f"{', '.join(who)}: float {y:.1f}": y for y, who in levels.items()}
    return _render(
        "comparison.html",
        title=f"{len(runs)} runs on {runs[0].title.partition(' on ')[2]}",
        runs=[entry(run, name) for name, run in zip(names, runs, strict=True)],
        charts=charts(curves, texts, metric, MAIN[metric]),
        curves=curves,
        lines=[method_line(run, curve) | {"run": names[k]} for (k, run, _), curve in zip(pairs, curves, strict=True)],
    )


def entry(run: Comparison, name: str = "") -> dict[str, Any]:
    """What the templates need of a run."""
    facts = {key: run.facts.get(key) for key in ("images", "seed", "commit")}
    energy = run.facts.get("energy")
    facts["energy"] = str(energy["source"]) if energy and energy.get("source") else None
    facts["corrupt"], facts["misfit"] = (list(run.facts.get(f"{name}_images") or []) for name in ("corrupt", "misfit"))
    return {"name": name, "run": run, "verdict": verdict(run), "facts": facts}


def verdict(run: Comparison) -> dict[str, Any]:
    """Which methods are good enough, and when: the rows that first keep NEAR of the float accuracy.

    best: the one of least energy. others: the remaining ones by energy. failing: labels of methods that never do.
    closest: the most accurate row of all, None where there is no method. kept: for each share of KEPT, in percent, the
    row of least energy that first keeps it, or None.
    """
    good = {share: _keeping(run, share) for share in (NEAR, *KEPT)}
    near = good[NEAR]
    return {
        "best": near[0] if near else None,
        "others": near[1:],
        "failing": [label for label in run.labels if label not in {row.method for row in near}],
        "kept": {round(100 * share): next(iter(good[share]), None) for share in sorted(KEPT)},
        "closest": max(run.rows[1:], key=lambda row: row.metrics[run.metric], default=None),
    }


def _keeping(run: Comparison, share: float) -> list[CurveRow]:
    """The rows at which methods first keep a share of the float accuracy, that of least energy first."""
    if not run.rows[0].metrics[run.metric] > 0:
        return []
    found = [row for label in run.labels if (row := run.near(label, share))]
    return sorted(found, key=lambda row: (row.energy_ratio, row.t))


def _opening(run: Comparison, found: dict[str, Any]) -> CurveRow | None:
    """The method and t that the page shows first: the verdict's, unless ``draw.method`` asks for a method."""
    asked = run.config.draw.method
    if asked in run.labels:
        return run.near(asked) or run.curve(asked)[-1]
    return found["best"] or found["closest"]


def _opened(ledger: list[dict[str, Any]] | None, opening: CurveRow | None) -> dict[str, Any] | None:
    """The table of ``ledger`` that stands open: of the method and t that are shown first, or the method's last."""
    if not ledger or not opening:
        return None
    own = [one for one in ledger if one["method"] == opening.method]
    return next((one for one in own if one["t"] == opening.t), (own or ledger)[-1])


def method_line(run: Comparison, curve: Curve) -> dict[str, Any]:
    """A line of the method table. near: the row that first keeps NEAR. best: the most accurate one. agreed: whether its
    agreement was measured. ahead: {t: how far it is ahead of the method that the bootstrap compares with, and the
    interval}."""
    label = curve.rows[0].method
    best = max(curve.rows, key=lambda row: row.metrics[run.metric])
    return {
        "curve": curve,
        "near": run.near(label),
        "best": best,
        "last": curve.rows[-1],
        "level": run.rows[0],
        "agreed": "agreement" in curve.rows[-1].metrics,
        "ahead": {
            row["t"]: row
            for row in run.facts.get("differences", [])
            if (row["method"], row["metric"]) == (label, run.metric)
        },
    }


def _require_same(a: Comparison, b: Comparison, seen_a: str | None, seen_b: str | None, one: Path, other: Path) -> None:
    """Raise InputError unless both runs measured the same accuracy on the same images."""
    values = {
        "the metric": (DISPLAY[a.metric], DISPLAY[b.metric]),
        "data.kind": (a.config.data.kind, b.config.data.kind),
        "data.split": (a.config.data.split, b.config.data.split),
        "the number of images": (a.facts.get("images"), b.facts.get("images")),
    }
    if seen_a and seen_b:  # the same images may lie elsewhere
        values["the list of evaluated images"] = (seen_a[:12], seen_b[:12])
    else:
        values["data.root"] = (a.config.data.root, b.config.data.root)
    for name, (first, second) in values.items():
        if first != second:
            raise InputError(
                f"{name} is {first} in {one} and {second} in {other}: compare runs that evaluated the same images"
            )


def _boxes(run: Comparison, about: dict, curves: list[Curve], opening: CurveRow | None) -> dict[str, Any] | None:
    """What the slider shows, for page.js: {method, t, images, figures: {label: {t: text}}, colours}; None without
    images."""
    if not about["images"] or not opening:
        return None
    name = MAIN[run.metric]
    drawn = about["images"][0]["methods"]
    figures = {
        curve.name: {
            str(row.t): f"{row.metrics[run.metric]:.1f} % {name} on all images, {row.energy_ratio:.2f} × the float "
            "network’s energy"
            for row in curve.rows
        }
        for curve in curves
        if curve.name in drawn
    }
    if not figures:
        return None
    method = opening.method if opening.method in figures else next(iter(figures))
    own = {name: about[name] for name in ("images", "colours")}
    return {"method": method, "t": opening.t, "figures": figures} | own


def _figure(value: Any, digits: int = 2) -> str:
    """A number for a reader, an en dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{round(value, digits) + 0.0:,.{digits}f}".replace("-", "−")  # + 0: no minus before zero


def _apart(difference: dict[str, Any]) -> str:
    return APART.format(**difference).replace("-", "−")


def _count(value: int) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return str(value)


def _render(template: str, **values: Any) -> str:
    script = (PAGE / "page.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assets = {"script": script, "digest": digest, "style": (PAGE / "page.css").read_text("utf-8")}
    return _environment().get_template(template).render(**values, **assets)


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"figure": _figure, "count": _count, "apart": _apart}
    environment.globals |= {
        "DISPLAY": DISPLAY,
        "MAIN": MAIN,
        "NEAR": round(100 * NEAR),
        "PARTS": run_files.PARTS,
        "FIGURES": run_files.FIGURES,
    }
    return environment
