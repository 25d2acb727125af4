"""Saved networks: the same to the bit in another process, and nothing else comes through."""

import contextlib
import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from support.modules import ACTIVATIONS, Activated, Fused, inputs
from support.networks import build, images, observed, randomise
from support.saved import CASES, T, detected, record_of, results
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import msat_det
from msat_det.base.config import Model
from msat_det.base.errors import InputError
from msat_det.base.settings import PROJECT
from msat_det.data.images import read_image
from msat_det.graph.edits import add_identity, linear_carriers
from msat_det.graph.facts import facts
from msat_det.methods.convert import spiking_network
from msat_det.models import build_detector
from msat_det.models.detector import Detections
from msat_det.models.importers.torchvision.building import torchvision_detector
from msat_det.run.cli import main
from msat_det.spiking.formats.archive import read_archive, write_archive
from msat_det.spiking.formats.detector import read_detector, write_detector
from msat_det.spiking.network import SpikingNetwork

SCRIPT = """
import sys, torch
sys.path.insert(0, sys.argv[1])
torch.set_num_threads(1)
import msat_det
from pathlib import Path
from safetensors.torch import save_file
from support.saved import CASES, RECORD, T, detected, record_of, results
for path in sorted(Path(sys.argv[2]).glob("*.network")):
    snn = msat_det.load(path)
    found = detected(snn) if path.stem == "detector" else results(snn, record_of(path.stem))
    save_file(found, path.with_suffix(".out"))
"""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case saved here, loaded and run in one other process."""
    folder = tmp_path_factory.mktemp("saved")
    for name in CASES:
        converted(name).save(folder / f"{name}.network")
    demo().save(folder / "detector.network")
    command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parents[1]), str(folder)]
    subprocess.run(command, check=True, cwd=folder, timeout=280)
    return folder


def converted(name: str) -> SpikingNetwork:
    network, method, options = CASES[name]
    return spiking_network(method, options, observed(network), T, seed=5)


def demo() -> SpikingNetwork:
    photographs = [read_image(path) for path in sorted((PROJECT / "data").rglob("*.jpg"))[:4]]
    detector = build_detector(Model("yolo_demo", size=96, score=0.001))
    return msat_det.convert(detector, [photographs], "constant", scale="channel", initial="half", signed=True, gamma=7)


@pytest.mark.parametrize("name", CASES)
def test_a_new_process_gives_the_same_to_the_bit(name: str, elsewhere: Path) -> None:
    expected = results(converted(name), record_of(name))
    got = load_file(elsewhere / f"{name}.out")
    assert set(got) == set(expected)
    assert all(torch.equal(got[key], value) for key, value in expected.items())


def test_a_new_process_finds_the_same_boxes(elsewhere: Path) -> None:
    expected, got = detected(demo()), load_file(elsewhere / "detector.out")
    assert set(got) == set(expected)
    assert all(torch.equal(got[key], value) for key, value in expected.items())
    assert len(expected[f"{T}/0/boxes"]) > 0


def test_coverage_and_settings_come_back(tmp_path: Path) -> None:
    snn = converted("analog")
    snn.chunk, snn.energy = 2, "45nm"
    snn.save(tmp_path / "a")
    loaded = msat_det.load(tmp_path / "a")
    assert loaded.coverage == snn.coverage
    assert (loaded.seed, loaded.chunk, loaded.energy) == (snn.seed, 2, "45nm")
    assert not any(parameter.requires_grad for parameter in loaded.graph.module.parameters())
    assert not any(module.training for module in loaded.graph.module.modules())
    loaded.save(tmp_path / "b")  # a loaded network can be saved again
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()


@pytest.mark.parametrize("network", ["yolo", "bottleneck", "residual"])
def test_a_loaded_graph_is_known_as_the_traced_one(network: str, tmp_path: Path) -> None:
    """Kinds, shapes, types and channels of every node, so that what can be done to the one can be done to the other."""
    snn = spiking_network("constant", {}, observed(network), T)
    snn.save(tmp_path / "a")
    loaded = msat_det.load(tmp_path / "a")
    for node, copied in zip(snn.graph.nodes, loaded.graph.nodes, strict=True):
        assert replace(facts(copied), activation=None) == replace(facts(node), activation=None)
    added = [node.name for node in map(partial(add_identity, loaded.graph), linear_carriers(loaded.graph))]
    assert all(facts(n).axis == 1 for n in loaded.graph.sites if n.name in added)
    assert bool(added) == (network != "residual")


def test_a_network_without_maxima_can_be_saved(tmp_path: Path) -> None:
    snn = converted("constant")
    bare = SpikingNetwork(snn.graph, snn.neurons, snn.fanout)
    bare.save(tmp_path / "a")
    assert msat_det.load(tmp_path / "a").coverage == bare.coverage
    assert [row for row in snn.coverage if "dead_channels" in row]
    assert not [row for row in bare.coverage if "dead_channels" in row]


def test_a_file_from_before_axes_were_written_takes_its_neurons(tmp_path: Path) -> None:
    snn = converted("constant")
    snn.save(tmp_path / "a")
    document, tensors = read_archive(tmp_path / "a", "network")
    for entry in document["graph"]["nodes"]:
        del entry["axis"]
    write_archive(tmp_path / "b", "network", document, tensors)
    older = msat_det.load(tmp_path / "b")
    assert [facts(node).axis for node in older.graph.sites] == [1] * len(snn.graph.sites)
    assert older.coverage == snn.coverage


def same(snn: SpikingNetwork, batch: object, path: Path) -> SpikingNetwork:
    """The network saved and loaded: its outputs are those of the saved one, in their structure."""
    snn.save(path)
    loaded = msat_det.load(path)
    expected, got = (one.run(batch, 4)[4] for one in (snn, loaded))
    assert pytree.tree_structure(got) == pytree.tree_structure(expected)
    pairs = zip(pytree.tree_leaves(got), pytree.tree_leaves(expected), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    return loaded


def test_modules_and_functions_mixed_with_two_inputs(tmp_path: Path) -> None:
    snn = msat_det.convert(randomise(Fused()), [inputs(1)], "constant", signed=True)
    loaded = same(snn, inputs(2), tmp_path / "a")
    assert loaded.graph.inputs == ["image", "depth"]


class Namesakes(nn.Module):
    """A layer of a method's name, before the method's call."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.mean(x)).mean((2, 3))


