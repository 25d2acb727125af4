"""The coverage table as text: what every node became, and totals that a reader can check."""

import re
from pathlib import PurePath
from typing import Any

from msat_det.base.tables import text_table

Rows = list[dict[str, Any]]


def graphs(rows: Rows) -> dict[str, Rows]:
    """The rows of ``measure.coverage.coverage`` by graph: "" for the one that methods share, else a method's label.

    The shared graph is left out where every method has a graph of its own.
    """
    found: dict[str, Rows] = {}
    for row in rows:
        found.setdefault(row.get("method", ""), []).append(row)
    if len(found) > 1 and not labels_of(found[""]):
        del found[""]
    return found


def labels_of(rows: Rows) -> list[str]:
    """The labels of the methods that gave this graph its neurons."""
    return list(dict.fromkeys(label for row in rows for label in row.get("theta", ())))


def coverage_text(rows: Rows, most: int | None = None) -> str:
    """An aligned table for each graph with a line of totals under it.

    rows: of ``measure.coverage.coverage``. most: the number of methods whose θ is shown, all by default.
    """
    parts = []
    for method, own in graphs(rows).items():
        heading = [f"The graph of {method}, whose options change it:"] if method else []
        heads, *cells = _cells(own, labels_of(own)[:most])
        parts.append("\n".join([*heading, text_table(heads, cells, left=len(heads) - 3), totals(own)]))
    return "\n\n".join(parts) + "\n"


def totals(rows: Rows) -> str:
    """The last line: nodes, multiply-adds, analog share and coverage.

    A node is covered when its verdict is carried out: a call site when every method of the graph gave it a neuron, any
    other node when it has a kind, since it runs as it is.
    """
    labels = labels_of(rows)
    covered = sum(row["kind"] != "spiking" or all(label in row["theta"] for label in labels) for row in rows)
    macs, analog = sum(row["macs"] for row in rows), sum(row["analog_macs"] for row in rows)
    return (
        f"total: {macs:,} multiply-adds, analog share {100 * analog / max(macs, 1):.1f} %, "
        f"coverage {100 * covered / len(rows):.4g} % ({covered} of {len(rows)} nodes)"
    )


def _cells(rows: Rows, labels: list[str]) -> list[list[str]]:
    heads = ["node", "source", "kind", "neuron", *(f"θ {label}" for label in labels)]
    table = [[*heads, "unseen channels", "multiply-adds", "analog share"]]
    for row in rows:
        dead = f"{row['dead_channels']}/{row.get('channels', row['shape'][0])}" if "dead_channels" in row else ""
        share = f"{100 * row['analog_macs'] / row['macs']:.1f} %" if row["macs"] else ""
        table.append(
            [row["node"], short_source(row["source"]), row["kind"], _neuron(row)]
            + [_range(row.get("theta", {}).get(label)) for label in labels]
            + [dead, f"{row['macs']:,}" if row["macs"] else "", share]
        )
    return table


def _neuron(row: dict[str, Any]) -> str:
    """The activation, and the operations that were written for it: ``silu (sigmoid + mul)``."""
    joined = " + ".join(row.get("joined", ()))
    return row.get("activation", "") + (f" ({joined})" if joined else "")


def _range(theta: list[float] | None) -> str:
    if theta is None:
        return ""
    low, high = (f"{value:.3g}" for value in theta)
    return low if low == high else f"{low} – {high}"


def short_source(source: str) -> str:
    """``/path/to/net.py:12: x = self.conv(x)`` → ``net.py:12``; other text as it is."""
    found = re.match(r"(.+?):(\d+): ", source)
    return f"{PurePath(found[1]).name}:{found[2]}" if found else source
