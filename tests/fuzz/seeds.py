"""The inputs that fuzzing starts from: small valid files of every kind, made here."""

import io
import json
import struct
import tarfile
import tempfile
import zipfile
import zlib
from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import yaml
from mutate import Case
from PIL import Image

from msat_det.base.config import Config
from msat_det.methods.api import convert
from msat_det.models.classifiers import CifarResNet
from msat_det.run.arguments import load_config
from msat_det.spiking.formats.plan import save_plan
from msat_det.spiking.network import SpikingNetwork

VOC = "VOCdevkit/VOC2007"
CONV = "[convolutional]\nsize=3\nstride=2\npad=1\nbatch_normalize=1\nfilters=4\nactivation=leaky\n"
SQUARE = "[convolutional]\nsize=1\nfilters={}\nactivation={}\n"
YOLO = "[yolo]\nmask={}\nanchors=4,6, 8,10, 14,9, 20,30\nnum=4\nclasses=2\nscale_x_y=1.05\n"
CFGS = [  # between them every kind of section
    f"[net]\nwidth=32\nheight=32\nchannels=3\n{CONV}[maxpool]\nsize=2\nstride=2\n{SQUARE.format(14, 'linear')}"
    f"{YOLO.format('2,3')}[route]\nlayers=-3\n[upsample]\nstride=2\n[route]\nlayers=-1,0\n"
    f"{SQUARE.format(14, 'linear')}{YOLO.format('0,1')}",
    f"[net]\nwidth=16\nheight=16\nchannels=3\n{CONV}[reorg]\nstride=2\n{SQUARE.format(4, 'relu')}[shortcut]\nfrom=-1\n"
    f"activation=linear\n[dropout]\nprobability=.2\n[maxpool]\nsize=3\nstride=1\n{SQUARE.format(7, 'linear')}"
    "[region]\nanchors=1,2\nnum=1\nclasses=2\nsoftmax=1\n",
    f"[net]\nwidth=16\nheight=16\nchannels=1\nTesting\n{CONV}stride_x=2\nstride_y=2\n[reorg3d]\nstride=2\n[silence]\n"
    f"[implicit]\nfilters=16\nmean=1\n[scale_channels]\nfrom=-2\n{SQUARE.format(11, 'gelu')}"
    f"{YOLO.replace('yolo', 'Gaussian_yolo').format('2')}",
    f"[net]\nwidth=16\nheight=16\n{CONV}[implicit_add]\nfilters=4\n[implicit_mul]\nfilters=7\n[route]\nlayers=0\n"
    f"[shift_channels]\nfrom=1\n{SQUARE.format(7, 'linear')}[control_channels]\nfrom=2\n{YOLO.format('0')}",
    f"[net]\nwidth=16\nheight=16\n{CONV.replace('leaky', 'hard_mish')}[maxpool]\nsize=2\nstride=1\nstride_y=2\n"
    f"[maxpool]\nsize=2\nstride=1\nstride_x=2\n{SQUARE.format(7, 'linear')}{YOLO.format('1')}new_coords=1\n",
    f"# squeeze-and-excite\n[net]\nwidth=16\nheight=16\nletter_box=1\n{CONV}[avgpool]\n{SQUARE.format(4, 'logistic')}"
    f"[scale_channels]\nfrom=0\n{SQUARE.format(4, 'mish')}[sam]\nfrom=-2\n[route]\nlayers=-1\ngroups=2\ngroup_id=1\n"
    f"{SQUARE.format(7, 'logistic')}{YOLO.format('1')}new_coords=1\n",
]


def pixels(width: int = 8, height: int = 8, channels: int = 3) -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return noise if channels > 1 else noise[..., 0]


def image(form: str = "JPEG", mode: str = "RGB", **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels()).convert(mode).save(out, form, **options)
    return out.getvalue()


