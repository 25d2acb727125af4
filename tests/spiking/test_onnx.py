"""The exported step in onnxruntime: the same outputs as ours over eight steps, for every kind of neuron and node."""

import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from support.networks import block, build, images, observed, randomise
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import msat_det
from msat_det.base.errors import InputError
from msat_det.base.settings import PROJECT
from msat_det.graph.facts import facts
from msat_det.methods.convert import spiking_network
from msat_det.methods.observe import observe
from msat_det.run import export
from msat_det.run.cli import main
from msat_det.spiking.formats import onnx_step
from msat_det.spiking.formats.onnx_check import Agreement, check
from msat_det.spiking.formats.onnx_step import Step, export_step, write_onnx
from msat_det.spiking.network import SpikingNetwork
from msat_det.spiking.neurons import Msat, Neuron

onnx = pytest.importorskip("onnx", reason="needs pip install 'msat-det[onnx]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs pip install 'msat-det[onnx]'")
pytest.importorskip("onnxscript", reason="needs pip install 'msat-det[onnx]'")

REFERENCE = Msat(rest=-1.0)
# What becomes of the call sites of ``Zoo``, one after the other.
KINDS = {
    "constant": {},
    "signed burst": {"signed": True, "gamma": 3},
    "rounded, staged": {"signed": True, "gamma": 7, "rounding": "track", "stages": (2.0, 1.0, 0.5)},
    "reset to zero": {"reset": "zero"},
    "bias": {"bias": "channels"},
    "potential": {"initial": "channels"},
    "msat reference": {"adaptive": REFERENCE},
    "msat normalised": {"adaptive": Msat(normalised=True), "signed": True, "gamma": 3, "rounding": "track"},
    "msat paper": {"adaptive": Msat(drive="depolarisation", twice=True)},
    "bounded": {"gamma": 2},
    "imbalanced": {"imbalanced": True},
    "leaky, tracking": {"gamma": 3},
    "sigmoid": {"gamma": 3},
    "silu, tracking": {"gamma": 3, "adaptive": Msat(normalised=True)},
}


class Zoo(nn.Module):
    """A call site for every kind of neuron, a max pooling, a choice, squeeze-and-excitation, a softmax at the end."""

    def __init__(self):
        super().__init__()
        acts = [*[nn.ReLU] * 9, nn.ReLU6, *[lambda: nn.LeakyReLU(0.1)] * 2, nn.SiLU]
        self.layers = nn.ModuleList(block(3 if i == 0 else 6, 6, act=act) for i, act in enumerate(acts))
        self.gate, self.head = nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, image: Tensor) -> dict[str, list[Tensor]]:
        x = image
        for i, layer in enumerate(self.layers):
            x = (layer(x) + x) * 0.6 if i > 1 else layer(x)
            x = F.max_pool2d(x, 2) if i == 2 else x
            x = torch.where(x > 0.2, x, 0.5 * x + 0.1) if i == 7 else x
            if i == 11:
                x = x * torch.sigmoid(self.gate(x.mean((2, 3))))[:, :, None, None]
        raw = self.head(x.amax((2, 3)))
        return {"raw": [raw], "shares": [raw.softmax(-1), x]}


@pytest.fixture(scope="module")
def zoo() -> SpikingNetwork:
    observation = observe(randomise(Zoo()), [images(4, seed=100)])
    snn = spiking_network("constant", {"scale": "channel", "initial": "half"}, observation, 8)
    sites = snn.graph.sites
    for node, changes in zip(sites, KINDS.values(), strict=True):
        generator = torch.Generator().manual_seed(1)
        drawn = {k: torch.rand(6, generator=generator) * 0.1 if v == "channels" else v for k, v in changes.items()}
        snn.neurons[node.name] = replace(snn.neurons[node.name], **drawn)
    return snn


@pytest.fixture(scope="module")
def exported(zoo: SpikingNetwork, tmp_path_factory: pytest.TempPathFactory) -> tuple[Agreement, Path]:
    program = export_step(Step(zoo), 2)
    found = check(program, zoo, (images(),))
    path = tmp_path_factory.mktemp("onnx") / "zoo.onnx"
    write_onnx(program, Step(zoo), path)
    return found, path


def test_every_kind_of_neuron_agrees(zoo: SpikingNetwork, exported: tuple[Agreement, Path]) -> None:
    found, _ = exported
    assert found.holds, str(found)
    assert found.decisions == 8 * 2 * sum(torch.Size(facts(n).shape).numel() for n in zoo.graph.sites)
    assert found.ties < 1e-3 * found.decisions
    tracked = [zoo.neurons[n.name].tracking for n in zoo.graph.sites]
    assert sum(tracked) == 3
    assert [zoo.neurons[n.name].bounded for n in zoo.graph.sites].count(True) >= 1


