"""Fixtures that many tests share: the real data beside the repository, and tiny VOC and COCO roots."""

import json
import os
from pathlib import Path

import pytest
import torch
from support.roots import SCENES, voc_xml, write_image

from msat_det.base.settings import PROJECT

SHARED = Path(os.environ.get("MSAT_SHARED_DATA") or PROJECT.parent / "shared" / "data")
if SHARED.is_dir():
    os.environ.setdefault("MSAT_DET_DATA", str(SHARED))  # it has the layout of what ``msat-det fetch`` brings

torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported: its kernels run on the CPU then


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data and weights (SOURCES.md); where absent: skip, or fail if MSAT_REQUIRE_SHARED is set."""
    if not SHARED.is_dir():
        give_up = pytest.fail if os.environ.get("MSAT_REQUIRE_SHARED") else pytest.skip
        give_up(f"no shared data at {SHARED} (set MSAT_SHARED_DATA)")
    return SHARED


@pytest.fixture
def voc_root(tmp_path: Path) -> Path:
    """SCENES as a VOC root (year 2007, split test)."""
    home = tmp_path / "voc" / "VOCdevkit" / "VOC2007"
    for folder in ("Annotations", "ImageSets/Main"):
        (home / folder).mkdir(parents=True)
    (home / "ImageSets/Main/test.txt").write_text("".join(f"{stem}\n" for stem in SCENES))
    for seed, (stem, objects) in enumerate(SCENES.items()):
        (home / f"Annotations/{stem}.xml").write_text(voc_xml(objects))
        write_image(home / f"JPEGImages/{stem}.jpg", seed)
    return tmp_path / "voc"


@pytest.fixture
def yolo_root(tmp_path: Path) -> Path:
    """SCENES as a YOLO root (split val), without ignored objects, which its format does not have."""
    names, root = ["person", "dog", "tv"], tmp_path / "yolo"
    index = {"person": 0, "dog": 1, "tvmonitor": 2}
    (root / "labels/val").mkdir(parents=True)
    for seed, (stem, objects) in enumerate(SCENES.items()):
        write_image(root / f"images/val/{stem}.jpg", seed)
        lines = [
            f"{index[name]} {(x1 - 1 + x2) / 128} {(y1 - 1 + y2) / 96} {(x2 - x1 + 1) / 64} {(y2 - y1 + 1) / 48}\n"
            for name, x1, y1, x2, y2, ignore in objects
            if not ignore
        ]
        if lines:
            (root / f"labels/val/{stem}.txt").write_text("".join(lines))
    (root / "data.yaml").write_text(f"path: .\ntrain: images/train\nval: images/val\nnames: {names}\n")
    return root


@pytest.fixture
def coco_root(tmp_path: Path) -> Path:
    """SCENES as a COCO root (split val2017): COCO's names, ids that are not 1, 2, 3, ignored objects as crowd."""
    categories = [{"id": 72, "name": "tv"}, {"id": 18, "name": "dog"}, {"id": 1, "name": "person"}]
    ids = {"tvmonitor": 72, "dog": 18, "person": 1}
    images, annotations = [], []
    for seed, (stem, objects) in enumerate(SCENES.items()):
        image = int(stem) * 10
        write_image(tmp_path / f"coco/val2017/{stem}.jpg", seed)
        images.append({"id": image, "file_name": f"{stem}.jpg", "width": 64, "height": 48})
        for name, x1, y1, x2, y2, ignore in objects:
            w, h = x2 - x1 + 1, y2 - y1 + 1
            entry = {"id": len(annotations) + 1, "image_id": image, "category_id": ids[name], "iscrowd": int(ignore)}
            annotations.append(entry | {"bbox": [x1 - 1, y1 - 1, w, h], "area": w * h * 0.8})
    path = tmp_path / "coco/annotations/instances_val2017.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return tmp_path / "coco"
