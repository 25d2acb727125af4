"""Activation statistics of a float network on calibration images, in one streaming pass.

Each call site keeps, per channel, the exact maximum of |f(x)| and a histogram with 64 bins to the octave. Memory is
10 kB a channel whatever the number of images; a percentile is interpolated within its bin, so that its relative error
is below 1/64 (a bin's width).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.fx.node import Node

from msat_det.base.checks import check_percentile
from msat_det.base.device import wide
from msat_det.base.errors import InputError
from msat_det.base.progress import Progress
from msat_det.base.tables import Tabular
from msat_det.graph.channels import Axis
from msat_det.graph.facts import facts
from msat_det.graph.fanout import FanOut, fan_out
from msat_det.graph.graph import Batch, Graph, where
from msat_det.graph.inputs import first_images, images_in
from msat_det.graph.trace import trace
from msat_det.models.detector import Detector
from msat_det.spiking.kernels.cpu import observe_channels

_SHIFT = 23 - 6  # a float's bits above this one are its exponent and the first six bits of its mantissa
_LOWEST, _OCTAVES = -24, 40  # magnitudes from 2^-24 to 2^16; what is smaller counts as zero
_FIRST = (127 + _LOWEST) << 6
_BINS = _OCTAVES * 64 + 1  # bin 0 holds the zeros
FLOOR = 0.05  # a percentile over all values is at least this share of the maximum


@dataclass(eq=False)
class Site:
    """Statistics of one call site. maximum: (C,) of |f(x)|, exact. histogram: (C, bins) counts. axis: the dimension of
    a batch that the channels lie along, see ``channels.Axis``; None: C is 1."""

    maximum: Tensor
    histogram: Tensor
    axis: Axis = 1

    @classmethod
    def empty(cls, channels: int, axis: Axis = 1) -> "Site":
        counts = torch.int64 if axis is None else torch.int32  # a whole layer may have more than 2^31 activations
        return cls(torch.zeros(channels), torch.zeros(channels, _BINS, dtype=counts), axis)

    def add(self, values: Tensor) -> None:
        """Take in a batch of activations (B, …)."""
        counts = torch.zeros_like(self.histogram, dtype=torch.int32) if self.axis is None else self.histogram
        observe_channels(values.detach(), self.axis, _SHIFT, _FIRST, counts, self.maximum)
        if self.axis is None:
            self.histogram += counts

    def scale(self, percentile: float = 100.0, values: str = "all", per: str = "channel") -> Tensor:
        """The percentile of |f(x)|, (C,) per channel or () per layer, where no channels are known in any case.

        values: ``all`` counts zeros and is floored at 5 % of the maximum; ``nonzero`` leaves them out. 100: the maximum
        Raises InputError for what is no percentile.
        """
        check_percentile("percentile", percentile)
        per = "layer" if self.axis is None else per
        maximum = self.maximum if per == "channel" else self.maximum.amax().unsqueeze(0)
        if percentile < 100:
            counts = wide(self.histogram)
            if per == "layer":
                counts = counts.sum(0, keepdim=True)
            if values == "nonzero":
                counts[:, 0] = 0
            found = _percentile(counts, percentile / 100)
            maximum = torch.minimum(maximum, torch.maximum(found, FLOOR * maximum) if values == "all" else found)
        return maximum if per == "channel" else maximum.squeeze(0)

    def levels(self) -> tuple[Tensor, Tensor]:
        """The distribution: (bins,) the middle of each bin, 0 of the lowest, and (C, bins) float64, the share of each
        channel's activations there."""
        index = torch.arange(_BINS)
        middle = (_edge(index) + _edge(index + 1)) / 2
        middle[0] = 0.0
        counts = wide(self.histogram)
        return middle, counts / counts.sum(1, keepdim=True).clamp(min=1)


def _percentile(counts: Tensor, q: float) -> Tensor:
    """The q-quantile of each row's histogram, linear within its bin."""
    below = counts.cumsum(1)
    wanted = q * below[:, -1:]
    index = torch.searchsorted(below, wanted).clamp_(max=_BINS - 1)
    before = torch.where(index > 0, below.gather(1, (index - 1).clamp(min=0)), torch.zeros_like(wanted))
    inside = ((wanted - before) / counts.gather(1, index).clamp(min=1)).clamp(0, 1).float()
    low, high = _edge(index), _edge(index + 1)
    return torch.where(index == 0, torch.zeros_like(inside), low + inside * (high - low)).squeeze(1)


