"""Trace the dense part of a network into a graph whose every node has a verdict."""

import inspect
import math
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.fx.node import Node
from torch.overrides import TorchFunctionMode

from msat_det.base.device import wide
from msat_det.base.errors import InputError
from msat_det.graph import ops
from msat_det.graph.axes import label_channels
from msat_det.graph.batch_size import Guards, Sizes, drop_dead, free_batch_size
from msat_det.graph.classify import classify
from msat_det.graph.divisors import spare_divisors
from msat_det.graph.facts import amend, facts
from msat_det.graph.fanout import static_nodes
from msat_det.graph.folds import unfold
from msat_det.graph.functional import (
    Folds,
    as_layers,
    drop_neutral,
    fold_batch_norm,
    free_views,
    functionalise,
    fused,
    values_and_places,
)
from msat_det.graph.graph import TORCH, Graph, Misfit, device_of, measure, where
from msat_det.graph.inputs import MISFIT, Batch, as_input, first_images, images_in, mend, name_of, reason, signature
from msat_det.graph.ops import Kind
from msat_det.graph.precision import arithmetic
from msat_det.graph.prepare import copied, lend, part, prepared, unwrap
from msat_det.graph.record import HERE, DecidesByValues, is_leaf, record
from msat_det.graph.scripted import Scripted
from msat_det.graph.spellings import join_activations

T = TypeVar("T")
_TOLERANCE = 1e-4
_IMAGES = 2  # that are traced: more would take time, and tell nothing new


@torch.inference_mode(False)
def trace(net: nn.Module, batch: Batch) -> Graph:
    """Trace ``net`` (left as it is; a copy is traced, see ``prepare.prepared``) and give every node its verdict.

    batch: one calibration batch, a tensor (B, …) or a tuple or dict of them; two images or more make the check that
        images of a batch do not mix a sharper one.
    Raises InputError, naming node, source line and mend, for control flow that depends on data, in-place writes into
    views or shared state, unknown operations, networks that mix the images of a batch or do not run on this one, and
    when the traced graph's outputs differ from the network's by more than 1e-4 of their largest magnitude.
    """
    source = unwrap(net)
    given = signature(source)
    net = own = prepared(net)
    net = nn.Sequential(net) if is_leaf(net) else net  # a layer by itself: nodes name parts of a network
    inputs, values = _named(net, given, (batch,) if isinstance(batch, Tensor) else batch)
    # other images behind these ones: neither a statistic over the batch nor another order of it leaves these alone
    more = pytree.tree_map(lambda x: torch.cat((x, (x / 2).to(x.dtype))), values)
    one = first_images(values, 1)
    fresh, again = copied(net, net.parameters()), copied(net, net.parameters())
    graph, expected = _recorded(net, values, inputs)
    other, expected_more = _recorded(again, more, inputs)
    lend(source, own)
    for each in (graph, other):
        functionalise(each)
    module = graph.module
    free_batch_size(module.graph, other.module.graph, *map(images_in, (values, more)))
    free_views(graph)
    drop_neutral(graph)
    drop_dead(module.graph)
    values_and_places(graph)
    guards = Guards(module.graph)
    try:
        folds = _judge(graph, one)
    except Misfit as error:
        if images_in(values) == 1:
            raise
        raise InputError(
            f"{error.what}, of one image where {images_in(values)} were recorded: let the network take all images at "
            "once, not one by one, and any number of them; what it exports for one image, as an ONNX file, may convert"
        ) from error
    with torch.inference_mode():
        sizes = _check(_check_batch, graph, folds, net, (values, more), (expected, expected_more))
        for count, place in guards.stand(sizes, images_in(values)).items():
            _check_count(graph, folds, net, fresh, values, count, place or type(net).__name__)
        _check_scripted(net, values, expected)  # the last: it may change the program, which copies share
        for site in graph.sites:
            unfold(graph, site)
        label_channels(graph, pytree.tree_leaves(one)[0].device)
    module.delete_all_unused_submodules()
    part(source, module)
    module.recompile()
    return graph


