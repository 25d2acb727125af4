"""Darknet files against OpenCV's reading of the same files, layer by layer, against Darknet's own arithmetic where
OpenCV has none, and the errors for files that don't fit."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, fx

import msat_det
from msat_det.base.config import Model
from msat_det.base.errors import InputError
from msat_det.base.settings import PROJECT
from msat_det.graph.trace import trace
from msat_det.models.importers.darknet.cfg import parse_cfg
from msat_det.models.importers.darknet.network import DarknetNet, darknet, load_weights, stored_tensors
from msat_det.models.yolo import YoloDetector
from msat_det.run import cli

cv2 = pytest.importorskip("cv2")

# One section a line, as ``cfg_text`` writes them out.
CONV = "convolutional size=3 pad=1 batch_normalize=1"
YOLO = "yolo mask={} anchors=4,6,8,10,14,9,20,30 num=4 classes=2 thresh=0 nms_threshold=0"
NETWORKS = {
    "yolov2": f"""
        {CONV} filters=8 activation=leaky
        maxpool size=2 stride=2
        {CONV} filters=8 stride=2 activation=leaky
        reorg stride=2
        route layers=2
        maxpool size=2 stride=2
        {CONV} filters=16 activation=relu
        route layers=-1,3
        convolutional size=1 filters=21 activation=linear
        region anchors=1,2,2.5,1,3,3 num=3 classes=2 softmax=1 thresh=0""",
    "yolov3-tiny": f"""
        {CONV} filters=8 stride=2 activation=leaky
        maxpool size=2 stride=2
        maxpool size=2 stride=1
        {CONV} filters=12 activation=leaky
        convolutional size=1 filters=14 activation=linear
        {YOLO.format("2,3")}
        route layers=-3
        convolutional size=1 filters=6 batch_normalize=1 activation=leaky
        upsample stride=2
        route layers=-1,0
        convolutional size=1 filters=14 activation=linear
        {YOLO.format("0,1")} scale_x_y=1.05""",
    "yolov3": f"""
        {CONV} filters=8 stride=2 activation=leaky
        convolutional size=1 filters=4 batch_normalize=1 activation=leaky
        {CONV} filters=8 activation=leaky
        shortcut from=-3 activation=linear
        {CONV} filters=12 activation=linear
        shortcut from=-2 activation=leaky
        convolutional size=1 filters=6 activation=linear
        shortcut from=-2 activation=linear
        convolutional size=1 filters=7 activation=linear
        {YOLO.format("1")}""",
    "yolov4": f"""
        {CONV} filters=8 stride=2 activation=mish
        {CONV} filters=8 activation=swish
        route layers=-1 groups=2 group_id=1
        {CONV} filters=4 activation=mish
        route layers=-1,-2
        convolutional size=1 filters=8 activation=logistic
        sam from=-2
        maxpool size=5 stride=1
        route layers=-2
        maxpool size=9 stride=1
        route layers=-1,-3,-4
        convolutional size=1 filters=14 activation=logistic
        {YOLO.format("0,2")} scale_x_y=1.2""",
    "yolo-fastest": f"""
        {CONV} filters=8 stride=2 activation=leaky
        {CONV} filters=8 groups=8 activation=leaky
        dropout probability=.2
        avgpool
        convolutional size=1 filters=4 activation=relu
        convolutional size=1 filters=8 activation=logistic
        scale_channels from=2
        shortcut from=0 activation=linear
        maxpool size=3 stride=1
        maxpool size=3 stride=2
        convolutional size=1 filters=7 activation=linear
        {YOLO.format("3")}""",
}


def cfg_text(lines: str, net: str = "net width=64 height=32 channels=3") -> str:
    sections = [line.split() for line in (net + "\n" + lines).splitlines() if line.strip()]
    return "".join(f"[{kind}]\n" + "".join(f"{option}\n" for option in options) for kind, *options in sections)


def write_cfg(folder: Path, lines: str, name: str = "net.cfg", **options: str) -> Path:
    path = folder / name
    path.write_text(cfg_text(lines, **options))
    return path


def write_weights(folder: Path, cfg: Path, version: tuple[int, int] = (0, 2)) -> Path:
    """Random weights in the number that the cfg needs, each well scaled for what it is."""
    random = np.random.default_rng(0)
    values = [
        random.uniform(0.5, 1.5, tensor.numel()) - (0.5 if tensor.ndim > 1 else 0)
        if tensor.ndim == 1
        else random.normal(0, (2 / tensor[0].numel()) ** 0.5, tensor.numel())
        for tensor in stored_tensors(DarknetNet(parse_cfg(cfg)))
    ]
    seen = np.zeros(1, "<i8" if version >= (0, 2) else "<i4")
    path = folder / "net.weights"
    path.write_bytes(
        np.array([*version, 5], "<i4").tobytes() + seen.tobytes() + np.concatenate(values).astype("<f4").tobytes()
    )
    return path


def load(cfg: Path, weights: Path) -> DarknetNet:
    net = DarknetNet(parse_cfg(cfg))
    load_weights(net, weights)
    return net


def opencv_outputs(cfg: Path, weights: Path, image: Tensor) -> list[np.ndarray]:
    """What OpenCV computes for every section of the cfg."""
    if not hasattr(cv2.dnn, "readNetFromDarknet"):
        pytest.skip(f"OpenCV {cv2.__version__} reads no Darknet files, 4.x does")
    net = cv2.dnn.readNetFromDarknet(str(cfg), str(weights))
    net.enableFusion(False)
    names, last = iter(net.getLayerNames()), []
    for section in parse_cfg(cfg)[1:]:  # one section becomes several OpenCV layers
        extra = section.integer("batch_normalize", 0) + (section.text("activation", "linear") != "linear")
        extra += section.kind in ("yolo", "region")  # a permutation before it
        last.append([next(names) for _ in range(1 + extra)][-1])
    outputs = []
    for name in last:
        net.setInput(image.numpy())
        outputs.append(net.forward(name))
    return outputs


@torch.no_grad()
def layer_outputs(net: DarknetNet, image: Tensor) -> list[Tensor]:
    outputs = {-1: image}
    for index, (layer, sources) in enumerate(zip(net.layers, net.sources, strict=True)):
        outputs[index] = outputs[index - 1] if index in net.heads else layer(*(outputs[i] for i in sources))
    return [outputs[index] for index in range(len(net.layers))]


@pytest.mark.parametrize("family", NETWORKS)
def test_every_layer_equals_opencv(tmp_path: Path, family: str) -> None:
    cfg = write_cfg(tmp_path, NETWORKS[family])
    weights = write_weights(tmp_path, cfg)
    net = load(cfg, weights)
    image = torch.rand(1, 3, *net.size, generator=torch.Generator().manual_seed(0))
    ours, theirs = layer_outputs(net, image), opencv_outputs(cfg, weights, image)
    for index, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        if index not in net.heads:
            torch.testing.assert_close(mine, torch.from_numpy(other), atol=2e-4, rtol=2e-4)
    for index, head in net.heads.items():  # rows cx cy w h objectness classes, cell by cell, anchor by anchor
        detector = YoloDetector(net, ["a", "b"], net.size, [head.anchors], [head.stride], form=head.form)
        boxes, scores = detector.decode_head(ours[index], detector.anchors[0], head.stride, head.scale_x_y)
        centre, extent = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
        rows = torch.cat((centre / torch.tensor((64, 32)), extent / torch.tensor((64, 32)), scores), -1)
        rows = rows.unflatten(1, (len(head.anchors), -1)).transpose(1, 2).flatten(0, 2)
        expected = torch.from_numpy(theirs[index]).reshape(len(rows), -1)[:, [0, 1, 2, 3, 5, 6]]
        if head.form == "v2":  # OpenCV's region layer has suppressed the weaker boxes already: their scores are 0
            assert (expected[:, 4:] > 0).any()
            rows[:, 4:] *= expected[:, 4:] > 0
        torch.testing.assert_close(rows, expected, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("family", NETWORKS)
def test_network_traces(tmp_path: Path, family: str) -> None:
    net = DarknetNet(parse_cfg(write_cfg(tmp_path, NETWORKS[family])))
    images = torch.rand(3, 3, *net.size)
    with torch.no_grad():
        for traced, plain in zip(fx.symbolic_trace(net)(images), net(images), strict=True):
            torch.testing.assert_close(traced, plain)


def test_route_of_groups_takes_that_group_of_every_layer(tmp_path: Path) -> None:
    lines = """
        convolutional filters=4 activation=relu
        convolutional filters=8 activation=relu
        route layers=-1,-2 groups=4 group_id=2
        convolutional filters=7 activation=linear
        yolo mask=0 anchors=1,1 num=1 classes=2"""
    outputs = layer_outputs(DarknetNet(parse_cfg(write_cfg(tmp_path, lines))), torch.rand(2, 3, 32, 64))
    assert torch.equal(outputs[2], torch.cat((outputs[1][:, 4:6], outputs[0][:, 2:3]), 1))


def test_scaled_form_is_read_from_new_coords(tmp_path: Path) -> None:
    lines = """
        convolutional filters=7 activation=logistic
        yolo mask=0 anchors=10,20 num=1 classes=2 new_coords=1 scale_x_y=2"""
    net = DarknetNet(parse_cfg(write_cfg(tmp_path, lines)))
    (head,) = net.heads.values()
    detector = YoloDetector(net, ["a", "b"], net.size, [head.anchors], [head.stride], head.scale_x_y, head.form)
    raw = torch.full((1, 7, 32, 64), 0.5)
    boxes, scores = detector.decode_head(raw, detector.anchors[0], 1, 2.0)
    assert boxes[0, 64 + 3].tolist() == [3.5 - 5, 1.5 - 10, 3.5 + 5, 1.5 + 10]  # row 1, column 3; extent = anchor
    assert scores.unique().tolist() == [0.25]


def test_cfg_text_as_people_write_it(tmp_path: Path) -> None:
    path = tmp_path / "net.cfg"
    path.write_text(
        "# mine\n\n[net]\nwidth = 64\nheight=32 # rows\nwidth=128\nletter_box=1\n; more\n"
        "[convolutional]\nfilters =7\nactivation= linear\nstopbackward=1\nxnor=0\n"
        "[yolo]\nmask = 0,\nanchors = 10, 20,\nclasses=2\nnum=1\njitter=.3\n"
    )
    net = DarknetNet(parse_cfg(path))
    assert net.size == (32, 64)
    assert net.resize == "letterbox"
    assert net.heads[1].anchors == [(10.0, 20.0)]


GOOD = """
    convolutional filters=4 activation=relu
    convolutional filters=7 activation=linear
    yolo mask=0 anchors=1,1 num=1 classes=2"""


# Lines of the cfg: [net] 1-4, [convolutional] 5-7 and 8-10, [yolo] 11-15.
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("filters=7", "seven", r"line 11: \[yolo\] 1 anchors and 2 classes need filters=7 .*which has 1"),
        ("[yolo]", "[lstm]", r"line 11: \[lstm\] is not supported: use avg.*convolutional"),
        ("activation=relu", "activation=stair", r"line 7: \[convolutional\] activation='stair' is not supported"),
        ("activation=relu", "binary=1", r"line 7: \[convolutional\] option 'binary' is not supported"),
        ("filters=4", "filters=many", r"line 6: \[convolutional\] filters='many': give a whole number"),
        ("filters=4", "filters=0", r"line 6: .*filters=0: give a whole number ≥ 1"),
        ("filters=4", "filters=99999999999", r"line 6: .*filters is far too large"),
        ("filters=4", "groups=2", r"line 6: .*groups=2 must divide its 3 input channels"),
        ("filters=4", "size=99", r"line 5: \[convolutional\] does not fit its input"),
        ("filters=4", "size=2147483647", r"line 5: \[convolutional\] has far too many weights"),
        (
            "[yolo]",
            "[upsample]\nstride=99999\n[yolo]",
            r"line 11: \[upsample\] gives \(7, .*far too much for one image",
        ),
        ("[yolo]", "[dropout]\nprobability=2\n[yolo]", r"line 12: .*probability=2: give a number from 0 to 1"),
        ("[yolo]", "[maxpool]\n" * 1000 + "[yolo]", r"line 1008: more than 1000 sections"),
        ("anchors=1,1", "anchors=1,inf", r"line 13: \[yolo\] anchors='1,inf': give numbers"),
        ("filters=7", "filters=8", r"line 11: \[yolo\] 1 anchors and 2 classes need filters=7 .*which has 8"),
        ("mask=0", "mask=1", r"line 12: \[yolo\] mask=\[1\] asks for more than its 1 anchors"),
        ("anchors=1,1\n", "", r"line 11: \[yolo\] lacks 'anchors'"),
        ("anchors=1,1", "anchors=1,x", r"line 13: \[yolo\] anchors='1,x': give numbers"),
        (
            "[convolutional]\nfilters=7",
            "[route]\nlayers=3\nfilters=7",
            r"line 9: \[route\] layers=3 is no earlier layer",
        ),
        ("[yolo]", "[shortcut]\nfrom=-3\n[yolo]", r"line 12: \[shortcut\] from=-3 is no earlier layer"),
        (
            "[yolo]",
            "[maxpool]\nsize=2\nstride=2\n[shortcut]\nfrom=0\n[yolo]",
            r"line 14: .*different size \(16x32, 32x64\)",
        ),
        ("[yolo]", "[reorg]\nstride=3\n[yolo]", r"line 11: \[reorg\] stride=3 must divide"),
        ("[yolo]", "[sam]\nfrom=0\n[yolo]", r"line 11: \[sam\] multiplies"),
        ("[yolo]", "[scale_channels]\nfrom=0\n[yolo]", r"line 11: \[scale_channels\] multiplies"),
        ("[yolo]", "[upsample]\nscale=2\n[yolo]", r"line 12: \[upsample\] scale other than 1"),
        ("[yolo]", "[route]\nlayers=-1\ngroups=2\n[yolo]", r"line 13: \[route\] group_id=0 of groups=2 does not go"),
        ("classes=2\n", "classes=2\n[route]\nlayers=-1\n", r"line 16: \[route\] reads a layer that ends in boxes"),
        ("[yolo]\nmask=0\nanchors=1,1\nnum=1\nclasses=2\n", "", r"line 1: \[net\] no \[yolo\] or \[region\] section"),
        ("[net]", "net", r"line 1: 'net' is neither"),
        ("[yolo]", "yolo]", r"line 11: 'yolo\]' is neither"),
        ("[net]", "[net", r"line 1: '\[net' is no section's name"),
        ("[net]\n", "", r"line 1: an option before the first section"),
        ("[net]", "[route]", r"begins with a \[net\] section"),
        ("height=32\n", "", r"line 1: \[net\] lacks 'height'"),
        ("channels=3", "channels=4", r"line 4: \[net\] channels must be 3 or 1"),
        ("[yolo]", "[crnn]\n[yolo]", r"line 11: \[crnn\] is not supported"),
        ("[yolo]", "[reorg3d]\nstride=3\n[yolo]", r"line 11: \[reorg3d\] stride=3 must divide height and width of"),
        ("[yolo]", "[reorg3d]\nstride=2\nreverse=1\n[yolo]", r"line 13: .*option 'reverse' is not supported"),
        ("[yolo]", "[shift_channels]\nfrom=0\n[yolo]", r"line 11: \[shift_channels\] takes .*its channels x1x1"),
        ("[yolo]", "[implicit]\nfilters=7\n[yolo]", r"line 13: \[yolo\] reads an implicit layer"),
        ("[yolo]", "[implicit]\n[route]\nlayers=-1,-2\n[yolo]", r"line 12: \[route\] (joins|reads an implicit)"),
        ("[yolo]", "[implicit]\n[convolutional]\nfilters=7\n[yolo]", r"line 12: \[convolutional\] reads an implicit"),
        ("[yolo]", "[implicit]\nfilters=99999\natoms=99999\n[yolo]", r"line 11: \[implicit\] has far too many values"),
        ("filters=4", "stride_x=0", r"line 6: \[convolutional\] stride_x=0: give a whole number ≥ 1"),
        ("[yolo]", "[Gaussian_yolo]", r"line 11: \[gaussian_yolo\] 1 anchors and 2 classes need filters=11 "),
    ],
)
def test_bad_cfg_names_line_and_mend(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = cfg_text(GOOD)
    assert text.count(old) == 1
    path = tmp_path / "net.cfg"
    path.write_text(text.replace(old, new))
    with pytest.raises(InputError, match=message) as error:
        DarknetNet(parse_cfg(path))
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"{path}")


def test_missing_and_binary_cfg(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such Darknet cfg file"):
        parse_cfg(tmp_path / "none.cfg")
    (tmp_path / "binary.cfg").write_bytes(bytes(range(256)))
    with pytest.raises(InputError, match="not readable as a Darknet cfg"):
        parse_cfg(tmp_path / "binary.cfg")


@pytest.mark.parametrize("version", [(0, 1), (0, 2), (1, 0)])
def test_both_headers_give_the_same_weights(tmp_path: Path, version: tuple[int, int]) -> None:
    cfg = write_cfg(tmp_path, NETWORKS["yolov3"])
    expected = load(cfg, write_weights(tmp_path, cfg)).state_dict()
    weights = write_weights(tmp_path, cfg, version)
    found = load(cfg, weights).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def version(*numbers: int) -> bytes:
    return np.array([*numbers, 5], "<i4").tobytes()


def test_headers_of_pytorchs_writers(tmp_path: Path) -> None:
    """Five int32, all zero but for the fourth, and today's version before a number of images of four bytes."""
    cfg = write_cfg(tmp_path, NETWORKS["yolov3"])
    data = write_weights(tmp_path, cfg).read_bytes()
    expected = load(cfg, tmp_path / "net.weights").state_dict()
    path = tmp_path / "other.weights"
    seen = np.int32(7).tobytes()
    older, newer = bytes(12) + seen, version(0, 2) + seen
    for header in (older + bytes(4), older, newer, newer + bytes(4), newer + bytes(8)):
        path.write_bytes(header + data[20:])
        found = load(cfg, path).state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_files_of_another_kind_are_named(tmp_path: Path) -> None:
    cfg, path = write_cfg(tmp_path, GOOD), tmp_path / "net.weights"
    torch.save({"a": torch.zeros(10**6)}, path)  # far longer than the network's weights, too
    contents = {"a PyTorch checkpoint": path.read_bytes()}
    torch.save({"a": torch.zeros(3)}, path, _use_new_zipfile_serialization=False)
    contents["a PyTorch checkpoint, older"] = path.read_bytes()
    contents["a web page"] = b"<!DOCTYPE html><html>Google Drive can't scan this file</html>"
    contents["a pointer of Git LFS"] = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    contents["a safetensors file"] = (2).to_bytes(8, "little") + b"{}"
    contents["an HDF5 file"] = b"\x89HDF\r\n\x1a\n" + bytes(300)
    for kind, content in contents.items():
        path.write_bytes(content)
        with pytest.raises(InputError, match=rf"net\.weights is {kind.split(',')[0]}.*, not Darknet weights: give the"):
            load(cfg, path)


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    cfg = write_cfg(tmp_path, GOOD)  # 3·4 + 4 + 4·7 + 7 floats
    data = write_weights(tmp_path, cfg).read_bytes()
    older = bytes(4) + data[20:]
    bad = {
        "expected 51 floats after the 20-byte header, found 50; is it truncated": data[:-4],
        "expected 51 floats after the 20-byte header, found 50.75; is it truncated": data[:-1],
        "expected 51 floats after the 20-byte header, found 52; is it too long": data + bytes(4),
        "expected 51 floats after the 16-byte header, found 52; is it too long": version(0, 1) + older + bytes(4),
        "expected 51 floats after the 16-byte header, found 53; is it too long": bytes(12) + data[12:] + bytes(4),
        "15 bytes are too few for a Darknet header": data[:15],
        "holds NaN or infinite weights": data[:-4] + np.float32("nan").tobytes(),
    }
    path = tmp_path / "bad.weights"
    for message, content in bad.items():
        path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            load(cfg, path)
    with pytest.raises(InputError, match="weights not readable"):
        load(cfg, tmp_path / "none.weights")


