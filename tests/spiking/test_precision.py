"""The precision of a spiking network's convolutions; its potentials, and the float network, are float32 throughout."""

import copy

import pytest
import torch
from support.small_runs import tiny
from torch import Tensor, nn

import msat_det
from msat_det.base.errors import InputError
from msat_det.graph.precision import arithmetic
from msat_det.methods.observe import observe
from msat_det.run import prepare
from msat_det.spiking.network import SpikingNetwork


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(72, 4)).eval().requires_grad_(False)


def images() -> Tensor:
    return torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def converted(precision: str, **options: object) -> SpikingNetwork:
    return msat_det.convert(
        observe(network(), [images()]), method="constant", T=4, gamma=3, precision=precision, **options
    )


@pytest.mark.parametrize("coding", ["rate", "delta"])
@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_convolutions_are_calculated_in_it_and_potentials_are_not(name: str, dtype: torch.dtype, coding: str) -> None:
    """The currents of both layers are those of PyTorch's own convolutions of that type."""
    snn, net, currents, sent = converted(name, coding=coding), network(), [], {}

    def watch(site: str, scan: object, x: Tensor) -> None:
        assert x.dtype == torch.float32
        currents.append(x[0].clone())

    snn.chunk = 1
    outputs = snn.run(images(), 1, watch=watch, tap=lambda site, y: sent.setdefault(site, y[0].clone()))[1]
    first = net[0].to(dtype)(images().to(dtype)).float()
    second = net[3].to(dtype)(net[2](next(iter(sent.values()))).to(dtype)).float()
    for found, expected in zip(currents, (first, second), strict=True):
        assert torch.equal(found, found.to(dtype).float())
        torch.testing.assert_close(found, expected, rtol=torch.finfo(dtype).eps, atol=1e-6)  # the order of its sums
    assert outputs.dtype == torch.float32
    assert torch.equal(snn.graph(images()), network()(images()))  # the float network


def test_tf32_is_float32_on_a_cpu() -> None:
    assert torch.equal(converted("tf32").run(images(), 4)[4], converted("float32").run(images(), 4)[4])


def test_it_can_be_set_later_and_copies_keep_it() -> None:
    snn = converted("float32")
    snn.precision = "bf16"
    found = snn.run(images(), 4)[4]
    assert torch.equal(found, converted("bf16").run(images(), 4)[4])
    assert not torch.equal(found, converted("float32").run(images(), 4)[4])
    assert (copy.copy(snn).precision, copy.deepcopy(snn).precision) == ("bf16", "bf16")


@pytest.mark.parametrize("default", ["tf32", "ieee"])
@pytest.mark.parametrize(("name", "expected"), [("float32", "ieee"), ("tf32", "tf32")])
def test_pytorchs_default_decides_nothing_and_is_kept(name: str, expected: str, default: str) -> None:
    switches = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = default
        with arithmetic(name, torch.device("cuda")):
            assert [switch.fp32_precision for switch in switches] == [expected, expected]
        with pytest.raises(ZeroDivisionError), arithmetic(name, torch.device("cuda")):
            raise ZeroDivisionError
        assert [switch.fp32_precision for switch in switches] == [default, default]
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value


def test_a_name_that_is_none(tmp_path) -> None:
    said = "no precision 'fp32': did you mean tf32"
    with pytest.raises(InputError, match=said):
        tiny(tmp_path, "--precision", "fp32")
    with pytest.raises(InputError, match=said):
        converted("fp32")
    snn = converted("float32")
    snn.precision = "fp32"
    with pytest.raises(InputError, match=said):
        snn.run(images(), 1)


def test_the_key_reaches_every_network_of_a_run(tmp_path) -> None:
    config = prepare.settle(tiny(tmp_path, "--precision", "bf16", "--device", "cpu"))
    observation = prepare.observed(config, prepare.build_model(config, "detection"))
    assert {one.snn.precision for one in prepare.conversions(config, observation)} == {"bf16"}
    assert observation.graph.precision == "float32"
