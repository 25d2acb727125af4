"""Every reader of a file that others made: what it starts from, how that is mutated, what reads it."""

import codecs
import contextlib
import copy
import io
import math
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from types import SimpleNamespace
from unittest import mock

import mutate
import seeds
import torch
from mutate import Case, Mutate
from seeds import CFGS

import msat_det
from msat_det.base.config import Model
from msat_det.base.errors import InputError
from msat_det.base.files import bytes_of
from msat_det.data import (
    VOC_CLASSES,
    ClassFolders,
    CocoDetection,
    Dataset,
    ImageFiles,
    Target,
    VocDetection,
    YoloDetection,
    images,
)
from msat_det.data.images import WHOLE, read_image
from msat_det.data.unpack import unpack
from msat_det.graph.facts import facts
from msat_det.graph.trace import trace
from msat_det.measure.batch_files import Parts
from msat_det.methods import parse_options
from msat_det.models import classifiers
from msat_det.models.checkpoint import FAULTS, Foreign, Machine, Storage, Stored
from msat_det.models.class_names import read_names
from msat_det.models.classifiers import Network, Preprocess, build_classifier
from msat_det.models.detector import Detections
from msat_det.models.importers.darknet.cfg import parse_cfg
from msat_det.models.importers.darknet.network import DarknetNet, darknet, stored_tensors
from msat_det.models.importers.onnx.detector import noted, own_inputs
from msat_det.models.importers.onnx.file import channels_first
from msat_det.models.importers.onnx.file import read_onnx as read_onnx_file
from msat_det.models.importers.onnx.network import load_onnx, network_of
from msat_det.models.importers.onnx.operators import OPERATORS
from msat_det.models.preprocessing import RESIZES, Inputs
from msat_det.report.directory import RunDirectory
from msat_det.report.page.page import run_page
from msat_det.run import resume
from msat_det.run.arguments import load_config
from msat_det.run.resume import begin, is_finished
from msat_det.spiking.energy import prices
from msat_det.spiking.formats.plan import load_plan
from msat_det.spiking.kernels.cpu import levels_library, library

library(), levels_library()  # which look at the machine's processor and compiler the first time
TINY = "tiny_for_fuzzing"
classifiers.CLASSIFIERS[TINY] = Network(lambda num_classes: classifiers.CifarResNet((1, 1), 2, num_classes), classes=4)
PLAIN = {Foreign, Stored, Storage, dict, list, tuple, str, bytes, bytearray, int, float, bool, type(None)}


@dataclass(frozen=True)
class Reader:
    """seeds: valid cases. kinds: path → how its content is mutated. read: the case's folder → None, or an exception.

    writes: whether it may write into that folder. structure: share of mutations that move files about; links: whether
    they make links, too, which only who reads whole folders must not follow out of them.
    """

    seeds: Callable[[], list[Case]]
    kinds: Callable[[str], Mutate]
    read: Callable[[Path], object]
    writes: bool = False
    structure: float = 0.02
    links: bool = False


def by_suffix(**kinds: Mutate) -> Callable[[str], Mutate]:
    return lambda path: kinds.get(path.rpartition(".")[2].lower(), mutate.raw)


def quietly(read: Callable[[Path], object]) -> Callable[[Path], object]:
    """The same reader without what it tells on stderr."""

    def reader(root: Path) -> object:
        with contextlib.redirect_stderr(io.StringIO()):
            return read(root)

    return reader


def read_darknet_cfg(root: Path) -> None:
    """A network from a cfg, as many zeros for weights as it wants (if they are few), and a blank image through it."""
    cfg = root / "net.cfg"
    with torch.device("meta"):
        net = DarknetNet(parse_cfg(cfg))
    count = sum(tensor.numel() for tensor in stored_tensors(net))
    classes = next(iter(net.heads.values())).classes
    assert all(math.isfinite(x) for head in net.heads.values() for pair in head.anchors for x in pair)
    if count > 100_000 or classes > 100:
        return
    weights, names = root / "net.weights", root / "names"
    weights.write_bytes(bytes(4) + b"\2" + bytes(15) + bytes(4 * count))
    names.write_text("".join(f"{i}\n" for i in range(classes)))
    detector = darknet(Model("darknet", cfg=cfg, weights=weights, names=names))
    if max(detector.size) > 64:
        return
    pixels, meta = detector.preprocess(torch.zeros(3, 8, 8, dtype=torch.uint8))
    check_detections(detector.decode(detector.net(pixels[None]), [meta]), classes)
    trace(detector.net, torch.rand(2, *pixels.shape))


def read_darknet_weights(root: Path) -> None:
    cfg, names = root / "fixed.cfg", root / "names"
    cfg.write_text(CFGS[1])
    names.write_text("dog\ncat\n")
    darknet(Model("darknet", cfg=cfg, weights=root / "net.weights", names=names))


