"""Channels that calibration has not seen: their thresholds, what is dead, and what the user is told."""

import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.networks import block, build, images, randomise
from support.small_runs import tiny
from torch import Tensor, nn

import msat_det
from msat_det.base.errors import CalibrationWarning
from msat_det.methods import METHODS
from msat_det.methods.convert import spiking_network
from msat_det.methods.layerwise import LayerByLayer
from msat_det.methods.notes import equality_note, tell
from msat_det.methods.observe import Observation, observe
from msat_det.methods.unseen import LEAST, SHARE, dead_channels, unseen_channels, unseen_note
from msat_det.run.experiment import run
from msat_det.spiking.neurons import OVERFLOW


class Two(nn.Module):
    """Two layers of four channels; the biases of the first decide what is seen."""

    def __init__(self, biases: list[float], weightless: tuple[int, ...] = ()):
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)
        randomise(self)
        self.first.bias.data = torch.tensor(biases)
        self.first.weight.data[list(weightless)] = 0.0
        self.second.bias.data.fill_(3.0)  # seen, all of it

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.second(F.relu(self.first(x)))))


def seen(net: nn.Module, scale: float = 1.0) -> Observation:
    return observe(net.eval(), [scale * images(4, seed=100)])


def test_a_silent_channel_gets_a_share_of_its_layers_threshold() -> None:
    observation = seen(Two([0.1, -50.0, 0.2, -50.0]))
    site = observation.graph.sites[0].name
    maximum = observation.sites[site].maximum
    assert (maximum == 0).tolist() == [False, True, False, True]
    theta = spiking_network("constant", {"scale": "channel", "factor": 0.5}, observation, 8).neurons[site].theta
    assert torch.equal(theta[[0, 2]], 0.5 * maximum[[0, 2]])
    assert theta[[1, 3]].tolist() == pytest.approx([0.5 * maximum.max().item() * SHARE] * 2)
    assert SHARE * OVERFLOW == 1


def test_a_channel_that_is_hardly_seen_sends_no_burst_of_millions() -> None:
    """Its value is a millionth of the other's in calibration, and as large afterwards."""
    net = nn.Sequential(nn.Conv2d(2, 2, 1, bias=False), nn.ReLU(), nn.Conv2d(2, 2, 1, bias=False)).eval()
    for layer in (net[0], net[2]):
        layer.weight.data = torch.eye(2)[:, :, None, None]
    x = torch.ones(1, 2, 3, 3)
    observation = observe(net, [x * torch.tensor([1.0, 1e-6])[None, :, None, None]])
    snn = spiking_network("constant", {"scale": "channel", "initial": "half"}, observation, 4)
    assert snn.neurons["_1"].theta.tolist() == [1.0, LEAST]
    outputs = snn.run(x, 4)[4]
    assert torch.allclose(outputs, x)
    assert snn.counts[4].spikes.item() == 9 * 4 * (1 + 1 / LEAST)  # a millionth would have taken a million


@pytest.mark.parametrize(("method", "over"), [("int8", 255), ("dcgs", 128)])
def test_a_silent_channel_has_its_layers_threshold_where_nothing_passes_it(method: str, over: int) -> None:
    observation = seen(Two([0.1, -50.0, 0.2, -50.0]))
    site = observation.graph.sites[0].name
    theta = spiking_network(method, {}, observation, 8).neurons[site].theta
    assert theta[[1, 3]].tolist() == pytest.approx([theta.max().item()] * 2)
    assert theta.max().item() * over == pytest.approx(observation.sites[site].maximum.max().item(), rel=0.05)


def test_dead_is_what_the_weights_say() -> None:
    """A row of zeros and a bias that the activation turns to 0: that neuron never fires, and nobody is warned of it."""
    observation = seen(Two([0.1, -0.3, 0.5, -50.0], weightless=(1, 2)))
    site = observation.graph.sites[0]
    assert dead_channels(observation.graph, site).tolist() == [False, True, False, False]
    assert spiking_network("constant", {"scale": "channel"}, observation, 8).neurons[site.name].theta[1] == 0
    assert unseen_channels(observation) == {site.name: 1}