def png(width: int, height: int, depth: int, colour: int, *chunks: tuple[bytes, bytes], interlace: int = 0) -> bytes:
    """A PNG of a given header whose pixels may not fit it."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    packed = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def images() -> list[Case]:
    frames = [Image.fromarray(pixels()), Image.fromarray(255 - pixels())]
    animated = io.BytesIO()
    frames[0].save(animated, "WEBP", save_all=True, append_images=frames[1:])
    contents = [
        *(image("JPEG", mode, quality=50) for mode in ("RGB", "L", "CMYK")),
        image("JPEG", progressive=True),
        image("JPEG", exif=Image.Exif().tobytes() + bytes(20), comment=b"made here"),
        *(image("PNG", mode) for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "I;16")),
        png(8, 8, 8, 2, (b"tEXt", b"a\0b"), (b"zTXt", b"a\0\0" + zlib.compress(bytes(3000))), (b"tRNS", bytes(6))),
        png(9, 9, 4, 3, (b"PLTE", bytes(range(48))), interlace=1),
        png(8, 8, 16, 6, (b"iCCP", b"a\0\0" + zlib.compress(b"profile")), (b"eXIf", b"II*\0\x08\0\0\0\0\0")),
        *(image("WEBP", mode, lossless=lossless) for mode in ("RGB", "RGBA") for lossless in (False, True)),
        animated.getvalue(),
        *(image("BMP", mode) for mode in ("RGB", "P", "1", "L")),
        *(image("PPM", mode) for mode in ("RGB", "L", "1")),
        b"P3\n# plain\n2 2\n255\n1 2 3 4 5 6 7 8 9 10 11 12\n",
        b"P1\n4 2\n0 1 0 1 1 0 1 0\n",
        b"P6 2 2 65535\n" + bytes(range(24)),
    ]
    return [{"a.jpg": content} for content in contents]


def names() -> list[Case]:
    return [
        {"classes.txt": text.encode()} for text in ("dog\ncat\n", "background\n\u00e9t\u00e9\ndining table\n", "???\n1")
    ]


def darknet_cfg() -> list[Case]:
    return [{"net.cfg": text.encode()} for text in CFGS]


def darknet_weights() -> list[Case]:
    """For ``CFGS[1]``: 227 floats after a header of either length."""
    floats = np.random.default_rng(0).normal(0, 1, 227).astype("<f4").tobytes()
    headers = struct.pack("<iiiq", 0, 2, 5, 1000), struct.pack("<iiii", 0, 1, 0, 1000)
    return [{"net.weights": header + floats} for header in headers]


def voc_xml(name: str, *box: float, difficult: int | str = 0) -> bytes:
    edges = "".join(
        f"<{edge}>{value}</{edge}>" for edge, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    return (
        "<?xml version='1.0'?>\n<annotation>\n<folder>VOC2007</folder>\n"
        "<size><width>8</width><height>8</height></size>\n"
        f"<object>\n<name>{name}</name>\n<pose>Left</pose>\n<difficult>{difficult}</difficult>\n"
        f"<bndbox>{edges}</bndbox>\n</object>\n<!-- end -->\n</annotation>\n"
    ).encode()


def voc() -> list[Case]:
    case = {
        f"{VOC}/ImageSets/Main/test.txt": b"000001\n000002 1\n",
        f"{VOC}/Annotations/000001.xml": voc_xml("dog", 1, 1, 8, 8),
        f"{VOC}/Annotations/000002.xml": voc_xml("tvmonitor", 2.5, 1, 3, 6, difficult=1),
        f"{VOC}/JPEGImages/000001.jpg": image(),
        f"{VOC}/JPEGImages/000002.jpg": image(),
    }
    return [case, voc_of_tools()]


def voc_of_tools() -> Case:
    """Own classes and other encodings, a document type, a namespace, flags in words, images of other suffixes."""
    plain = voc_xml("crane", 0, 0.5, 8, 8).decode()
    named = plain.replace("<folder>", "<filename>C:\\photos\\c.PNG</filename><folder>")
    chinese = plain.replace("version='1.0'", "version='1.0' encoding='gb2312'").replace("crane", "\u72d7")
    words = voc_xml("dog", 1, 1, 8, 8, difficult="Unspecified").decode()
    typed = words.replace("<annotation>", "<!DOCTYPE annotation SYSTEM 'voc.dtd'><annotation xmlns='urn:voc'>")
    return {
        f"{VOC}/ImageSets/Main/test.txt": b"my photo 1\nb.xml\nc.PNG -1\nd e\n",
        f"{VOC}/Annotations/my photo.xml": named.encode("utf-16"),
        f"{VOC}/Annotations/b.xml": chinese.encode("gb2312"),
        f"{VOC}/Annotations/c.xml": b"\xef\xbb\xbf\n" + typed.encode(),
        f"{VOC}/Annotations/d e.xml": typed.replace("Unspecified", "True").encode(),
        f"{VOC}/JPEGImages/my photo.JPG": image(),
        f"{VOC}/JPEGImages/b.jpg": image(),
        f"{VOC}/JPEGImages/c.PNG": image(),
    }


def coco() -> list[Case]:
    content = {
        "info": {"year": 2026},
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 8, "height": 8} for i in (7, 9)],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 18, "bbox": [0, 1, 4, 5.5], "area": 22, "iscrowd": 0},
            {"id": 2, "image_id": 9, "category_id": 1, "bbox": [1, 1, 2, 2], "area": 3.5, "iscrowd": 1},
        ],
        "categories": [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}],
    }
    text = json.dumps(content).encode()
    case = {"annotations/instances_val2017.json": text, "val2017/7.jpg": image(), "val2017/9.jpg": image()}
    return [case, *coco_of_tools()]


def coco_of_tools() -> list[Case]:
    """What Roboflow, CVAT and Label Studio write: ids of all kinds, a grouping category, polygons, other names."""
    turned = Image.Exif()
    turned[0x0112] = 6
    sizes = [{"width": 8, "height": 8}, {"width": "16", "height": 8.0}, {"width": 9000, "height": 7000}, {}]
    polygon = {"segmentation": [[1, 1, 5, 1, 5, 4]], "bbox": None}
    objects = [{"bbox": [0, 1, 4, 5.5]}, {"bbox": [1, 1, 2, 2], "iscrowd": True, "area": 3}, polygon, polygon]

    def content(*names: str) -> bytes:
        listed = [{"id": str(i), "file_name": name} | sizes[i] for i, name in enumerate(names)]
        found = [{"id": i, "image_id": float(i), "category_id": "1"} | objects[i] for i in range(len(names))]
        group = {"id": 0, "name": "dog", "supercategory": "none"}
        categories = [group, {"id": 1.0, "name": "dog", "supercategory": "dog"}]
        return b"\xef\xbb\xbf" + json.dumps({"images": listed, "annotations": found, "categories": categories}).encode()

    return [
        {
            "train/_annotations.coco.json": content("a.jpg", "b.jpg", "train\\c.png", "d"),
            **{"train/a.jpg": image(), "train/b.jpg": image(exif=turned), "train/c.png": image("PNG")},
            "train/d.JPEG": image(),
        },
        {
            "annotations/instances_default.json": content("a/b.jpg", "images/default/c.jpg"),
            **{"images/default/a/b.jpg": image(), "images/default/c.jpg": image()},
        },
        {"result.json": content("images\\1.jpg", "images/2.jpg"), "images/1.jpg": image(), "images/2.jpg": image()},
    ]


def yolo() -> list[Case]:
    """A list, a file of lines and a folder; boxes, a polygon, an image without labels, one set upright by EXIF."""
    turned = Image.Exif()
    turned[0x0112] = 3
    return [
        {
            "data.yaml": b"path: .\ntrain: images\nval: [images/a, lists/val.txt]\nnc: 2\nnames: {0: dog, 1: cat}\n",
            "lists/val.txt": b"./../images/b/3.jpg\nimages/b/3.jpg\n",
            "images/a/1.jpg": image(exif=turned),
            "images/a/2.png": image("PNG"),
            "images/b/3.jpg": image(),
            "labels/a/1.txt": b"0 0.5 0.5 0.25 1\n1 0.1 0.2 0.1 0.2\n",
            "labels/b/3.txt": b"1 0.25 0.5 0.75 0.25 0.5 1.0\n0 .1 .1 .2 .2 .3 .1\n",
        },
        {
            "data.yaml": b"val: ../valid/images\nkpt_shape: [1, 2]\nnames: ['person']\n",
            "valid/images/1.jpg": image(),
            "valid/labels/1.txt": b"0 0.5 0.5 0.25 1 0.3 0.3\n",
        },
    ]


def image_folder() -> list[Case]:
    return [{"a/1.jpg": image(), "a/b/2.png": image("PNG"), "c/3.JPG": image()}]


def configuration() -> list[Case]:
    first = {
        "data": {"kind": "voc", "root": "pictures/voc", "split": "test", "year": "2007", "limit": 4},
        "model": {"name": "yolo_demo", "weights": "a/b.safetensors", "size": 160, "score": 0.05, "resize": "stretch"},
        "calib": {"kind": "voc", "root": "pictures/voc", "split": "train", "skip": 0, "limit": 8},
        "methods": [
            {"label": "m", "method": "msat", "variant": "normalised", "signed": True, "gamma": 3, "record": [4]},
            {"label": "s", "method": "constant", "stages": [2, 1, 0.5], "scale": "channel", "percentile": 99.9},
            {"method": "p-norm", "confidence": "estimate", "analog": ["relu"], "rounding": "track"},
        ],
        "sim": {"T": 8, "record": [2, 4, 8], "chunk": None},
        "draw": {"images": 2, "t": [4], "method": "m"},
        "energy": "45nm",
        "batch": 2,
        "seed": 1,
    }
    second = "data: {kind: images, root: $MSAT_DET_DATA/x}\nmodel: {name: resnet20}\ncalib: {root: ~/y}\nsim: {T: 4}\n"
    words = "--sim.record 2,4\n--methods m,s\n--methods.m.gamma 5\n--data.limit=3\n--out out\n--strict\n"
    text = yaml.safe_dump(first, sort_keys=False).encode()
    return [
        {"run.yaml": text, "words": b""},
        {"run.yaml": second.encode(), "words": b""},
        {"run.yaml": text, "words": words.encode()},
        {"run.yaml": second.encode(), "words": b"--methods all\n--model.cfg a.cfg\n--resume false\n"},
    ]


def energy() -> list[Case]:
    return [
        {"table.yaml": b"mac: 4.6\nac: 0.9\nsource: a paper\n"},
        {"table.yaml": b'{"mac": 1, "ac": 1e-2, "source": 3}'},
    ]


def tiny_network() -> torch.nn.Module:
    torch.manual_seed(0)
    return CifarResNet((1, 1), 2, 4)


def safetensors_weights() -> list[Case]:
    tensors = tiny_network().state_dict()
    few = {name: tensor for name, tensor in tensors.items() if "num_batches" not in name}
    half = {name: tensor.half() for name, tensor in few.items()}
    return [{"net.safetensors": safetensors.torch.save(one, {"format": "pt"})} for one in (tensors, few, half)]


def training(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Weights as training programs save them, among objects of every kind of pickling."""
    beside = {
        "args": Namespace(path=Path("/data")),
        "date": datetime(2026, 1, 2),
        "history": defaultdict(list, a=[0.5]),
    }
    beside |= {"map": np.float64(0.5), "each": np.zeros(3), "seen": {1, 2}, "kinds": frozenset("ab"), "form": 1 + 2j}
    return beside | {"model_ema": {"module": {f"module.{name}": value for name, value in tensors.items()}}}


