"""An exported step run in onnxruntime beside ours, from the beginning of an image on.

Two runtimes add in different orders, so that a potential within rounding of a firing boundary may fire in one and not
in the other; both are right, and everything behind differs by that spike. Such a tie is resolved as onnxruntime did:
where the two send different spikes, and ours would be theirs on a current that differs by ``NEAR`` thresholds or by
``ROUNDING`` of a layer's largest, or on an activation function's value that differs by ``ROUNDING``, our neuron takes
over their spike and state. Any other difference is counted as a fault.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import Node

from msat_det.spiking.formats.onnx_step import Slot, Step, tensors_of
from msat_det.spiking.network import SpikingNetwork
from msat_det.spiking.neurons import per_channel

NEAR = 1e-4  # of a threshold, or of a larger current
ROUNDING = 2.0**-22  # of a layer's largest current, and of a function's argument: two units in float32's last place
ALLOWED = 1e-4


@dataclass
class Agreement:
    """What the check found over its steps.

    difference: largest |ours − theirs| of an output over its largest magnitude, ties resolved. ties: spikes that fell
    on a boundary; faults: those that differ otherwise; decisions: all that were compared. free: the difference to
    ``SpikingNetwork.run`` with ties left as they fell.
    """

    difference: float = 0.0
    ties: int = 0
    faults: int = 0
    decisions: int = 0
    free: float = 0.0

    @property
    def holds(self) -> bool:
        return self.faults == 0 and self.difference <= ALLOWED

    def __str__(self) -> str:
        return (
            f"onnxruntime agrees to {self.difference:.1e} ({ALLOWED:g} allowed), {self.ties} ties and {self.faults} "
            f"faults in {self.decisions} decisions; {self.free:.1e} with the ties left as they fell"
        )


class _Agreeing(Step):
    """Our step, which takes over what onnxruntime did at ties."""

    def __init__(self, snn: SpikingNetwork, found: Agreement):
        super().__init__(snn)
        self.found = found
        self.theirs: dict[Node, Tensor] = {}
        self.after: dict[Slot, Tensor] = {}

    def spike(self, node: Node, x: Tensor, t: Tensor, own: dict[Slot, Tensor]) -> tuple[Tensor, dict[Slot, Tensor]]:
        y, after = super().spike(node, x, t, own)
        neuron, theirs = self.snn.neurons[node.name], self.theirs[node]
        theta = per_channel(neuron.theta, x, neuron.axis)
        apart = _differ(y, theirs, theta)
        self.found.decisions += y.numel()
        if not apart.any():
            return y, after
        between = torch.stack([y, *self.moved(node, x, t, own, theta)])
        tie = apart & ~_differ(theirs.clamp(between.amin(0), between.amax(0)), theirs, theta)
        self.found.ties += int(tie.sum())
        self.found.faults += int((apart & ~tie).sum())
        after = {slot: torch.where(tie, self.after[slot], value) for slot, value in after.items()}
        return torch.where(tie, theirs, y), after

    def moved(self, node: Node, x: Tensor, t: Tensor, own: dict[Slot, Tensor], theta: Tensor) -> Iterator[Tensor]:
        """What our neuron sends where rounding moves its current, or what it still has to send."""
        near = torch.maximum(NEAR * torch.maximum(theta, x.abs()), ROUNDING * x.abs().amax())
        for sign in (1, -1):
            yield super().spike(node, x + sign * near, t, own)[0]
            for slot in (slot for slot in own if slot.field == "o"):
                sent = own[slot] + sign * ROUNDING * torch.maximum(own[slot].abs(), x.abs())
                yield super().spike(node, x, t, own | {slot: sent})[0]


def _differ(a: Tensor, b: Tensor, theta: Tensor) -> Tensor:
    """Where two outputs are not of the same number of spikes; an adaptive threshold itself may differ by rounding."""
    return (a - b).abs() > 1e-3 * torch.maximum(a.abs(), b.abs()) + 1e-5 * theta


def check(program: Any, snn: SpikingNetwork, batch: tuple[Any, ...], steps: int = 8) -> Agreement:
    """Compare ``steps`` steps of an exported step with ours. program: of ``onnx_step.export_step``, not yet written.

    batch: the network's inputs for as many images as it was exported for.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    found = Agreement()
    ours = _Agreeing(snn, found)
    window = snn.setup.window
    own = snn.run(batch, steps * window, [window * (t + 1) for t in range(steps)])
    states = fed = ours.blank(batch[0].shape[0])
    names, outputs = [value.name for value in session.get_inputs()], len(ours.outputs)
    with torch.inference_mode():
        for t in range(steps):
            values = [*batch, torch.tensor(t), *fed]
            feed = {name: value.numpy() for name, value in zip(names, values, strict=True)}
            theirs = [torch.from_numpy(value) for value in session.run(None, feed)]
            fed, sent = theirs[outputs : outputs + len(states)], theirs[outputs + len(states) :]
            ours.theirs = dict(zip(ours.sites, sent, strict=True))
            ours.after = dict(zip(ours.slots, fed, strict=True))
            results = ours(*batch, torch.tensor(t), *states)
            states = list(results[outputs : outputs + len(states)])
            expected = tensors_of(own[window * (t + 1)])
            for mine, yours, run in zip(results[:outputs], theirs[:outputs], expected, strict=True):
                found.difference = max(found.difference, _difference(mine, yours))
                found.free = max(found.free, _difference(run, yours))
    return found


def _difference(a: Tensor, b: Tensor) -> float:
    """NaN on either side is as far as can be."""
    scale = a.abs().max().clamp(min=1e-12)
    return ((a - b).abs().max() / scale).nan_to_num(nan=torch.inf).item()
