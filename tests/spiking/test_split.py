"""Convolutions on tensor cores: on a GPU as they are, else by Triton's interpreter and the CPU's float32, which shows
that the parts' products are right; what tensor cores cut off shows on a GPU alone."""

import pytest
import torch
from support.devices import check_taken
from torch import Tensor, nn

from msat_det.spiking import kernels
from msat_det.spiking.kernels import split

pytest.importorskip("triton")
from msat_det.spiking.kernels.triton_split import split as parts_of

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CONVOLUTIONS = {
    "3x3": lambda: nn.Conv2d(8, 32, 3, padding=1),
    "pointwise": lambda: nn.Conv2d(12, 256, 1),
    "at 2, dilated, without bias": lambda: nn.Conv2d(4, 128, 3, stride=2, dilation=2, bias=False),
}


def values(*shape: int) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    return (x * (x.abs() > 0.5)).contiguous(memory_format=torch.channels_last)


def is_tf32(x: Tensor) -> bool:
    """Whether the last 13 bits of all numbers are 0."""
    return not (x.contiguous().view(torch.int32) & 0x1FFF).any()


def test_the_parts_are_what_a_tensor_core_takes_and_add_up() -> None:
    x = values(2, 5, 3, 4) * 10.0 ** torch.arange(-2, 3)[:, None, None]
    high, low, again = parts_of(x.to(DEVICE)).cpu().split(5, 1)
    assert torch.equal(high, again)
    assert torch.equal(high, split.rounded(x))
    assert is_tf32(high)
    assert is_tf32(low)
    assert ((high - x).abs() <= 2.0**-11 * x.abs()).all()
    assert ((high.double() + low - x).abs() <= 2.0**-23 * x.abs()).all()
    assert parts_of(torch.full((1, 1, 1, 1), torch.nan, device=DEVICE)).isnan().any()


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_s_products_are_exact_enough(name: str) -> None:
    torch.manual_seed(0)
    conv = CONVOLUTIONS[name]().eval()
    x = values(2, conv.in_channels, 9, 11)
    exact, size = conv.double()(x.double()), conv(x.double()).abs().max()
    conv.float().to(DEVICE)
    assert split.fits(conv, x)
    with torch.inference_mode():
        found = split.convolution(conv, parts_of(x.to(DEVICE))).cpu()
    assert (found - exact).abs().max() <= (3e-5 if DEVICE.type == "cuda" else 1e-6) * size


def test_weights_that_change_are_split_again() -> None:
    conv = CONVOLUTIONS["3x3"]().to(DEVICE).requires_grad_(False)
    x = parts_of(values(1, 8, 5, 5).to(DEVICE))
    before = split.convolution(conv, x)
    conv.weight.mul_(2)
    conv.bias.mul_(2)
    torch.testing.assert_close(split.convolution(conv, x), 2 * before)


@pytest.mark.parametrize(
    "conv", [nn.Conv2d(8, 32, 3, groups=2), nn.Conv2d(8, 16, 1), nn.Conv2d(3, 64, 3), nn.ReLU()], ids=str
)
def test_what_is_left_to_cudnn(conv: nn.Module) -> None:
    """Groups, few multiply-adds a value, channels that do not go into fours, other modules."""
    assert not split.fits(conv, values(1, 8, 5, 5))


@pytest.mark.skipif(torch.cuda.is_available(), reason="the stand-in needs Triton's interpreter")
def test_a_simulation_takes_it_on_a_device_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    net = check_taken(split, (8, 32), "tf32x3", ["float32", "tf32"], values(1, 3, 8, 8), monkeypatch)
    assert kernels.convolution(net[2], values(1, 8, 5, 5), "tf32x3") is None  # on the CPU