def torch_weights() -> list[Case]:
    tensors = dict(tiny_network().state_dict())
    cases = []
    for content, new, protocol in (
        *((tensors, True, 2), ({"state_dict": tensors, "epoch": 3}, True, 2), (tensors, False, 2)),
        *((training(tensors), True, 2), (training(tensors), True, 5), (training(tensors), False, 4)),
    ):
        out = io.BytesIO()
        torch.save(content, out, _use_new_zipfile_serialization=new, pickle_protocol=protocol)
        cases.append({"net.pt": out.getvalue()})
    return cases


ONNX = [  # between them every kind of attribute and constant
    """<ir_version: 8, opset_import: ["" : 13]> net (float[1,3,8,8] x) => (float[1,6,4] y) {
    k = Constant <value = int64[4] {6, 3, 3, 3}> () w = ConstantOfShape <value = float[1] {0.1}> (k)
    a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]> (x, w)
    b = Sigmoid (a) c = Mul (a, b) d = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1], ceil_mode = 0> (c)
    e = Concat <axis = 1> (c, d) s = Constant <value_ints = [6, 6]> () f, g = Split <axis = 1> (e, s)
    h = Add (f, g) i = Shape (h) z = Constant <value = int64[1] {0}> () j = Gather <axis = 0> (i, z)
    m = Constant <value_ints = [6, -1]> () n = Concat <axis = 0> (j, m) o = Reshape (h, n)
    p = Constant <value_ints = [0]> () q = Constant <value_ints = [4]> () r = Constant <value_ints = [2]> ()
    t = Slice (o, p, q, r) y = Softmax <axis = -1> (t) }""",
    """<ir_version: 8, opset_import: ["" : 17]> net (float["n",3,"h","w"] x) => (float["n",4] y, float z) {
    k = Constant <value_ints = [4, 3, 1, 1]> () w = ConstantOfShape <value = float[1] {-0.2}> (k)
    a = Conv <auto_pad = "SAME_UPPER", strides = [2, 2]> (x, w) v = Constant <value_ints = [4]> ()
    g = ConstantOfShape <value = float[1] {1.0}> (v) b = BatchNormalization <epsilon = 0.001> (a, g, g, g, g)
    lo = Constant <value_float = 0.0> () hi = Constant <value_float = 6.0> () c = Clip (b, lo, hi)
    r = Constant <value_floats = [1.0, 1.0, 2.0, 2.0]> () d = Resize <mode = "nearest", nearest_mode = "floor",
    coordinate_transformation_mode = "asymmetric"> (c, , r) p = Constant <value_ints = [0, 0, 1, 0, 0, 0, 0, 2]> ()
    e = Pad <mode = "constant"> (d, p) f = GlobalAveragePool (e) h = Flatten (f) l = HardSwish (h)
    m = Constant <value_ints = [4, 4]> () u = ConstantOfShape <value = float[1] {0.5}> (m)
    y = Gemm <alpha = 0.5, transB = 1> (l, u, g) z = ReduceMean <axes = [2, 3], keepdims = 0> (e) }""",
    """<ir_version: 8, opset_import: ["" : 11]> net (float[1,4,6,6] x) => (float[1,4,12,12] y) {
    t = Transpose <perm = [0, 2, 3, 1]> (x) i = Constant <value = int64[2] {0, 2}> () a = Gather <axis = 3> (t, i)
    k = Constant <value = int64[2] {2, 4}> () w = ConstantOfShape <value = float[1] {0.3}> (k) b = MatMul (a, w)
    c = LeakyRelu <alpha = 0.2> (b) d = Transpose <perm = [0, 3, 1, 2]> (c) e = Unsqueeze <axes = [1]> (d)
    f = Squeeze <axes = [1]> (e) g = Einsum <equation = "bchw,bdhw->bchw"> (f, x) h = Relu (g)
    s = Constant <value = int64[4] {1, 1, 2, 2}> () u = Tile (h, s)
    l = Constant <value = int64[4] {4, 4, 1, 1}> () q = ConstantOfShape <value = float[1] {0.2}> (l)
    n = ConvTranspose <kernel_shape = [1, 1]> (u, q) y = Tanh (n) }""",
]


