"""Choices by comparison in a simulation: a mask acts at once, on running means, and is never summed up."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.networks import images, randomise
from torch import Tensor, nn

import msat_det

OPTIONS = {
    "constant": {"scale": "channel", "initial": "half", "signed": True, "gamma": 7},
    "msat": {"variant": "normalised", "scale": "channel", "rounding": "track", "signed": True, "gamma": 7},
}
pytestmark = pytest.mark.filterwarnings("ignore:calibration saw no activation")


class Chosen(nn.Module):
    """A convolution, spikes, and what is under test between them and the next layer."""

    def __init__(self, choose: Callable[[Tensor], Tensor]):
        super().__init__()
        self.first, self.second, self.choose = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), choose

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(self.choose(F.relu(self.first(x)))))


# Each of them without a jump where activations lie thickly (at 0 after a ReLU), for there no running mean settles.
CHOICES = {
    "leaky": lambda x: torch.where(x > 0.7, x - 0.7, 0.1 * (x - 0.7)),
    "filled": lambda x: (x - 0.5).masked_fill(x < 0.5, 0.0),
    "factor": lambda x: (x - 0.5) * (x > 0.5),
    "factor as float": lambda x: (x - 0.5) * (x > 0.5).float(),
    "logic": lambda x: torch.where((x > 0.5) & ~(x > 1.5), x, x.clamp(0.5, 1.5)),
    "reshaped": lambda x: torch.where((x.flatten(2) > 0.5).view(x.shape), x, 1 - x),
    "counted": lambda x: x / (1 + (x.mean((2, 3), keepdim=True) > 0.5).sum(1, keepdim=True)),
    "by a buffer": lambda x: torch.where(torch.arange(10) > 4, x, 2 * x + 1),
}


@pytest.mark.parametrize("method", OPTIONS)
@pytest.mark.parametrize("choose", CHOICES.values(), ids=CHOICES)
def test_choices_converge_and_can_be_saved(choose: Callable, method: str, tmp_path: Path) -> None:
    net = randomise(Chosen(choose))
    snn = msat_det.convert(net, images(4), method, **OPTIONS[method])
    outputs, expected = snn.run(images(4), 256, (16, 256)), net(images(4))
    errors = [((outputs[t] - expected).norm() / expected.norm()).item() for t in outputs]
    assert errors[1] < min(0.01, errors[0] / 5)
    snn.save(tmp_path / "a")
    assert torch.equal(msat_det.load(tmp_path / "a").run(images(4), 16)[16], outputs[16])


@pytest.mark.parametrize("choose", CHOICES.values(), ids=CHOICES)
def test_choices_under_delta_coding_are_as_fine_as_its_levels(choose: Callable) -> None:
    net, errors = randomise(Chosen(choose)), []
    expected = net(images(4))
    for bits in (7, 14):
        got = msat_det.convert(net, images(4), "delta", bits=bits).run(images(4), 8)[8]
        errors.append(((got - expected).norm() / expected.norm()).item())
    assert errors[1] < min(0.001, errors[0] / 50)


def test_a_mask_is_that_of_the_running_mean_at_every_timestep() -> None:
    """n·g(X̄(t)) summed up, g(x) = x·[x > θ/2]: worked out by hand for a current of 1 and θ = 4."""

    class One(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(x)
            return F.relu(x * (x > 0.9))

    snn = msat_det.convert(One(), torch.full((1, 1, 1, 1), 4.0), "constant")
    sent: list[Tensor] = []
    snn.run(torch.full((1, 1, 1, 1), 1.0), 8, tap=lambda site, y: sent.append(y.flatten()))
    # the first neuron fires 4 at t = 3 and 7: means 0 0 0 1 .8 .67 .57 1, of which the mask lets 1, 1 pass; the second
    # neuron gets 4 and loses it at the next step
    assert torch.cat(sent[0::2]).tolist() == [0, 0, 0, 4, 0, 0, 0, 4]
    assert torch.cat(sent[1::2]).tolist() == [0, 0, 0, 4, 0, 0, 0, 4]
    with_signed = msat_det.convert(One(), torch.full((1, 1, 1, 1), 4.0), "constant", signed=True)
    sent.clear()
    with_signed.run(torch.full((1, 1, 1, 1), 1.0), 8, tap=lambda site, y: sent.append(y.flatten()))
    assert torch.cat(sent[1::2]).tolist() == [0, 0, 0, 4, -4, 0, 0, 4]
