"""What ``msat-det fetch`` can get by name, as data, and which command gets what a run misses."""

import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Source:
    """A file on a server.

    size: its bytes, or a bound on them. checksum: ``md5:…`` or ``sha256:…``, of which the first digits may do; "" where
    none is known: then the first copy is trusted and its SHA-256 kept for all later ones.
    """

    url: str
    size: int
    checksum: str = ""

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class Item:
    """A file or folder below the root that is either there as a whole or not at all.

    path: where it goes below the root. sources: the file itself, the files of the folder, or, with ``unpacked``, the
    archives that hold ``path``. unpacked: bound on the bytes in one archive. least: files in a complete folder.
    """

    path: str
    sources: tuple[Source, ...]
    unpacked: int = 0
    least: int = 1


@dataclass(frozen=True)
class Entry:
    """A name of the catalogue: what it is, what it consists of, and what its publishers say of its use."""

    about: str
    items: tuple[Item, ...]
    licence: str = ""


GITHUB = "https://raw.githubusercontent.com"


def _file(path: str, url: str, size: int, sha256: str) -> Item:
    return Item(path, (Source(url, size, f"sha256:{sha256}"),))


# MD5 sums are the publishers', from torchvision/datasets/voc.py and cifar.py; sizes and COCO's SHA-256 sums are from
# TensorFlow Datasets (url_checksums/voc.txt and coco2017.txt). COCO publishes none: those of single images are of the
# copies with which the figures of configs/real were measured, two of them from different places and alike.
VOC = "https://thor.robots.ox.ac.uk/pascal/VOC"
VOC2007_TRAINVAL = Source(
    f"{VOC}/voc2007/VOCtrainval_06-Nov-2007.tar", 460_032_000, "md5:c52e279531787c972589f7e41ab4ae64"
)
VOC2007_TEST = Source(f"{VOC}/voc2007/VOCtest_06-Nov-2007.tar", 451_020_800, "md5:b6e924de25625d8de591ea690078ad9f")
VOC2012_TRAINVAL = Source(
    f"{VOC}/voc2012/VOCtrainval_11-May-2012.tar", 1_999_639_040, "md5:6cd6e144f989b92b3379bac3b3de84fd"
)
COCO = "https://s3.amazonaws.com/images.cocodataset.org"  # images.cocodataset.org by its bucket's name, for TLS
COCO_ANNOTATIONS = Source(
    f"{COCO}/annotations/annotations_trainval2017.zip",
    252_907_541,
    "sha256:113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
)
COCO_VAL = Source(
    f"{COCO}/zips/val2017.zip",
    815_585_330,
    "sha256:4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
)
SUMS = Path(__file__).with_name("coco128.sha256").read_text("utf-8").split()  # digits, name, digits, name …
COCO128 = tuple(  # the first 128 of train2017
    Source(f"{COCO}/train2017/{name}", 1_000_000, f"sha256:{digits}")
    for digits, name in zip(SUMS[::2], SUMS[1::2], strict=True)
)
COCO_CALIB64 = Item("coco_calib64", COCO128[:64], least=64)
COCO_VAL128 = (
    _file(
        "coco_val128/annotations/instances_val2017.json",
        f"{GITHUB}/developer0hye/COCO128/47a3de30aaf7ad1c02105bd80598fb03ac0d0789/annotations/instances_train2017.json",
        560_697,
        "b50631f1014dd6799df6b946be53e6f23693364a9a7690bdd2a6e754439f0ca0",
    ),
    Item("coco_val128/val2017", COCO128, least=128),
)
CIFAR100 = Source(
    "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz", 169_001_437, "md5:eb9058c3a382ffc7106e4002c42a8d85"
)


COCO_NAMES = re.compile(r"(train|val|test|unlabeled)20\d\d|[a-z_]+_[a-z-]+20\d\d\.json")  # images', annotations'


def _weights(repository: str, path: str, size: int, sha256: str) -> Item:
    """A file of a GitHub repository of dog-qiuqiu's, at one commit.

    No sums are published with them: the SHA-256 are of the copies with which the figures of configs/real were measured.
    """
    return _file(f"weights/{Path(path).name}", f"{GITHUB}/dog-qiuqiu/{repository}/{path}", size, sha256)