def onnx_files() -> list[Case]:
    """Small networks; of the first one with its weights in the file, and in another beside it."""
    import onnx

    models = [onnx.parser.parse_model(text) for text in ONNX]
    cases = [{"net.onnx": model.SerializeToString()} for model in models]
    weights = np.random.default_rng(0).standard_normal((6, 3, 3, 3)).astype(np.float32)
    for beside in ({}, {"weights.bin": weights.tobytes()}):
        model = onnx.parser.parse_model(ONNX[0])
        del model.graph.node[:2]
        tensor = onnx.numpy_helper.from_array(weights, "w")
        if beside:
            onnx.external_data_helper.set_external_data(tensor, "weights.bin", 0, weights.nbytes)
            tensor.ClearField("raw_data")
        model.graph.initializer.append(tensor)
        cases.append(beside | {"net.onnx": model.SerializeToString()})
    return cases


def pickles() -> list[Case]:
    """The programs in ``torch_weights``, and one that holds a whole network."""
    out = io.BytesIO()
    torch.save({"model": tiny_network()}, out)
    cases = []
    for content in [case["net.pt"] for case in torch_weights()] + [out.getvalue()]:
        if content[:2] == b"PK":
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                (name,) = (name for name in archive.namelist() if name.endswith("data.pkl"))
                cases.append({"data.pkl": archive.read(name)})
    return cases