def _edge(index: Tensor) -> Tensor:
    """The lower edge of a bin."""
    return ((index.to(torch.int32) + (_FIRST - 1)) << _SHIFT).view(torch.float32)


@dataclass(repr=False, eq=False)
class Observation(Tabular):
    """What the methods know: the traced network, its multiply-adds, the calibration images and the activations on them.

    batches: the calibration images as the network takes them; any sequence, so that they need not be in memory.
    detector: what the network is a part of, if anything. variants: observations of the same network under options that
    change its graph (``methods.variants``).
    """

    graph: Graph
    fanout: FanOut
    sites: dict[str, Site]
    batches: Sequence[Batch]
    detector: Detector | None = None
    variants: dict[tuple, "Observation"] = field(default_factory=dict)

    _headings = ("call site", "activation", "channels", "largest", "never active")

    @property
    def maxima(self) -> dict[str, Tensor]:
        """The largest |f(x)| of each channel of every call site of the graph, (C,)."""
        return {node.name: self.sites[node.name].maximum for node in self.graph.sites if node.name in self.sites}

    def __repr__(self) -> str:
        count, batches = f"{len(self.sites)} call sites", len(self.batches)
        return f"Observation({count} on {batches} calibration batch{'es' * (batches > 1)})"

    def _rows(self) -> list[list[str]]:
        """A line for each call site."""
        kinds = {node.name: facts(node).pointwise.name for node in self.graph.sites}
        return [
            [name, kinds.get(name, ""), *map(str, (len(m), f"{m.max():.3g}", int((m == 0).sum())))]
            for name, m in ((name, site.maximum) for name, site in self.sites.items())
        ]

    @cached_property
    def drives(self) -> dict[str, float]:
        """The largest |input current| of each call site on the first calibration batch."""
        sources = [node.all_input_nodes[0] for node in self.graph.sites]
        with torch.inference_mode():
            found = {n: v.abs().amax().item() for n, v in self.graph.walk(self.batches[0]) if n in sources}
        return {node.name: found[source] for node, source in zip(self.graph.sites, sources, strict=True)}

    def first(self, images: int) -> Batch:
        """The first calibration images, as many as there are of the first one's size up to ``images``, in one batch."""
        taken: list[Batch] = []
        total = 0
        for batch in self.batches:
            if taken and _sizes(batch) != _sizes(taken[0]):
                continue
            taken.append(first_images(batch, images - total))
            total += images_in(taken[-1])
            if total >= images:
                break
        return pytree.tree_map(lambda *parts: torch.cat(parts), *taken)


def observe(
    net: nn.Module | Graph, batches: Sequence[Batch], progress: bool = False, share: Sequence[int] | None = None
) -> Observation:
    """Trace ``net`` and observe every call site on the calibration ``batches``.

    share: the numbers of the batches to be observed, where other processes observe the rest; all by default.
    Raises InputError when there is no batch, or where an activation is not finite (naming its call site).
    """
    if len(batches) == 0:
        raise InputError("there are no calibration images: give some, the thresholds are set by their activations")
    first = batches[0]
    graph = net if isinstance(net, Graph) else trace(net, first_images(first, 2))
    sites = observe_sites(graph, graph.sites, batches, progress, share)
    return Observation(graph, fan_out(graph), sites, batches)


def observe_sites(
    graph: Graph,
    nodes: list[Node],
    batches: Sequence[Batch],
    progress: bool = False,
    share: Sequence[int] | None = None,
) -> dict[str, Site]:
    """The statistics of these call sites over all ``batches``, or over those whose numbers ``share`` holds."""
    sites = {node.name: _empty(node) for node in nodes}
    numbers = range(len(batches)) if share is None else share
    with torch.inference_mode():
        for number in Progress(numbers, "observing", unit="batch", disable=not progress, leave=False):
            _observe_batch(graph, batches[number], sites)
    return sites


def _empty(node: Node) -> Site:
    if not facts(node).shape:
        raise InputError(f"{where(node)} has no channel dimension: its output must be (batch, channels, …)")
    return Site.empty(facts(node).channels, facts(node).channel_axis)


def _observe_batch(graph: Graph, batch: Batch, sites: dict[str, Site]) -> None:
    for node, value in graph.walk(batch):
        if node.name not in sites:
            continue
        site = sites[node.name]
        site.add(value)
        if not site.maximum.isfinite().all():
            raise InputError(
                f"{where(node)}: activations on calibration images are not finite: check weights and input"
            )


def _sizes(batch: Batch) -> list[torch.Size]:
    return [value.shape[1:] for value in pytree.tree_leaves(batch)]