NANO_VOC = (
    _weights(
        "MobileNet-Yolo/355cc0a0d81efa52211d55cfff94e524db8f7af1",
        "MobileNetV2-YOLOv3-Nano/VOC/MobileNetV2-YOLOv3-Nano-voc.cfg",
        7_009,
        "671b726a719f21cb72d80326195be8ab6862361479ee5d1d4528ed68ae9d6a6b",
    ),
    _weights(
        "MobileNet-Yolo/8ac35ef7c8bd64a15a4a7dc0a665533d33dd9423",
        "darknet2caffe/MobileNetV2-YOLOv3-Nano-voc.weights",
        3_079_020,
        "3dc752a0dee830fb974bfd518d88df924d1eef03868e551786d606cd0f81c210",
    ),
)
NANO_COCO = (
    _weights(
        "MobileNet-Yolo/615ed68cbb5104bf6c9545c5bfdb117d5ddcabfa",
        "MobileNetV2-YOLOv3-Nano/COCO/MobileNetV2-YOLOv3-Nano-coco.cfg",
        7_000,
        "f9c93b9167275c94975984c8b1d8adbff990f2e3a983adc79d02e748d6ed763b",
    ),
    _weights(
        "MobileNet-Yolo/72593c3b231d6e1bc188cef31ce1d47b70d69d52",
        "MobileNetV2-YOLOv3-Nano/COCO/MobileNetV2-YOLOv3-Nano-coco.weights",
        3_564_300,
        "60a6c2a86735fd39ff54d61f9a16f3ac3fe24a8b2e0d7740585bf2b54a5db81a",
    ),
)
FASTEST = (
    _weights(
        "Yolo-Fastest/99d03d0f26e2555275bdb30f43479d47cc19311f",
        "ModelZoo/yolo-fastest-1.1_coco/yolo-fastest-1.1.cfg",
        9_685,
        "f6df5775c1e862998cf69046eba9265be3ae84dfe8b2caab7529823f0795bf70",
    ),
    _weights(
        "Yolo-Fastest/99d03d0f26e2555275bdb30f43479d47cc19311f",
        "ModelZoo/yolo-fastest-1.1_coco/yolo-fastest-1.1.weights",
        1_384_268,
        "1c445c42bbd6df63edea2cc69f99667b5650d663ca11e34b116240740cd42890",
    ),
)

RESNET20 = _file(
    "weights/cifar100_resnet20-23dac2f1.pt",  # as torch.hub names files: the name ends in the SHA-256's first digits
    "https://github.com/chenyaofo/pytorch-cifar-models/releases/download/resnet/cifar100_resnet20-23dac2f1.pt",
    3_000_000,
    "23dac2f1",
)
YOLOX = _file(
    "weights/yolox_nano.onnx",
    f"{GITHUB}/Kazuhito00/YOLOX-ONNX-TFLite-Sample/ac07155e3ac8a531d89d24204e50f364d3444275/model/yolox_nano.onnx",
    3_660_092,
    "695e750a5d5754bb5a8d5325643b59282191a7e7a564e435a415fd3c578eab14",
)
PICODET = _file(
    "weights/picodet_s_320_coco.onnx",
    f"{GITHUB}/hpc203/picodet-onnxruntime/6bd166c3944bf8b3a0c41951344ecb5101af756a/coco/picodet_s_320_coco.onnx",
    4_040_569,
    "d7852a1508b36bfc2739770ad52ff28bf81e219dc5c15dd7868d5ebdf007b6c8",
)
FASTESTDET = _file(
    "weights/FastestDet.pth",
    f"{GITHUB}/dog-qiuqiu/FastestDet/97df0a850c4949dcd7d9abf9c539679eee6b6a90"
    "/weights/weight_AP05%3A0.253207_280-epoch.pth",
    1_157_945,
    "7f688d478ee474c82dbdb9c10e0ede2f8f3cf5d603f0825d2efd925eb561d05e",
)
YOLOV8N = _file(
    "weights/yolov8n.pt",
    "https://github.com/ultralytics/assets/releases/download/v8.3.0/yolov8n.pt",
    6_549_796,
    "f59b3d833e2ff32e194b5bb8e08d211dc7c5bdf144b90d2c8412c47ccfc83b36",
)
COCO_TERMS = "annotations CC BY 4.0, images by Flickr's terms"
UNSTATED = "no licence stated"