def parts() -> list[Case]:
    """Two batches of three images, a float row and one of a method; of detections and of logits."""
    cases = []
    for found in (
        {
            "boxes": torch.rand(3, 4),
            "scores": torch.rand(3),
            "labels": torch.tensor([0, 1, 1]),
            "sizes": torch.tensor([2, 1]),
        },
        {"logits": torch.rand(2, 5)},
    ):
        tensors = {f"{key}/{name}": tensor.clone() for key in ("float/0", "m/4") for name, tensor in found.items()}
        tensors["m/4/costs"] = torch.rand(5, dtype=torch.float64)
        first = safetensors.torch.save(tensors, {"ids": '["1", 2]', "corrupt": "[]"})
        last = safetensors.torch.save({}, {"ids": "[]", "corrupt": '["no image 3"]'})
        cases.append({"00000000.safetensors": first, "00000001.safetensors": last})
    return cases


def run_configuration() -> bytes:
    return (
        b"data: {kind: voc, root: /data/voc, split: test}\nmodel: {name: yolo_demo}\ncalib: {root: /data/some}\n"
        b"methods: [{label: m, method: msat, gamma: 3}]\nsim: {T: 4}\nout: /runs/voc\n"
    )


def run_directory() -> list[Case]:
    """What a finished run leaves and its page is made from."""
    costs = {"spikes_per_neuron": None, "sops_per_mac": 1.0, "energy_ratio": 1.0, "energy_ratio_int8": 3.0}
    row = {"map": 40.0, "map50": 60.0, "spikes_per_neuron": 1.5, "sops_per_mac": 0.5, "energy_ratio": 0.4}
    row |= {"events_per_neuron": 1.2, "energy_ratio_int8": 1.2}
    summary = {"float": {"map": 50.0, "map50": 70.0, **costs}, "images": 2, "seed": 0, "corrupt_images": ["no image 3"]}
    summary |= {"methods": {"m": {"2": row, "4": row}}, "energy": {"source": "a paper"}, "commit": "abc"}
    box = [1.0, 1.0, 5.0, 6.5, "dog", 0.9]
    picture = {"id": "1", "photo": "data:image/jpeg;base64,AAAA", "width": 8, "height": 8, "truth": [[*box[:5], False]]}
    picture |= {"float": [box], "methods": {"m": {"2": [], "4": [box]}}}
    about = {"command": "python x", "evaluated": "a1", "method": "m", "versions": {"torch": "2"}, "images": [picture]}
    node = {"node": "relu", "kind": "spiking", "op": "relu", "source": "a.py:3", "macs": 10, "analog_macs": 0}
    nodes = [node | {"activation": "relu", "theta": {"m": [0.5, 1.0]}, "dead_channels": 1}, node | {"kind": "linear"}]
    entry = {"method": "m", "t": 4, "site": "relu", "effect": 0.1, "total": 0.2, "quantisation": 0.1, "clipping": 0.0}
    advice = {"m": [{"site": "relu", "cause": "clipping", "mend": "factor 2"}]}
    contents = {"summary": summary, "report": about, "coverage": nodes, "ledger": [entry], "doctor": advice}
    files = {f"{name}.json": json.dumps(content).encode() for name, content in contents.items()}
    return [files | {"config.yaml": run_configuration()}]


