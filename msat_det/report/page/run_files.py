"""The files of a run directory that report.html shows where they are there, read without trust in their content."""

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msat_det.base.errors import InputError
from msat_det.base.files import text_of
from msat_det.measure.ledger import PARTS
from msat_det.report.coverage_table import graphs, labels_of, short_source, totals

KINDS = {
    "spiking": "became neurons",
    "linear": "run on the spikes as they are",
    "differential": "exact functions of running means: maxima, products, norms",
    "input": "where an image comes in",
    "output": "what is decoded",
    "shape": "sizes and constants",
}
FIGURES = ("effect", "total", *PARTS, "sin_ratio", "spikes_per_neuron", "dead", "saturated")
PHOTO = re.compile(r"data:image/jpeg;base64,[A-Za-z0-9+/]+={0,2}")
NOTHING: dict[str, Any] = dict(command=None, versions={}, evaluated=None, method=None, colours={}, images=[])


def about(folder: Path) -> dict[str, Any]:
    """report.json, as ``example_boxes.write_about`` makes it; without one NOTHING."""
    return _read(folder, "report.json", _about) or NOTHING


def coverage(folder: Path) -> list[dict[str, Any]] | None:
    """coverage.json as a dict for each graph: method (of a graph of its own), totals, kinds (kind, what it does, number
    of nodes, multiply-adds, those at full price), label (whose θ is shown) and nodes."""
    return _read(folder, "coverage.json", _coverage)


def ledger(folder: Path) -> list[dict[str, Any]] | None:
    """ledger.json as a dict for each method and t: method, t and rows: site, figures {name: number or None}, and bar:
    (part, percent of the largest total) for each part."""
    return _read(folder, "ledger.json", _ledger)


def doctor(folder: Path) -> dict[str, list[dict[str, str]]] | None:
    """doctor.json: {label: [{site, cause, mend}]}."""
    return _read(folder, "doctor.json", _doctor)


def _read(folder: Path, name: str, check: Callable[[Any], Any]) -> Any:
    """What ``check`` makes of a JSON file; None where there is no such file. InputError for content of another form."""
    file = folder / name
    try:
        return check(json.loads(text_of(file)))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError):
        raise InputError(f"{file} is not what a run writes: delete it or make it anew") from None


def _about(value: dict) -> dict[str, Any]:
    images = [
        {
            "id": str(image["id"]),
            "photo": _photo(image["photo"]),
            "width": float(image["width"]),
            "height": float(image["height"]),
            "truth": _boxes(image["truth"]),
            "float": _boxes(image["float"]),
            "methods": {
                label: {str(int(t)): _boxes(boxes) for t, boxes in found.items()}
                for label, found in image["methods"].items()
            },
        }
        for image in value["images"]
    ]
    texts = {key: None if value[key] is None else str(value[key]) for key in ("command", "evaluated", "method")}
    versions = {name: str(version) for name, version in value["versions"].items()}
    colours = {name: int(number) for name, number in value.get("colours", {}).items()}  # older runs have none
    return texts | {"versions": versions, "colours": colours, "images": images}


def _photo(text: str) -> str:
    if not PHOTO.fullmatch(text):  # an address would be asked for
        raise ValueError(text)
    return text


def _boxes(boxes: list[list]) -> list[list]:
    return [
        [*map(float, (x1, y1, x2, y2)), str(name), mark if isinstance(mark, bool) else float(mark)]
        for x1, y1, x2, y2, name, mark in boxes
    ]


def _coverage(rows: list[dict]) -> list[dict[str, Any]]:
    made = []
    for method, own in graphs(rows).items():
        label = next(iter(labels_of(own)), "")
        nodes = [_node(row, label) for row in own]
        count, macs, analog = Counter[str](), Counter[str](), Counter[str]()
        for node in nodes:
            count[node["kind"]] += 1
            macs[node["kind"]] += node["macs"]
            analog[node["kind"]] += node["analog"]
        kinds = [
            {"kind": kind, "does": does, "nodes": count[kind], "macs": macs[kind], "analog": analog[kind]}
            for kind, does in KINDS.items()
            if count[kind]
        ]
        made.append({"method": str(method), "label": label, "nodes": nodes, "kinds": kinds, "totals": totals(own)})
    return made


def _node(row: dict, label: str) -> dict[str, Any]:
    theta = row.get("theta", {}).get(label)
    return {
        **{name: str(row[name]) for name in ("node", "kind", "op")},
        "source": short_source(row["source"]),
        "activation": str(row.get("activation", "")),
        "theta": " – ".join(dict.fromkeys(f"{value:.3g}" for value in theta)) if theta else "",
        "dead": _whole(row["dead_channels"]) if "dead_channels" in row else None,
        "macs": _whole(row["macs"]),
        "analog": _whole(row["analog_macs"]),
    }


def _whole(value: Any) -> int:
    if not 0 <= value < 2**62:
        raise ValueError(value)
    return int(value)


def _ledger(entries: list[dict]) -> list[dict[str, Any]]:
    groups: dict[tuple[str, int], list[tuple[str, dict]]] = {}
    for entry in entries:
        figures = {name: None if entry.get(name) is None else float(entry[name]) for name in FIGURES}
        groups.setdefault((str(entry["method"]), int(entry["t"])), []).append((str(entry["site"]), figures))
    made = []
    for (method, t), own in groups.items():
        largest = max(figures["total"] or 0.0 for _, figures in own) or 1.0
        rows = []
        for site, figures in own:
            parts = {part: max(0.0, figures[part] or 0.0) for part in PARTS}  # a part may go against the total
            scale = 100 * (figures["total"] or 0.0) / largest / (sum(parts.values()) or 1.0)
            bar = [(part, round(scale * size, 2)) for part, size in parts.items() if size]
            rows.append({"site": site, "figures": figures, "bar": bar})
        made.append({"method": method, "t": t, "rows": rows})
    return made


def _doctor(advice: dict[str, list[dict]]) -> dict[str, list[dict[str, str]]]:
    return {
        str(label): [{name: str(item.get(name) or "") for name in ("site", "cause", "mend")} for item in items]
        for label, items in advice.items()
        if items
    }
