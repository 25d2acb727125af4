#!/usr/bin/env python
"""Train the small networks of the embedded data: python tools/train_demo.py yolo|ssd|cls [--out FILE]

They train on scenes that are drawn for it, none of them in data/, and are tested on data/. The same command writes the
same file on the same kind of machine. Needs the emoji font: apt-get install fonts-noto-color-emoji
"""

import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from msat_det.base.progress import Progress

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from training.losses import Objects, fit, pad_objects, scene_batches, ssd_loss, yolo_loss
from training.scenes import draw_scene, draw_tile

from msat_det.base.config import MOST_THREADS, Model
from msat_det.base.settings import PROJECT
from msat_det.data import VOC_CLASSES, build_dataset
from msat_det.measure.accuracy import evaluate
from msat_det.models import demo
from msat_det.models.classifiers import CLASSIFIERS, Classifier, find_preprocess
from msat_det.models.detector import Detector
from msat_det.models.ssd import SsdDetector
from msat_det.models.yolo import YoloDetector
from msat_det.run.arguments import Parser, whole
from msat_det.run.terminal import once

SCENE_SEED, TILE_SEED = 100, 101  # those of data/ are below 100
SPLITS = {"voc": "test", "coco": "val2017"}
BATCH = {"yolo": 32, "ssd": 32, "cls": 64}


def untrained(name: str) -> Any:
    """The detector or classifier of that name with seeded random weights."""
    torch.manual_seed(0)
    if name == "yolo":
        yolo = demo.YoloDemo(len(VOC_CLASSES))
        return YoloDetector(yolo, VOC_CLASSES, demo.SIZE, demo.YOLO_ANCHORS, demo.YOLO_STRIDES)
    if name == "ssd":
        ssd = demo.SsdDemo(len(VOC_CLASSES))
        return SsdDetector(ssd, VOC_CLASSES, demo.SIZE, demo.ssd_priors(demo.SIZE), nms_iou=0.45)
    network = CLASSIFIERS["vgg_demo"]
    return Classifier(network.build(network.classes), VOC_CLASSES, find_preprocess(Model("vgg_demo")))


def scene(index: int) -> tuple[np.ndarray, ...]:
    """Training scene number ``index``: picture, boxes, labels and what to ignore. Every other one may have a crowd."""
    drawn = draw_scene(SCENE_SEED, index, crowds=bool(index % 2))
    return drawn.image, drawn.boxes, drawn.labels, drawn.difficult | drawn.crowd


def tile(index: int) -> np.ndarray:
    return draw_tile(TILE_SEED, index, index % len(VOC_CLASSES))


def draw(function: Callable[[int], Any], count: int) -> list:
    with ProcessPoolExecutor(2) as pool:
        return list(Progress(pool.map(function, range(count), chunksize=32), desc="drawing", total=count, unit="img"))


def detection_data(detector: Detector, count: int) -> tuple[Tensor, Objects]:
    """Preprocessed scenes (N, 3, h, w), in half precision to save memory, and their objects."""
    images, boxes, labels, ignore = [], [], [], []
    for picture, found, label, skip in draw(scene, count):
        image, geometry = detector.preprocess(torch.from_numpy(picture).permute(2, 0, 1))
        images.append(image.half())
        boxes.append(geometry.to_input(torch.from_numpy(found).float()))
        labels.append(torch.from_numpy(label))
        ignore.append(torch.from_numpy(skip))
    return torch.stack(images), pad_objects(boxes, labels, ignore)


def tile_data(classifier: Classifier, count: int) -> tuple[Tensor, Tensor]:
    """Preprocessed pictures (N, 3, 32, 32) and their classes (N,)."""
    pictures = [torch.from_numpy(picture).permute(2, 0, 1) for picture in draw(tile, count)]
    labels = torch.arange(count) % len(VOC_CLASSES)
    return torch.stack([classifier.preprocess(picture)[0] for picture in pictures]), labels


def tile_batches(images: Tensor, labels: Tensor, batch: int, seed: int, steps: int) -> Any:
    random = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        chosen = torch.randint(len(images), (batch,), generator=random)
        yield images[chosen], labels[chosen]


def score(model: Any, dataset: Any, batch: int = 25) -> dict:
    """The float network's scores on a data set."""
    found: dict[Any, Any] = {}
    with torch.inference_mode():
        for first in range(0, len(dataset), batch):
            samples = [dataset[i] for i in range(first, min(first + batch, len(dataset)))]
            inputs, metas = zip(*(model.preprocess(sample.image) for sample in samples), strict=True)
            outputs = model.decode(model.net(torch.stack(inputs)), list(metas))
            found |= {sample.id: output for sample, output in zip(samples, outputs, strict=True)}
    return evaluate(dataset, found, model.classes)


def train(name: str, count: int, steps: int) -> Any:
    """Draw ``count`` pictures and train on them; the trained detector or classifier."""
    model = untrained(name)
    if name == "cls":
        batches = tile_batches(*tile_data(model, count), BATCH[name], seed=1, steps=steps)
        fit(model.net, batches, partial(cross_entropy, label_smoothing=0.05), steps, rate=3e-3)
    else:
        loss = partial(yolo_loss if name == "yolo" else ssd_loss, model)
        batches = scene_batches(*detection_data(model, count), BATCH[name], seed=1, steps=steps)
        fit(model.net, batches, loss, steps, rate=3e-3)
    return model


@once
def main(argv: list[str]) -> None:
    parser = Parser(description="Train one of the embedded data's small networks.")
    parser.add_argument("name", choices=BATCH)
    parser.add_argument("--out", type=Path, help="default: data/weights/<yolo_demo|ssd_demo|vgg_demo>.safetensors")
    numbers = {
        "pictures": (4000, 2**31 - 1, "pictures drawn to train on"),
        "steps": (1500, 2**31 - 1, "training steps"),
        "threads": (1, MOST_THREADS, "more are faster, with other last bits"),
    }
    for name, (number, most, text) in numbers.items():
        about = f"{text} (default: {number})"
        parser.add_argument(f"--{name}", type=whole(1, most), default=number, metavar="N", help=about)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    default = {"yolo": "yolo_demo", "ssd": "ssd_demo", "cls": "vgg_demo"}[options.name]
    out = options.out or PROJECT / "data" / "weights" / f"{default}.safetensors"
    model = train(options.name, options.pictures, options.steps)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(model.net.state_dict(), out)
    print(f"{out}: {out.stat().st_size / 1e6:.2f} MB")
    if options.name == "cls":
        tests = {"cls": build_dataset("folders", PROJECT / "data" / "cls", "test")}
    else:
        tests = {kind: build_dataset(kind, PROJECT / "data" / kind, split) for kind, split in SPLITS.items()}
    for kind, dataset in tests.items():
        scores = {key: value for key, value in score(model, dataset).items() if isinstance(value, float)}
        print(f"float on data/{kind}: " + ", ".join(f"{key} {value:.1f}" for key, value in scores.items()))


if __name__ == "__main__":
    sys.exit(main())