# Files in a complete folder: an image and an annotation each for VOC, which has other files besides.
CATALOGUE = {
    "voc2007": Entry(
        "PASCAL VOC 2007, trainval and test",
        (Item("VOCdevkit/VOC2007", (VOC2007_TRAINVAL, VOC2007_TEST), unpacked=600_000_000, least=2 * 9_963),),
        "images by Flickr's terms",
    ),
    "voc2012": Entry(
        "PASCAL VOC 2012, trainval",
        (Item("VOCdevkit/VOC2012", (VOC2012_TRAINVAL,), unpacked=2_500_000_000, least=2 * 17_125),),
        "images by Flickr's terms",
    ),
    "coco2017": Entry(
        "COCO val2017 with its boxes, and 64 training images to calibrate with",
        (
            Item("annotations/instances_val2017.json", (COCO_ANNOTATIONS,), unpacked=1_500_000_000),
            Item("val2017", (COCO_VAL,), unpacked=1_000_000_000, least=5_000),
            COCO_CALIB64,
        ),
        COCO_TERMS,
    ),
    "coco_calib64": Entry("those 64 training images alone", (COCO_CALIB64,), COCO_TERMS),
    "coco_val128": Entry("128 COCO images with their boxes, those 64 among them", COCO_VAL128, COCO_TERMS),
    "cifar100": Entry(
        "CIFAR-100 as its authors publish it",
        (Item("cifar-100-python", (CIFAR100,), unpacked=300_000_000, least=3),),
        UNSTATED,
    ),
    "resnet20-cifar100": Entry("CIFAR ResNet-20 for CIFAR-100", (RESNET20,), "BSD-3-Clause"),
    "yolo-nano-voc": Entry("MobileNetV2-YOLOv3-Nano for VOC's classes, Darknet", NANO_VOC, UNSTATED),
    "yolo-nano-coco": Entry("MobileNetV2-YOLOv3-Nano for COCO's classes, Darknet", NANO_COCO, UNSTATED),
    "yolo-fastest": Entry("YOLO-Fastest 1.1 for COCO's classes, Darknet", FASTEST, UNSTATED),
    "yolox-nano": Entry("YOLOX-Nano for COCO's classes, ONNX", (YOLOX,), "Apache-2.0"),
    "picodet-s": Entry("PicoDet-S 320 for COCO's classes, ONNX", (PICODET,), "Apache-2.0"),
    "fastestdet": Entry("FastestDet for COCO's classes, PyTorch", (FASTESTDET,), "BSD-3-Clause"),
    "yolov8n": Entry("Ultralytics' YOLOv8n for COCO's classes, PyTorch", (YOLOV8N,), "AGPL-3.0"),
}


@dataclass(frozen=True)
class Unpublished:
    """What configurations name and nobody publishes as it is.

    page, licence: of what it was made from. name: what to fetch in its place. words: what then to add to a run; ROOT
    stands for the folder that it would be in.
    """

    page: str
    licence: str
    name: str
    words: str


