"""What is not simulation: reading boxes at a noisy early t, and scoring the boxes of many images."""

import importlib.util
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from benchmarks.networks import NEURONS, load
from benchmarks.timing import median_seconds
from msat_det.measure.accuracy import CocoEvaluator
from msat_det.methods.convert import spiking_network
from msat_det.models.detector import Detections

DETECTORS = ("ssd-mobilenet", "yolo-nano")
BATCH = 8
CLASSES = 80


def decode_rows(networks: list[str]) -> Iterator[dict]:
    """For the detectors with trained weights: decoding the outputs after one timestep over simulating that timestep.

    At t = 1 the scores are at their noisiest and the simulation at its shortest.
    """
    for network in [name for name in DETECTORS if name in networks]:
        bench = load(network)
        if bench.model is None:
            continue
        x = bench.images[:BATCH]
        _, meta = bench.model.preprocess(torch.zeros(3, 480, 640, dtype=torch.uint8))
        for neuron, (method, options) in NEURONS.items():
            snn = spiking_network(method, options, bench.observation, 1)
            outputs = snn.run(x, 1)[1]
            simulate = median_seconds(partial(snn.run, x, 1), 5)
            with torch.inference_mode():
                decode = median_seconds(partial(bench.model.decode, outputs, [meta] * BATCH), 5)
                boxes = sum(len(one.scores) for one in bench.model.decode(outputs, [meta] * BATCH))
            yield {
                "network": network,
                "neuron": neuron,
                "batch": BATCH,
                "t": 1,
                "boxes": boxes,
                "simulate_ms": simulate * 1e3,
                "decode_ms": decode * 1e3,
                "decode_over_simulation": decode / simulate,
            }


def scoring_rows(images: int = 5000, objects: int = 7, boxes: int = 100) -> Iterator[dict]:
    """Seconds that COCO's mAP of one (method, t) takes on as many drawn images as val2017 has, by evaluator."""
    dataset, found = drawn(images, objects, boxes)
    for engine in ("pycocotools", "hotcoco"):
        if importlib.util.find_spec(engine):
            evaluator = CocoEvaluator(dataset, dataset.classes, engine)
            seconds = median_seconds(partial(evaluator, found), 3)
            yield {"evaluator": engine, "images": images, "boxes": images * boxes, "seconds": seconds}


def drawn(images: int, objects: int, boxes: int) -> tuple[Any, dict[int, Detections]]:
    """Annotations like COCO's, and on every image each object found again and again, somewhat beside its place."""
    rng = np.random.default_rng(0)
    annotations, found = {}, {}
    for id in range(images):
        corner, size = rng.uniform(0, 400, (objects, 2)), rng.uniform(20, 200, (objects, 2))
        label = rng.integers(0, CLASSES, objects)
        entries = zip(label, np.hstack([corner, size]).tolist(), size.prod(1).tolist(), strict=True)
        annotations[id] = [
            {"category_id": int(which) + 1, "bbox": box, "area": area, "iscrowd": 0} for which, box, area in entries
        ]
        which = rng.integers(0, objects, boxes)
        place = np.hstack([corner, corner + size])[which] + rng.normal(0, 15, (boxes, 4))
        place[:, 2:] = np.maximum(place[:, 2:], place[:, :2] + 1)
        scores = np.sort(rng.uniform(size=boxes))[::-1].copy()
        found[id] = Detections(torch.tensor(place), torch.tensor(scores), torch.tensor(label[which]))
    names = [str(number) for number in range(CLASSES)]
    ids = list(range(1, CLASSES + 1))
    return SimpleNamespace(ids=list(annotations), classes=names, category_ids=ids, annotations=annotations), found
