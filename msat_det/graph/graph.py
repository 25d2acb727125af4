"""The traced network, which ``trace`` makes: a functional ``torch.fx`` graph with batch norm folded.

What is known of a node says ``facts``.
"""

import copy
import itertools
import operator
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, Protocol, SupportsIndex

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.fx.node import Node

from msat_det.base.errors import InputError
from msat_det.graph import ops
from msat_det.graph.facts import Output, amend, facts, filled, full_shape, is_judged, is_site, output_of, stands_alone
from msat_det.graph.inputs import AS_IT_TAKES, MISFIT, Batch, as_input, kind, mend, name_of, reason
from msat_det.graph.ops import Kind
from msat_det.graph.precision import arithmetic

TORCH = str(Path(torch.__file__).parent) + os.sep  # its frames stand between a network's line and its operation


class Lookup(Protocol):
    """Where a node's value is found."""

    def __getitem__(self, node: Node, /) -> Any: ...


class Misfit(InputError):
    """A node does not take a batch's values. what: which node, and why."""

    def __init__(self, what: str, mend: str):
        super().__init__(f"{what}: {mend}")
        self.what = what


@dataclass
class Graph:
    """A traced network.

    module: runs it in float. inputs: names of its placeholders in the order of a batch. structure: how the leaves of
    its output stand in the network's own tuples, lists and dicts. precision: of its convolutions, see ``precision``.
    """

    module: fx.GraphModule
    inputs: list[str]
    structure: pytree.TreeSpec
    precision: str = "float32"

    @property
    def nodes(self) -> list[Node]:
        return list(self.module.graph.nodes)

    @property
    def sites(self) -> list[Node]:
        """The call sites of pointwise activations, in execution order: each becomes a population of neurons."""
        return [node for node in self.nodes if is_site(node)]

    def copy(self) -> "Graph":
        """A graph of its own on the same weights; its nodes keep names and verdicts."""
        return replace(self, module=fx.GraphModule(self.module, copy.deepcopy(self.module.graph)))

    @property
    def placeholders(self) -> dict[str, Node]:
        """Where images enter, by the names of the inputs."""
        return {str(node.target): node for node in self.nodes if node.op == "placeholder"}

    @property
    def sizes(self) -> dict[str, tuple[int, ...]]:
        """The shape of one image at each input, as the graph was measured with."""
        return {name: facts(node).image_shape for name, node in self.placeholders.items()}

    def at_size(self, batch: Batch) -> "Graph":
        """A copy that is measured with images of another size. Raises InputError where they don't go through it."""
        graph = self.copy()
        try:
            outputs = measure(graph, batch)
        except InputError as error:
            sizes = ", ".join(map(str, self.sizes.values()))
            raise InputError(
                f"the calibration's images are {sizes}, and of another size they do not go through: {error}"
            ) from error
        for node, output in outputs.items():
            amend(node, **output._asdict())
        for node, known in zip(graph.sites, self.sites, strict=True):
            if facts(node).channels != facts(known).channels:
                raise InputError(
                    f"{where(node)} has a channel for each position: give images of the calibration's size"
                )
        return graph

    @property
    def device(self) -> torch.device | None:
        """Where its weights lie; None for a network without any."""
        return device_of(self.module)

    @contextmanager
    def on(self, device: str) -> Iterator[None]:
        """Its weights on another device for a while."""
        own = self.device
        if own in (None, torch.device(device)):
            yield
            return
        self.module.to(device)
        try:
            yield
        finally:
            self.module.to(own)

    def bind(self, batch: Batch) -> dict[str, Tensor]:
        """A batch (tensor, tuple or dict of tensors) as {placeholder name: tensor}: floats in float32, on ``device``.

        Raises InputError when the number, the names, the ranks or the types of the inputs do not fit, and for what is
        no batch.
        """
        values = [batch] if isinstance(batch, Tensor) else batch
        if not isinstance(values, dict | list | tuple):
            raise InputError(f"the batch is {kind(batch)}: give a tensor (B, …), or a tuple or dict for several inputs")
        if isinstance(values, dict):
            if set(values) != set(self.inputs):
                raise InputError(f"the network's inputs are {self.inputs}, the batch gives {sorted(map(str, values))}")
        elif len(values) != len(self.inputs):
            shapes = {tuple(value.shape) if isinstance(value, Tensor) else None for value in values}
            if len(self.inputs) == 1 and shapes == {*self.sizes.values()}:  # single images
                raise InputError(f"the batch is {kind(values)}, {len(values)} of them: give one, torch.stack(images)")
            raise InputError(
                f"the network takes {len(self.inputs)} inputs {self.inputs}, the batch has {len(values)}: give one "
                "tensor (B, …) an input, and no labels"
            )
        else:
            values = dict(zip(self.inputs, values, strict=True))
        ready = {name: as_input(f"input '{name}'", value, self.device) for name, value in values.items()}
        for name, node in self.placeholders.items():
            if is_judged(node):
                _check_kind(node, ready[name])
        if len({len(value) for value in ready.values()}) > 1:
            raise InputError(f"the inputs hold {[len(v) for v in ready.values()]} images: give as many for each")
        return ready

    def call(self, node: Node, args: tuple, kwargs: dict) -> Any:
        """Evaluate one node on values."""
        if not is_judged(node) or facts(node).op not in ops.MULTIPLYING:
            return self._call(node, args, kwargs)
        first = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        with arithmetic(self.precision, None if first is None else first.device):
            value = self._call(node, args, kwargs)
        return value if first is None else value.to(first.dtype)  # potentials stay float32

    def _call(self, node: Node, args: tuple, kwargs: dict) -> Any:
        if node.op == "call_module":
            return self.layer(node)(*args, **kwargs)
        if isinstance(node.target, str):  # a method
            return getattr(args[0], node.target)(*args[1:], **kwargs)
        return node.target(*args, **kwargs)

    def evaluate(self, node: Node, values: Lookup) -> Any:
        """The float value of a node that is no input, from those of the nodes before it."""
        if node.op == "get_attr":
            return self.attribute(node)
        if node.op == "output":
            leaves = pytree.tree_leaves(fx.map_arg(node.args[0], values.__getitem__))
            return pytree.tree_unflatten(leaves, self.structure)
        return self.call(node, fx.map_arg(node.args, values.__getitem__), fx.map_arg(node.kwargs, values.__getitem__))

    def layer(self, node: Node) -> nn.Module:
        """The layer that a call_module node calls."""
        return self.attribute(node)

    def attribute(self, node: Node) -> Any:
        """The value of a get_attr node."""
        return operator.attrgetter(str(node.target))(self.module)  # get_submodule looks each name up three times

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise InputError(
            "a traced network is neither pickled nor copied as it is: keep a converted one by snn.save(path)"
        )

    def settled(self, nodes: Iterable[Node], inputs: Mapping[str, Tensor]) -> dict[Node, Any]:
        """The values of ``nodes``, which need no others, on these inputs."""
        values: dict[Node, Any] = {}
        for node in nodes:
            values[node] = inputs[str(node.target)] if node.op == "placeholder" else self.evaluate(node, values)
        return values

    def shapes(self, device: torch.device | str) -> dict[Node, Any]:
        """The values that no image enters, for one of the size that the graph was measured with; calculated without
        one, since they take the shape, dtype and device alone of what an image enters."""
        values: dict[Node, Any] = {}
        for node in self.nodes:
            known = facts(node)
            if known.kind is Kind.SHAPE:
                values[node] = self.evaluate(node, values)
            elif known.kind is not Kind.OUTPUT:
                values[node] = filled(known, 0, dtype=known.dtype, device=device)
        return {node: value for node, value in values.items() if facts(node).kind is Kind.SHAPE}

    def walk(self, batch: Batch) -> Iterator[tuple[Node, Any]]:
        """Run the float graph node by node: yields (node, value); values are freed after their last use."""
        inputs, last = self.bind(batch), last_uses(self.nodes)
        env: dict[Node, Any] = {}
        for node in self.nodes:
            try:
                value = inputs[str(node.target)] if node.op == "placeholder" else self.evaluate(node, env)
            except MISFIT as error:
                raise Misfit(f"{where(node)} fails on this batch ({reason(error)})", AS_IT_TAKES) from error
            yield node, value
            env[node] = value
            for done in last[node]:
                env.pop(done, None)

    def __call__(self, batch: Batch) -> Any:
        """The float outputs for a batch."""
        with torch.inference_mode():
            ((_, outputs),) = deque(self.walk(batch), maxlen=1)  # holds no value but the last one
        return outputs


