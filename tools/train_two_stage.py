#!/usr/bin/env python
"""Train a small Faster R-CNN on drawn scenes, and see what its conversions keep: python tools/train_two_stage.py FILE

The network is torchvision's, on two levels of 64 channels; the scenes are those that the embedded detectors train on,
the pictures that it is measured on those of data/voc. Needs the emoji font: apt-get install fonts-noto-color-emoji
"""

import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import Conv2dNormActivation, FeaturePyramidNetwork, MultiScaleRoIAlign

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from train_demo import draw, scene, score

import msat_det
from msat_det.base.progress import Progress
from msat_det.base.settings import PROJECT
from msat_det.data import VOC_CLASSES, build_dataset
from msat_det.measure.accuracy import evaluate
from msat_det.run.arguments import Parser, whole
from msat_det.run.terminal import once

SIDE, BATCH = 192, 16
METHODS: dict[str, dict[str, Any]] = {  # labels, and options
    "delta-3": {},
    "delta-3-linear": {"method": "delta-3", "spiking_linear": True},
    "delta-2-linear": {"method": "delta-2", "spiking_linear": True},
    "signed-b3": {},
    "signed-b7": {},
    "staged-4": {},
    "msat-signed-b3": {},
    "msat": {},
}
RECORD = (1, 2, 4, 8, 16, 32)


class Backbone(nn.Module):
    """A pyramid of two levels, at strides 8 and 16: (B, 3, h, w) → {"0": (B, 64, h/8, w/8), "1": …}."""

    out_channels = 64

    def __init__(self):
        super().__init__()
        widths = ((3, 16, 2), (16, 32, 2), (32, 64, 2), (64, 64, 1))
        self.fine = nn.Sequential(*(Conv2dNormActivation(a, b, 3, stride=s) for a, b, s in widths))
        self.coarse = nn.Sequential(Conv2dNormActivation(64, 128, 3, stride=2), Conv2dNormActivation(128, 128, 3))
        self.pyramid = FeaturePyramidNetwork([64, 128], self.out_channels)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        fine = self.fine(x)
        return self.pyramid(OrderedDict([("0", fine), ("1", self.coarse(fine))]))


def small_rcnn() -> FasterRCNN:
    """Faster R-CNN with 100 regions an image and a head of 256 neurons a layer, weights drawn with a seed."""
    torch.manual_seed(0)
    anchors = AnchorGenerator(((16, 24, 32), (48, 64, 96)), ((0.5, 1.0, 2.0),) * 2)
    parts = {
        "rpn_anchor_generator": anchors,
        "box_roi_pool": MultiScaleRoIAlign(["0", "1"], 7, 2, canonical_scale=48, canonical_level=3),
        "box_head": TwoMLPHead(Backbone.out_channels * 7 * 7, 256),
        "box_predictor": FastRCNNPredictor(256, 1 + len(VOC_CLASSES)),
    }
    regions = {"rpn_pre_nms_top_n_train": 600, "rpn_post_nms_top_n_train": 300, "box_batch_size_per_image": 64}
    regions |= {"rpn_pre_nms_top_n_test": 300, "rpn_post_nms_top_n_test": 100}
    return FasterRCNN(Backbone(), None, min_size=SIDE, max_size=SIDE, **parts, **regions)


def train(model: FasterRCNN, pictures: int, steps: int) -> None:
    """Train on that many drawn scenes, by torchvision's own losses."""
    scenes = []
    for picture, boxes, labels, ignore in draw(scene, pictures):
        target = {"boxes": torch.from_numpy(boxes).float()[~ignore], "labels": torch.from_numpy(labels)[~ignore] + 1}
        scenes.append((torch.from_numpy(picture).permute(2, 0, 1), target))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    random = torch.Generator().manual_seed(1)
    model.train()
    for _ in Progress(range(steps), desc="training", unit="step"):
        chosen = [scenes[i] for i in torch.randint(len(scenes), (BATCH,), generator=random)]
        losses = model([image.float() / 255 for image, _ in chosen], [target for _, target in chosen])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
    model.eval()


def measure(detector: msat_det.TorchvisionDetector, label: str) -> None:
    """Print what a conversion keeps at each recorded timestep: mAP, mAP50, and energy over the float network's."""
    options = {"method": label} | METHODS[label]
    calibration = build_dataset("voc", PROJECT / "data" / "voc", "trainval")
    snn = msat_det.convert(detector, [[calibration[i].image for i in range(48)]], **options)
    dataset, last = build_dataset("voc", PROJECT / "data" / "voc", "test"), RECORD[-1]
    found: dict[int, dict] = {t: {} for t in RECORD}
    energy: dict[int, list[float]] = {t: [] for t in RECORD}
    for first in Progress(range(0, len(dataset), BATCH), desc=label, unit="batch"):
        samples = [dataset[i] for i in range(first, min(first + BATCH, len(dataset)))]
        for t, boxes in snn.detect([sample.image for sample in samples], last, RECORD).items():
            found[t] |= {sample.id: one for sample, one in zip(samples, boxes, strict=True)}
            energy[t] += (snn.counts[t].energy / snn.counts[t].float_energy).tolist()
    for t in RECORD:
        scores = evaluate(dataset, found[t], detector.classes)
        ratio = sum(energy[t]) / len(energy[t])
        print(f"{label} t = {t}: mAP {scores['map']:.2f}, mAP50 {scores['map50']:.2f}, energy {ratio:.2f}", flush=True)


@once
def main(argv: list[str]) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("file", type=Path, help="weights, .safetensors; they are trained unless they are there")
    for name, number in (("pictures", 4000), ("steps", 2000)):
        parser.add_argument(
            f"--{name}", type=whole(1, 2**31 - 1), default=number, metavar="N", help=f"default: {number}"
        )
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    model = small_rcnn()
    if options.file.exists():
        model.load_state_dict(load_file(options.file))
    else:
        train(model, options.pictures, options.steps)
        save_file(model.state_dict(), options.file)
    detector = msat_det.TorchvisionDetector(model, ["__background__", *VOC_CLASSES], SIDE)
    floated = score(detector, build_dataset("voc", PROJECT / "data" / "voc", "test"))
    print(f"float: mAP {floated['map']:.2f}, mAP50 {floated['map50']:.2f}")
    for label in METHODS:
        measure(detector, label)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
