"""The traced network as an SVG: a box per node, coloured by what it became, data flowing from top to bottom.

The layout is Sugiyama's: a node's layer is its longest path from an input, an edge over several layers passes each of
them at a place of its own, and sweeps move every node towards the mean of its neighbours.
"""

import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from itertools import pairwise
from statistics import fmean

from msat_det.report.coverage_table import Rows, graphs

COLOURS = {  # kind → fill and stroke; Okabe and Ito's hues, told apart by colour-blind readers
    "linear": ("#DCEBF7", "#0072B2"),
    "spiking": ("#FCE3D2", "#D55E00"),
    "differential": ("#D2F0E5", "#009E73"),
    "input": ("#FFF4CC", "#8A6D00"),
    "output": ("#FFF4CC", "#8A6D00"),
    "shape": ("#F2F2F2", "#999999"),
}
LEGEND = {"linear": "linear", "spiking": "spiking", "differential": "differential", "input": "input/output"} | {
    "shape": "sizes and constants"
}
INK = "#222222"
BOX_W, BOX_H, GAP_X, GAP_Y = 196, 44, 20, 34  # pixels
PASS_W = 8  # the room of an edge that passes a layer
MARGIN, TOP, LEAST_W = 24, 64, 680
LETTERS = 27  # that fit into a box
SWEEPS = 12

Place = tuple[str, int]  # a node in its own layer, or its outgoing edges where they pass a later one


def draw_graph(rows: Rows) -> str:
    """The SVG of the graph that the methods share, or of the first method's own where no method runs on that one.

    rows: of ``measure.coverage.coverage``; a box's tooltip holds all of its node's row.
    """
    own = next(iter(graphs(rows).values()))
    layer = layers(own)
    paths = edge_paths(own, layer)
    x = columns(own, layer, paths)
    width = max(max(x.values()) - min(x.values()) + BOX_W + 2 * MARGIN, LEAST_W)
    left = (min(x.values()) + max(x.values()) - width) / 2
    height = TOP + (max(layer.values()) + 1) * (BOX_H + GAP_Y) + MARGIN

    svg = ET.Element(
        "svg",
        {"xmlns": "http://www.w3.org/2000/svg", "font-family": "DejaVu Sans, Verdana, sans-serif", "font-size": "11"}
        | _numbers(width=width, height=height)
        | {"viewBox": f"0 0 {_text(width)} {_text(height)}"},
    )
    marker = ET.SubElement(
        ET.SubElement(svg, "defs"),
        "marker",
        {"id": "tip", "orient": "auto"} | _numbers(markerWidth=7, markerHeight=7, refX=6, refY=3.5),
    )
    ET.SubElement(marker, "path", {"d": "M0,0 L7,3.5 L0,7 z", "fill": "#777777"})
    ET.SubElement(svg, "rect", {"width": "100%", "height": "100%", "fill": "white"})
    _draw_legend(svg, own)
    edges = ET.SubElement(svg, "g", {"fill": "none", "stroke": "#777777", "stroke-width": "1.2"})
    centre = {place: value - left for place, value in x.items()}
    for start, end in sorted({pair for path in paths for pair in pairwise(path)}):
        _draw_edge(edges, centre[start], start[1], centre[end], end[1], passing=layer[end[0]] != end[1])
    for row in own:
        _draw_box(svg, row, centre[row["node"], layer[row["node"]]], _top(layer[row["node"]]))
    ET.indent(svg)
    return ET.tostring(svg, encoding="unicode") + "\n"


def layers(rows: Rows) -> dict[str, int]:
    """Longest path from an input; what is computed from nothing stands right above its first use."""
    layer: dict[str, int] = {}
    users = defaultdict(list)
    for row in rows:
        layer[row["node"]] = 1 + max((layer[name] for name in row["inputs"]), default=-1)
        for name in row["inputs"]:
            users[name].append(row["node"])
    for row in reversed(rows):
        if not row["inputs"] and row["kind"] != "input" and users[row["node"]]:
            layer[row["node"]] = max(0, min(layer[user] for user in users[row["node"]]) - 1)
    return layer


def edge_paths(rows: Rows, layer: dict[str, int]) -> list[list[Place]]:
    """Every edge as the places that it passes; the edges of one node share theirs."""
    return [
        [*((name, step) for step in range(layer[name], layer[row["node"]])), (row["node"], layer[row["node"]])]
        for row in rows
        for name in row["inputs"]
    ]