@pytest.mark.parametrize(
    ("act", "bias", "dead"),
    [
        (nn.ReLU(), -1.0, True),
        (nn.ReLU6(), 0.0, True),
        (nn.Hardswish(), -4.0, True),
        (nn.PReLU(3), 0.0, True),
        (nn.PReLU(3), -1.0, False),
        (nn.Sigmoid(), -1.0, False),
        (nn.SiLU(), -1.0, False),
    ],
)
def test_dead_whatever_the_activation(act: nn.Module, bias: float, dead: bool) -> None:
    conv = nn.Conv2d(3, 3, 1)
    conv.weight.data[0], conv.bias.data[0] = 0.0, bias
    observation = seen(nn.Sequential(conv, act))
    assert dead_channels(observation.graph, observation.graph.sites[0])[0].item() is dead


def test_batch_norm_is_folded_before_the_weights_are_looked_at() -> None:
    net = nn.Sequential(block(3, 4), nn.Conv2d(4, 2, 1))
    randomise(net)[0][1].weight.data[2], net[0][1].bias.data[2] = 0.0, -1.0
    observation = seen(net)
    assert dead_channels(observation.graph, observation.graph.sites[0]).tolist() == [False, False, True, False]


def test_what_lies_behind_other_layers_is_not_called_dead() -> None:
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
            self.a.weight.data[0], self.a.bias.data[0] = 0.0, -1.0

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.a(x) + self.b(x))

    observation = seen(Sum())
    assert not dead_channels(observation.graph, observation.graph.sites[0]).any()


@pytest.mark.parametrize("method", [name for name, made in METHODS.items() if not made.clips])
def test_a_layer_that_calibration_left_silent_wakes_up(method: str) -> None:
    """Biases of −2 on dark pictures: nothing passes; bright pictures do."""
    net = Two([-2.0] * 4)
    observation = seen(net, 0.2)
    site = observation.graph.sites[0].name
    assert not observation.sites[site].maximum.any()
    x, T = 3 * images(2), 1024 if method != "spike-norm" else 8192
    expected = net(x)
    silent = net(0 * x)
    snn = spiking_network(method, {}, observation, T, chunk=128)  # of a network as small as this, many at once
    assert (snn.neurons[site].theta > 0).all()
    left = ((snn.run(x, T)[T] - expected).norm() / (silent - expected).norm()).item()
    assert left < 0.03


def test_the_one_method_that_clips_says_so_and_clips_at_its_range() -> None:
    """The control: the float network with activations held at what calibration has seen, whatever T is."""
    assert [name for name, made in METHODS.items() if made.clips] == ["int8"]
    net = Two([0.1, 0.2, 0.3, 0.4])
    observation, x = seen(net, 0.2), 3 * images(2)
    snn = spiking_network("int8", {"weights": "float", "percentile": 100.0}, observation, 64)
    first, second = (255 * snn.neurons[site.name].theta.reshape(-1, 1, 1) for site in observation.graph.sites)
    held = torch.minimum(F.relu(net.second(torch.minimum(F.relu(net.first(x)), first))), second)
    outputs = snn.run(x, 64, record=(1, 64))
    assert torch.equal(outputs[1], outputs[64])
    assert (outputs[1] - net.head(held)).norm() < 0.01 * net.head(held).norm()
    assert (outputs[1] - net(x)).norm() > 0.2 * net(x).norm()


PLAIN = [
    name for name, made in METHODS.items() if "delta" in made.codings and not issubclass(made.options, LayerByLayer)
]


