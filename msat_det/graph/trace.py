"""Trace the dense part of a network into a graph whose every node has a verdict (DESIGN §4)."""

import inspect
import traceback
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.fx.node import Node
from torchvision.ops.misc import FrozenBatchNorm2d

from msat_det.base.errors import InputError
from msat_det.graph import ops
from msat_det.graph.axes import label_channels
from msat_det.graph.classify import classify
from msat_det.graph.facts import facts
from msat_det.graph.functional import drop_defaults, drop_neutral, fold_batch_norm, free_views, functionalise
from msat_det.graph.graph import TORCH, Graph, device_of, measure, where
from msat_det.graph.inputs import AS_IT_TAKES, MISFIT, Batch, as_input, name_of, reason
from msat_det.graph.ops import Kind
from msat_det.graph.prepare import prepared

_TOLERANCE = 1e-4


@torch.inference_mode(False)
def trace(net: nn.Module, batch: Batch) -> Graph:
    """Trace ``net`` (left as it is; a copy is traced, see ``prepare.prepared``) and give every node its verdict.

    batch: one calibration batch, a tensor (B, …) or a tuple or dict of them; two images or more make the check that
        images of a batch do not mix a sharper one.
    Raises InputError, naming node, source line and mend, for control flow that depends on data, in-place writes into
    views or shared state, unknown operations, networks that mix the images of a batch or do not run on this one, and
    when the traced graph's outputs differ from the network's by more than 1e-4 of their largest magnitude.
    """
    net = prepared(net)
    inputs, values, constants = _bind_signature(net, (batch,) if isinstance(batch, Tensor) else batch)
    expected = _float_outputs(net, values)
    module = _symbolic_trace(net, constants)
    graph = Graph(module, inputs, pytree.tree_structure(expected))
    drop_defaults(graph)
    functionalise(graph)
    free_views(graph)
    drop_neutral(graph)
    fold_batch_norm(graph)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    classify(graph, measure(graph, values))
    with torch.inference_mode():
        _check_batch(graph, values)
        _check_outputs(graph, values, expected)
        label_channels(graph, pytree.tree_map(lambda value: value[:1], values))
    return graph


def _bind_signature(net: nn.Module, batch: Any) -> tuple[list[str], tuple | dict, dict[str, Any]]:
    """The names of the inputs that a batch gives, these as the network takes them, and the other defaults."""
    signature = inspect.signature(net.forward)
    parameters = signature.parameters
    try:
        bound = signature.bind(**batch) if isinstance(batch, dict) else signature.bind(*batch)
    except TypeError as error:
        raise InputError(f"the batch does not fit {type(net).__name__}.forward: {error}") from error
    given = [name for name in parameters if name in bound.arguments]
    variadic = [n for n, p in parameters.items() if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if set(variadic) & set(given):
        raise InputError(f"{type(net).__name__}.forward takes *{variadic[0]}: give its inputs names of their own")
    defaults = {n: p.default for n, p in parameters.items() if n not in given and n not in variadic}
    device = device_of(net)
    ready = {name: as_input(f"input '{name}'", bound.arguments[name], device) for name in given}
    return given, ready if isinstance(batch, dict) else tuple(ready.values()), defaults


def _float_outputs(net: nn.Module, values: tuple | dict) -> Any:
    own = pytree.tree_map(torch.clone, values)  # the network may write into its input
    try:
        with torch.inference_mode():
            return net(**own) if isinstance(own, dict) else net(*own)
    except MISFIT as error:
        given = ", ".join(f"{tuple(x.shape[1:])} {name_of(x.dtype)}" for x in pytree.tree_leaves(values))
        raise InputError(
            f"{type(net).__name__} does not run on images of {given} ({reason(error)}): {AS_IT_TAKES}"
        ) from error


class _Tracer(fx.Tracer):
    """buffers: whether they are followed, too, as methods of theirs that take sizes of images need it."""

    record_stack_traces = True

    def __init__(self, buffers: bool):
        super().__init__()
        self.proxy_buffer_attributes = buffers

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, FrozenBatchNorm2d) or super().is_leaf_module(module, name)