def test_our_own_step_is_the_simulation(zoo: SpikingNetwork) -> None:
    module, batch = Step(zoo), images()
    expected, states = zoo.run(batch, 8, range(1, 9)), module.blank(2)
    states = [torch.full_like(state, torch.nan) for state in states]  # at t = 0 nobody looks at them
    with torch.inference_mode():
        for t in range(8):
            results = module(batch, torch.tensor(t), *states)
            states = results[len(module.outputs) : len(module.outputs) + len(states)]
            for got, wanted in zip(results, pytree.tree_leaves(expected[t + 1]), strict=False):
                torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_the_file_tells_its_host_everything(zoo: SpikingNetwork, exported: tuple[Agreement, Path]) -> None:
    model = onnx.load(exported[1])
    onnx.checker.check_model(model)
    facts = json.loads({p.key: p.value for p in model.metadata_props}["msat_det"])
    states = [slot.name for slot in Step(zoo).slots]
    assert facts == {"states": states, "timesteps_per_step": 1}
    assert [value.name for value in model.graph.input] == ["image", "t", *states]
    outputs = ["output.raw.0", "output.shares.0", "output.shares.1"]
    assert [value.name for value in model.graph.output] == [*outputs, *(f"{name}.next" for name in states)]
    # a host that knows only this
    session = onnxruntime.InferenceSession(exported[1], providers=["CPUExecutionProvider"])
    shapes = {v.name: v.shape for v in session.get_inputs()}
    feed = {name: torch.zeros(shapes[name]).numpy() for name in states} | {"image": images().numpy()}
    for t in range(3):
        raw, _, _, *coming = session.run(None, feed | {"t": torch.tensor(t).numpy()})
        feed |= dict(zip(states, coming, strict=True))
    torch.testing.assert_close(torch.from_numpy(raw), zoo.run(images(), 3)[3]["raw"][0], rtol=1e-3, atol=1e-3)


def test_windows_of_temporal_coding() -> None:
    snn = spiking_network("tsc", {}, observed("plain"), 4)
    found = check(export_step(Step(snn), 2), snn, (images(),), 2)
    assert found.holds, str(found)