def read_dataset(make: Callable[[Path], Dataset], root: Path) -> None:
    """Every annotation and every image that can be read of a dataset."""
    dataset = make(root)
    for id in dataset.ids[:50]:
        target = dataset.target(id)
        if isinstance(target, Target):
            assert target.boxes.isfinite().all()
            assert len(target.boxes) == len(target.labels) == len(target.ignore)
            assert all(0 <= label < len(dataset.classes) for label in target.labels.tolist())
        with contextlib.suppress(InputError):
            check_image(dataset.image(id))
    for name in dataset.classes:
        name.encode()


def read_voc(root: Path) -> None:
    """Under the classes that the annotations tell, and under a network's."""
    read_dataset(VocDetection, root)
    network = [*VOC_CLASSES, "crane", "\u72d7"]
    read_dataset(lambda root: VocDetection(root).for_classes(network), root)


def check_image(image: torch.Tensor) -> None:
    assert image.dtype == torch.uint8
    assert image.dim() == 3
    assert image.shape[0] == 3


def read_any_image(root: Path) -> None:
    image = read_image(root / "a.jpg")
    check_image(image)
    height, width = image.shape[1:]
    check_image(read_image(root / "a.jpg", (height, width)))
    images.WHOLE = 16
    try:
        check_image(read_image(root / "a.jpg"))
    finally:
        images.WHOLE = WHOLE
    assert RESIZES["stretch"](image, (16, 16))[0].shape == RESIZES["letterbox"](image, (16, 16))[0].shape
    assert Preprocess(16, 8, (0, 0, 0), (1, 1, 1)).fit(image).shape == (3, 8, 8)


def read_class_names(root: Path) -> None:
    assert all(isinstance(name, str) for name in read_names(root / "classes.txt"))


def read_configuration(root: Path) -> None:
    """The configuration, its methods' options, and what it is written as: the same again."""
    text = (root / "words").read_bytes()[:2000].decode("utf-8", "replace") if (root / "words").is_file() else ""
    try:
        words = shlex.split(text)
    except ValueError:
        words = text.split()
    # --cfg, however it is shortened, names whatever file the user wants
    words = [word for word in words if not "--cfg".startswith(word.partition("=")[0])]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):  # --help
        config = load_config(["--cfg", str(root / "run.yaml"), *words[:50]])  # argparse is slow on thousands
        for entry in config.methods:
            options = {key: value for key, value in entry.items() if key not in ("label", "method", "record")}
            parse_options(entry["method"], options)
        again = root / "again.yaml"
        again.write_text(config.to_yaml(), "utf-8")
        assert load_config(["--cfg", str(again)]).to_yaml() == config.to_yaml()


def read_energy(root: Path) -> None:
    found = prices.__wrapped__(str(root / "table.yaml"))
    assert 0 < found.mac < math.inf
    assert 0 < found.ac < math.inf


def read_weights(name: str, root: Path) -> None:
    """A classifier from its weights, and one blank image through it."""
    found = build_classifier(Model(TINY, weights=root / name))
    pixels, meta = found.preprocess(torch.zeros(3, 8, 8, dtype=torch.uint8))
    assert len(found.decode(found.net(pixels[None]), [meta])[0]) == len(found.classes)


def read_pickle(root: Path) -> None:
    """The value that a pickle stands for: of the machine's own kinds alone, whatever the pickle calls."""
    try:
        waiting = [Machine().run(io.BytesIO(bytes_of(root / "data.pkl")))]
    except FAULTS as error:
        raise InputError(f"{type(error).__name__}: {error}") from error
    seen = set()
    while waiting:
        value = waiting.pop()
        assert type(value) in PLAIN, type(value)
        if id(value) not in seen and isinstance(value, dict | list | tuple):
            seen.add(id(value))
            waiting += value.values() if isinstance(value, dict) else value
            assert not isinstance(value, dict) or all(type(key) is str for key in value)