def _symbolic_trace(net: nn.Module, constants: dict[str, Any]) -> fx.GraphModule:
    first: Exception | None = None
    for buffers in (False, True):
        try:
            return fx.GraphModule(net, _Tracer(buffers).trace(net, concrete_args=constants or None))
        except (*MISFIT, NameError) as error:
            first = first or error
    frames = [f for f in traceback.extract_tb(first.__traceback__) if not f.filename.startswith(TORCH)]
    place = f"{frames[-1].filename}:{frames[-1].lineno}: `{frames[-1].line}`"
    mend = "what depends on the data's values or shape belongs outside the dense part, in preprocess or decode"
    if "instead found type 'Proxy'" in str(first):
        mend = "a scripted function (torch.jit.script) can't be traced: call the plain one"
    raise InputError(f"the dense part does not trace at {place} ({reason(first)}): {mend}") from first


def _check_batch(graph: Graph, batch: Any) -> None:
    """Make sure that each image of a batch goes its own way through every node, and none comes to NaN."""
    # other images behind these ones: neither a statistic over the batch nor another order of it leaves these alone
    more = pytree.tree_map(lambda x: torch.cat((x, (x / 2).to(x.dtype))), batch)
    size = pytree.tree_leaves(batch)[0].shape[0]
    for (node, once), (_, both) in zip(graph.walk(batch), graph.walk(more), strict=True):
        if facts(node).kind in (Kind.SHAPE, Kind.OUTPUT):
            continue
        for a, b in zip(pytree.tree_leaves(once), pytree.tree_leaves(both), strict=True):
            if not isinstance(a, Tensor):
                continue
            if a.is_floating_point() and _is_broken(node, a):
                raise InputError(
                    f"{where(node)} gives NaN or infinite values: check the weights and the calibration images"
                )
            alike = a.dim() > 0 and a.shape[0] == size and b.shape[0] == 2 * size
            if not alike or _difference(a, b[:size]) > _TOLERANCE:
                raise InputError(f"{where(node)} mixes the images of a batch: keep dimension 0 for images alone")
        if not isinstance(once, Tensor) and facts(node).kind is Kind.DIFFERENTIAL:
            raise InputError(f"{where(node)} gives several tensors: take a form that gives one (amax, say, for max)")


def _is_broken(node: Node, value: Tensor) -> bool:
    """NaN anywhere, or infinity where only weights can have made it; a mask may well hold -inf."""
    return bool(value.isnan().any() or (facts(node).op in ops.MULTIPLYING and value.isinf().any()))


def _check_outputs(graph: Graph, batch: Any, expected: Any) -> None:
    wanted, got = pytree.tree_leaves(expected), pytree.tree_leaves(graph(batch))
    for a, b in zip(wanted, got, strict=True):
        if isinstance(a, Tensor) and not _difference(a, b) <= _TOLERANCE:
            raise InputError(
                f"the traced graph's outputs differ from the network's by {_difference(a, b):.1e} of their magnitude "
                "(1e-4 allowed): is there randomness, state or autocast in the dense part?"
            )


def _difference(a: Tensor, b: Tensor) -> float:
    """Largest difference in units of the largest finite magnitude; equal infinities count as equal."""
    if a.shape != b.shape:
        return float("inf")
    if a.numel() == 0 or torch.equal(a, b):
        return 0.0
    a, b = a.double(), b.double()  # of masks there is no difference
    scale = a[a.isfinite()].abs().max().clamp(min=1e-12) if a.isfinite().any() else torch.tensor(1.0)
    return (
        (a - b).abs().nan_to_num(posinf=float("inf"), nan=0.0 if _same_infinities(a, b) else float("inf")).max() / scale
    ).item()


def _same_infinities(a: Tensor, b: Tensor) -> bool:
    return bool((a.isinf() == b.isinf()).all() and not a.isnan().any() and not b.isnan().any())