def changed(snn: SpikingNetwork, **changes: object) -> SpikingNetwork:
    """The network with another neuron at its first call site."""
    name = snn.graph.sites[0].name
    neurons: dict[str, Neuron] = snn.neurons | {name: replace(snn.neurons[name], **changes)}
    return SpikingNetwork(snn.graph, neurons, snn.fanout)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("delta", {"bits": 6, "terms": 2, "zone": [1, 0.5]}),
        ("delta", {"terms": [1, 0, 3], "zone": [1, 0.5]}),
        ("dcgs", {}),
        ("msat", {"coding": "delta", "variant": "normalised", "gamma": 3}),
        ("h-mt", {"terms": 3}),
        ("ftbc", {}),
        ("constant-fit", {"images": 4, "correct": "bias-t"}),
        ("msat-fit", {"images": 4, "coding": "rate", "dtt": True, "det": True}),
        ("msat-fit-anytime", {"images": 4}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_corrections_and_binary_levels(method: str, options: dict) -> None:
    """Of a network with max pooling, two heads and a concatenation."""
    snn = spiking_network(method, options, observed("yolo"), 4)
    found = check(export_step(Step(snn)), snn, (images(1),), steps=4)
    assert found.holds, found
    assert found.decisions > 1000


def test_an_output_that_does_not_start_at_zero() -> None:
    """Under delta coding SiLU's neurons rest at their medians."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 8, 3), nn.SiLU(), nn.Conv2d(8, 2, 1))
    snn = spiking_network("delta-fit", {"images": 4, "price": 0.1}, observe(randomise(net), [images(4)]), 2)
    assert all(snn.neurons[node.name].initial.any() for node in snn.graph.sites)
    found = check(export_step(Step(snn)), snn, (images(1),), steps=3)
    assert found.holds, found


def test_a_wrong_step_is_found_out_and_ties_are_no_faults() -> None:
    """Potentials that stand on the boundary in every step: currents of 1 against a threshold of 1."""
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Conv2d(1, 2, 1))
    net[0].weight.data.fill_(1.0)
    net[0].bias.data.fill_(0.0)
    batch = torch.ones(1, 1, 3, 3)
    snn = spiking_network("constant", {}, observe(net.eval(), [batch]), 8)
    program = export_step(Step(snn), 1)
    theta = next(iter(snn.neurons.values())).theta
    assert theta == 1

    def found(**changes: object) -> Agreement:
        return check(program, changed(snn, **changes), (batch,))

    assert found().holds
    assert found().ties == 0
    hair = found(theta=theta * (1 + 1e-6))
    assert hair.holds, str(hair)
    assert (hair.ties, hair.faults, hair.decisions) == (72, 0, 72)
    assert hair.free > 0.1  # one step late
    for changes in ({"theta": theta * 1.01}, {"initial": -0.01}, {"bias": torch.tensor([-0.01])}):
        wrong = found(**changes)
        assert wrong.faults > 0
        assert not wrong.holds


def test_refusals(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    masked = spiking_network("constant", {"confidence": 0.5}, observed("plain"), 8)
    with pytest.raises(InputError, match="at random"):
        Step(masked)
    monkeypatch.setattr(onnx_step, "PACKAGES", ("onnx", "no_such_package"))
    snn = msat_det.convert(observed("plain"), method="constant")
    with pytest.raises(InputError, match=r"no_such_package: pip install 'msat-det\[onnx\]'"):
        export_step(Step(snn))


class Small:
    """In place of a configuration's network."""

    def __init__(self, *_: object):
        self.net, self.classes = build("plain"), ["thing"]

    def preprocess(self, image: Tensor) -> tuple[Tensor, None]:
        return image[:, :12, :12].float() / 255, None


def test_the_command_writes_a_file_that_passed_the_check(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(export, "build_model", Small)
    words = ["--cfg", str(PROJECT / "configs/yolo_voc.yaml"), "--calib.limit", "2", "--method", "signed", "--onnx"]
    assert main(["export", *words, "--out", str(tmp_path / "a.onnx")]) == 0
    assert "onnxruntime agrees to" in capsys.readouterr().err
    onnx.checker.check_model(onnx.load(tmp_path / "a.onnx"))
    monkeypatch.setattr(export, "check", lambda *_: Agreement(faults=1))
    assert main(["export", *words, "--out", str(tmp_path / "b.onnx")]) == 2
    assert "b.onnx is not written" in capsys.readouterr().err
    assert not (tmp_path / "b.onnx").exists()


class Beside(nn.Module):
    """Beside its maps a detector gives the places that they are of, sizes, a parameter, numbers and None."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 6, 1)

    def forward(self, x: Tensor) -> dict:
        x = F.relu(input=self.conv(input=x), inplace=True)
        h, w = x.shape[2:]
        places = torch.stack(torch.meshgrid(torch.arange(w) + 0.5, torch.arange(h) + 0.5, indexing="xy"), -1)
        maps = torch.div(input=self.head(x), other=2.0) + torch.mul(input=x.mean(1, True), other=x.mean(1, True))
        return {"maps": maps.view(size=(-1, 6, h * w)), "places": places, "size": (h, w), "masks": None, "n": 6}


def test_ties_by_rounding_of_functions_and_sums_are_no_faults() -> None:
    """Levels so fine that SiLU's own rounding, at its minimum and far below, and that of a sum near 0 decide.

    YOLOX-Nano with such options (terms 1, bits 12) was refused for them, with 9.7 million faults behind the first.
    """
    layers = nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 8, 3), nn.SiLU(), nn.Conv2d(8, 4, 1)
    snn = msat_det.convert(randomise(nn.Sequential(*layers)), [3 * images()], "delta", bits=16, terms=1)
    found = check(export_step(Step(snn), 2), snn, (3 * images(),))
    assert found.holds, found
    assert found.ties < found.decisions / 1000


class Parts(NamedTuple):
    maps: Tensor
    scores: Tensor


class InFields(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> tuple[None, Parts]:
        x = self.conv(x).relu()
        return None, Parts(x, x.mean((2, 3)))


def test_fields_name_outputs() -> None:
    """They were called output.1..maps."""
    assert Step(msat_det.convert(randomise(InFields()), [images()])).outputs == ["output.1.maps", "output.1.scores"]


def test_outputs_that_are_no_tensors(tmp_path: Path) -> None:
    net = randomise(Beside())
    snn = msat_det.convert(net, [images()], "delta", bits=12, terms=6)
    snn.save(tmp_path / "net")
    found, loaded, wanted = snn.run(images(), 8)[8], msat_det.load(tmp_path / "net").run(images(), 8)[8], net(images())
    assert (found["maps"] - wanted["maps"]).norm() < 1e-2 * wanted["maps"].norm()
    for values in (found, loaded):
        assert torch.equal(values.pop("places"), wanted["places"])
        assert torch.equal(values.pop("maps"), snn.run(images(), 8)[8]["maps"])
        assert values == {"size": (6, 6), "masks": None, "n": 6}
    module = Step(snn)
    assert module.outputs == ["output.maps", "output.places"]
    assert check(export_step(module, 2), snn, (images(),)).holds


class Unit(nn.Module):
    """SSD's L2 norm as its PyTorch port writes it; the exporter's own simplification takes 1e-10 for 0."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        return self.head(x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10))


def test_small_numbers_are_no_zeros() -> None:
    snn = msat_det.convert(randomise(Unit()), [images()], "constant", signed=True, gamma=7, spiking_linear=True)
    found = check(export_step(Step(snn), 2), snn, (0.1 * images(),))
    assert found.holds, str(found)
