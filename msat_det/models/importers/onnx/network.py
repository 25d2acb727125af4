"""An ONNX file becomes a torch.fx module: the batch is free, shapes are folded, weights are parameters."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from msat_det.base.errors import InputError
from msat_det.base.files import show
from msat_det.base.names import hint
from msat_det.graph.inputs import MISFIT, reason
from msat_det.models.importers.onnx.building import Building, Moving, Value
from msat_det.models.importers.onnx.file import OnnxFile, OnnxNode, needed, read_onnx
from msat_det.models.importers.onnx.operators import OPERATORS, Call
from msat_det.models.importers.onnx.operators.call import kind_of

_QUANTISED = ("QuantizeLinear", "QLinear", "Integer")  # as QDQ, operator by operator, or dynamically
_BROADCASTING = set("MatMul Add Sub Mul Div Pow Min Max Where".split())
OF_MASKS = set("Where And Or Xor Not Equal Cast CastLike Identity Shape Reshape Squeeze Unsqueeze Expand Slice".split())
OF_PLACES = OF_MASKS | set("Flatten Transpose Concat Tile Split Add Sub Mul Div Mod Less Greater".split())
OF_PLACES |= {"Gather", "GatherElements", "GatherND"}


def load_onnx(
    path: str | Path, size: tuple[int, int] | None = None, outputs: Sequence[str] | None = None
) -> fx.GraphModule:
    """The network in an ONNX file (opset 9 to 23) as a module: (B, C, h, w) → a tensor, or a tuple of them.

    size: (height, width) of the images where the file leaves them free, or another size for a network that takes any.
    outputs: names of tensors to give in place of the file's outputs; what follows them is left out, and need not be
        supported. An output (N, …) of one image's rows becomes (B, N, …).
    The module's ``meta`` holds ``size``, ``inputs`` ({name: one image's sizes}), ``outputs`` and their ``shapes``.
    No code is run from the file, and of its folder only the weights that it names are read. Raises InputError that
    names the node for an operator that is not known, and for whatever does not treat all images of a batch alike.
    """
    return network_of(read_onnx(path), size, outputs)


def network_of(
    file: OnnxFile, size: tuple[int, int] | None = None, outputs: Sequence[str] | None = None
) -> fx.GraphModule:
    """``load_onnx`` of a file that has been read."""
    outputs = list(file.outputs if outputs is None else outputs)
    building, nodes = Building(), needed(file, outputs)
    used = {name for node in nodes for name in node.inputs}
    sizes = {name: _sizes(file, name, size) for name in file.inputs if name in used}
    values: dict[str, Value] = dict(file.tensors)
    values |= {name: building.input(f"input_{i}", own) for i, (name, own) in enumerate(sizes.items())}
    for node in nodes:
        try:
            found = _outputs(file, node, values, building)
        except InputError as error:
            raise InputError(f"{error}{_fixed(file, sizes)}") from error
        values.update(zip(node.outputs, found, strict=False))
    given = [_output(file, name, values, building) for name in outputs]
    results = tuple(value.node for value in given)
    building.graph.output(results[0] if len(results) == 1 else results)
    module = fx.GraphModule(building.root, building.graph, "OnnxNetwork")
    module.graph.eliminate_dead_code()
    module.recompile()
    module.delete_all_unused_submodules()
    module.meta = {"size": tuple(sizes[next(iter(sizes))][1:]), "inputs": sizes, "outputs": outputs}
    module.meta["shapes"] = [value.shape[1:] for value in given]
    return module.eval()


def _sizes(file: OnnxFile, name: str, size: tuple[int, int] | None) -> list[int]:
    """One image's sizes at an input."""
    found = file.inputs[name]
    if found is None:
        raise InputError(
            f"{file.path}: its input {show(name)} is no float tensor; only those can be read: export it as one"
        )
    batch, *own = found or [None]
    if batch not in (1, None):
        raise InputError(f"{file.path}: its input {show(name)} is for {batch} images at once: export it for one")
    if size is not None and len(own) == 3:
        own[1:] = size
    known = [side for side in own if side is not None]
    if len(known) < len(own):
        raise InputError(f"{file.path}: its input {show(name)} leaves sizes free: give size=(height, width)")
    return known