def columns(rows: Rows, layer: dict[str, int], paths: list[list[Place]]) -> dict[Place, float]:
    """The centre x of every place: ordered within its layer by the mean of its neighbours, without overlap."""
    places = dict.fromkeys([*((row["node"], layer[row["node"]]) for row in rows), *(p for path in paths for p in path)])
    above, below = defaultdict(list), defaultdict(list)
    for start, end in dict.fromkeys(pair for path in paths for pair in pairwise(path)):
        below[start].append(end)
        above[end].append(start)
    levels: list[list[Place]] = [[] for _ in range(max(layer.values()) + 1)]
    for place in places:
        levels[place[1]].append(place)
    half = {p: BOX_W / 2 if layer[p[0]] == p[1] else PASS_W / 2 for p in places}
    x: dict[Place, float] = {}
    for level in levels:
        x |= _apart(level, dict.fromkeys(level, 0.0), half)
    for sweep in range(SWEEPS):
        neighbours, order = (above, levels) if sweep % 2 == 0 else (below, levels[::-1])
        for level in order:
            wish = {p: fmean(x[n] for n in neighbours[p]) if neighbours[p] else x[p] for p in level}
            if sweep < SWEEPS - 4:  # the last sweeps keep the order and straighten
                level.sort(key=wish.__getitem__)
            x |= _apart(level, wish, half)
    return x


def _apart(level: list[Place], wish: dict[Place, float], half: dict[Place, float]) -> dict[Place, float]:
    """Positions in the level's order, near their wishes: the mean of the leftmost and the rightmost that do."""
    from_left: dict[Place, float] = {}
    from_right: dict[Place, float] = {}
    for found, order, sign in ((from_left, level, 1), (from_right, level[::-1], -1)):
        edge = float("-inf")
        for place in order:
            found[place] = sign * max(sign * wish[place], edge + half[place])
            edge = sign * found[place] + half[place] + GAP_X
    return {place: (from_left[place] + from_right[place]) / 2 for place in level}


def _top(level: int) -> float:
    return TOP + level * (BOX_H + GAP_Y)


def _draw_edge(group: ET.Element, x0: float, level0: int, x1: float, level1: int, passing: bool) -> None:
    y0, y1 = _top(level0) + BOX_H, _top(level1)
    middle = _text((y0 + y1) / 2)
    path = f"M{_text(x0)},{_text(y0)} C{_text(x0)},{middle} {_text(x1)},{middle} {_text(x1)},{_text(y1)}"
    if passing:
        ET.SubElement(group, "path", {"d": f"{path} V{_text(y1 + BOX_H)}"})
    else:
        ET.SubElement(group, "path", {"d": path, "marker-end": "url(#tip)"})


def _draw_box(svg: ET.Element, row: dict, x: float, y: float) -> None:
    fill, stroke = COLOURS[row["kind"]]
    box = ET.SubElement(svg, "g", {"class": "node", "text-anchor": "middle", "fill": INK})
    ET.SubElement(box, "title").text = "\n".join(
        f"{key}: {value}" for key, value in row.items() if value not in (None, [], {}, 0)
    )
    frame = _numbers(x=x - BOX_W / 2, y=y, width=BOX_W, height=BOX_H, rx=6)
    ET.SubElement(box, "rect", frame | {"fill": fill, "stroke": stroke, "stroke-width": "1.3"})
    shape = " × ".join(map(str, row["shape"])) if row["shape"] else ""
    for text, down, bold in ((row["node"], 18, True), (" · ".join(filter(None, (row["op"], shape))), 34, False)):
        line = ET.SubElement(box, "text", _numbers(x=x, y=y + down) | ({"font-weight": "bold"} if bold else {}))
        line.text = _shortened(text, LETTERS - 3 if bold else LETTERS)


def _draw_legend(svg: ET.Element, rows: Rows) -> None:
    count = Counter("input" if row["kind"] == "output" else row["kind"] for row in rows)
    x = MARGIN
    for kind, text in LEGEND.items():
        if not count[kind]:
            continue
        fill, stroke = COLOURS[kind]
        ET.SubElement(svg, "rect", _numbers(x=x, y=16, width=16, height=16, rx=3) | {"fill": fill, "stroke": stroke})
        line = ET.SubElement(svg, "text", _numbers(x=x + 22, y=28) | {"fill": INK})
        line.text = f"{text} ({count[kind]})"
        x += 44 + 7 * len(line.text)


def _shortened(text: str, letters: int) -> str:
    """The text with its middle left out where it is too long: a node's name differs from others at either end."""
    if len(text) <= letters:
        return text
    half = (letters - 1) // 2
    return f"{text[: letters - 1 - half]}…{text[-half:]}"


def _text(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0")


def _numbers(**values: float) -> dict[str, str]:
    return {key: _text(value) for key, value in values.items()}