def _check_kind(placeholder: Node, value: Tensor) -> None:
    shape, dtype = facts(placeholder).image_shape, facts(placeholder).dtype
    if value.dim() - 1 != len(shape) or value.dtype != dtype:
        raise InputError(
            f"input '{placeholder.target}' is {kind(value)}, where the first images were {shape} of {name_of(dtype)}: "
            f"{mend(value, shape)}"
        )


def device_of(net: nn.Module) -> torch.device | None:
    weight = next(itertools.chain(net.parameters(), net.buffers()), None)
    return None if weight is None else weight.device


def closure(start: Iterable[Node], onward: Callable[[Node], Iterable[Node]]) -> set[Node]:
    """All nodes that ``onward``, called again and again, leads to from ``start``, those included."""
    found, stack = set(), list(start)
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            stack.extend(onward(node))
    return found


def origins(start: Iterable[Node], through: Callable[[Node], bool] = lambda node: True) -> set[Node]:
    """All nodes that ``start``'s values come from, those included, not looking behind what is not gone ``through``."""
    return closure(start, lambda node: node.all_input_nodes if through(node) else ())


def before_output(graph: Graph) -> set[Node]:
    """The output, the last call sites before it, and all that lies between them: no other neuron's spikes do."""
    return origins([graph.nodes[-1]], lambda node: not is_site(node))


