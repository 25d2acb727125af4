"""Options that change the graph: call sites kept analog, and neurons on linear outputs."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.networks import images, observed, randomise
from torch import Tensor, nn

from msat_det.base.config import Model
from msat_det.base.errors import InputError
from msat_det.graph.edits import linear_carriers
from msat_det.graph.facts import facts
from msat_det.measure.coverage import coverage
from msat_det.methods import METHODS
from msat_det.methods.convert import spiking_network
from msat_det.methods.observe import Observation, observe
from msat_det.methods.variants import variant
from msat_det.models import build_detector
from msat_det.spiking.network import SpikingNetwork

OPTIONS = {"scale": "channel", "initial": "half", "signed": True, "gamma": 3}


def converted(observation: Observation, method: str = "constant", **options: object) -> SpikingNetwork:
    return spiking_network(method, OPTIONS | options, observation, 16)


def error(snn: SpikingNetwork, observation: Observation, t: int) -> float:
    (out,), (goal,) = snn.run(images(), t)[t], observation.graph(images())
    return ((out - goal).norm() / goal.norm()).item()


def test_without_the_options_nothing_is_made() -> None:
    assert variant(observed("bottleneck"), (), False) is observed("bottleneck")


def test_spiking_linear_leaves_no_analog_multiply_adds() -> None:
    observation = observed("bottleneck")
    assert sum(observation.fanout.analog.values()) > 0
    assert [n.name for n in linear_carriers(observation.graph)] == ["first_2", "add"]
    before = [n.name for n in observation.graph.sites]
    snn = converted(observation, spiking_linear=True)
    assert sum(snn.fanout.analog.values()) == 0
    assert snn.fanout.total == observation.fanout.total
    assert {n.name for n in snn.graph.sites} - {*before} == {"first_2_identity", "add_identity"}
    assert [n.name for n in observation.graph.sites] == before
    assert error(snn, observation, 64) < error(snn, observation, 16) / 2
    for node in snn.graph.sites:
        if facts(node).op == "identity":
            assert torch.equal(snn.neurons[node.name].theta, maximum(observation, node.name))


def test_a_residual_sum_sends_one_event_train() -> None:
    """Behind the sum, not behind each of its branches: a spike of the first block reaches the 8 channels of the second
    block's expansion, not the 16 behind the sum as well. Adding a constant is no sum."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.narrow, self.wide, self.back = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 1), nn.Conv2d(8, 4, 1)
            self.last, self.shift = nn.Conv2d(4, 16, 1), nn.Parameter(torch.ones(4, 1, 1))

        def forward(self, x: Tensor) -> tuple[Tensor]:
            x = self.narrow(x).relu()
            first = self.back(self.wide(x).relu())
            second = first + self.back(self.wide(first).relu())
            return (self.last(second + self.shift),)

    observation = observe(randomise(Net()), [images(4)])
    snn = converted(observation, spiking_linear=True)
    reach = {n.name: snn.fanout.spikes[n].unique().tolist() for n in snn.graph.sites if facts(n).op == "identity"}
    assert reach == {"back_identity": [8.0], "add_identity": [16.0]}
    assert sum(snn.fanout.analog.values()) == 0
    assert snn.fanout.total == observation.fanout.total


def maximum(observation: Observation, name: str) -> Tensor:
    """The channels' largest magnitudes at the node behind which the identity stands, by hand."""
    found = torch.zeros(1)
    for batch in observation.batches:
        values = {n.name: v for n, v in observation.graph.walk(batch) if n.name == name.removesuffix("_identity")}
        (value,) = values.values()
        found = torch.maximum(found, value.abs().amax((0, 2, 3)))
    return found


def test_analog_sites_act_on_means_and_are_paid_for() -> None:
    observation = observed("bottleneck")
    name = observation.graph.sites[1].name
    snn = converted(observation, analog=(name,))
    assert name not in snn.neurons
    node = next(n for n in snn.graph.nodes if n.name == name)
    assert facts(node).kind.value == "differential"
    reader = next(iter(node.users))
    assert snn.fanout.analog[reader] == snn.fanout.macs[reader]
    assert observation.fanout.analog.get(next(n for n in observation.graph.nodes if n.name == reader.name), 0) == 0
    assert error(snn, observation, 64) < error(snn, observation, 16) / 2
    exact = converted(observation, analog=tuple(n.name for n in observation.graph.sites[1:]), scale="layer")
    assert error(exact, observation, 64) < 0.6 * error(converted(observation, scale="layer"), observation, 64)


def test_curved_analog_sites_count_an_evaluation_a_step() -> None:
    net = randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.SiLU(), nn.Conv2d(4, 2, 1)))
    observation = observe(net, [images(4)])
    silu = observation.graph.sites[1]
    snn = converted(observation, analog=silu.name)
    size = torch.Size(facts(silu).shape).numel()
    assert observation.fanout.evaluations == 0
    assert snn.fanout.evaluations == size
    # all that is analog: evaluations, and the last layer at full price
    snn.run(images(), 2)
    paid = [c.clone() for c in (snn.counts[2].energy, snn.counts[2].sites[observation.graph.sites[0].name][:, 1])]
    assert torch.allclose(paid[0], 4.6 * (snn.fanout.once + 2 * (size + 2 * size)) + 0.9 * paid[1])