def test_builder(tmp_path: Path) -> None:
    cfg = write_cfg(tmp_path, NETWORKS["yolov3-tiny"])
    names = tmp_path / "two.names"
    names.write_text("cat\ndog\n\n")
    model = {"name": "darknet", "cfg": cfg, "weights": write_weights(tmp_path, cfg), "names": names}
    detector = darknet(Model(**model))
    assert detector.classes == ["cat", "dog"]
    assert (detector.size, detector.strides, detector.scale_x_y) == ((32, 64), [4, 2], [1.0, 1.05])
    image = torch.randint(256, (3, 50, 70), dtype=torch.uint8)
    pixels, meta = detector.preprocess(image)
    plain = load(cfg, model["weights"])  # random before, not on the meta device
    with torch.no_grad():
        for one, other in zip(detector.net(pixels[None]), plain(pixels[None]), strict=True):
            assert torch.equal(one, other)
        assert len(detector.decode(detector.net(pixels[None]), [meta])) == 1
    larger = darknet(Model(**model | {"size": 96, "score": 0.5, "resize": "letterbox"}))
    assert (larger.size, larger.score, larger.resize) == ((96, 96), 0.5, "letterbox")
    for change, message in (
        ({"cfg": None}, "model.cfg is not set"),
        ({"names": "coco"}, "has 2 classes, coco has 80"),
        ({"num_classes": 3}, "has 2 classes, model.num_classes is 3"),
        ({"names": tmp_path / "none"}, "class names not readable"),
        ({"size": 50}, "line .*do not divide the input of 50x50|different size"),
    ):
        with pytest.raises(InputError, match=message):
            darknet(Model(**model | change))