def read_onnx(root: Path) -> None:
    """A network from its file, another that ends before it does, and three images through the first if it is small."""
    file = read_onnx_file(root / "net.onnx")
    noted(file)
    own_inputs(channels_first(file), Inputs())
    net = load_onnx(root / "net.onnx", size=(6, 6))
    with contextlib.suppress(InputError):
        network_of(file, (6, 6), file.nodes[len(file.nodes) // 2].outputs[:1])
    shapes = net.meta["inputs"].values()
    counted = Elements(copy.deepcopy(net).to("meta"))
    counted.run(*(torch.empty(3, *shape, device="meta") for shape in shapes))
    if counted.elements < 1_000_000:
        found = net(*(torch.rand(3, *shape) for shape in shapes))
        assert all(len(one) == 3 for one in (found if isinstance(found, tuple) else [found]))


class Elements(torch.fx.Interpreter):
    """Counts what the nodes of a graph give."""

    elements = 0

    def run_node(self, n: torch.fx.Node) -> object:
        value = super().run_node(n)
        self.elements += value.numel() if isinstance(value, torch.Tensor) else 0
        return value


def read_parts(root: Path) -> None:
    classes = 5
    parts = Parts(root, [["1", 2], []], classes)
    parts.done()
    ids = parts.ids()
    assert all(isinstance(id, int | str) for id in ids)
    assert all(isinstance(text, str) for text in parts.corrupt())
    for label, t in (("float", None), ("m", 4)):
        found = parts.found(label, t)
        assert set(found) == set(ids)
        check_detections([one for one in found.values() if isinstance(one, Detections)], classes)
    assert parts.costs("m", 4).shape == (5,)


def read_unfinished(root: Path) -> None:
    """Whether a run can go on in the folder, and its going on."""
    directory, config = RunDirectory(root), replace(seeds.configured(), resume=True)
    with contextlib.redirect_stderr(io.StringIO()):
        if not is_finished(directory, config):
            observation = SimpleNamespace(sites={})
            stands = {"commit_id": lambda: "abc", "versions": dict}
            with mock.patch.multiple(resume, **stands):
                begin(directory, config, observation, {"evaluated images": "a", "weights": "b"}, 3)


def read_plan(root: Path) -> None:
    load_plan(root / "kept.msat").neurons(seeds.network().graph)


def read_network(root: Path) -> None:
    """A saved network, and one blank image through it for two timesteps."""
    snn = msat_det.load(root / "kept.msat")
    inputs = {node.target: facts(node) for node in snn.graph.nodes if node.op == "placeholder"}
    if snn.graph.inputs != ["x"] or (inputs["x"].shape, inputs["x"].dtype) != ((3, 8, 8), torch.float32):
        return
    if sum(math.prod(facts(node).shape or ()) for node in snn.graph.nodes) < 100_000:
        snn.run(torch.rand(1, 3, 8, 8), 2, (2,))


def read_archive_file(root: Path) -> None:
    bound = 1 << 20
    try:
        unpack(root / "a.bin", root / "out", "x", bound)
    except OSError as error:  # of the disk, as ``unpack`` says: a name that is too long, a file where a folder must be
        raise InputError(str(error)) from error
    assert sum(file.stat().st_size for file in (root / "out").rglob("*") if file.is_file()) <= bound


def check_detections(found: list[Detections], classes: int | None = None) -> None:
    for one in found:
        assert one.boxes.shape == (len(one.scores), 4)
        assert one.labels.shape == one.scores.shape
        assert one.labels.dtype == torch.int64
        assert (one.labels >= 0).all()
        assert classes is None or (one.labels < classes).all()


CFG_WORDS = """
[net] [convolutional] [maxpool] [route] [shortcut] [upsample] [yolo] [region] [reorg] [sam] [avgpool] [dropout]
[scale_channels] [crnn] size stride pad padding filters groups group_id dilation layers from mask anchors num classes
activation batch_normalize width height channels letter_box scale scale_x_y new_coords softmax linear relu mish swish
elu tanh silu gelu hard_mish [Gaussian_yolo] [reorg3d] [implicit] [implicit_mul] [shift_channels] [control_channels]
[silence] atoms mean stride_x stride_y yolo_point 0 1 2 3 -1 -2 -9 16 1024 65536 2147483647 1e9 .5 nan inf probability
""".split()
VOC_WORDS = (
    *"<object> </object> <name> </name> <bndbox> </bndbox> <xmin> <annotation> </annotation> dog person 000001".split(),
    *("<!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]>", "&b;", "&lt;", "&#0;", "&#xD800;", "<![CDATA[", "]]>"),
    *("<?xml version='1.0' encoding='utf-7'?>", "<!--", "-->", "difficult", "1e400", "-0", "xmlns:a='b'", "a:b"),
    *(
        "<!doctype a>",
        "<!DOCTYPE\u00a0a>",
        "../000001",
        "000001 000002",
        "\u0661",
        "encoding='utf-16'",
        "encoding='idna'",
    ),
    *("<!DOCTYPE a [<!ATTLIST name b CDATA 'c'>]>", "<!DOCTYPE a [<!ELEMENT a ANY>]>", "xmlns='urn:a'", "<filename>"),
    *("encoding='gb2312'", "encoding='shift_jis'", "encoding='hex'", "Unspecified", "True", "b.xml", "my photo"),
)
RUN_WORDS = (
    *"data: model: calib: methods: sim: draw: ledger: kind root split year limit name weights cfg names resize".split(),
    *"label method record T chunk gamma signed stages scale percentile factor rounding confidence variant all".split(),
    *"msat constant p-norm burst float opt tsc calibration -- --methods --methods.m.gamma --sim.T --data.limit".split(),
    *"--cfg --out --help --resume --methods.m. --methods..x [1,2] {a:1} 1e9 .nan .inf 0x1F 1_000 0b1 12:30:45".split(),
)


YOLO_WORDS = "path train val test names nc kpt_shape images lists/val.txt .. / ../valid [a] {0:x} null 2".split()


def xml_words(random: Random, data: bytes) -> bytes:
    """Words of a text in the encoding that it is in, UTF-8 or UTF-16."""
    mutated = mutate.words(*VOC_WORDS)
    if not data.startswith(codecs.BOM_UTF16):
        return mutated(random, data)
    text = mutated(random, data.decode("utf-16", "replace").encode("utf-8", "replace"))
    return text.decode("utf-8", "replace").encode("utf-16")


def coco_text(random: Random, data: bytes) -> bytes:
    """A JSON file as ``mutate.json_text`` changes it, now and then in another encoding."""
    mark, code = random.choice([(b"", "utf-8")] * 8 + [(codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16, "utf-16")])
    text = mutate.json_text(random, data.removeprefix(codecs.BOM_UTF8))
    return text if not mark else mark + text.decode("utf-8", "replace").encode(code).removeprefix(mark)


READERS: dict[str, Reader] = {
    "darknet_cfg": Reader(
        seeds.darknet_cfg, by_suffix(cfg=mutate.words(*CFG_WORDS)), quietly(read_darknet_cfg), writes=True
    ),
    "darknet_weights": Reader(seeds.darknet_weights, by_suffix(), read_darknet_weights, writes=True),
    "voc": Reader(
        seeds.voc,
        by_suffix(
            xml=xml_words, txt=mutate.words("000001", "000002", "../x", "a/b", "my photo 1", "b.xml", "c.PNG -1")
        ),
        read_voc,
        structure=0.1,
        links=True,
    ),
    "yolo": Reader(
        seeds.yolo,
        by_suffix(
            yaml=mutate.words(*YOLO_WORDS),
            txt=mutate.words("0", "1.0", "2", "-1", "1e9", "nan", "images/a/1.jpg", "../x"),
        ),
        partial(read_dataset, YoloDetection),
        structure=0.1,
        links=True,
    ),
    "coco": Reader(
        seeds.coco, by_suffix(json=coco_text), partial(read_dataset, CocoDetection), structure=0.1, links=True
    ),
    "image_folder": Reader(
        seeds.image_folder, by_suffix(), partial(read_dataset, ImageFiles), structure=0.9, links=True
    ),
    "class_folders": Reader(
        seeds.image_folder, by_suffix(), partial(read_dataset, ClassFolders), structure=0.9, links=True
    ),
    "images": Reader(seeds.images, by_suffix(), read_any_image),
    "names": Reader(seeds.names, by_suffix(txt=mutate.words("???", "N/A", "voc")), read_class_names),
    "configuration": Reader(
        seeds.configuration,
        lambda path: mutate.yaml_text(*RUN_WORDS) if path.endswith("yaml") else mutate.words(*RUN_WORDS),
        read_configuration,
        writes=True,
    ),
    "energy": Reader(seeds.energy, by_suffix(yaml=mutate.yaml_text("mac", "ac", "source")), read_energy),
    "safetensors": Reader(
        seeds.safetensors_weights,
        by_suffix(safetensors=mutate.safetensors_file),
        quietly(partial(read_weights, "net.safetensors")),
    ),
    "torch_weights": Reader(
        seeds.torch_weights, by_suffix(pt=mutate.torch_file), quietly(partial(read_weights, "net.pt"))
    ),
    "checkpoint": Reader(seeds.pickles, by_suffix(pkl=mutate.pickled), read_pickle),
    "onnx": Reader(seeds.onnx_files, by_suffix(onnx=mutate.onnx_file(*OPERATORS, "NonZero")), read_onnx),
    "parts": Reader(seeds.parts, by_suffix(safetensors=mutate.safetensors_file), read_parts, structure=0.1, links=True),
    "resume": Reader(
        seeds.unfinished_run,
        by_suffix(safetensors=mutate.safetensors_file, yaml=mutate.yaml_text(*RUN_WORDS)),
        read_unfinished,
        writes=True,
    ),
    "run_page": Reader(
        seeds.run_directory, by_suffix(json=mutate.json_text, yaml=mutate.yaml_text(*RUN_WORDS)), run_page
    ),
    "plan": Reader(seeds.plans, by_suffix(msat=mutate.safetensors_file), read_plan),
    "network": Reader(seeds.networks, by_suffix(msat=mutate.safetensors_file), read_network),
    "archive": Reader(seeds.archives, by_suffix(bin=mutate.archive_file), read_archive_file, writes=True, structure=0),
}
