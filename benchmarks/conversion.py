"""What it costs to convert a detector: time over float forward passes, and the most memory, in a process of its own.

    python benchmarks/conversion.py retinanet_resnet50_fpn delta-3 2

The detectors are torchvision's, as they are made for images of 640 pixels (SSD of 300), with random weights and eight
images of noise. What is converted and what is run in float are the same batch.
"""

import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch
from torchvision.models import get_model

import msat_det
from benchmarks.memory import alone, forget_peak, resident
from msat_det.models.importers.torchvision.building import as_detector

SIDE = {"ssd300_vgg16": 300, "retinanet_resnet50_fpn": 640, "fasterrcnn_resnet50_fpn": 640}
METHODS = ("delta-3", "calibration")
IMAGES, T = 8, 8


def rows(threads: int) -> Iterator[dict]:
    """One dict for each detector and method."""
    for network in SIDE:
        for method in METHODS:
            yield {"network": network, "method": method} | alone(Path(__file__), network, method, threads)


def measured(run: Callable[[], object]) -> tuple[float, float | None]:
    """Seconds, and the peak in MB."""
    forget_peak()
    start = time.perf_counter()
    run()
    return time.perf_counter() - start, resident("VmHWM")


def main(network: str, method: str, threads: str) -> None:
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    side = SIDE[network]
    sizes = {} if "ssd" in network else {"min_size": side, "max_size": side}
    detector = as_detector(get_model(network, weights=None, weights_backbone=None, **sizes).eval())
    images = torch.randint(0, 256, (IMAGES, 3, side, side), dtype=torch.uint8)
    batch = torch.stack([detector.preprocess(image)[0] for image in images])
    warnings.simplefilter("ignore")  # of channels that noise does not activate
    with torch.inference_mode():
        detector.net(batch)
        before = measured(lambda: detector.net(batch))
        found = measured(lambda: msat_det.convert(detector, [batch], method, T))
        after = measured(lambda: detector.net(batch))
    float_s = statistics.mean((before[0], after[0]))
    row = {"float_s": float_s, "conversion_over_float": found[0] / float_s}
    print(json.dumps(row | {"peak_mb": found[1], "float_peak_mb": before[1]}))


if __name__ == "__main__":
    main(*sys.argv[1:])
