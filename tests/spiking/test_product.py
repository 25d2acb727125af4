"""Convolutions as products of matrices."""

import pytest
import torch
from support.devices import check_taken
from torch import Tensor, nn

from msat_det.spiking import kernels
from msat_det.spiking.kernels import product

CONVOLUTIONS = {
    "3x3": lambda: nn.Conv2d(64, 256, 3, padding=1),
    "pointwise": lambda: nn.Conv2d(512, 256, 1, bias=False),
    "pointwise at 2": lambda: nn.Conv2d(512, 256, 1, stride=2),
    "oblong, at 2 and 1, dilated, padded": lambda: nn.Conv2d(64, 260, (3, 5), (2, 1), (2, 3), (2, 3), bias=False),
}


def values(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_it_is_the_convolution(name: str, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    conv = CONVOLUTIONS[name]().to(memory_format=layout)
    x = values(5, conv.in_channels, 13, 15).contiguous(memory_format=layout)
    assert product.fits(conv, x)
    exact = nn.functional.conv2d(
        x.double(), conv.weight.double(), None if conv.bias is None else conv.bias.double(), conv.stride, conv.padding,
        conv.dilation,
    )  # fmt: skip
    whole = product.convolution(conv, x)
    monkeypatch.setattr(product, "BYTES", 4 * 2 * exact[0, 0].numel() * conv.weight[0].numel())  # two images at once
    for y in (whole, product.convolution(conv, x)):
        assert y.shape == exact.shape
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert (y - exact).abs().max() <= 2e-6 * exact.abs().max()


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(512, 512, 3, groups=2),
        nn.Conv2d(128, 128, 3),
        nn.Conv2d(256, 256, 1),
        nn.Conv2d(64, 256, 3, padding="same"),
        nn.Conv2d(64, 256, 3, padding=1, padding_mode="reflect"),
        nn.ReLU(),
    ],
    ids=str,
)
def test_what_is_left_to_cudnn(conv: nn.Module) -> None:
    """Groups, few outputs or terms, paddings of another kind, other modules."""
    assert not product.fits(conv, values(1, getattr(conv, "in_channels", 1), 5, 5))


def test_a_simulation_takes_it_on_a_device_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():  # Triton is no interpreter there, and the stand-in's memory is the CPU's
        monkeypatch.setattr(kernels, "on_gpu", lambda: None)
    net = check_taken(product, (64, 256), "float32", ["tf32"], values(1, 3, 8, 8), monkeypatch)
    assert kernels.convolution(net[2], values(1, 64, 5, 5), "float32") is None  # on the CPU
