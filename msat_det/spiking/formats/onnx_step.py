"""One timestep of a spiking network as an ONNX graph, so that other runtimes can host it."""

import importlib.util
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.fx.node import Node

from msat_det.base.errors import InputError
from msat_det.base.files import one_line, write_whole
from msat_det.graph.facts import facts, full_shape, is_mask, is_site
from msat_det.graph.graph import Graph, mean_inputs
from msat_det.graph.ops import PICKS, REGIONS, Kind
from msat_det.spiking.delta import delta_step, resting_output
from msat_det.spiking.network import SpikingNetwork
from msat_det.spiking.neurons import State, initial_potential, step
from msat_det.spiking.walk import Values, advance, picks_anew, readout, weighed

# What the model says of itself.
PROTOCOL = """\
One timestep of a spiking network, made by msat-det.

Inputs: the network's own (its image, constant in time), ``t`` (int64 scalar: 0, 1, … from the beginning of an image),
and a tensor for each state, ``NODE.NAME``. Outputs: the network's own, by all that was sent up to this step (what
``SpikingNetwork.run`` gives at t + 1), then ``NODE.NAME.next`` for each state. At t = 0 the states that come in
are not looked at: feed zeros of their shapes. What does not change in time is computed anew in every step.
"""
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Slot:
    """One state tensor. field: of ``neurons.State``, or of a differential node: ``last``, ``held``, or ``sum`` of a
    source. shape: for one image, the batch dimension included."""

    node: Node
    field: str
    shape: tuple[int, ...]
    source: Node | None = None

    @property
    def name(self) -> str:
        return f"{self.node.name}.{self.field}" + (f"_{self.source.name}" if self.source else "")


class Step(nn.Module):
    """The step as a module: (*inputs, t, *states) → (*outputs, *next states, *what each call site sends).

    Raises InputError for spike confidence, whose random masks no runtime can draw alike, for outputs that start late,
    and for two stages.
    """

    def __init__(self, snn: SpikingNetwork):
        super().__init__()
        self.snn, self.schedule, self.net = snn, snn.schedule, snn.graph.module
        self.delta = snn.coding == "delta"
        self.sites = [node for node in self.schedule.body if is_site(node)]
        for node in self.sites:
            neuron = snn.neurons[node.name]
            if neuron.late:
                raise InputError(f"call site {node.name} counts from a later timestep on: export with option late off")
            if neuron.confidence < 1:
                raise InputError(f"call site {node.name} drops spikes at random: export without option confidence")
        if any(facts(node).op in REGIONS for node in snn.graph.nodes):
            raise InputError(
                "the network picks regions by non-maximum suppression, how many differs by image, and that is not "
                "written as ONNX: export a detector of one stage, or save it without --onnx"
            )
        self.slots = [slot for node in self.schedule.body for slot in self.slots_of(node)]
        self.outputs = _output_names(snn)

    def slots_of(self, node: Node) -> list[Slot]:
        """The states that a node keeps from one step to the next."""
        if is_site(node):
            kept = set(self.snn.neurons[node.name].keeps) | ({"o"} if node in self.schedule.readout_sites else set())
            return [
                Slot(node, name, full_shape(facts(node))) for name in ("v", "o", "x", "mean", "before") if name in kept
            ]
        if facts(node).kind is Kind.DIFFERENTIAL and not self.delta:
            means = mean_inputs(node, self.schedule.moving)
            sums = [Slot(node, "sum", full_shape(facts(n)), n) for n in means]
            if facts(node).op in PICKS:
                return [*sums, Slot(node, "held", full_shape(facts(node)))]
            return sums if is_mask(facts(node)) else [*sums, Slot(node, "last", full_shape(facts(node)))]
        return []

    def blank(self, images: int) -> list[Tensor]:
        """Zeros for every state."""
        return [torch.zeros(images * slot.shape[0], *slot.shape[1:]) for slot in self.slots]

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        graph, count = self.snn.graph, len(self.snn.graph.inputs)
        t, before = values[count], zip(self.slots, values[count + 1 :], strict=True)
        static = graph.settled(self.schedule.static, dict(zip(graph.inputs, values[:count], strict=True)))
        now = _Timestep(self, static, t, {slot: self.begun(slot, t, state) for slot, state in before})
        advance(self.schedule, now)
        sums = {node: now.coming[self.sum(node)] for node in self.schedule.readout_sites}
        means = sums if self.delta else {node: total / (t + 1) for node, total in sums.items()}
        held = {slot.node: now.coming[slot].long() for slot in self.slots if slot.field == "held"}
        outputs = tensors_of(readout(graph, self.schedule, static, means | held))
        return (*outputs, *(now.coming[slot] for slot in self.slots), *(now.sent[node] for node in self.sites))

    def begun(self, slot: Slot, t: Tensor, state: Tensor) -> Tensor:
        """The state, or what it is before the first timestep."""
        start: Tensor | float = 0.0
        if slot.field == "v" and not self.delta:
            start = initial_potential(self.snn.neurons[slot.node.name], state)
        if slot.field == "o" and self.delta:
            start = resting_output(self.snn.neurons[slot.node.name], state)
        return torch.where(t == 0, start, state)

    def sum(self, node: Node) -> Slot:
        """The output sum of a call site."""
        return next(slot for slot in self.slots if slot.node is node and slot.field == "o")

    def spike(self, node: Node, x: Tensor, t: Tensor, own: dict[Slot, Tensor]) -> tuple[Tensor, dict[Slot, Tensor]]:
        """What a call site sends on the current x (under delta coding the input sum), and its states behind it."""
        state = State(**{slot.field: value for slot, value in own.items()})
        *_, y = (delta_step if self.delta else step)(self.snn.neurons[node.name], state, x, t)
        return y, {slot: getattr(state, slot.field) for slot in own}


