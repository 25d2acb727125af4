"""The precision of a spiking network's convolutions; its potentials, and the float network, are float32 throughout."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

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


@pytest.mark.parametrize("coding", ["rate", "delta"])
@pytest.mark.parametrize("name", ["tf32x3", "tf32"])
def test_on_a_cpu_it_is_float32(name: str, coding: str) -> None:
    found = converted(name, coding=coding).run(images(), 4)[4]
    assert torch.equal(found, converted("float32", coding=coding).run(images(), 4)[4])


def test_it_can_be_set_later_and_copies_keep_it() -> None:
    snn = converted("float32")
    snn.precision = "bf16"
    found = snn.run(images(), 4)[4]
    assert torch.equal(found, converted("bf16").run(images(), 4)[4])
    assert not torch.equal(found, converted("float32").run(images(), 4)[4])
    assert (copy.copy(snn).precision, copy.deepcopy(snn).precision) == ("bf16", "bf16")


def by_matmul_precision() -> None:
    torch.set_float32_matmul_precision("medium")


def by_older_switches() -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True


def by_newer_switches() -> None:
    torch.backends.cudnn.conv.fp32_precision = torch.backends.cuda.matmul.fp32_precision = "tf32"


def switches() -> tuple:
    def found(read: Callable) -> Any:
        try:
            return read()
        except RuntimeError:
            return "raises"

    return (
        torch.backends.cudnn.conv.fp32_precision,
        torch.backends.cuda.matmul.fp32_precision,
        found(torch.get_float32_matmul_precision),
    )


@pytest.fixture
def plain_switches() -> Iterator[None]:
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.conv.fp32_precision = torch.backends.cudnn.rnn.fp32_precision = "tf32"  # PyTorch's own
    torch.backends.cuda.matmul.fp32_precision = "none"


@pytest.mark.parametrize("way", [lambda: None, by_matmul_precision, by_older_switches, by_newer_switches])
@pytest.mark.parametrize(("name", "convolutions"), [("float32", "ieee"), ("tf32x3", "ieee"), ("tf32", "tf32")])
def test_what_pytorch_is_set_to_decides_nothing_and_is_kept(
    name: str, convolutions: str, way: Callable[[], None], plain_switches: None
) -> None:
    way()
    before = switches()
    with arithmetic(name, torch.device("cuda")):
        assert torch.backends.cudnn.conv.fp32_precision == convolutions
        assert torch.backends.cuda.matmul.fp32_precision in ("ieee", "none")
        assert not torch.backends.cuda.matmul.allow_tf32
    with pytest.raises(ZeroDivisionError), arithmetic(name, torch.device("cuda")):
        raise ZeroDivisionError
    assert switches()[:2] == before[:2]
    assert before[2] in (switches()[2], "raises")


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
