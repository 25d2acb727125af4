"""Delta coding's Triton kernel against ``delta_step``: on a GPU where there is one, else by Triton's interpreter."""

import pytest
import torch
from support.corrections import ACTIVATIONS, NEURONS, SHAPES, THETA, check_corrections
from support.neurons import VARIANTS
from torch.nn import functional

from msat_det.graph.ops import Activation
from msat_det.spiking.kernels import delta
from msat_det.spiking.kernels.delta import Corrections
from msat_det.spiking.neurons import Neuron

pytest.importorskip("triton")
from msat_det.spiking.kernels import triton_delta

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ADAPTIVE = [name for name, adaptive in VARIANTS.items() if adaptive]
SOFTPLUS = Activation("softplus", functional.softplus, curved=True)  # which the kernel does not have


@pytest.fixture(autouse=True)
def in_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delta, "kernel_of", lambda neuron, sums: triton_delta.Fused)


@pytest.mark.parametrize("options", NEURONS.values(), ids=NEURONS)
@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_constant_thresholds_give_the_bits_of_the_step(options: dict, name: str, shape: tuple) -> None:
    close = 1e-5 if name == "silu" else 0.0
    check_corrections(Neuron(THETA, ACTIVATIONS[name], coding="delta", **options), shape, DEVICE, close)


@pytest.mark.parametrize("variant", ADAPTIVE)
@pytest.mark.parametrize("options", ["terms", "bursts", "overflow", "bias"])
def test_adaptive_thresholds_are_those_of_the_step(variant: str, options: str) -> None:
    made = Neuron(THETA, ACTIVATIONS["relu"], coding="delta", adaptive=VARIANTS[variant], **NEURONS[options])
    check_corrections(made, SHAPES[0], DEVICE, 1e-5)


def test_an_activation_that_the_kernel_has_not_is_worked_out_before_it() -> None:
    made = Neuron(THETA, SOFTPLUS, coding="delta", bits=5, bias=torch.linspace(-1, 1, 4))
    check_corrections(made, SHAPES[0], DEVICE, 0.0 if DEVICE.type == "cpu" else 1e-5)


def test_one_threshold_for_a_layer_and_a_bias_over_time() -> None:
    over_time = torch.linspace(-1, 1, 12).reshape(3, 4)
    made = Neuron(torch.tensor(0.2), ACTIVATIONS["relu"], coding="delta", bits=5, terms=(4,), bias=over_time)
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(2, 4, 9, 7, generator=generator)
    scan = Corrections(made, X.to(DEVICE), torch.ones(X.shape[1:]))
    for t in range(4):
        scan.step(X.to(DEVICE), t, wanted=False)
    expected = torch.relu(X + over_time[2].reshape(4, 1, 1))
    assert (scan.output.cpu() - expected).abs().max() <= 0.1 * (1 + 1e-3)  # half a level


def test_sums_may_become_the_output_sums_and_silence_is_told() -> None:
    made = Neuron(THETA, ACTIVATIONS["relu"], coding="delta", bits=8, terms=(8,))
    X = torch.rand(2, 4, 9, 7, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    own, scan = X.clone(), Corrections(made, X, torch.ones(X.shape[1:]))
    kept = Corrections(made, X, torch.ones(X.shape[1:]))
    assert scan.step(own, 0, wanted=False, own=True) is None
    kept.step(X, 0, wanted=False)
    assert scan.output is own
    assert torch.equal(own, kept.output)
    assert scan._kernel.latest.item() == 1
    scan.step(X, 1, wanted=False)
    assert scan._kernel.latest.item() == 1  # nothing was left to be sent


def test_a_nan_gets_through_to_the_counts() -> None:
    X = torch.ones(2, 4, 9, 7)
    X[1, 1, 3, 2] = float("nan")
    for options in (NEURONS["terms"], NEURONS["bursts"]):
        for name, activation in ACTIVATIONS.items():
            scan = Corrections(Neuron(THETA, activation, coding="delta", **options), X.to(DEVICE), torch.ones(4, 9, 7))
            scan.step(X.to(DEVICE), 0, wanted=False)
            assert scan.counts.isnan().any(1).tolist() == [False, True], name