class _Timestep(Values):
    """The values of one step. states: those that come in; coming: the next ones; sent: what each call site sends."""

    def __init__(self, step: Step, static: dict[Node, Any], t: Tensor, states: dict[Slot, Tensor]):
        self.step, self.graph, self.t, self.states = step, step.snn.graph, t, states
        self.values = dict(static)
        self.coming: dict[Slot, Tensor] = {}
        self.sent: dict[Node, Tensor] = {}

    def _own(self, node: Node) -> dict[Slot, Tensor]:
        return {slot: self.states[slot] for slot in self.step.slots_of(node)}

    def spike(self, node: Node) -> Tensor:
        self.sent[node], after = self.step.spike(node, self.values[node.all_input_nodes[0]], self.t, self._own(node))
        self.coming |= after
        return after[self.step.sum(node)] if self.step.delta else self.sent[node]

    def differ(self, node: Node) -> Tensor:
        if self.step.delta:
            return self.linear(node)
        own = self._own(node)
        sums = {slot: value + self.values[slot.source] for slot, value in own.items() if slot.source}
        self.coming |= sums
        by_source = {slot.source: total for slot, total in sums.items() if slot.source}
        total = weighed(self.graph, node, self.values, by_source, self.t + 1)
        for kept in own.keys() - sums.keys():  # of a mask there is none
            if kept.field == "held":
                self.coming[kept] = torch.where(picks_anew(self.t), total.float(), own[kept])
                return self.coming[kept].long()
            self.coming[kept] = total
            return total - own[kept]
        return total

    def linear(self, node: Node) -> Any:
        return self.graph.evaluate(node, self.values)


def _output_names(snn: SpikingNetwork) -> list[str]:
    """``output`` and the way to it in the network's own nest, output.0.boxes; numbers and None among them have none."""

    def word(step: Any) -> str:
        """Of a way: a dict's key, a place in a list, or a field's name."""
        return str(next(getattr(step, kind) for kind in ("key", "idx", "name") if hasattr(step, kind)))

    outputs = snn.graph(_blank_images(snn.graph, 1))
    paths = [path for path, value in pytree.tree_flatten_with_path(outputs)[0] if isinstance(value, Tensor)]
    return [".".join(["output", *map(word, path)]) for path in paths]


def _blank_images(graph: Graph, images: int) -> dict[str, Tensor]:
    inputs = {name: facts(graph.placeholders[name]) for name in graph.inputs}
    return {name: torch.zeros(images, *of.image_shape, dtype=of.dtype) for name, of in inputs.items()}


def tensors_of(outputs: Any) -> list[Tensor]:
    """The tensors among a network's outputs."""
    return [value for value in pytree.tree_leaves(outputs) if isinstance(value, Tensor)]


def require_packages() -> None:
    """Raises InputError where the optional packages are not installed."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"ONNX needs {', '.join(missing)}: pip install 'msat-det[onnx]'")


def export_step(module: Step, images: int = 1) -> Any:
    """The step for batches of ``images`` as torch's ``ONNXProgram``, with what the call sites send as last outputs.

    Raises InputError for an operation that has no ONNX form.
    """
    require_packages()
    examples = _blank_images(module.snn.graph, images)
    states = [slot.name for slot in module.slots]
    sent = [f"{node.name}.sent" for node in module.sites]
    try:
        with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
            warnings.simplefilter("ignore")
            program: Any = torch.onnx.export(
                module,
                (*examples.values(), torch.zeros((), dtype=torch.int64), *module.blank(images)),
                dynamo=True,
                verbose=False,
                optimize=False,  # its rules take 1e-10 for 0, as in x / (norm + 1e-10)
                input_names=[*examples, "t", *states],
                output_names=[*module.outputs, *(f"{name}.next" for name in states), *sent],
            )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = one_line(error.__cause__ or error)[:300]
        raise InputError(f"the network has an operation that ONNX or its exporter lacks: {reason}") from error
    _simplify(program.model)
    return program


def _simplify(model: Any) -> None:
    """Functions put in their place, constants folded, what nothing needs gone."""
    from onnxscript import optimizer

    optimizer.inline(model)
    optimizer.fold_constants(model)
    optimizer.remove_unused_nodes(model)


def _describe(program: Any, module: Step) -> None:
    """Say in the model's metadata what a host needs: the names of its states, the timesteps of a step, the protocol."""
    needs = {"states": [slot.name for slot in module.slots], "timesteps_per_step": module.snn.setup.window}
    program.model.metadata_props["msat_det"] = json.dumps(needs)
    program.model.doc_string = PROTOCOL


def write_onnx(program: Any, module: Step, path: str | Path) -> None:
    """Write an exported step without what only the check looks at. Raises InputError."""
    _describe(program, module)
    path = Path(path)
    outputs = program.model.graph.outputs
    del outputs[len(outputs) - len(module.sites) :]
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: there is no folder {path.parent}; make it first")
    write_whole(path, lambda file: program.save(file, external_data=False))