def elements(node: Node) -> int:
    """The number of elements of a node's output for one image: of a call site, its neurons."""
    return torch.Size(full_shape(facts(node))).numel()


def last_uses(nodes: list[Node]) -> dict[Node, list[Node]]:
    """For each node, the earlier nodes that nothing after it needs."""
    seen: set[Node] = set()
    last: dict[Node, list[Node]] = {}
    for node in reversed(nodes):
        last[node] = [used for used in node.all_input_nodes if used not in seen]
        seen.update(node.all_input_nodes)
    return last


def where(node: Node) -> str:
    """``node 'name' (file:line: code)`` for messages."""
    return f"node '{node.name}' ({facts(node).source if is_judged(node) else source_of(node)})"


def module_of(graph: Graph, node: Node) -> nn.Module | None:
    return graph.layer(node) if node.op == "call_module" else None


def called(graph: Graph, node: Node) -> str:
    """The canonical name of what a node calls; "" where it calls nothing."""
    return ops.canonical(node, module_of(graph, node)) if node.op.startswith("call") else ""


def mean_inputs(node: Node, moving: set[Node]) -> list[Node]:
    """The inputs on whose running means a differential node acts: those that change in time, but for what stands
    alone."""
    known = ((n, facts(n)) for n in node.all_input_nodes if n in moving)
    return [n for n, it in known if it.kind is not Kind.SHAPE and not stands_alone(it)]


def measure(graph: Graph, batch: Batch) -> dict[Node, Output]:
    """What every node gives for this batch of one image. Raises InputError."""
    outputs: dict[Node, Output] = {}
    with torch.inference_mode():
        for node, value in graph.walk(batch):
            outputs[node] = output_of(value) if is_entered(node, outputs) else Output()
    return outputs


def is_entered(node: Node, outputs: Mapping[Node, Output]) -> bool:
    """Whether an image enters a node's value, by what the nodes before it give."""
    if node.op == "output":
        return False
    return node.op == "placeholder" or any(outputs[n].shape is not None for n in node.all_input_nodes)


def source_of(node: Node) -> str:
    lines = (node.stack_trace or "").splitlines()
    frames = [(i, line.strip()) for i, line in enumerate(lines) if line.strip().startswith("File ")]
    # the user's line; of a network made of torch's own containers the container's, not the tracer's
    for folder in (f"{TORCH}fx{os.sep}", TORCH):
        frames = [(i, line) for i, line in frames if not line.split('"')[1].startswith(folder)] or frames
    if not frames:
        return "no source line"
    i, frame = frames[-1]
    path, line = frame.split('"')[1], frame.split("line ")[1].split(",")[0]
    code = lines[i + 1].strip() if i + 1 < len(lines) else ""
    return f"{path}:{line}: {code}"
