"""Writes into parts of tensors, as heads and old blocks make them: they convert to what the network gives."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.networks import images, randomise
from torch import Tensor, nn

import msat_det
from msat_det.base.errors import InputError
from msat_det.graph.facts import facts
from msat_det.graph.ops import Kind
from msat_det.graph.trace import trace

pytestmark = pytest.mark.filterwarnings("ignore:calibration saw no activation")


class Net(nn.Module):
    def __init__(self, body: Callable[["Net", Tensor], Tensor]):
        super().__init__()
        self.conv, self.part = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)
        self.places = nn.Buffer(torch.tensor([2, 0]))
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, self.conv(x).relu())


def number(net: Net, x: Tensor) -> Tensor:
    x[:, 0] = 0.5
    return x * 2


def row(net: Net, x: Tensor) -> Tensor:
    x[..., 0] = x[..., 1]
    return x


def partial_convolution(net: Net, x: Tensor) -> Tensor:
    """FasterNet's."""
    x[:, :2] = net.part(x[:, :2])
    return x


def up_to_a_size(net: Net, x: Tensor) -> Tensor:
    x[:, : x.shape[1] // 2] = 1.0
    return x


def activation(net: Net, x: Tensor) -> Tensor:
    x = x - 0.2
    F.relu_(x[:, :2])
    return x


def sum_on_a_part(net: Net, x: Tensor) -> Tensor:
    x[:, :2] += net.part(x[:, 2:])
    return x


def head(net: Net, x: Tensor) -> Tensor:
    """Boxes decoded one part after the other, some by a view of it."""
    y = x.permute(0, 2, 3, 1).contiguous()
    y[..., :2] = (y[..., :2].sigmoid() * 2 - 0.5) * y.shape[1]
    y[..., 2:].clamp_(max=0.1)
    part = y[..., 1]
    part.mul_(0.5).add_(1)
    return part[..., None] + y


def picked(net: Net, x: Tensor) -> Tensor:
    """What lists and tensors pick is a copy: the tensor stays as it was."""
    y, z = x[:, [1, 3]], x[:, net.places]
    y.add_(1)
    z.mul_(2)
    return torch.cat((y, z), 1) + x


def mask(net: Net, x: Tensor) -> Tensor:
    x[x < 0.1] = 0.1
    return x


def blank(net: Net, x: Tensor) -> Tensor:
    y = x.new_zeros(x.shape[0], 8, *x.shape[2:])
    y[:, ::2] = x
    return y * 2


def unset(net: Net, x: Tensor) -> Tensor:
    y = torch.empty((x.shape[0], 8, *x.shape[2:]), dtype=x.dtype, device=x.device)
    y[:, ::2], y[:, 1::2] = x, 2 * x
    return y - 1


def interleaved(net: Net, x: Tensor) -> Tensor:
    y, z = torch.empty_like(x), x.new_empty(x.shape)
    y[:, ::2], y[:, 1::2] = x[:, :2], net.part(x[:, 2:])
    z[:] = y
    return y + z


BODIES = [
    interleaved,
    number,
    row,
    partial_convolution,
    up_to_a_size,
    activation,
    sum_on_a_part,
    head,
    picked,
    mask,
    blank,
    unset,
]


@pytest.mark.parametrize("body", BODIES)
def test_what_is_written_into_a_part_is_there(body: Callable, tmp_path: Path) -> None:
    net, calibration, fresh = randomise(Net(body)), images(4), images(3, seed=7)
    observed = msat_det.observe(net, calibration)
    with torch.inference_mode():
        expected = net(fresh)
        torch.testing.assert_close(observed.graph(fresh), expected, atol=1e-5, rtol=1e-4)
    written = [facts(node) for node in observed.graph.nodes if facts(node).op == "assigned"]
    assert {known.kind for known in written} == (
        {Kind.DIFFERENTIAL} if body is mask else {Kind.LINEAR} if written else set()
    )
    rate = {"method": "constant", "signed": True, "gamma": 7, "scale": "channel", "factor": 0.5}
    for options, T in (({"method": "delta", "bits": 12, "terms": 6}, 8), (rate, 64)):
        snn = msat_det.convert(observed, spiking_linear=True, T=T, **options)
        outputs = snn.run(fresh, T)[T]
        assert (outputs - expected).norm() < 0.02 * expected.norm()
        snn.save(tmp_path / "net")
        assert torch.equal(msat_det.load(tmp_path / "net").run(fresh, T)[T], outputs)


def view_of_a_view(net: Net, x: Tensor) -> Tensor:
    x.flatten(2)[:, :2].mul_(2)
    return x


def read_before(net: Net, x: Tensor) -> Tensor:
    y = x.flatten(2)
    x[:, :2] = 1.0
    return y


def overwritten_later(net: Net, x: Tensor) -> Tensor:
    part = x[:, :2]
    part.mul_(2)
    x[:] = 1.0
    return x[:, :2] + part


@pytest.mark.parametrize("body", [view_of_a_view, read_before, overwritten_later])
def test_what_other_views_see_is_refused(body: Callable) -> None:
    with pytest.raises(InputError, match=r"\(.*test_writes.py:\d+: .*writes into a view in place"):
        trace(randomise(Net(body)), images())