def _judge(graph: Graph, one: Batch) -> Folds:
    """Give every node its verdict, what was written for one activation joined and batch norm folded: returns what."""
    outputs = measure(graph, one)
    as_layers(graph, outputs)
    folds = fold_batch_norm(graph, outputs)
    joined = join_activations(graph, outputs)
    classify(graph, outputs)
    spare_divisors(graph)
    for node, names in joined.items():
        amend(node, joined=tuple(names))
    return folds


def _named(net: nn.Module, takes: inspect.Signature, batch: Any) -> tuple[list[str], tuple | dict]:
    """The names of the inputs that a batch gives, and these as the network takes them, two images at most."""
    try:
        bound = takes.bind(**batch) if isinstance(batch, dict) else takes.bind(*batch)
    except TypeError as error:
        raise InputError(f"the batch does not fit {type(net).__name__}.forward: {error}") from error
    given: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = takes.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            given |= value
        elif kind is inspect.Parameter.VAR_POSITIONAL and len(value) != 1:
            given |= {f"{name}_{i}": each for i, each in enumerate(value)}
        else:
            given[name] = value[0] if kind is inspect.Parameter.VAR_POSITIONAL else value
    device = device_of(net)
    ready = {name: as_input(f"input '{name}'", value, device)[:_IMAGES] for name, value in given.items()}
    return list(given), ready if isinstance(batch, dict) else tuple(ready.values())


def _recorded(net: nn.Module, values: tuple | dict, names: list[str]) -> tuple[Graph, Any]:
    try:
        with arithmetic("float32", device_of(net)):
            module, outputs = record(net, _own(values), names)
        return Graph(module, names, pytree.tree_structure(outputs)), outputs
    except (*MISFIT, DecidesByValues) as error:
        _check_runs(net, values)
        frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith((TORCH, HERE))]
        last = frames[-1] if frames else None  # a layer of PyTorch by itself has no frame of its user's
        place = f"{last.filename}:{last.lineno}: `{last.line}`" if last else type(net).__name__
        raise InputError(
            f"the dense part does not trace at {place} ({reason(error)}): what depends on the data's values belongs "
            "outside the dense part, in preprocess or decode"
        ) from error


def _check_scripted(net: nn.Module, values: tuple | dict, expected: Any) -> None:
    """Make sure that what is recorded of scripted modules is what TorchScript calculates."""
    if any(isinstance(module, Scripted) for module in net.modules()):
        with torch.no_grad():
            _check_outputs(_compiled(copied(net), values), expected, "give the module that was scripted")


def _compiled(net: nn.Module, values: tuple | dict) -> Any:
    """What comes out where TorchScript runs its parts of a network, from now on."""
    for module in net.modules():
        if isinstance(module, Scripted):
            module.compiled = True
    return _called(net, values)


def _called(net: nn.Module, values: tuple | dict) -> Any:
    own = _own(values)
    return net(**own) if isinstance(own, dict) else net(*own)


def _check_runs(net: nn.Module, values: tuple | dict) -> None:
    try:
        with torch.inference_mode():
            _compiled(net, values)
    except MISFIT as error:
        first = pytree.tree_leaves(values)[0]
        given = ", ".join(f"{tuple(x.shape[1:])} {name_of(x.dtype)}" for x in pytree.tree_leaves(values))
        raise InputError(
            f"{type(net).__name__} does not run on images of {given} ({reason(error)}): {mend(first)}"
        ) from error


def _own(values: tuple | dict) -> Any:
    return pytree.tree_map(torch.clone, values)  # the network may write into its input


class _Different(InputError):
    """Values that should agree do not: float32's rounding is the one reason that may be forgiven."""