CONVOLUTION = "convolutional size={} pad=1 filters={} activation={}"
HEAD = "yolo mask=0 anchors=10,20 num=1 classes=2"


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


# Darknet's activations.h, as formulas
DARKNETS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "linear": lambda x: x,
    "relu": lambda x: x * (x > 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "leaky": lambda x: np.where(x > 0, x, 0.1 * x),
    "logistic": sigmoid,
    "tanh": lambda x: 2 / (1 + np.exp(-2 * x)) - 1,
    "elu": lambda x: np.where(x >= 0, x, np.exp(x) - 1),
    "selu": lambda x: 1.0507 * np.where(x >= 0, x, 1.6732 * (np.exp(x) - 1)),
    "gelu": lambda x: 0.5 * x * (1 + np.tanh(0.797885 * x + 0.035677 * x**3)),
    "swish": lambda x: x * sigmoid(x),
    "silu": lambda x: x * sigmoid(x),
    "mish": lambda x: x * np.tanh(np.log1p(np.exp(x))),
    "hard_mish": lambda x: np.where(x > 0, x, np.where(x > -2, x * x / 2 + x, 0)),
}


@pytest.mark.parametrize("name", DARKNETS)
def test_activations_are_darknets(tmp_path: Path, name: str) -> None:
    net = DarknetNet(parse_cfg(write_cfg(tmp_path, f"{CONVOLUTION.format(1, 7, name)}\n{HEAD}")))
    x = torch.linspace(-9, 9, 3 * 32 * 64).reshape(1, 3, 32, 64)
    with torch.no_grad():
        raw = net.layers[0].conv(x).double().numpy()
    np.testing.assert_allclose(net(x)[0].detach().numpy(), DARKNETS[name](raw), atol=2e-4)
    graph = trace(net, x)
    assert len(graph.sites) == (name != "linear")  # one neuron, however the function is put together
    torch.testing.assert_close(graph(x)[0], net(x)[0])


