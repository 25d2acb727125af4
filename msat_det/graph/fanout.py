"""What a spike costs: the multiply-adds that it reaches, counted exactly, padding, stride, groups included.

A spike passes add, concat, pooling, upsampling and other linear nodes for nothing and pays at the convolutions and
linear layers behind them. Where something analog flows into the same position, that position is paid at full price in
every timestep, once, and spikes that arrive there too pay nothing more.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from torch import Tensor
from torch.fx.node import Node
from torch.nn.modules.conv import _ConvNd

from msat_det.base.device import wide
from msat_det.base.errors import InputError
from msat_det.graph import ops
from msat_det.graph.facts import facts, filled, full_shape, is_site
from msat_det.graph.graph import Graph, elements, last_uses, module_of
from msat_det.graph.ops import Kind

_SPATIAL = ops.AVERAGE_POOLINGS | ops.RESIZINGS
# element by element: a spike arrives once, whatever it is multiplied by and however often it is added to itself
_ELEMENTWISE = ops.BATCH_NORMS | {"add", "sub", "rsub", "mul", "truediv", "neg", "pos"}
_REDUCING = {"mean", "sum"}
# max(k·x) = k·max(x) for k > 0: their difference of running sums is exact, and counts as spikes where it is not zero.
HOMOGENEOUS = ops.MAX_POOLINGS | {"amax", "amin"}

Value = Tensor | tuple[Tensor, ...]  # what a node gives


@dataclass
class FanOut:
    """Multiply-adds by what drives them.

    macs: {node: multiply-adds of one float forward of one image}. spikes: {event source (spiking node or max pooling):
    (C, …) multiply-adds that one spike of each neuron reaches}. analog: {node: multiply-adds paid in every timestep}.
    once: multiply-adds on inputs that do not change in time, paid once. evaluations: elements in which differential
    nodes evaluate something other than comparisons and multiply-adds, in every timestep.
    """

    macs: dict[Node, int] = field(default_factory=dict)
    spikes: dict[Node, Tensor] = field(default_factory=dict)
    analog: dict[Node, float] = field(default_factory=dict)
    once: float = 0.0
    evaluations: int = 0
    _copies: dict[tuple[Node, torch.device], Tensor] = field(default_factory=dict, repr=False, compare=False)
    _sums: dict[Node, float] = field(default_factory=dict, repr=False, compare=False)

    def reach(self, node: Node, device: torch.device) -> Tensor:
        """``spikes`` of one event source on a device, zeros where its spikes reach nothing."""
        found = self.spikes.get(node)
        if found is not None and found.device == device:
            return found
        if (node, device) not in self._copies:
            found = torch.zeros(facts(node).image_shape) if found is None else found
            self._copies[node, device] = found.to(device)
        return self._copies[node, device]

    def reach_of_all(self, node: Node) -> float:
        """Multiply-adds that one spike of each neuron of an event source reaches together."""
        if node not in self._sums:  # millions of neurons, and it is asked for at every recorded t
            self._sums[node] = wide(self.spikes[node]).sum().item() if node in self.spikes else 0.0
        return self._sums[node]

    def on(self, graph: Graph) -> "FanOut":
        """The same counts for the nodes of a copy of the graph."""
        node = {n.name: n for n in graph.nodes}
        macs = {node[n.name]: count for n, count in self.macs.items()}
        spikes = {node[n.name]: reach for n, reach in self.spikes.items()}
        analog = {node[n.name]: count for n, count in self.analog.items()}
        return replace(self, macs=macs, spikes=spikes, analog=analog, _copies={}, _sums={})

    @property
    def total(self) -> int:
        """Multiply-adds of one float forward of one image."""
        return sum(self.macs.values())

    @property
    def analog_share(self) -> float:
        """Share of the multiply-adds that are paid at full price in every timestep."""
        return sum(self.analog.values()) / max(self.total, 1)


def is_event_source(node: Node) -> bool:
    """Whether the node emits spikes: a neuron, or the differences of a max pooling."""
    return facts(node).kind is Kind.SPIKING or is_pool(node)


def is_pool(node: Node) -> bool:
    """Whether it is a max pooling, whose differences count as spikes."""
    known = facts(node)
    return known.kind is Kind.DIFFERENTIAL and known.op in HOMOGENEOUS and known.rows == 1


@torch.inference_mode(False)
def fan_out(graph: Graph) -> FanOut:
    """Count the multiply-adds of every node of ``graph`` and share them out over what drives them.

    Counted on the CPU, where whole numbers stay whole.
    """
    with graph.on("cpu"):
        return _Count(graph).result()


class _Count:
    """One graph's count. shapes: values that no image enters. static: see ``static_nodes``. found: what is counted."""

    def __init__(self, graph: Graph):
        self.graph, self.static, self.found = graph, static_nodes(graph), FanOut()
        self.shapes = graph.shapes("cpu")
        self.random = torch.Generator().manual_seed(0)

    def result(self) -> FanOut:
        masks: dict[Node, Value] = {}
        last = last_uses(self.graph.nodes)
        for node in self.graph.nodes:
            self.count(node, masks)
            if (mask := self.analog_mask(node, masks)) is not None:
                masks[node] = mask
            for done in last[node]:
                masks.pop(done, None)
        return self.found

    def count(self, node: Node, masks: dict[Node, Value]) -> None:
        """Share a node's multiply-adds out. masks: of the nodes that enter it, see ``analog_mask``."""
        found = self.found
        if _is_evaluated(node, self.static):
            found.evaluations += elements(node)
        if facts(node).op not in ops.MULTIPLYING or facts(node).kind not in (Kind.LINEAR, Kind.DIFFERENTIAL):
            return
        if facts(node).kind is Kind.DIFFERENTIAL:  # a product of two branches
            found.macs[node] = found.analog[node] = self.product_macs(node)
            return
        source = _data_inputs(node)[0]
        reach = self.multiply_adds(node, source)
        found.macs[node] = int(_total(reach))
        if source in masks:
            mask = masks[source]
            assert isinstance(mask, Tensor)  # no tuple is multiplied
            if dense := _total(reach * mask):
                found.analog[node] = dense
            reach = reach * (1 - mask)
        self.push(source, reach)

    def value(self, node: Node, inputs: dict[Node, Any]) -> Any:
        """A node's value for those of its inputs that images enter."""
        return self.graph.evaluate(node, self.shapes | inputs)

    def linear_part(self, node: Node, inputs: dict[Node, Value]) -> Value:
        """The node without its affine offset: L(inputs) − L(0)."""
        at_inputs, at_zero = self.value(node, inputs), self.value(node, pytree.tree_map(torch.zeros_like, inputs))
        return pytree.tree_map(lambda a, z: (a - z).nan_to_num(0.0), at_inputs, at_zero)

    def analog_mask(self, node: Node, masks: dict[Node, Value]) -> Value | None:
        """1 where something analog that changes in time flows through a node, (1, C, …); spikes leave 0. None where
        nothing does. masks: of the nodes that enter it."""
        kind, op = facts(node).kind, facts(node).op
        if kind in (Kind.SHAPE, Kind.OUTPUT) or node in self.static or is_event_source(node):
            return None
        if kind is Kind.DIFFERENTIAL or op in ops.MULTIPLYING:
            return filled(facts(node), 1.0)
        entering = {n: masks[n] if n in masks else filled(facts(n), 0.0) for n in _data_inputs(node)}
        if masks.keys().isdisjoint(entering):
            return None
        # positive random values in place of ones, so that no difference of two branches cancels
        noisy = pytree.tree_map(lambda m: m * (0.5 + torch.rand(m.shape, generator=self.random)), entering)
        mask = pytree.tree_map(lambda m: (m != 0).float(), self.linear_part(node, noisy))
        return mask if any(part.any() for part in pytree.tree_leaves(mask)) else None

    def multiply_adds(self, node: Node, source: Node) -> Tensor:
        """(1, C, …) multiply-adds that each element of the node's input takes part in."""
        shape, op = full_shape(facts(source)), facts(node).op
        if op == "linear":
            return torch.full(shape, float(self.parameter(node, "weight", 1).shape[0]))
        if op.startswith("conv"):
            return self.convolution(node, facts(source).image_shape).expand(shape)
        if op in ("matmul", "bmm", "mm"):
            other = next(n for n in node.all_input_nodes if n is not source)
            return torch.full(shape, float(self.shapes[other].shape[-1 if node.args[0] is source else -2]))
        if op == "einsum":
            return _vjp(lambda x: self.on_ones(node, {source: x}), source, None)
        raise InputError(f"cannot count the multiply-adds of operation '{op}' at {facts(node).source}")

    def parameter(self, node: Node, name: str, position: int) -> Any:
        """A tensor or a setting of a layer, or of a function's call."""
        if node.op == "call_module":
            return getattr(self.graph.layer(node), name)
        value = ops.argument(node, position, name)
        return self.shapes[value] if isinstance(value, Node) else value

    def convolution(self, node: Node, shape: tuple) -> Tensor:
        """(1, 1, …): one channel stands for all: taps of a position, times the output channels of its group."""
        weight, module = self.parameter(node, "weight", 1), module_of(self.graph, node)
        transposed = "transpose" in facts(node).op
        order = ops.GEOMETRY_TRANSPOSED if transposed else ops.GEOMETRY
        given = {name: self.parameter(node, name, position) for position, name in enumerate(order, 3)}
        values = {name: value for name, value in given.items() if value is not None}
        groups = values.pop("groups", 1)
        call = getattr(F, "conv" + ("_transpose" if transposed else "") + facts(node).op[-2:])
        x = padded = torch.ones(1, 1, *shape[1:], requires_grad=True)
        if isinstance(module, _ConvNd) and module.padding_mode != "zeros":
            padded = F.pad(x, module._reversed_padding_repeated_twice, mode=module.padding_mode)
            values["padding"] = 0
        with torch.enable_grad():
            taps = call(padded, torch.ones(1, 1, *weight.shape[2:]), **values)
            (reach,) = torch.autograd.grad(taps.sum(), x)
        per_tap = weight.shape[1] if transposed else weight.shape[0] // groups
        return reach.round() * per_tap

    def product_macs(self, node: Node) -> int:
        if facts(node).op == "einsum":
            return int(_total(self.on_ones(node, {})))
        if facts(node).op == ops.DEFORMABLE:
            return elements(node) * math.prod(self.parameter(node, "weight", 1).shape[1:])
        return elements(node) * facts(node.all_input_nodes[0]).image_shape[-1]

    def on_ones(self, node: Node, inputs: dict[Node, Tensor]) -> Tensor:
        """A product of tensors with 1 in place of all values but ``inputs``: each output counts its multiply-adds."""
        ones: dict[Node, Value] = {n: torch.ones(v.shape) for n, v in self.shapes.items() if isinstance(v, Tensor)}
        ones |= {n: filled(facts(n), 1.0) for n in _data_inputs(node)}
        return self.value(node, ones | inputs)

    def push(self, node: Node, reach: Tensor) -> None:
        """Carry a reach map (1, C, …) back from a node's output to the spikes that enter it."""
        if node in self.static:
            self.found.once += _total(reach)
        elif is_event_source(node):
            known, more = self.found.spikes.get(node), as_spikes_lie(reach[0])
            self.found.spikes[node] = more if known is None else known + more
        elif facts(node).kind is Kind.LINEAR and facts(node).op not in ops.MULTIPLYING:
            for source in _data_inputs(node):
                if facts(source).parts:  # an element of a tuple: chunk, split, unbind
                    origin = _data_inputs(source)[0]
                    self.push(origin, self.pull_part(node, source, origin, reach))
                else:
                    self.push(source, self.pull(node, source, reach))

    def pull(self, node: Node, source: Node, reach: Tensor) -> Tensor:
        """What each element of ``source`` reaches through a linear node: the sum of ``reach`` over what it touches."""
        op = facts(node).op
        if op in _ELEMENTWISE:
            return reach.sum_to_size(full_shape(facts(source)))
        if op in _REDUCING:
            return _vjp(lambda x: self.value(node, {source: x}), source, reach, unit=True)
        if op in _SPATIAL:
            return self.pull_spatial(node, source, reach)
        others = {n: filled(facts(n), 0.0) for n in _data_inputs(node) if n is not source}
        return _vjp(lambda x: self.value(node, others | {source: x}), source, reach)

    def pull_part(self, node: Node, split: Node, origin: Node, reach: Tensor) -> Tensor:
        return _vjp(lambda x: self.value(node, {split: self.value(split, {origin: x})}), origin, reach)

    def pull_spatial(self, node: Node, source: Node, reach: Tensor) -> Tensor:
        """Pooling and interpolation are separable: which outputs each row and each column touches decides."""
        shape = facts(source).image_shape
        for axis in range(1, len(shape)):
            length = shape[axis]
            basis = torch.zeros(length, 1, *shape[1:])
            lines = basis.movedim(axis + 1, 1)
            lines[torch.arange(length), torch.arange(length)] = 1.0
            touched = self.value(node, {source: basis}).movedim(axis + 1, 1).flatten(2) != 0
            matrix = touched.any(2).to(reach.dtype)  # (input position, output position)
            reach = torch.tensordot(reach, matrix, dims=([axis + 1], [1])).movedim(-1, axis + 1)
        return reach