class _Wide(TorchFunctionMode):
    """Parameters are in float64 where they are used, one after the other: all of them at once may be too large."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        args, kwargs = pytree.tree_map_only(nn.Parameter, Tensor.double, (args, kwargs or {}))
        return func(*args, **kwargs)


def _with_wide_state(net: Any) -> Any:
    """A copy on the same parameters with buffers in float64, for ``_Wide``."""
    net = copied(net, net.parameters())
    for buffer in net.buffers():
        if buffer.is_floating_point():
            buffer.data = buffer.double()
    return net


class _Double(Graph):
    """A graph that calculates in float64, under ``_Wide``. folds: what has been folded, which is folded anew, since
    float32's weights are rounded."""

    def __init__(self, graph: Graph, folds: Folds):
        super().__init__(_with_wide_state(graph.module), graph.inputs, graph.structure)
        self.folds = folds

    def layer(self, node: Node) -> nn.Module:
        fold = self.folds.get(str(node.target))
        return super().layer(node) if fold is None else fused(*fold, torch.float64)

    def bind(self, batch: Batch) -> dict[str, Tensor]:
        return dict(zip(self.inputs, pytree.tree_leaves(batch), strict=True))


def _check(
    check: Callable[[Graph, tuple, tuple], T],
    graph: Graph,
    folds: Folds,
    net: nn.Module,
    batches: tuple,
    expected: tuple,
) -> T:
    """What a check finds, in float64 where float32 does not agree: on a black image, say, some networks subtract large
    values from each other, and two orders of the same sums differ by more than what is left."""
    try:
        return check(graph, batches, expected)
    except _Different as error:
        doubled = pytree.tree_map(lambda x: x.double() if x.is_floating_point() else x, batches)
        try:
            nets, exact = [_with_wide_state(net) for _ in doubled], _Double(graph, folds)
            with _Wide():
                return check(exact, doubled, tuple(map(_called, nets, doubled)))
        except (*MISFIT, InputError):  # what insists on float32 is judged by that
            raise error from None


def _check_count(
    graph: Graph, folds: Folds, net: nn.Module, fresh: nn.Module, values: Any, count: int, place: str
) -> None:
    """Make sure that ``count`` images, if the network takes as many, go the way that ``values`` go.

    fresh: a copy of ``net`` that has not run. place: where the network asks for their number.
    """
    images = images_in(values)
    batch = pytree.tree_map(lambda x: x[torch.arange(count, device=x.device) % images], values)
    try:
        with torch.no_grad(), arithmetic("float32", device_of(net)):
            expected = _called(copied(fresh, fresh.parameters()), batch)
    except MISFIT:
        return
    try:
        _check(lambda g, b, e: _check_outputs(g(b[0]), e[0], ""), graph, folds, net, (batch,), (expected,))
    except _Different as error:
        which = "one image than for several" if count == 1 else f"{count} images than for {images}"
        raise InputError(
            f"{place}: the network does otherwise for {which}: let it go the same way for any number"
        ) from error


def _check_batch(graph: Graph, batches: tuple[Any, Any], expected: tuple[Any, Any]) -> Sizes:
    """Make sure that the graph gives the network's outputs for a batch and for one of twice as many images, each of
    which goes its own way through every node, and that none comes to NaN.

    Returns the sizes in both.
    """
    sizes: Sizes = {}
    apart = _Apart(static_nodes(graph))
    for (node, once), (_, both) in zip(*map(graph.walk, batches), strict=True):
        kind = facts(node).kind
        if kind is Kind.OUTPUT:
            _check_outputs(once, expected[0], "is there randomness, state or autocast in the dense part?")
            _check_outputs(both, expected[1], "does it do otherwise for another number of images?")
        elif kind is not Kind.SHAPE:
            _check_values(node, once)
        if kind is not Kind.SHAPE:
            apart.check(node, pytree.tree_leaves(once), pytree.tree_leaves(both))
        elif isinstance(once, int):
            sizes[node.name] = once, both
    return sizes


def _check_values(node: Node, value: Any) -> None:
    if any(part.is_floating_point() and _is_broken(node, part) for part in pytree.tree_leaves(value)):
        raise InputError(f"{where(node)} gives NaN or infinite values: check the weights and the calibration images")
    if not isinstance(value, Tensor) and facts(node).kind is Kind.DIFFERENTIAL:
        raise InputError(
            f"{where(node)} gives several tensors: take a form that gives one (without return_indices, say)"
        )