def test_a_method_and_a_layer_of_one_name(tmp_path: Path) -> None:
    same(msat_det.convert(randomise(Namesakes()), [images()], "constant", signed=True), images(), tmp_path / "a")


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation(name: str, tmp_path: Path) -> None:
    snn = msat_det.convert(randomise(Activated(ACTIVATIONS[name])), [images()], "constant", signed=True)
    same(snn, images(), tmp_path / "a")


class Odd(nn.Module):
    """Slices, splits, sizes, parameters and a dtype in the graph; outputs in nests."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding="same", padding_mode="reflect")
        self.gain = nn.Parameter(torch.rand(1, 8, 1, 1))
        self.register_buffer("order", torch.tensor([3, 1, 0, 2]))
        self.norm, self.up = nn.GroupNorm(2, 8), nn.Upsample(scale_factor=2, mode="bilinear")

    def forward(self, x: Tensor) -> list:
        x = F.relu(self.norm(self.conv(x.float())) * self.gain)
        a, b = x.chunk(2, dim=1)
        rows = x.shape[2] // 2
        a = torch.index_select(a, 1, self.order)[..., :rows, 1::2]
        blank = x.new_zeros(x.size(0), 1, rows, rows, dtype=torch.float32)
        return [{"a": torch.cat((a, blank), 1)}, (self.up(b).amax((2, 3)), F.softmax(b.flatten(2), dim=-1))]


def test_odd_operations(tmp_path: Path) -> None:
    net = randomise(Odd()).to(memory_format=torch.channels_last)
    loaded = same(msat_det.convert(net, [images()], "constant"), images(), tmp_path / "a")
    weight = next(value for name, value in loaded.graph.module.named_parameters() if value.dim() == 4)
    assert weight.is_contiguous(memory_format=torch.channels_last)


class Pair(NamedTuple):
    scores: Tensor
    maps: Any


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> dict[str, Any]:
        x = self.conv(x).relu()
        return {"found": Pair(x.mean((2, 3)), [x, Pair(x.amax((2, 3)), None)])}


def test_named_tuples_keep_their_names(tmp_path: Path) -> None:
    """Of fields and type; the class is a new one, for none of the file's code is run."""
    snn = msat_det.convert(randomise(Named()), [images()], "constant", signed=True)
    snn.save(tmp_path / "a")
    expected, got = (one.run(images(), 4)[4]["found"] for one in (snn, msat_det.load(tmp_path / "a")))
    assert (type(got).__name__, got._fields) == ("Pair", ("scores", "maps"))
    assert type(got.maps[1]) is type(got) is not type(expected)
    assert got.maps[1].maps is None
    pairs = zip(pytree.tree_leaves(got), pytree.tree_leaves(expected), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs if isinstance(a, Tensor))


