"""Darknet files against OpenCV's reading of the same files, layer by layer, and the errors for files that don't fit."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, fx

from msat_det.base.errors import InputError
from msat_det.models.importers.darknet.cfg import parse_cfg
from msat_det.models.importers.darknet.network import DarknetNet, darknet, load_weights, stored_tensors
from msat_det.models.yolo import YoloDetector

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


def write_cfg(folder: Path, lines: str, **options: str) -> Path:
    path = folder / "net.cfg"
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
        ("filters=7", "seven", r"line 9: 'seven' is neither"),
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
        ("[net]", "[net", r"line 1: '\[net' is no section's name"),
        ("[net]\n", "", r"line 1: an option before the first section"),
        ("[net]", "[route]", r"begins with a \[net\] section"),
        ("height=32\n", "", r"line 1: \[net\] lacks 'height'"),
        ("channels=3", "channels=1", r"line 4: \[net\] channels must be 3"),
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


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    cfg = write_cfg(tmp_path, GOOD)  # 3·4 + 4 + 4·7 + 7 floats
    data = write_weights(tmp_path, cfg).read_bytes()
    bad = {
        "expected 51 floats after the 20-byte header, found 50; is it truncated": data[:-4],
        "expected 51 floats after the 20-byte header, found 50.75; is it truncated": data[:-1],
        "expected 51 floats after the 20-byte header, found 52; is it too long": data + bytes(4),
        "expected 51 floats after the 16-byte header, found 52; is it too long": bytes(12) + data[12:],
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
    empty = dict.fromkeys(("cfg", "weights", "names", "resize", "size", "num_classes", "score", "nms_iou", "top_k"))
    model = empty | {"cfg": cfg, "weights": write_weights(tmp_path, cfg), "names": names}
    detector = darknet(SimpleNamespace(**model))
    assert detector.classes == ["cat", "dog"]
    assert (detector.size, detector.strides, detector.scale_x_y) == ((32, 64), [4, 2], [1.0, 1.05])
    image = torch.randint(256, (3, 50, 70), dtype=torch.uint8)
    pixels, meta = detector.preprocess(image)
    plain = load(cfg, model["weights"])  # random before, not on the meta device
    with torch.no_grad():
        for one, other in zip(detector.net(pixels[None]), plain(pixels[None]), strict=True):
            assert torch.equal(one, other)
        assert len(detector.decode(detector.net(pixels[None]), [meta])) == 1
    larger = darknet(SimpleNamespace(**model | {"size": 96, "score": 0.5, "resize": "letterbox"}))
    assert (larger.size, larger.score, larger.resize) == ((96, 96), 0.5, "letterbox")
    for change, message in (
        ({"cfg": None}, "model.cfg is not set"),
        ({"names": "coco"}, "has 2 classes, coco has 80"),
        ({"num_classes": 3}, "has 2 classes, model.num_classes is 3"),
        ({"names": tmp_path / "none"}, "class names not readable"),
        ({"size": 50}, "line .*do not divide the input of 50x50|different size"),
    ):
        with pytest.raises(InputError, match=message):
            darknet(SimpleNamespace(**model | change))
