"""What ``msat-det fetch`` can get by name, as data, and which command gets what a run misses."""

import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

DEFAULT_ROOT = "~/data"  # where the configurations of public data look, too


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
    """A name of the catalogue: what it is, and what it consists of."""

    about: str
    items: tuple[Item, ...]


# MD5 sums are the publishers', from torchvision/datasets/voc.py and cifar.py; sizes and COCO's SHA-256 sums are from
# TensorFlow Datasets (url_checksums/voc.txt and coco2017.txt). COCO publishes none, and nobody any of single images.
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
# fmt: off
CALIBRATION_IDS = (  # the first 64 of train2017, those of $MSAT_SHARED_DATA/coco_calib64
    9, 25, 30, 34, 36, 42, 49, 61, 64, 71, 72, 73, 74, 77, 78, 81, 86, 89, 92, 94, 109, 110, 113, 127, 133, 136, 138,
    142, 143, 144, 149, 151, 154, 164, 165, 192, 194, 196, 201, 208, 241, 247, 250, 257, 260, 263, 283, 294, 307, 308,
    309, 312, 315, 321, 322, 326, 328, 332, 338, 349, 357, 359, 360, 368,
)
# fmt: on
COCO_CALIB64 = Item(
    "coco_calib64",
    tuple(Source(f"{COCO}/train2017/{id:012}.jpg", 1_000_000) for id in CALIBRATION_IDS),
    least=len(CALIBRATION_IDS),
)
CIFAR100 = Source(
    "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz", 169_001_437, "md5:eb9058c3a382ffc7106e4002c42a8d85"
)


COCO_NAMES = re.compile(r"(train|val|test|unlabeled)20\d\d|[a-z_]+_[a-z-]+20\d\d\.json")  # images', annotations'


def _weights(repository: str, path: str, size: int, sha256: str) -> Item:
    """A file of a GitHub repository of dog-qiuqiu's, at one commit.

    No sums are published with them: the SHA-256 are of the copies with which the figures of configs/real were measured.
    """
    source = Source(f"https://raw.githubusercontent.com/dog-qiuqiu/{repository}/{path}", size, f"sha256:{sha256}")
    return Item(f"weights/{source.name}", (source,))


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

# Files in a complete folder: an image and an annotation each for VOC, which has other files besides.
CATALOGUE = {
    "voc2007": Entry(
        "PASCAL VOC 2007, trainval and test",
        (Item("VOCdevkit/VOC2007", (VOC2007_TRAINVAL, VOC2007_TEST), unpacked=600_000_000, least=2 * 9_963),),
    ),
    "voc2012": Entry(
        "PASCAL VOC 2012, trainval",
        (Item("VOCdevkit/VOC2012", (VOC2012_TRAINVAL,), unpacked=2_500_000_000, least=2 * 17_125),),
    ),
    "coco2017": Entry(
        "COCO val2017 with its boxes, and 64 training images to calibrate with",
        (
            Item("annotations/instances_val2017.json", (COCO_ANNOTATIONS,), unpacked=1_500_000_000),
            Item("val2017", (COCO_VAL,), unpacked=1_000_000_000, least=5_000),
            COCO_CALIB64,
        ),
    ),
    "coco_calib64": Entry("those 64 training images alone", (COCO_CALIB64,)),
    "cifar100": Entry(
        "CIFAR-100 as its authors publish it", (Item("cifar-100-python", (CIFAR100,), unpacked=300_000_000, least=3),)
    ),
    "yolo-nano-voc": Entry("MobileNetV2-YOLOv3-Nano for VOC's classes, Darknet", NANO_VOC),
    "yolo-nano-coco": Entry("MobileNetV2-YOLOv3-Nano for COCO's classes, Darknet", NANO_COCO),
    "yolo-fastest": Entry("YOLO-Fastest 1.1 for COCO's classes, Darknet", FASTEST),
}


def data_command(kind: str, root: Path, split: str, year: str) -> str:
    """The command that puts a dataset of a registered kind below ``root``; "" where none does, all is there, or the
    folder is somebody's own, because it holds other things."""
    if kind == "images" and root.name == COCO_CALIB64.path:
        return fetch_command("coco_calib64", root.parent)
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
    for name, entry in CATALOGUE.items():
        if any(Path(item.path).parts == path.parts[-2:] for item in entry.items):
            return f"get it with: {fetch_command(name, path.parents[1])}"
    return ""


def fetch_command(name: str, root: Path | str) -> str:
    """The command that puts a name below ``root``, as a shell takes it."""
    return f"msat-det fetch {name} --root {shlex.quote(str(root))}"
