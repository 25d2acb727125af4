"""The step as torch.compile makes one kernel of it: on a GPU, where there is one, and here on the CPU."""

import pytest
import torch
from torch import nn

from msat_det.graph.ops import Activation
from msat_det.methods.convert import spiking_network
from msat_det.methods.observe import observe
from msat_det.spiking.kernels import _compiled_step
from msat_det.spiking.neurons import Msat, Neuron, new_state, step

STEPS = 4
RELU = Activation("relu", torch.relu, rectified=True)
THETA = torch.tensor([0.5, 1.0, 0.0])
NEURONS = {
    "if": Neuron(THETA, RELU),
    "signed-burst": Neuron(THETA, RELU, signed=True, gamma=3),
    "stages": Neuron(THETA, RELU, stages=(4.0, 2.0, 1.0), gamma=15),
    "reset": Neuron(THETA, RELU, reset="zero"),
    "msat": Neuron(THETA, RELU, adaptive=Msat()),
    "msat-signed": Neuron(THETA, RELU, adaptive=Msat(normalised=True), signed=True, gamma=3),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NEURONS)
def test_the_compiled_step_is_the_step(name: str) -> None:
    x = torch.randn(STEPS, 2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    neuron = NEURONS[name]
    states = [new_state(neuron, x[0], True) for _ in range(2)]
    with torch.inference_mode():
        for t in range(STEPS):
            s, y = step(neuron, states[0], x[t], t)
            also_s, also_y = _compiled_step()(neuron, states[1], x[t], torch.tensor(t))
            assert torch.equal(s, also_s)
            torch.testing.assert_close(y, also_y, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(states[0].v, states[1].v, atol=1e-5, rtol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("options", [{"signed": True, "gamma": 3}, {"method": "msat"}], ids=str)
def test_a_network_gives_the_same_on_a_gpu(options: dict) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1)]
    net = nn.Sequential(*layers)
    images, method = torch.randn(2, 3, 16, 16), options.get("method", "constant")
    options = {key: value for key, value in options.items() if key != "method"}
    outputs, spikes = {}, {}
    for device in ("cpu", "cuda"):
        x = images.to(device)
        snn = spiking_network(method, options, observe(net.eval().to(device), [x]), 8)
        outputs[device] = snn.run(x, 8, record=[4, 8])
        spikes[device] = snn.counts[8].spikes_per_neuron
    for t in (4, 8):  # a tie that rounds otherwise moves an output by a spike
        assert (outputs["cuda"][t].cpu() - outputs["cpu"][t]).abs().median() < 1e-5
    assert spikes["cuda"] == pytest.approx(spikes["cpu"], rel=1e-2)