def test_other_activations_are_refused_by_name(tmp_path: Path) -> None:
    for name in ("stair", "normalize_channels", "Leaky", "plse"):
        with pytest.raises(InputError, match=f"activation='{name}' is not supported: use linear, .*silu.*gelu"):
            DarknetNet(parse_cfg(write_cfg(tmp_path, f"{CONVOLUTION.format(1, 7, name)}\n{HEAD}")))


def slow_convolution(x: np.ndarray, kernels: np.ndarray, bias: np.ndarray, stride: tuple[int, int], dilation: int):
    """(C, h, w) → (filters, …): Darknet's im2col with padding · dilation, element by element."""
    size, pad = kernels.shape[-1], kernels.shape[-1] // 2
    shape = [(n + 2 * pad - size) // step + 1 for n, step in zip(x.shape[1:], stride, strict=True)]
    out = np.zeros((len(kernels), *shape)) + bias[:, None, None]
    for (k, j, i), _ in np.ndenumerate(out):
        for (c, b, a), weight in np.ndenumerate(kernels[k]):
            row, column = j * stride[0] - pad * dilation + b * dilation, i * stride[1] - pad * dilation + a * dilation
            if 0 <= row < x.shape[1] and 0 <= column < x.shape[2]:
                out[k, j, i] += weight * x[c, row, column]
    return out


TINY = "net width=8 height=6 channels=3"


def tiny(folder: Path, *lines: str, net: str = TINY) -> DarknetNet:
    return DarknetNet(parse_cfg(write_cfg(folder, "\n".join([*lines, HEAD]), net=net)))


def image(channels: int = 3) -> Tensor:
    return torch.randn(2, channels, 6, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("options", "stride", "dilation"),
    [
        ("stride_x=2 stride_y=1", (1, 2), 1),
        ("stride=2 stride_x=1", (2, 1), 1),
        ("dilation=2", (1, 1), 2),
        ("dilation=2 stride=2", (2, 2), 2),
    ],
)
def test_strides_and_dilation_are_darknets(
    tmp_path: Path, options: str, stride: tuple[int, int], dilation: int
) -> None:
    rest = f"stride_y={2 // stride[0]} stride_x={2 // stride[1]}"  # cells must be square in the end
    net = tiny(
        tmp_path,
        f"convolutional size=3 pad=1 filters=4 activation=linear {options}",
        f"convolutional size=1 filters=7 activation=linear {rest}",
    )
    assert net.heads[2].stride == 2
    conv = net.layers[0].conv
    weight, bias = conv.weight.detach().numpy(), conv.bias.detach().numpy()
    slow = slow_convolution(image()[0].numpy(), weight, bias, stride, dilation)
    np.testing.assert_allclose(layer_outputs(net, image())[0][0].numpy(), slow, atol=1e-5)


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("stride", [(1, 2), (2, 1), (2, 2), (1, 1)])
def test_maximum_pooling_is_darknets(tmp_path: Path, size: int, stride: tuple[int, int]) -> None:
    net = tiny(
        tmp_path,
        f"maxpool size={size} stride_y={stride[0]} stride_x={stride[1]}",
        f"convolutional size=1 filters=7 stride_y={2 // stride[0]} stride_x={2 // stride[1]} activation=linear",
    )
    x, padding = image()[0].numpy(), size - 1
    shape = [(n + padding - size) // step + 1 for n, step in zip(x.shape[1:], stride, strict=True)]
    slow = np.zeros((3, *shape), np.float32)
    for c, j, i in np.ndindex(slow.shape):
        top, left = j * stride[0] - padding // 2, i * stride[1] - padding // 2
        slow[c, j, i] = x[c, max(top, 0) : top + size, max(left, 0) : left + size].max()
    assert np.array_equal(layer_outputs(net, image())[0][0].numpy(), slow)


def test_reorg3d_is_darknets(tmp_path: Path) -> None:
    net = tiny(tmp_path, "reorg3d stride=2", "convolutional size=1 filters=7 activation=linear")
    x = image().numpy()
    slow = np.zeros((2, 12, 3, 4), np.float32)
    for b, k, j, i in np.ndindex(slow.shape):  # blas.c
        offset = k // 3
        slow[b, k, j, i] = x[b, k % 3, j * 2 + offset // 2, i * 2 + offset % 2]
    assert np.array_equal(layer_outputs(net, image())[0].numpy(), slow)


YOLOR = """
    convolutional size=1 filters=4 activation=silu
    implicit_add filters=4
    implicit_mul filters=7
    route layers=0
    shift_channels from=1
    convolutional size=1 filters=7 activation=linear
    control_channels from=-4
    silence"""


def test_implicit_layers_are_yolors(tmp_path: Path) -> None:
    cfg = write_cfg(tmp_path, f"{YOLOR}\n{HEAD} scale_x_y=1.05", net=TINY)
    weights = write_weights(tmp_path, cfg)
    net = load(cfg, weights)
    floats = np.frombuffer(weights.read_bytes(), "<f4", offset=20)  # 4 + 12, the 4 added, the 7 that multiply, 7 + 28
    outputs = [out.detach().numpy() for out in layer_outputs(net, image())]
    shifted = outputs[0] + floats[16:20].reshape(1, 4, 1, 1)
    assert np.array_equal(outputs[4], shifted)
    kernels, bias = floats[34:].reshape(7, 4), floats[27:34]
    raw = np.einsum("kc,bcyx->bkyx", kernels, shifted) + bias[:, None, None]
    np.testing.assert_allclose(net(image())[0].detach(), raw * floats[20:27].reshape(1, 7, 1, 1), rtol=1e-5, atol=1e-5)
    assert (net.heads[8].form, net.heads[8].scale_x_y) == ("v5", 2.0)  # YOLOR's program asks no cfg for them
    graph = trace(net, image())
    torch.testing.assert_close(graph(image())[0], net(image())[0])

    weights.write_bytes(weights.read_bytes()[:20] + floats[:16].tobytes() + floats[27:].tobytes())
    with pytest.raises(InputError, match=r"The 11 values of its implicit layers are missing: YOLOR's own converter"):
        load(cfg, weights)


def test_darknets_own_implicit_layer_scales_channels(tmp_path: Path) -> None:
    net = tiny(
        tmp_path,
        "convolutional size=1 filters=7 activation=linear",
        "implicit filters=7 mean=1",
        "scale_channels from=0",
    )
    outputs = layer_outputs(net, image())
    assert outputs[1].shape == (1, 7, 1, 1)
    assert torch.equal(outputs[2], outputs[0] * outputs[1])
    assert net.heads[3].form == "v3"


def decoded(net: DarknetNet, x: Tensor, weights: Path) -> tuple[np.ndarray, np.ndarray]:
    """The boxes (A·h·w, 4: centre, width, height, in input pixels) and scores (A·h·w, C) of an image's one head."""
    load_weights(net, weights)
    ((_, head),) = net.heads.items()
    detector = YoloDetector(net, ["a", "b"], net.size, [head.anchors], [head.stride], head.scale_x_y, head.form)
    with torch.no_grad():
        boxes, scores = detector.decode_head(net(x)[0], detector.anchors[0], head.stride, head.scale_x_y)
    boxes = torch.cat(((boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]), -1)
    return boxes[0].numpy(), scores[0].numpy()


def raw_head(net: DarknetNet, x: Tensor) -> np.ndarray:
    """(channels, h·w) of the convolution before the head, without its activation."""
    with torch.no_grad():
        return net.layers[0].conv(x)[0].flatten(1).double().numpy()


@pytest.mark.parametrize("activation", ["linear", "logistic"])
def test_new_coords_means_the_same_after_either_activation(tmp_path: Path, activation: str) -> None:
    line = f"convolutional size=1 filters=7 activation={activation}"
    cfg = write_cfg(tmp_path, f"{line}\nroute layers=-1\n{HEAD} new_coords=1 scale_x_y=2.0", net=TINY)
    net = DarknetNet(parse_cfg(cfg))
    boxes, scores = decoded(net, image(), write_weights(tmp_path, cfg))
    p = sigmoid(raw_head(net, image()))
    column, row = np.tile(np.arange(8), 6), np.repeat(np.arange(6), 8)
    expected = [2 * p[0] - 0.5 + column, 2 * p[1] - 0.5 + row, 4 * p[2] ** 2 * 10, 4 * p[3] ** 2 * 20]
    np.testing.assert_allclose(boxes, np.stack(expected, -1), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(scores, (p[4] * p[5:]).T, rtol=1e-4)
    assert scores.min() > 0
    assert scores.max() < 1


def test_new_coords_after_another_activation_is_refused(tmp_path: Path) -> None:
    lines = f"convolutional size=1 filters=7 activation=leaky\n{HEAD} new_coords=1"
    with pytest.raises(InputError, match=r"line 14: \[yolo\] new_coords=1 needs activation=logistic or linear .*Leaky"):
        DarknetNet(parse_cfg(write_cfg(tmp_path, lines)))


def test_gaussian_yolo_is_darknets(tmp_path: Path) -> None:
    line = "convolutional size=1 filters=11 activation=linear"
    cfg = write_cfg(tmp_path, f"{line}\n{HEAD.replace('yolo', 'Gaussian_yolo')} scale_x_y=1.1", net=TINY)
    net = DarknetNet(parse_cfg(cfg))
    boxes, scores = decoded(net, image(), write_weights(tmp_path, cfg))
    raw = raw_head(net, image())
    p, column, row = sigmoid(raw), np.tile(np.arange(8), 6), np.repeat(np.arange(6), 8)
    uncertainty = (p[1] + p[3] + p[5] + p[7]) / 4  # raw: x, its deviation, y, …, w, …, h, …, objectness, classes
    expected = [1.1 * p[0] - 0.05 + column, 1.1 * p[2] - 0.05 + row, np.exp(raw[4]) * 10, np.exp(raw[6]) * 20]
    np.testing.assert_allclose(boxes, np.stack(expected, -1), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(scores, (p[8] * p[9:] * (1 - uncertainty)).T, rtol=1e-4)
    for point in ("left_top", "right_bottom"):
        cfg.write_text(cfg.read_text().replace("classes=2\n", f"classes=2\nyolo_point={point}\n"))
        with pytest.raises(InputError, match="yolo_point other than center is not supported"):
            DarknetNet(parse_cfg(cfg))


def detector_of(folder: Path, cfg: Path, **fields: object) -> YoloDetector:
    names = folder / "two.names"
    names.write_bytes(b"cat\r\n\r\n dog\r\n\n")  # blank lines are no classes
    given = {"cfg": cfg, "weights": write_weights(folder, cfg), "names": names} | fields
    return darknet(Model("darknet", **given))


def test_grey_networks_see_the_luma(tmp_path: Path) -> None:
    line = "convolutional size=3 pad=1 filters=7 activation=hard_mish"
    cfg = write_cfg(tmp_path, f"{line}\n{HEAD}", net="net width=8 height=8 channels=1")
    detector = detector_of(tmp_path, cfg)
    assert detector.classes == ["cat", "dog"]
    assert detector.net.layers[0].conv.weight.shape == (7, 1, 3, 3)
    photo = torch.zeros(3, 8, 8, dtype=torch.uint8)
    photo[:, 2, 3] = torch.tensor([10, 200, 30])
    pixels, _ = detector.preprocess(photo)
    assert pixels.shape == (1, 8, 8)
    assert pixels[0, 2, 3].item() == pytest.approx((0.299 * 10 + 0.587 * 200 + 0.114 * 30) / 255)
    assert detector.preprocess(photo.new_full((3, 8, 8), 255))[0].allclose(torch.ones(1, 8, 8))

    photos = [torch.randint(256, (3, 9, 11), generator=torch.Generator().manual_seed(i)).byte() for i in range(2)]
    snn = msat_det.convert(detector, [photos], "msat", variant="normalised", signed=True)
    snn.save(tmp_path / "kept.msat")
    again = msat_det.load(tmp_path / "kept.msat")
    for one, other in zip(snn.detect(photos, 4)[4], again.detect(photos, 4)[4], strict=True):
        assert torch.equal(one.boxes, other.boxes)
        assert torch.equal(one.scores, other.scores)


COMMENTS = {
    "Latin-1": "f\xfcr alle".encode("latin-1"),
    "GBK": "\u9a8c\u8bc1=1 [x]".encode("gbk"),
    "UTF-8": "f\xfcr alle \u2028 \x0b".encode(),
}


@pytest.mark.parametrize("encoding", COMMENTS)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_comments_in_any_encoding(tmp_path: Path, encoding: str, mark: bytes, end: bytes) -> None:
    path, comment = tmp_path / "net.cfg", COMMENTS[encoding]
    lines = cfg_text(GOOD).encode().splitlines()
    path.write_bytes(mark + end.join([b"# " + comment, *(line + b" # " + comment for line in lines), b"; " + comment]))
    found, plain = parse_cfg(path), parse_cfg(write_cfg(tmp_path, GOOD, name="plain.cfg"))
    assert [(one.kind, one.line - 1) for one in found] == [(one.kind, one.line) for one in plain]
    for one, other in zip(found, plain, strict=True):
        assert {k: v for k, (v, _) in one.options.items()} == {k: v for k, (v, _) in other.options.items()}


def test_lines_that_set_nothing_are_passed_over_and_told(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "net.cfg"
    stray = cfg_text(GOOD).replace("height=32\n", "Testing\nheight=32\nbatch=\n").replace("[yolo]", "[yolo]\nsee below")
    path.write_text(stray)
    net = DarknetNet(parse_cfg(path))
    assert net.size == (32, 64)
    told = f"{path}, line 3: 'Testing' and 2 more set nothing (no key=value) and are passed over, as Darknet does\n"
    assert capsys.readouterr().err == told


def test_inspect_needs_no_weights(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    cfg = write_cfg(tmp_path, GOOD)
    words = ["--cfg", str(PROJECT / "configs/yolo_voc.yaml"), "--calib.limit", "2", "--threads", "1"]
    words += ["--model.cfg", str(cfg), "--methods", "signed", "--out", str(tmp_path / "out")]
    assert cli.main(["inspect", *words]) == 0
    table, told = capsys.readouterr()
    assert "total: 81,920 multiply-adds" in table  # 32·64·(3·4 + 4·7)
    assert "net.cfg is inspected without weights, on random ones: shapes, kinds and multiply-adds are the" in told
    assert cli.main(["convert-det", *words]) == 2
    assert "model.weights is not set: detector 'darknet' needs a .weights file" in capsys.readouterr().err