class Placed(nn.Module):
    """What transformers and heads make of sizes: grids, positions along a mask, triangles."""

    def __init__(self):
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        n, _, h, w = x.shape
        rows, columns = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
        points = torch.stack((columns, rows), -1).reshape(-1, 2).T.reshape(1, 2, h, w).expand(n, -1, -1, -1)
        along = (~torch.zeros((n, h, w), dtype=torch.bool, device=x.device)).cumsum(1, dtype=torch.float32)
        cells = torch.cartesian_prod(torch.arange(h), torch.arange(w)).sum(1).reshape(h, w).long()
        mask = torch.outer(torch.arange(h), torch.arange(w)).float() + torch.eye(h, w).triu() + torch.ones(h, w).tril()
        return self.last(torch.cat((x, points, along[:, None], (cells + mask.round()).expand(n, 1, -1, -1)), 1))


def test_what_is_made_of_sizes(tmp_path: Path) -> None:
    net = randomise(Placed())
    loaded = same(msat_det.convert(net, [images()], "constant"), images(), tmp_path / "a")
    assert torch.allclose(loaded.graph(images(5, seed=3)), net(images(5, seed=3)), rtol=1e-4, atol=1e-4)


class Deep(nn.Module):
    """A function that the converter knows by its name alone."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.aten.relu(x)


def test_what_cannot_be_saved_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="can't be saved"):
        msat_det.convert(Deep(), [images()], "constant").save(tmp_path / "a")
    snn = converted("constant")
    layer = next(n.target for n in snn.graph.nodes if n.op == "call_module")
    handle = snn.graph.module.get_submodule(layer).register_forward_hook(lambda *_: None)
    with pytest.raises(InputError, match="hooks"):
        snn.save(tmp_path / "a")
    handle.remove()
    snn.energy = str(tmp_path / "table.yaml")
    with pytest.raises(InputError, match="by name"):
        snn.save(tmp_path / "a")
    assert not list(tmp_path.iterdir())


class Own:
    """A user's detector."""

    def __init__(self, classes: list[str]):
        self.net, self.classes = build("residual"), classes

    def preprocess(self, image: Tensor) -> tuple[Tensor, None]:
        return image.float() / 255, None

    def decode(self, outputs: Tensor, metas: list) -> list[Detections]:
        return [Detections(torch.zeros(1, 4), x.amax().reshape(1), torch.zeros(1, dtype=torch.int64)) for x in outputs]


def test_a_users_detector_is_handed_in_again(tmp_path: Path) -> None:
    photographs = list((images() * 50 + 100).clamp(0, 255).to(torch.uint8))
    own = Own(["thing"])
    snn = msat_det.convert(own, [photographs], "constant")
    snn.save(tmp_path / "a")
    with pytest.raises(InputError, match=r"msat_det\.load\(path, detector=…\)"):
        msat_det.load(tmp_path / "a").detect(photographs, 4)
    got, expected = (s.detect(photographs, 4)[4] for s in (msat_det.load(tmp_path / "a", detector=own), snn))
    assert [float(one.scores) for one in got] == [float(one.scores) for one in expected]


