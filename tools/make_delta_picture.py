"""Make docs/delta.png: one neuron under rate and under delta coding, its potential, thresholds and events over t.

python tools/make_delta_picture.py
"""

import sys
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from msat_det.base.colours import COLOURS, INK
from msat_det.base.settings import PROJECT
from msat_det.graph.ops import Activation
from msat_det.report.style import quiet
from msat_det.run.arguments import Parser
from msat_det.run.terminal import once
from msat_det.spiking.delta import delta_step, new_delta_state
from msat_det.spiking.neurons import Neuron, new_state, step

PICTURE = PROJECT / "docs" / "delta.png"
# What the layers before make of the input: its current under rate coding, its sum under delta coding.
INPUT = [0.95, 0.55, 0.8, 0.66] + [0.71] * 8
BITS = 5
RELU = Activation("relu", torch.relu, rectified=True)
RATE = Neuron(torch.tensor(0.5), RELU, initial=0.5, signed=True, gamma=3)
DELTA = Neuron(torch.tensor(0.03), RELU, coding="delta", bits=BITS, terms=(1,))


def rate() -> tuple[list[float], list[float], list[float]]:
    """The potential before each spike, what is sent, and the value (running mean) over t."""
    state, before, sent, value = new_state(RATE, torch.zeros(1, 1), with_output=True), [], [], []
    for t, x in enumerate(INPUT):
        before.append(state.v.item() + x)
        sent.append(step(RATE, state, torch.full((1, 1), x), t)[1].item())
        value.append(state.o.item() / (t + 1))
    return before, sent, value


def delta() -> tuple[list[float], list[float], list[float]]:
    """The error before each event, what is sent, and the value (sum) over t."""
    state, before, sent, value = new_delta_state(DELTA, torch.zeros(1, 1)), [], [], []
    for t, x in enumerate(INPUT):
        before.append(x - state.o.item())
        sent.append(delta_step(DELTA, state, torch.full((1, 1), x), t)[2].item())
        value.append(state.o.item())
    return before, sent, value


def draw() -> Figure:
    figure = Figure(figsize=(10, 6.2), dpi=140, layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey="row")
    columns = {"rate coding: a burst for every θ = 0.5": rate(), "delta coding: one term ±2ᵏ·0.03 a timestep": delta()}
    for column, (title, (before, sent, value)) in enumerate(columns.items()):
        above, below = panels[:, column]
        above.set_title(title, color=INK, fontsize=11)
        levels = [0.5] if column == 0 else [0.03 * 2**k for k in range(BITS)]
        _thresholds(above, levels, column == 1)
        times = range(1, len(INPUT) + 1)
        above.plot(times, before, color=COLOURS[0], marker="o", markersize=4, label="potential before the event")
        below.step(times, INPUT, where="mid", color=INK, linestyle="--", linewidth=1, label="what is to be sent")
        below.plot(times, value, color=COLOURS[2], marker="s", markersize=4, label="value: mean, or sum, of the output")
        fired = [(t, y) for t, y in zip(times, sent, strict=True) if y]
        marks, stems, _ = below.stem(*zip(*fired, strict=True), linefmt=COLOURS[1], markerfmt="^", basefmt=" ")
        marks.set(color=COLOURS[1], markersize=5)
        stems.set_label("events and what they carry")
        below.set_xlabel("t")
        for axes in (above, below):
            axes.axhline(0, color=INK, linewidth=0.6)
            quiet(axes)
    panels[0][0].set_ylabel("potential")
    panels[1][0].set_ylabel("output")
    for axes in panels[:, 1]:
        axes.legend(frameon=False, fontsize=8, loc="upper right")
    return figure


def _thresholds(axes: Axes, levels: list[float], both: bool) -> None:
    """The heights at which the neuron fires: θ, or three quarters of each level (of the smallest half, its zone)."""
    for level in levels:
        height = level * (0.5 if level == levels[0] else 0.75) if both else level
        for sign in (1, -1) if both else (1,):
            axes.axhline(sign * height, color=COLOURS[1], linewidth=0.8, linestyle=":")


@once
def main(argv: list[str]) -> None:
    parser = Parser(description="Draws docs/delta.png, a value in rate coding and in delta coding.")
    parser.add_argument("--out", metavar="FILE", type=Path, default=PICTURE, help="the picture (default: %(default)s)")
    target = parser.parse_args(argv).out
    draw().savefig(target, format="png", metadata={"Software": None})
    print(target)


if __name__ == "__main__":
    sys.exit(main())
