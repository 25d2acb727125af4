"""Neurons under delta coding, and the comparison of a kernel with the readable step."""

import torch
import torch.nn.functional as F

from msat_det.graph.ops import Activation
from msat_det.spiking.delta import delta_step, new_delta_state
from msat_det.spiking.kernels.delta import Corrections
from msat_det.spiking.kernels.layout import counted
from msat_det.spiking.neurons import Neuron

THETA = torch.tensor([0.05, 0.2, 0.0, 0.7])
SHAPES = [(2, 4, 9, 7), (3, 4), (2, 4, 300)]
NEURONS = {
    "terms": dict(bits=6, terms=(2, 1), zone=(1.0, 0.5)),
    "one bit": dict(bits=1, terms=(3,)),
    "as many terms as bits": dict(bits=9, terms=(9, 5, 4), zone=(0.75, 0.5)),
    "more terms than bits": dict(bits=1, gamma=4, terms=(12,)),
    "bursts": dict(gamma=3, stages=(2.0, 1.0)),
    "overflow": dict(bits=2, terms=(1, 2), stages=(1.0, 0.5, 0.1)),
    "overflow of bursts": dict(stages=(0.3, 0.1, 1.0)),
    "the 8-bit control": dict(gamma=3, dense=True, zone=(0.5, 1e30)),
    "bias": dict(bits=5, bias=torch.linspace(-1, 1, 4)),
    "a bias over time": dict(bits=5, terms=(4,), bias=torch.linspace(-1, 1, 12).reshape(3, 4)),
    "zone": dict(gamma=8, zone=(1.5,)),
    "at rest": dict(bits=5, terms=(2,), initial=torch.tensor([-9.0, 3.5, 1.0, 0.0])),
}
ACTIVATIONS = {
    "relu": Activation("relu", torch.relu, rectified=True),
    "relu6": Activation("relu6", F.relu6, rectified=True, upper=6.0),
    "leakyrelu": Activation("leakyrelu", lambda x: F.leaky_relu(x, 0.1), slope=0.1),
    "identity": Activation("identity", lambda x: x),
    "silu": Activation("silu", F.silu, curved=True),
}


def check_corrections(neuron: Neuron, shape: tuple, device: torch.device | str = "cpu", close: float = 0.0) -> None:
    """Over four timesteps what is sent, the output sums and the counts are those of the step, to the bit; or to
    ``close`` but for ties, which are one in fifty at most and of one level."""
    generator = torch.Generator().manual_seed(0)
    sums = [4 * torch.randn(shape, generator=generator) for _ in range(4)]
    if len(shape) == 4:
        sums = [x.contiguous(memory_format=torch.channels_last) for x in sums]
    fanout = torch.randint(5000, shape[1:], generator=generator)
    scan, state = Corrections(neuron, sums[0].to(device), fanout), new_delta_state(neuron, sums[0])
    expected = torch.zeros(shape[0], 4, dtype=torch.float64)
    tied = torch.zeros(shape, dtype=torch.bool)
    for t, x in enumerate(sums):
        _, spikes, y = delta_step(neuron, state, x, t)
        before = scan.output
        going_on = Corrections(neuron, x.to(device), fanout, None if before is None else before.clone())
        got = scan.step(x.to(device), t, wanted=True).cpu()
        expected += counted(spikes, fanout)
        if close:
            tied |= (got - y).abs() > close * y.abs().clamp(min=1.0)
            assert (scan.output.cpu() - state.o)[~tied].abs().max() <= close * state.o.abs().max()
            continue
        going_on.step(x.to(device), t, wanted=False)
        assert torch.equal(got, y)
        assert torch.equal(scan.output.cpu(), state.o)
        assert torch.equal(going_on.output.cpu(), state.o)
        assert torch.equal(scan.counts.cpu(), expected)
        if neuron.bits is None and not scan.output.is_cuda:  # terms may cancel; a GPU is not asked
            assert scan.sent == (y != 0).sum()
    assert tied.float().mean() <= 0.02
    assert not y[:, 2].any()  # a dead channel