class _Apart:
    """Whether images go their own ways. Linear nodes may carry them to other places than the first rows, as channel
    shuffles do, if others bring them back (and where a neuron's time does not come in between)."""

    def __init__(self, static: set[Node]):
        self.static = static
        self.carried: dict[Node, Node] = {}  # to another place: by which node first

    def check(self, node: Node, once: list[Tensor], both: list[Tensor]) -> None:
        """Take in a node's values for some images, and for those and as many more. Raises InputError for mixed ones."""
        known = facts(node)
        first = next((self.carried[n] for n in node.all_input_nodes if n in self.carried), node)
        carries = known.kind is Kind.LINEAR and known.op not in ops.MULTIPLYING
        late = node not in self.static and any(n in self.carried and n in self.static for n in node.all_input_nodes)
        if known.kind is Kind.OUTPUT:
            mixed = first is not node
        elif all(map(_stand_first, once, both)):
            mixed = late and carries
        else:
            mixed = late or not carries or any(2 * a.numel() != b.numel() for a, b in zip(once, both, strict=True))
            self.carried[node] = first
        if mixed:
            raise _Different(
                f"{where(first)} mixes the images of a batch: keep dimension 0 for images alone, what mixes them "
                "belongs outside the dense part; an ONNX file of a network that keeps them behind others may convert"
            )


def _stand_first(a: Tensor, b: Tensor) -> bool:
    """Whether what ``b`` holds of the first half of its images is what ``a`` holds of them."""
    return a.dim() > 0 and b.shape[0] == 2 * a.shape[0] and _difference(a, b[: a.shape[0]]) <= _TOLERANCE


def _is_broken(node: Node, value: Tensor) -> bool:
    """NaN anywhere, or infinity where only weights can have made it; a mask may well hold -inf."""
    largest = _magnitude(value)
    return math.isnan(largest) or (facts(node).op in ops.MULTIPLYING and math.isinf(largest))


def _check_outputs(outputs: Any, expected: Any, mend: str) -> None:
    leaves, found = pytree.tree_leaves(expected), pytree.tree_leaves(outputs)
    if len(found) != len(leaves):
        raise _Different(f"the traced graph gives {len(found)} outputs, where the network gives {len(leaves)}: {mend}")
    for a, b in zip(leaves, found, strict=True):
        if isinstance(a, Tensor) and not _difference(a, b) <= _TOLERANCE:
            raise _Different(
                f"the traced graph's outputs differ from the network's by {_difference(a, b):.1e} of their magnitude "
                f"(1e-4 allowed): {mend}"
            )


def _difference(a: Tensor, b: Tensor) -> float:
    """Largest difference in units of the largest finite magnitude; equal infinities count as equal."""
    if a.shape != b.shape:
        return math.inf
    if a.numel() == 0 or torch.equal(a, b):
        return 0.0
    if a.is_floating_point() and a.dtype == b.dtype:
        most, largest = _magnitude(a - b), _magnitude(a)
        if math.isfinite(most) and math.isfinite(largest):
            return most / max(largest, 1e-12)
    a, b = wide(a), wide(b)  # of masks there is no difference
    scale = a[a.isfinite()].abs().max().clamp(min=1e-12) if a.isfinite().any() else torch.tensor(1.0)
    apart = torch.where(a == b, 0.0, (a - b).abs()).nan_to_num(nan=math.inf, posinf=math.inf)
    return (apart.max() / scale).item()


def _magnitude(x: Tensor) -> float:
    """The largest magnitude, 0 of nothing; NaN where there is one. It takes a pass without a copy, which ``abs`` and
    ``isnan`` are."""
    low, high = x.aminmax() if x.numel() else (x.new_zeros(()),) * 2
    return torch.maximum(-low, high).item()
