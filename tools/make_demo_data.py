#!/usr/bin/env python
"""Draw the embedded data sets of data/: python tools/make_demo_data.py [--out data]

The files come out the same to the byte wherever the font, Pillow and NumPy are the same. Needs the emoji font:
apt-get install fonts-noto-color-emoji
"""

import json
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from msat_det.base.progress import Progress

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from training.scenes import CLASSES, Scene, draw_scene, draw_tile

from msat_det.base.settings import PROJECT
from msat_det.run.arguments import Parser
from msat_det.run.terminal import once

VOC_SPLITS = {"trainval": 48, "test": 100}  # split → scenes; trainval is there to calibrate on
COCO_SPLITS = {"train2017": 48, "val2017": 100}
TILE_SPLITS = {"train": 8, "test": 15}  # split → pictures a class
VOC_SEED, COCO_SEED, TILE_SEED = 1, 2, 3  # training draws from seeds ≥ 100: no scene is in two splits

COCO_CATEGORIES = {  # VOC's name: COCO's id, name and supercategory
    "person": (1, "person", "person"),
    "bicycle": (2, "bicycle", "vehicle"),
    "car": (3, "car", "vehicle"),
    "motorbike": (4, "motorcycle", "vehicle"),
    "aeroplane": (5, "airplane", "vehicle"),
    "bus": (6, "bus", "vehicle"),
    "train": (7, "train", "vehicle"),
    "boat": (9, "boat", "vehicle"),
    "bird": (16, "bird", "animal"),
    "cat": (17, "cat", "animal"),
    "dog": (18, "dog", "animal"),
    "horse": (19, "horse", "animal"),
    "sheep": (20, "sheep", "animal"),
    "cow": (21, "cow", "animal"),
    "bottle": (44, "bottle", "kitchen"),
    "chair": (62, "chair", "furniture"),
    "sofa": (63, "couch", "furniture"),
    "pottedplant": (64, "potted plant", "furniture"),
    "diningtable": (67, "dining table", "furniture"),
    "tvmonitor": (72, "tv", "electronic"),
}


def save_picture(path: Path, image: np.ndarray, quality: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, quality=quality, optimize=True)


def make_voc(root: Path, splits: dict[str, int] = VOC_SPLITS) -> None:
    """Write root/VOCdevkit/VOC2007 with VOC's annotation files: one picture number runs through the splits."""
    base = root / "VOCdevkit" / "VOC2007"
    number = 0
    for folder in ("Annotations", "ImageSets/Main"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    for split, count in splits.items():
        names = []
        for _ in Progress(range(count), desc=f"voc {split}", unit="img"):
            number += 1
            scene = draw_scene(VOC_SEED, number)
            names.append(f"{number:06d}")
            save_picture(base / "JPEGImages" / f"{names[-1]}.jpg", scene.image, quality=90)
            tree = voc_annotation(scene, f"{names[-1]}.jpg")
            ET.indent(tree)
            (base / "Annotations" / f"{names[-1]}.xml").write_text(
                ET.tostring(tree, encoding="unicode") + "\n", "utf-8"
            )
        (base / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names) + "\n", "utf-8")


def voc_annotation(scene: Scene, file_name: str) -> ET.Element:
    """One picture's annotation; VOC counts pixels from 1 and includes the last one."""
    root = ET.Element("annotation")
    height, width, depth = scene.image.shape
    _fill(root, {"folder": "VOC2007", "filename": file_name, "source": {"database": "msat-det drawn scenes"}})
    _fill(root, {"size": {"width": width, "height": height, "depth": depth}, "segmented": 0})
    for i, (x1, y1, x2, y2) in enumerate(scene.boxes.tolist()):
        flags = {"pose": "Unspecified", "truncated": int(scene.truncated[i]), "difficult": int(scene.difficult[i])}
        box = {"xmin": x1 + 1, "ymin": y1 + 1, "xmax": x2, "ymax": y2}
        _fill(root, {"object": {"name": CLASSES[scene.labels[i]], **flags, "bndbox": box}})
    return root


def _fill(parent: ET.Element, content: dict) -> None:
    for key, value in content.items():
        child = ET.SubElement(parent, key)
        if isinstance(value, dict):
            _fill(child, value)
        else:
            child.text = str(value)


def make_coco(root: Path, splits: dict[str, int] = COCO_SPLITS) -> None:
    """Write root/annotations/instances_<split>.json and root/<split>/, with COCO's own category ids."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    categories = [{"id": i, "name": name, "supercategory": kind} for i, name, kind in COCO_CATEGORIES.values()]
    number = 0
    for split, count in splits.items():
        images: list[dict] = []
        annotations: list[dict] = []
        for _ in Progress(range(count), desc=f"coco {split}", unit="img"):
            number += 1
            scene = draw_scene(COCO_SEED, number, crowds=True)
            name = f"{number:012d}.jpg"
            save_picture(root / split / name, scene.image, quality=90)
            height, width = scene.image.shape[:2]
            images.append({"id": number, "file_name": name, "width": width, "height": height})
            for entry in coco_annotations(scene):
                annotations.append({"id": len(annotations) + 1, "image_id": number, **entry})
        info = {"description": "msat-det drawn scenes, COCO layout", "version": "1.0"}
        content = {"info": info, "images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{split}.json").write_text(
            json.dumps(content, separators=(",", ":")) + "\n", "utf-8"
        )


def coco_annotations(scene: Scene) -> list[dict]:
    """One picture's objects; as in COCO, outlines are polygons, and a crowd's are uncompressed run lengths."""
    entries = []
    for box, label, crowd, mask in zip(scene.boxes.tolist(), scene.labels, scene.crowd, scene.masks, strict=True):
        x1, y1, x2, y2 = box
        entries.append(
            {
                "category_id": COCO_CATEGORIES[CLASSES[label]][0],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": int(mask.sum()),
                "iscrowd": int(crowd),
                "segmentation": {"counts": run_lengths(mask), "size": list(mask.shape)} if crowd else polygons(mask),
            }
        )
    return entries


def run_lengths(mask: np.ndarray) -> list[int]:
    """The lengths of the alternating runs of 0 and 1, column after column; the first run is of zeros."""
    flat = np.concatenate([[False], mask.T.ravel()])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff(np.concatenate([[0], changes, [mask.size]])).tolist()


def polygons(mask: np.ndarray) -> list[list[int]]:
    """The outer outlines [x, y, x, y, …] of the mask's connected parts, true to a pixel."""
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    largest_first = sorted(outlines, key=len, reverse=True)
    simple = [cv2.approxPolyDP(outline, 0.8, True).astype(int).ravel().tolist() for outline in largest_first]
    return [outline for outline in simple if len(outline) >= 6]


def make_tiles(root: Path, splits: dict[str, int] = TILE_SPLITS) -> None:
    """Write root/<split>/<class>/<number>.jpg, 32x32: the classification set."""
    number = 0
    for split, count in splits.items():
        for label, name in enumerate(Progress(CLASSES, desc=f"cls {split}", unit="class")):
            for _ in range(count):
                number += 1
                path = root / split / name / f"{number:05d}.jpg"
                save_picture(path, draw_tile(TILE_SEED, number, label), quality=88)


@once
def main(argv: list[str]) -> None:
    parser = Parser(description="Draw the embedded data sets.")
    parser.add_argument("--out", type=Path, default=PROJECT / "data", metavar="DIR", help="default: %(default)s")
    out = parser.parse_args(argv).out
    make_voc(out / "voc")
    make_coco(out / "coco")
    make_tiles(out / "cls")


if __name__ == "__main__":
    sys.exit(main())