@cache
def configured() -> Config:
    """``run_configuration`` as it is read."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "asked.yaml")
        file.write_bytes(run_configuration())
        return load_config(["--cfg", str(file)])


def unfinished_run() -> list[Case]:
    """What ``resume.begin`` leaves for ``facts`` and maxima of zeros."""
    facts = {"evaluated images": "a", "weights": "b", "made by": '{"commit": "abc then abd"}'}
    begun = safetensors.torch.save({"maxima": torch.zeros(0)}, facts)
    files = {"config.yaml": configured().to_yaml().encode(), "parts/begun.safetensors": begun}
    return [files | {f"parts/{name}": content for name, content in parts()[0].items()}]


@cache
def network() -> SpikingNetwork:
    return convert(tiny_network(), [torch.rand(2, 3, 8, 8)], "msat", variant="normalised", signed=True, scale="channel")


def saved(write: Callable[[Path], None]) -> list[Case]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kept.msat")
        write(file)
        return [{"kept.msat": file.read_bytes()}]


def networks() -> list[Case]:
    return saved(network().save)


def plans() -> list[Case]:
    return saved(lambda file: save_plan(file, network().neurons, network().graph, method="msat", options={}))


def archives() -> list[Case]:
    """Zip and tar, plain and compressed, of two files and a folder."""
    members = {"x/a.txt": b"one", "x/b/c.txt": b"two" * 400, "y.txt": b"not wanted"}
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    cases = [{"a.bin": zipped.getvalue()}]
    for mode in ("w", "w:gz", "w:bz2", "w:xz"):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode=mode, format=tarfile.PAX_FORMAT) as archive:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size, info.pax_headers = len(content), {"comment": "made here"}
                archive.addfile(info, io.BytesIO(content))
        cases.append({"a.bin": out.getvalue()})
    return cases