INSTEAD = {  # by its last two names
    "cifar100_subset": Unpublished(
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        UNSTATED,
        "cifar100",
        "--data.kind cifar100 --calib.kind cifar100 --data.root ROOT",
    ),
    "imagenet_subset": Unpublished(
        "https://github.com/EliSchwartz/imagenet-sample-images",
        "ImageNet's terms: non-commercial research",
        "imagenet",
        "--data.kind imagenet --calib.kind imagenet --data.root ROOT",
    ),
    "voc_classes_of_coco": Unpublished(
        "https://github.com/developer0hye/COCO128", COCO_TERMS, "voc2007", "--data.root ROOT"
    ),
    "weights/cifar100_resnet20.safetensors": Unpublished(
        "https://github.com/chenyaofo/pytorch-cifar-models",
        "BSD-3-Clause",
        "resnet20-cifar100",
        "--model.weights ROOT/weights/cifar100_resnet20-23dac2f1.pt",
    ),
    "weights/squeezenet1_0_deep_compression.safetensors": Unpublished(
        "https://github.com/songhan/SqueezeNet-Deep-Compression",
        "BSD",
        "torchvision:squeezenet1_0",
        "--model.weights DEFAULT --model.preprocess imagenet",
    ),
    "weights/yolov8n_fused_fp16.safetensors": Unpublished(
        "https://github.com/Lamri-Meriem/edge-object-detection",
        "AGPL-3.0",
        "yolov8n",
        "--model.weights ROOT/weights/yolov8n.pt --model.trust true",
    ),
    "weights/ssd_mobilenet_v1_075_coco.safetensors": Unpublished(
        "https://github.com/Nazmul1607081/tensorflow-light-android-app",
        "TensorFlow's model zoo, Apache-2.0",
        "torchvision:ssdlite320_mobilenet_v3_large",
        "--model.name ssdlite320_mobilenet_v3_large --model.weights DEFAULT",
    ),
}


def data_command(kind: str, root: Path, split: str, year: str) -> str:
    """The command that puts a dataset of a registered kind below ``root``; "" where none does, all is there, or the
    folder is somebody's own, because it holds other things."""
    if kind == "images" and root.name == COCO_CALIB64.path:
        return fetch_command("coco_calib64", root.parent)
    if kind == "coco" and root.name == "coco_val128":
        return fetch_command("coco_val128", root.parent)
    if root.name in INSTEAD:
        return instead(root.name, root.parent)
    if kind == "imagenet":  # it fetches nothing
        return fetch_command("imagenet", root)
    if not _holds_only_ours(root):
        return ""
    if kind == "coco" and split == "train2017":  # 19 GB for the few images that calibration looks at
        folder = shlex.quote(str(root / COCO_CALIB64.path))
        command = fetch_command("coco_calib64", root)
        return f"{command}, then add --calib.kind images --calib.split null --calib.root {folder}"
    name = {"voc": f"voc{year or 2007}", "coco": "coco2017" if split in ("", "val2017") else ""}.get(kind, kind)
    if name in CATALOGUE and not all(map(os.path.exists, (root / item.path for item in CATALOGUE[name].items))):
        return fetch_command(name, root)
    return ""


def _holds_only_ours(root: Path) -> bool:
    """Whether nothing is below ``root``, or nothing but what fetch puts there and COCO's other files and folders."""
    ours = {Path(item.path).parts[0] for entry in CATALOGUE.values() for item in entry.items}
    others = [name for name in _listed(root) if name not in ours and not name.endswith(".sha256")]
    return all(COCO_NAMES.fullmatch(name) for name in [*others, *_listed(root / "annotations")])


def _listed(folder: Path) -> list[str]:
    """What a folder holds that is not hidden; nothing where there is none."""
    try:
        return [name for name in os.listdir(folder) if name[0] != "."]  # noqa: PTH208 (no more than the names)
    except OSError:
        return []


def get_with(path: Path) -> str:
    """What to say of a missing file at ``path``: which command puts it there; "" where none does."""
    place = "/".join(path.parts[-2:])
    for name, entry in CATALOGUE.items():
        if any(item.path == place for item in entry.items):
            return f"get it with: {fetch_command(name, path.parents[1])}"
    return f"it can't be fetched: run {instead(place, path.parents[1])}" if place in INSTEAD else ""


def instead(place: str, root: Path) -> str:
    """The command that gets what comes nearest to a place of INSTEAD, what then to add, and where its own is from."""
    other = INSTEAD[place]
    words = other.words.replace("ROOT", shlex.quote(str(root)))
    made = f"{place.rpartition('/')[2]} was made from {other.page}, {other.licence}"
    return f"{fetch_command(other.name, root)}, then add {words} ({made})"


def fetch_command(name: str, root: Path | str) -> str:
    """The command that puts a name below ``root``, as a shell takes it."""
    return f"msat-det fetch {name} --root {shlex.quote(str(root))}"