def test_variants_are_shared_and_calibration_is_read_once_more() -> None:
    class Counted(list):
        passes = 0

        def __iter__(self):
            Counted.passes += 1
            return super().__iter__()

        def __getitem__(self, index):
            Counted.passes += index == 0  # statistics are read by the batch's number
            return super().__getitem__(index)

    first = observed("bottleneck")
    observation = observe(first.graph, Counted(first.batches))
    passes = Counted.passes
    a = converted(observation, spiking_linear=True)
    b = converted(observation, "burst", spiking_linear=True)
    assert a.graph is b.graph
    assert a.fanout is b.fanout
    site = observation.graph.sites[0].name
    converted(observation, spiking_linear=True, analog=[site])
    assert Counted.passes - passes == 1  # of statistics; the fan-outs look at no image


@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_them(method: str) -> None:
    observation = observed("bottleneck")
    snn = spiking_network(method, {"spiking_linear": True, "analog": [observation.graph.sites[2].name]}, observation, 8)
    (out,) = snn.run(images(), 8)[8]
    assert out.isfinite().all()


@pytest.mark.parametrize(
    ("analog", "message"),
    [
        (("first_0_22",), "did you mean first_0_2"),
        (("zzz",), "no call site of the network: snn.coverage and coverage.json list them"),
        (3, "option analog of method constant is 3: give a list of names"),
        ([1.5], "give a list of names"),
    ],
)
def test_wrong_names_are_refused(analog: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        converted(observed("bottleneck"), analog=analog)


def test_all_analog_is_refused() -> None:
    observation = observed("bottleneck")
    with pytest.raises(InputError, match="names every call site"):
        converted(observation, analog=[n.name for n in observation.graph.sites])


def test_a_network_without_activations_is_refused() -> None:
    observation = observe(randomise(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(2), nn.Softmax(1))), [images(4)])
    with pytest.raises(InputError, match="no activation, so there is nothing that would spike"):
        converted(observation, spiking_linear=True)


def test_spiking_linear_puts_a_neuron_behind_a_max_pooling() -> None:
    """A difference of maxima multiplies, at 4.6 pJ a connection; the pooled value in powers of two adds, at .9 each."""
    observation = observe(
        randomise(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU())),
        [images(4)],
    )
    plain = spiking_network("delta-3", {}, observation, 1)
    snn = spiking_network("delta-3", {"spiking_linear": True}, observation, 1)
    assert [facts(n).op for n in snn.graph.sites] == ["relu", "identity", "relu"]
    goal = observation.graph(images())
    for made in (plain, snn):
        assert (made.run(images(), 1)[1] - goal).norm() < 0.02 * goal.norm()
    (pooled,) = (cost.graded.sum() for name, cost in plain.counts[1].costs.items() if name == "_2")
    sent = snn.counts[1].costs["_2_identity"].accumulations.sum()
    assert 0 < 0.9 * sent < 0.5 * 4.6 * pooled


def test_coverage_tells_the_variant_apart() -> None:
    observation = observed("bottleneck")
    networks = {"plain": converted(observation), "linear": converted(observation, spiking_linear=True)}
    table = coverage(observation, networks)
    shared, own = ([row for row in table if ("method" in row) is mine] for mine in (False, True))
    assert [row["node"] for row in shared] == [n.name for n in observation.graph.nodes]
    assert {label for row in shared for label in row.get("theta", {})} == {"plain"}
    assert {row["method"] for row in own} == {"linear"}
    assert sum(row["analog_macs"] for row in own) == 0 < sum(row["analog_macs"] for row in shared)
    identity = next(row for row in own if row.get("activation") == "identity")
    assert identity["kind"] == "spiking"
    assert identity["dead_channels"] == 0
    assert identity["theta"]["linear"][0] > 0


def test_functional_activations_in_a_copied_graph() -> None:
    """Parameters that an activation reads from the graph, and two images' own shapes."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
            self.slope = nn.Parameter(torch.tensor([0.1, 0.2, 0.3, 0.4]))

        def forward(self, x: Tensor) -> tuple[Tensor]:
            x = F.prelu(self.a(x), self.slope)
            x = self.c(self.b(x)).relu()
            return (x.view(x.shape[0], -1, x.shape[3]),)

    observation = observe(randomise(Net()), [images(4)])
    snn = converted(observation, spiking_linear=True)
    assert [facts(n).op for n in snn.graph.sites] == ["prelu", "identity", "relu"]
    assert error(snn, observation, 64) < error(snn, observation, 16) / 2


def test_yolo_nano_has_no_analog_multiply_adds(shared_data: Path) -> None:
    """Sixteen of its linear bottlenecks feed another convolution, 23.6 % of all multiply-adds without a spike;
    three max poolings get neurons, too."""
    stem = shared_data / "weights/MobileNetV2-YOLOv3-Nano-coco"
    detector = build_detector(Model(name="darknet", weights=f"{stem}.weights", cfg=f"{stem}.cfg", names="coco"))
    observation = observe(detector.net, [images(1, size=320)])
    assert observation.fanout.analog_share == pytest.approx(0.236, abs=0.001)
    snn = converted(observation, spiking_linear=True)
    assert len(snn.graph.sites) - len(observation.graph.sites) == 16 + 3
    assert sum(snn.fanout.analog.values()) == 0