def _fixed(file: OnnxFile, sizes: dict[str, list[int]]) -> str:
    """What to say where a size was asked for in place of the file's own, on which its shapes may depend."""
    for name, asked in sizes.items():
        own = (file.inputs[name] or [])[1:]
        if None not in own and own != asked:
            return f"; its own size is {own[-2:]}: leave size out, or export it for the other one"
    return ""


def _outputs(file: OnnxFile, node: OnnxNode, values: dict[str, Value], building: Building) -> list[Value]:
    if node.op not in OPERATORS:
        mend = hint(node.op, OPERATORS, "cut the network before it (outputs), or move it into decode", 0.95)
        if any(word in node.op for word in _QUANTISED):
            mend = "the file is quantised: give the float one that it was made of"
        raise InputError(f"{file.path}: {node}: operator {show(node.op)} is not known: {mend}")
    missing = [name for name in node.inputs if name and name not in values]
    if missing:
        raise InputError(f"{file.path}: {node} reads {show(missing[0])}, which nothing before it gives")
    inputs = [values[name] if name else None for name in node.inputs]
    kinds = {kind_of(value) for value in inputs if isinstance(value, Moving)}
    for kind, able, what in ((bool, OF_MASKS, "what is true or false"), (int, OF_PLACES, "whole numbers")):
        if kind in kinds and node.op not in able:
            raise InputError(f"{file.path}: {node} calculates with {what}: cast it to float before")
    try:
        found = _called(Call(node, file.opset, building), inputs)
    except InputError as error:
        raise InputError(f"{file.path}: {node}: {error}") from error
    except MISFIT as error:
        raise InputError(f"{file.path}: {node} does not fit its inputs ({reason(error)})") from error
    return found if isinstance(found, list) else [found]


def _called(call: Call, inputs: list[Value | None]) -> Any:
    """An operator's outputs: where its inputs' images do not fit each other, or it, with all of them in front, or in a
    dimension of their own."""
    try:
        return OPERATORS[call.node.op](call, *inputs)
    except (InputError, *MISFIT):
        for otherwise in (_in_front, _apart):
            with suppress(InputError, *MISFIT):
                return otherwise(call, inputs)
        raise


def _in_front(call: Call, inputs: list[Value | None]) -> Any:
    in_front = [call.building.in_front(x) if isinstance(x, Moving) else x for x in inputs]
    return OPERATORS[call.node.op](call, *in_front)


def _apart(call: Call, inputs: list[Value | None]) -> Any:
    """As for one image: a constant may have all of its rows, or one input have them in a dimension with the images and
    another apart, as queries split into heads do."""
    if call.node.op not in _BROADCASTING:
        raise InputError("")
    rank = max(len(x.shape) for x in inputs if x is not None)

    def apart(x: Moving) -> Moving:
        x = call.building.in_front(x)
        return call.run(torch.reshape, x, [-1, *[1] * (rank - len(x.shape)), *x.shape])

    found = OPERATORS[call.node.op](call, *(apart(x) if isinstance(x, Moving) else x for x in inputs))
    return call.run(torch.reshape, found, [-1, *found.shape[2:]])


def _output(file: OnnxFile, name: str, values: dict[str, Value], building: Building) -> Moving:
    if name not in values:
        raise InputError(f"{file.path}: no tensor is called {show(name)}: {hint(name, values, 'see it in Netron')}")
    value = values[name]
    if isinstance(value, Tensor):
        raise InputError(f"{file.path}: output {show(name)} is a constant, whatever the image: choose other outputs")
    if not value.probes[0].numel():
        raise InputError(f"{file.path}: output {show(name)} is empty, of shape {value.shape}: choose other outputs")
    value = building.in_front(value)
    if value.shape[0] != 1:  # rows of one image behind those of the other
        return building.call(torch.reshape, value, [-1, *value.shape])
    return value