@pytest.mark.parametrize("method", PLAIN)  # fits find stages of their own
def test_levels_under_delta_coding_are_never_coarser_than_a_mean_of_spikes(method: str) -> None:
    """Whole thresholds would leave half of one for ever: O is a multiple of θ."""
    observation = seen(Two([0.1, 0.2, 0.3, 0.4]))
    snn = spiking_network(method, {"coding": "delta"}, observation, 4)
    for neuron in snn.neurons.values():
        top = 2 ** (neuron.bits - 1) if neuron.bits and method != "dcgs" else 1
        expected = [1.0] * 3 if neuron.dense else [min(1.0, top / n) for n in (1, 100, 300)]
        assert [neuron.stage(n - 1) for n in (1, 100, 300)] == expected
        assert [neuron.stage(torch.tensor(n - 1)) for n in (1, 100, 300)] == pytest.approx(expected)
    given = spiking_network(method, {"coding": "delta", "stages": [1.0]}, observation, 4)
    assert all(tuple(neuron.stages) == (1.0,) for neuron in given.neurons.values())


# ---- what is told


def test_the_note_counts_and_names() -> None:
    assert unseen_note(seen(build("plain"))) == ""
    observation = seen(Two([0.1, -50.0, 0.2, -50.0]))
    assert unseen_note(observation) == (
        "calibration saw no activation in 2 channels of 1 call site (relu: 2): their thresholds are set by their "
        "layer's; give more, or more varied, calibration images"
    )
    deep = nn.Sequential(*(m for i in range(5) for m in (nn.Conv2d(3, 3, 1), nn.ReLU()))).eval()
    randomise(deep)
    for i, silent in enumerate((1, 3, 2, 1, 2)):
        deep[2 * i].bias.data[:silent] = -50.0
        deep[2 * i].bias.data[silent:] = 5.0
        deep[2 * i].weight.data *= 0.01  # the bias decides
    note = unseen_note(seen(deep))
    assert note.startswith("calibration saw no activation in 9 channels of 5 call sites (_3: 3, _5: 2, _9: 2, …): ")


def test_convert_warns_once_and_of_what_is_unseen_alone() -> None:
    net, calibration = Two([0.1, -50.0, 0.2, -50.0]), [images(4, seed=100)]
    with pytest.warns(CalibrationWarning, match="2 channels of 1 call site") as caught:
        msat_det.convert(net, calibration, method="calibration", T=4, scale="channel")
    assert [w.category for w in caught] == [CalibrationWarning]
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        msat_det.convert(build("plain"), calibration, method="constant")


def test_a_command_tells_it_in_one_line(capsys: pytest.CaptureFixture) -> None:
    tell(seen(Two([0.1, -50.0, 0.2, -50.0])))
    tell(seen(build("plain")))
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert said.err.startswith("warning: calibration saw no activation in 2 channels")


def test_a_run_tells_it_once(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("msat_det.methods.unseen.unseen_channels", lambda observation: {"relu": 7})
    run(tiny(tmp_path / "run", "--data.limit", "2"))
    assert capsys.readouterr().err.count("warning: calibration saw no activation in 7 channels") == 1


class Peaks(nn.Module):
    """CenterNet's heat map, with what is no local maximum taken out of it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        heat = self.conv(x).sigmoid()
        return heat * (F.max_pool2d(heat, 3, 1, 1) == heat).float() * (heat > 0.1)


class Sizes(nn.Module):
    """It makes sure that two maps are as large."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 2, 3, padding=1), nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.left(x).relu(), self.right(x).relu()
        assert left.shape[2] * left.shape[3] == right.flatten(2).shape[2]
        return left + right


def test_sizes_that_are_equal_are_no_activations() -> None:
    assert equality_note(observe(randomise(Sizes()), [images()]).graph) == ""


def test_activations_asked_to_be_equal_are_told(capsys: pytest.CaptureFixture) -> None:
    with pytest.warns(
        UserWarning, match=r"node 'eq' \(.*test_unseen.py:\d+: .*are equal: .* leave it to decode"
    ) as caught:
        msat_det.convert(randomise(Peaks()), images())
    assert [w.category for w in caught] == [UserWarning]
    tell(observe(randomise(Peaks()), [images()]))
    assert capsys.readouterr().err.startswith("warning: node 'eq'")