@pytest.mark.parametrize("name", ["ssd_demo", "ssdlite320_mobilenet_v3_large"])
def test_decoders_come_back(name: str) -> None:
    model = Model(name, top_k=17, score=0.2)
    detector = torchvision_detector(model) if "ssdlite" in name else build_detector(model)
    image = read_image(sorted((PROJECT / "data").rglob("*.jpg"))[0])
    pixels, meta = detector.preprocess(image)
    with torch.inference_mode():
        outputs = detector.net(pixels[None])
    state = torch.random.get_rng_state()
    values, tensors = write_detector(detector)
    again = read_detector(json.loads(json.dumps(values)), tensors, detector.net, [tuple(pixels.shape)])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert again.classes == detector.classes
    assert torch.equal(again.preprocess(image)[0], pixels)
    for a, b in zip(again.decode(outputs, [meta]), detector.decode(outputs, [meta]), strict=True):
        assert torch.equal(a.boxes, b.boxes)
        assert torch.equal(a.scores, b.scores)
        assert torch.equal(a.labels, b.labels)


# Files that are none: one line, nothing else.


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "demo.network"
    demo().save(path)
    return path


def test_cut_or_changed_bytes(whole: Path, tmp_path: Path) -> None:
    content = whole.read_bytes()
    start = int.from_bytes(content[:8], "little")
    contents = [content[:n] for n in (0, 7, 8, 100, start, len(content) - 1)]
    contents += [content[:i] + bytes([content[i] ^ 0x55]) + content[i + 1 :] for i in range(8, start, start // 150)]
    for changed in contents:
        (tmp_path / "a").write_bytes(changed)
        with contextlib.suppress(InputError):  # a changed weight or name may still make a sound network
            msat_det.load(tmp_path / "a")


def evil(node: int, **changes: object) -> object:
    return lambda document: document["graph"]["nodes"][node].update(changes)


def layer(**changes: object) -> object:
    return lambda document: document["graph"]["layers"]["layer0"].update(changes)


CALL = {"op": "call_function", "kwargs": {}}
CHANGES = {
    "a path as a function": evil(1, **CALL, target="os.system", args=["true"]),
    "eval": evil(1, **CALL, target="eval", args=["1"]),
    "another torch function": evil(1, **CALL, target="torch.load", args=["/etc/passwd"]),
    "attribute": evil(1, **CALL, target="getattr", args=[{"node": "x"}, "__class__"]),
    "method": evil(1, op="call_method", target="__reduce__", args=[{"node": "x"}], kwargs={}),
    "method of a text": evil(1, op="call_method", target="expand", args=["a", 10**9], kwargs={}),
    "power": evil(1, **CALL, target="operator.pow", args=[9, 10**9]),
    "repeated text": evil(1, **CALL, target="operator.mul", args=["a", 10**9]),
    "format": evil(1, **CALL, target="operator.mod", args=["%1000000000d", 1]),
    "device": evil(1, op="call_function", target="torch.zeros", args=[10**12], kwargs={"device": "cpu"}),
    "device by its type": evil(
        1, op="call_method", target="type", args=[{"node": "x"}, "torch.cuda.FloatTensor"], kwargs={}
    ),
    "huge": evil(1, **CALL, target="torch.zeros", args=[2**40]),
    "huge product": evil(1, **CALL, target="torch.einsum", args=["ijkl,mnop->ijklmnop", {"node": "x"}, {"node": "x"}]),
    "huge windows": evil(1, op="call_method", target="repeat_interleave", args=[{"node": "x"}, 2**40], kwargs={}),
    "logic of texts": evil(1, **CALL, target="operator.or_", args=["a", 1]),
    "many parts": evil(1, **CALL, target="torch.unbind", args=[{"node": "x"}, 10**6]),
    "circle": evil(1, args=[{"node": "yolo"}]),
    "itself": lambda d: d["graph"]["nodes"][1].update(args=[{"node": d["graph"]["nodes"][1]["name"]}]),
    "unknown node": evil(1, args=[{"node": "nowhere"}]),
    "axis 0": evil(1, axis=0),
    "axis beyond": evil(1, axis=4),
    "axis as a text": evil(1, axis="1"),
    "axis as a truth": evil(1, axis=True),
    "axes": evil(1, axis={"tuple": [1, 1]}),
    "unknown tag": evil(1, args=[{"import": "os"}]),
    "two tags": evil(1, args=[{"node": "x", "tuple": []}]),
    "code as a name": evil(0, name="x): __import__('os').system('true') #"),
    "code as a target": evil(0, target="x=__import__('os').system('true')"),
    "code as a keyword": evil(1, kwargs={"a=__import__('os')": 1}),
    "keyword": evil(0, name="lambda"),
    "same name": lambda d: d["graph"]["nodes"][2].update(name=d["graph"]["nodes"][1]["name"]),
    "op": evil(1, op="call"),
    "no op": evil(1, op=None),
    "list as a target": evil(1, target=[]),
    "missing key": lambda d: d["graph"]["nodes"][1].pop("args"),
    "no nodes": lambda d: d["graph"].update(nodes=[]),
    "no output": lambda d: d["graph"]["nodes"].pop(),
    "two outputs": lambda d: d["graph"]["nodes"].append(d["graph"]["nodes"][-1] | {"name": "output_1"}),
    "layer class": layer(**{"class": "Module"}),
    "layer of a path": layer(**{"class": "os.system"}),
    "huge layer": lambda d: d["graph"]["layers"]["layer0"]["arguments"].update(in_channels=10**9, out_channels=10**9),
    "layer argument": lambda d: d["graph"]["layers"]["layer0"]["arguments"].update(device="cuda"),
    "layer stride": lambda d: d["graph"]["layers"]["layer0"]["arguments"].update(stride={"tuple": [0, 0]}),
    "strides of three": lambda d: d["graph"]["layers"]["layer0"]["arguments"].update(stride={"tuple": [1, 1, 1]}),
    "paddings of three": lambda d: d["graph"]["layers"]["layer0"]["arguments"].update(padding={"tuple": [1, 1, 1]}),
    "no dilation": lambda d: d["graph"]["layers"]["layer0"]["arguments"].update(dilation={"tuple": [0, 1]}),
    "layer padding": lambda d: d["graph"]["layers"]["layer0"]["arguments"].update(padding={"tuple": [-1, -1]}),
    "layer groups": lambda d: d["graph"]["layers"]["layer0"]["arguments"].update(groups=0),
    "wider layer": lambda d: d["graph"]["layers"]["layer0"]["arguments"].update(out_channels=17),
    "input": lambda d: d["graph"].update(inputs=[["y", [3, 96, 96], {"dtype": "float32"}]]),
    "input size": lambda d: d["graph"]["inputs"][0].__setitem__(1, [3, 97, 96]),
    "huge input": lambda d: d["graph"]["inputs"][0].__setitem__(1, [3, 2**20, 2**20]),
    "negative input": lambda d: d["graph"]["inputs"][0].__setitem__(1, [3, -1, 96]),
    "outputs": lambda d: d["graph"].update(outputs={"tuple": [0, 2]}),
    "named": lambda d: d["graph"].update(outputs={"named": ["Pair", ["a, b=print()", 0]]}),
    "named twice": lambda d: d["graph"].update(outputs={"named": ["Pair", ["a", 0], ["a", 1]]}),
    "named by a word of Python": lambda d: d["graph"].update(outputs={"named": ["class", ["a", 0]]}),
    "named by a list": lambda d: d["graph"].update(outputs={"named": [[], ["a", 0]]}),
    "named by nothing": lambda d: d["graph"].update(outputs={"named": []}),
    "deep": lambda d: d["graph"].update(outputs=json.loads("[" * 900 + "]" * 900)),
    "analog": lambda d: d["graph"].update(analog=["nowhere"]),
    "graph": lambda d: d.update(graph=[]),
    "sites": lambda d: d["sites"].popitem(),
    "fanout": lambda d: d["fanout"].update(macs={"x": 1}),
    "fanout negative": lambda d: d["fanout"].update(once=-1),
    "fanout nan": lambda d: d["fanout"].update(once="nan"),
    "seed": lambda d: d.update(seed=2**70),
    "chunk": lambda d: d.update(chunk=0),
    "energy as a file": lambda d: d.update(energy="/etc/passwd"),
    "energy as a list": lambda d: d.update(energy=["45nm"]),
    "form": lambda d: d.update(form=2),
    "more": lambda d: d.update(more=1),
    "detector kind": lambda d: d["detector"].update(kind="pickle"),
    "detector list": lambda d: d.update(detector=[]),
    "detector size": lambda d: d["detector"].update(size=[32, 32]),
    "detector anchors": lambda d: d["detector"].update(anchors=[[[1, 2]]]),
    "detector anchor": lambda d: d["detector"]["anchors"][0].__setitem__(0, [1]),
    "detector score": lambda d: d["detector"].update(score=2),
    "detector form": lambda d: d["detector"].update(form="v9"),
    "detector classes": lambda d: d["detector"].update(classes="dog"),
    "detector field": lambda d: d["detector"].update(path="/etc/passwd"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_document_is_refused_in_one_line(name: str, whole: Path, tmp_path: Path) -> None:
    document, tensors = read_archive(whole, "network")
    CHANGES[name](document)
    write_archive(tmp_path / "a", "network", document, tensors)
    with pytest.raises(InputError, match="a: ") as caught:
        msat_det.load(tmp_path / "a")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


TENSORS = {
    "nan": lambda x: torch.full_like(x, torch.nan),
    "twice": lambda x: torch.cat((x, x)),
    "complex": lambda x: x.to(torch.complex64),
    "int": lambda x: x.to(torch.int32),
    "missing": lambda x: None,
}
BROKEN = [(kind, change) for kind in ("layer0.weight", "neurons/", "maximum/", "reach/") for change in TENSORS]
BROKEN.remove(("reach/", "missing"))  # a neuron whose spikes reach nothing has no map


@pytest.mark.parametrize(("kind", "change"), BROKEN)
def test_a_changed_tensor_is_refused(kind: str, change: str, whole: Path, tmp_path: Path) -> None:
    document, tensors = read_archive(whole, "network")
    name = next(name for name, tensor in tensors.items() if name.startswith(kind) and tensor.dim())
    changed = TENSORS[change](tensors.pop(name))
    write_archive(tmp_path / "a", "network", document, tensors if changed is None else tensors | {name: changed})
    with pytest.raises(InputError, match="a: "):
        msat_det.load(tmp_path / "a")


def test_the_document_is_the_only_one_that_counts(tmp_path: Path) -> None:
    save_file({}, tmp_path / "a", {"msat_det": json.dumps({"kind": "plan"})})
    with pytest.raises(InputError, match="holds no network"):
        msat_det.load(tmp_path / "a")


def test_the_command_writes_what_load_reads(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = [
        "--cfg",
        str(PROJECT / "configs/yolo_voc.yaml"),
        "--calib.limit",
        "2",
        "--method",
        "signed",
        "--threads",
        "1",
    ]
    assert main(["export", *words, "--out", str(tmp_path / "a.safetensors")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'a.safetensors'}\n"
    snn = msat_det.load(tmp_path / "a.safetensors")
    assert all(neuron.signed for neuron in snn.neurons.values())
    assert len(snn.detector.classes) == 20
    for wrong in (["--t", "0"], ["--method", "nobody"], ["--method", "signed,msat"], ["--out", str(tmp_path / "no/a")]):
        assert main(["export", *words, "--out", str(tmp_path / "b"), *wrong]) == 2
    assert not (tmp_path / "b").exists()