def as_spikes_lie(reach: Tensor) -> Tensor:
    """A map (C, h, w) with the channels of a pixel side by side, as simulations have them: no batch copies it then."""
    if reach.dim() != 3:
        return reach.contiguous()
    return reach.unsqueeze(0).contiguous(memory_format=torch.channels_last)[0]


def _total(counts: Tensor) -> float:
    """The sum of whole numbers, which float64 has exactly."""
    return counts.sum(dtype=torch.float64).item()


def _is_evaluated(node: Node, static: set[Node]) -> bool:
    cheap = ops.MULTIPLYING | HOMOGENEOUS | ops.COMPARISONS | ops.CHOICES | (ops.POINTWISE - ops.CURVED)
    return facts(node).kind is Kind.DIFFERENTIAL and node not in static and facts(node).op not in cheap


def _data_inputs(node: Node) -> list[Node]:
    return [n for n in node.all_input_nodes if facts(n).kind is not Kind.SHAPE]


def static_nodes(graph: Graph) -> set[Node]:
    """Nodes whose value does not change in time: nothing spiking comes before them."""
    static: set[Node] = set()
    for node in graph.nodes:
        if not is_site(node) and all(n in static for n in node.all_input_nodes):
            static.add(node)
    return static


def _vjp(fn: Callable[[Tensor], Tensor], source: Node, reach: Tensor | None, unit: bool = False) -> Tensor:
    """Vector-Jacobian product of a map of ``source`` whose weights are ±1, or (unit) one positive one, divided out.

    reach: the vector; None for ones.
    """
    x = torch.zeros(full_shape(facts(source)), requires_grad=True)
    with torch.enable_grad():
        y = fn(x)
        if not y.requires_grad:  # it takes its input's shape or dtype alone
            return torch.zeros_like(x)
        (pulled,) = torch.autograd.grad(y, x, torch.ones_like(y) if reach is None else reach, materialize_grads=True)
        if unit:
            (weight,) = torch.autograd.grad(fn(x).sum(), x)
            pulled = pulled / weight
    return pulled.abs().round()
