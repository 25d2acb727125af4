"""The ledger of a spiking network's error: what each call site adds, in which way, and what it was handed on.

With ȳ the running mean of a neuron's output after t timesteps (under delta coding its sum, and that of the input), x̄
that of the input current it was really given, a = f(x) its float activation and a' = f(x̄), the error ȳ − a is
inherited, a' − a (eq. 7: what the layers before hand on), and its own, ȳ − a'. That is SIN where the float activation
is zero, so that the neuron should be silent (eq. 11); clipping as far as a' lies beyond what t timesteps of firing can
reach, γ·Σθ/t (eq. 10); and quantisation, the rest: the step of the output, spikes at the wrong time, and whatever else
the neuron does (eq. 9).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import Node

from msat_det.graph.graph import Batch, elements
from msat_det.graph.inputs import images_in
from msat_det.measure.effects import dot, effects_of_own_errors, relative, silent_outputs, squares
from msat_det.spiking.delta import coming_delta_threshold, resting_output, target
from msat_det.spiking.energy import Cost
from msat_det.spiking.kernels import Scan
from msat_det.spiking.kernels.delta import Corrections
from msat_det.spiking.network import SpikingNetwork
from msat_det.spiking.neurons import Neuron, at, coming_threshold, per_channel
from msat_det.spiking.simulate import Watchers

PARTS = ("quantisation", "clipping", "sin", "inherited")
COSTS = ("spikes", "sops", "graded", "updates", "analog", "traffic", "float_macs", "float_traffic")
AT_REACH = 1 - 1e-4  # of the largest output that t timesteps allow: saturated
TAKEN_BACK = 1e-4  # of all that was sent: an output sum below this is nothing but rounding
RESIDUAL, BINS = 4.0, 32  # residual potentials from −4 to 4 thresholds

_Costs = dict[tuple[str, int], dict[str, float]]  # of a call site up to t, over all images, by the names of ``Cost``


@dataclass(frozen=True)
class Entry:
    """One call site after t timesteps, over all images given.

    total: ‖ȳ − a‖ / ‖a‖; quantisation, clipping, sin, inherited: its parts, which add up to it (a part's share is its
    projection on the whole, ⟨part, total⟩/‖total‖²); …_norm: each part's own ‖part‖ / ‖a‖, own_norm of the first three
    together. All NaN where the float activation is zero throughout. effect: what the site's own error alone does to the
    network's outputs, everything behind it being float, in units of their distance from silence (``measure.effects``);
    NaN but for the last t.
    inactive: share of neurons whose float activation is zero; sin_ratio: share of those whose mean output is not (the
    paper's R; its Fig. 2). dead: share of the active ones that have sent nothing. saturated: share of all that fired at
    their full rate. over: share of ‖ȳ − a'‖², clipping left out, of neurons that have sent more than one threshold too
    much. spikes_per_neuron to float_traffic: per image, see ``spiking.energy.Cost``.
    """

    site: str
    t: int
    total: float
    quantisation: float
    clipping: float
    sin: float
    inherited: float
    quantisation_norm: float
    clipping_norm: float
    sin_norm: float
    inherited_norm: float
    own_norm: float
    effect: float
    inactive: float
    sin_ratio: float
    over: float
    dead: float
    saturated: float
    neurons: int
    spikes_per_neuron: float
    spikes: float
    sops: float
    graded: float
    updates: float
    analog: float
    traffic: float
    float_macs: float
    float_traffic: float


@dataclass
class Ledger:
    """All that was taken down. entries: by t, then by depth. outputs: {t: error of the network's outputs, 1 as bad as
    silence}.

    residuals: {call site: (BINS,) share of the potentials in each of BINS equal bins from −RESIDUAL to RESIDUAL
    thresholds at the last t; what lies beyond is in the outermost}. traces: {call site: (neurons, T) θ(t)} (Fig. 5).
    """

    entries: list[Entry] = field(default_factory=list)
    outputs: dict[int, float] = field(default_factory=dict)
    residuals: dict[str, Tensor] = field(default_factory=dict)
    traces: dict[str, Tensor] = field(default_factory=dict)

    def at(self, t: int) -> list[Entry]:
        """The call sites at one recorded t, by depth."""
        return [entry for entry in self.entries if entry.t == t]


def split(neuron: Neuron, a: Tensor, x: Tensor, y: Tensor, reach: Tensor) -> dict[str, Tensor]:
    """The parts of y − a, each (B, C, …): they add up to it.

    a: float activation. x, y: running means of current and output. reach: the largest |y| that firing could have given.
    A bias that the method has given the neuron is not in x: what it does is the neuron's own.
    """
    driven = neuron.activation.fn(x)
    own = y - driven
    possible = torch.maximum(torch.minimum(driven, reach), -reach)
    silent = a == 0
    return {
        "quantisation": torch.where(silent, 0.0, y - possible),
        "clipping": torch.where(silent, 0.0, possible - driven),
        "sin": torch.where(silent, own, 0.0),
        "inherited": driven - a,
    }


def ledger(
    snn: SpikingNetwork,
    batches: Iterable[Batch],
    T: int,
    record: Sequence[int] | None = None,
    chosen: dict[str, list[int]] | None = None,
    effects: bool = True,
) -> Ledger:
    """Take down the error of every call site at each recorded t (1..T, [T] by default).

    chosen: {call site: positions of neurons in one image's flattened activation} whose thresholds are traced on the
    first image; by default those with the largest float activation at three call sites. effects: see ``Entry.effect``.
    Sums alone are kept: memory grows neither with T (traces aside) nor with the number of batches.
    """
    record = sorted({T} if record is None else set(record))
    watched = SpikingNetwork(snn.graph, snn.neurons, snn.fanout, snn.seed, chunk=1, energy=snn.energy)
    result, outputs = Ledger(), {t: torch.zeros(2, dtype=torch.float64) for t in record}
    sums: dict[tuple[str, int], _Sums] = {}
    costs: _Costs = {}
    images = 0
    with torch.inference_mode():
        for batch in batches:
            run = _Batch(watched, batch, record, sums, chosen if images == 0 else {})
            size = images_in(batch)
            ids, watchers = list(range(images, images + size)), Watchers(run.tap, run.watch)
            found = watched.simulate(batch, T, record, ids, watchers)
            silent = silent_outputs(snn.graph, batch)
            for t, output in found.outputs.items():
                outputs[t] += squares(output, run.expected, silent)
                _add(costs, t, {name: found.counts[t].costs[name] for name in run.sites}, size)
            for name, effect in effects_of_own_errors(snn.graph, batch, run.own) if effects else ():
                sums[name, record[-1]].effect += effect
            for name, scan in run.scans.items():
                result.residuals[name] = result.residuals.get(name, 0) + _residuals(scan, run.sites[name])
            result.traces |= run.traces()
            images += size
    result.entries = [_entry(node, t, sums, costs, images) for t in record for node in snn.graph.sites]
    result.outputs = {t: relative(*pair.tolist()) for t, pair in outputs.items()}
    result.residuals = {name: counts / counts.sum().clamp(min=1) for name, counts in result.residuals.items()}
    return result


@dataclass
class _Sums:
    """Of one call site at one t, over all images. products: ⟨part, total⟩ and squares: ‖part‖², in the order of PARTS.
    counted: neurons that are inactive, of these not silent, active without a spike, saturated.
    """

    products: Tensor = field(default_factory=lambda: torch.zeros(4, dtype=torch.float64))
    squares: Tensor = field(default_factory=lambda: torch.zeros(4, dtype=torch.float64))
    own: float = 0.0
    over: float = 0.0
    float: float = 0.0
    counted: Tensor = field(default_factory=lambda: torch.zeros(4, dtype=torch.float64))
    effect: Tensor = field(default_factory=lambda: torch.zeros(2, dtype=torch.float64))


class _Site:
    """The running sums of one call site in one batch: currents, outputs, |outputs| and, where it varies, θ."""

    def __init__(self, neuron: Neuron, a: Tensor):
        self.neuron, self.a, self.steps, self.delta = neuron, a, 0, neuron.coding == "delta"
        self.x, self.y, self.sent = (torch.zeros_like(a) for _ in range(3))
        if self.delta:
            self.y += resting_output(neuron, a)
        self.theta: Any = torch.zeros_like(a) if neuron.adaptive else 0.0

    def heights(self) -> Tensor:
        """Σθ(t) over the steps, 0 in a dead channel."""
        largest = per_channel(self.neuron.theta, self.a, self.neuron.axis)
        if self.neuron.adaptive:
            return torch.where(largest > 0, self.theta, torch.zeros_like(self.theta))
        return largest * sum(map(self.neuron.stage, range(self.steps)))

    def reach(self) -> Tensor:
        """The largest value that firing at the full rate gives: γ·Σθ/t; under delta coding γ·Σθ."""
        neuron, most = self.neuron, self.neuron.gamma
        if self.delta and neuron.bits:
            terms = sum(at(neuron.terms, t) * neuron.stage(t) for t in range(self.steps))
            most = 2 ** (neuron.bits - 1) * terms / sum(map(neuron.stage, range(self.steps)))
        return most * self.heights() / self.count

    @property
    def count(self) -> int:
        """What makes a value of a sum."""
        return 1 if self.delta else self.steps

    def add_to(self, sums: _Sums) -> Tensor:
        """Close the account after the steps done so far. Returns the site's own error (B, C, …)."""
        y, reach = self.y / self.count, self.reach()
        sent = torch.maximum(reach, y.abs())  # an overflow goes beyond what full firing reaches
        parts = split(self.neuron, self.a, self.x / self.count, y, sent)
        total, own = y - self.a, parts["quantisation"] + parts["clipping"] + parts["sin"]
        sums.products += torch.stack([dot(part, total) for part in parts.values()])
        sums.squares += torch.stack([dot(part, part) for part in parts.values()])
        sums.own += dot(own, own).item()
        surplus = parts["quantisation"] + parts["sin"]
        one = self.heights() / self.steps
        surplus = torch.where(surplus * self.count > one, surplus, torch.zeros_like(surplus))
        sums.over += dot(surplus, surplus).item()
        sums.float += dot(self.a, self.a).item()
        silent, spoken = self.a == 0, self.y.abs() > TAKEN_BACK * self.sent
        full = (y.abs() >= AT_REACH * reach) & (reach > 0)
        counted = (silent, silent & spoken, ~silent & (self.sent == 0), full)
        sums.counted += torch.stack([mask.sum() for mask in counted]).cpu()
        return own


class _Batch:
    """What one batch's run is watched by."""

    def __init__(
        self,
        snn: SpikingNetwork,
        batch: Batch,
        record: list[int],
        sums: dict[tuple[str, int], _Sums],
        chosen: dict[str, list[int]] | None,
    ):
        self.snn, self.record, self.sums, self.chosen = snn, record, sums, chosen or {}
        self.sites: dict[str, _Site] = {}
        self.scans: dict[str, Scan | Corrections] = {}
        self.own: dict[str, Tensor] = {}
        self.thresholds: dict[str, list[Tensor]] = {}
        for node, value in snn.graph.walk(batch):
            if node.name in snn.neurons:
                self.sites[node.name] = _Site(snn.neurons[node.name], value)
            self.expected = value
        if chosen is None:
            names = list(self.sites)
            self.chosen = {
                name: self.sites[name].a[0].flatten().topk(1).indices.tolist()
                for name in {names[0]: 0, names[len(names) // 2]: 0, names[-1]: 0}
            }

    def watch(self, name: str, scan: Scan | Corrections, x: Tensor) -> None:
        site, self.scans[name] = self.sites[name], scan
        coming = coming_delta_threshold if site.delta else coming_threshold
        site.x = x[0].clone() if site.delta else site.x + x[0]
        if site.neuron.adaptive or name in self.chosen:
            theta = coming(site.neuron, scan.state, x[0], site.steps)
            if site.neuron.adaptive:
                site.theta += theta
            if name in self.chosen:
                row = theta.expand(x[0].shape)[0].flatten()[self.chosen[name]]
                self.thresholds.setdefault(name, []).append(row.cpu())

    def tap(self, name: str, y: Tensor) -> None:
        site = self.sites[name]
        site.y += y[0]
        site.sent += y[0].abs()
        site.steps += 1
        t = site.steps * (site.neuron.window or 1)
        if t in self.record:
            own = site.add_to(self.sums.setdefault((name, t), _Sums()))
            if t == self.record[-1]:
                self.own[name] = own

    def traces(self) -> dict[str, Tensor]:
        return {name: torch.stack(rows, 1) for name, rows in self.thresholds.items()}


def _add(costs: _Costs, t: int, found: dict[str, Cost], images: int) -> None:
    """Sum a batch's costs up to t; a figure that every image shares counts once for each."""
    for site, cost in found.items():
        before = costs.get((site, t), {})
        summed = {name: (v.sum() if v.dim() else v * images).item() for name, v in vars(cost).items()}
        costs[site, t] = {name: value + before.get(name, 0.0) for name, value in summed.items()}


def _residuals(scan: Scan | Corrections, site: _Site) -> Tensor:
    """(BINS,) potentials in units of θ; dead channels are left out. Under delta coding the errors that are left."""
    v = target(scan.neuron, site.x, site.steps - 1) - site.y if site.delta else scan.state.v
    theta = per_channel(scan.neuron.theta, v, scan.neuron.axis).expand(v.shape)
    edge = RESIDUAL * (1 - 1e-6)
    ratio = (v[theta > 0] / theta[theta > 0]).clamp(-edge, edge)
    return torch.histc(ratio.float(), BINS, -RESIDUAL, RESIDUAL).cpu().double()


def _entry(node: Node, t: int, all_sums: dict[tuple[str, int], _Sums], costs: _Costs, images: int) -> Entry:
    sums, cost = all_sums[node.name, t], costs[node.name, t]
    total = relative(sums.products.sum().item(), sums.float)
    size = elements(node)
    shares = (sums.products / sums.products.sum()).nan_to_num(0.0).tolist()
    inactive, sin, dead, saturated = sums.counted.tolist()
    each = {name: value / images for name, value in cost.items()}
    return Entry(
        site=node.name,
        t=t,
        total=total,
        **{part: share * total for part, share in zip(PARTS, shares, strict=True)},
        **{f"{p}_norm": relative(square, sums.float) for p, square in zip(PARTS, sums.squares.tolist(), strict=True)},
        own_norm=relative(sums.own, sums.float),
        effect=relative(*sums.effect.tolist()),
        inactive=inactive / (size * images),
        sin_ratio=sin / max(inactive, 1.0),
        over=sums.over / max((sums.squares[0] + sums.squares[2]).item(), 1e-30),
        dead=dead / max(size * images - inactive, 1.0),
        saturated=saturated / (size * images),
        neurons=size,
        spikes_per_neuron=each["spikes"] / size,
        **{name: each[name] for name in COSTS},
    )
