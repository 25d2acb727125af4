"""Raw outputs of heads by name, and what each number in them means, written down one box after the other."""

import math

import torch
from torch import Tensor

SIZE, CLASSES = (64, 96), 3
STRIDES = (16, 32)
ANCHORS = ((10.0, 14.0, 20.0, 24.0), (40.0, 30.0, 60.0, 70.0))
BINS = 5


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def softmax(values: list[float]) -> list[float]:
    powers = [math.exp(v) for v in values]
    return [p / sum(powers) for p in powers]


def widths(head: str) -> dict[str, int]:
    """The numbers of each part in the order of the channels."""
    return {
        "yolov3": {"box": 4, "objectness": 1, "classes": CLASSES},
        "yolov4": {"box": 4, "objectness": 1, "classes": CLASSES},
        "yolov5": {"box": 4, "objectness": 1, "classes": CLASSES},
        "yolov7": {"box": 4, "objectness": 1, "classes": CLASSES},
        "yolov8": {"box": 4 * BINS, "classes": CLASSES},
        "yolox": {"box": 4, "objectness": 1, "classes": CLASSES},
        "nanodet": {"classes": CLASSES, "box": 4 * BINS},
        "picodet": {"classes": CLASSES, "box": 4 * BINS},
        "fastestdet": {"objectness": 1, "box": 4, "classes": CLASSES},
        "ssd": {"box": 4, "classes": CLASSES + 1},
        "retinanet": {"box": 4, "classes": CLASSES},
        "efficientdet": {"box": 4, "classes": CLASSES},
        "rtmdet": {"classes": CLASSES, "box": 4},
        "fcos": {"classes": CLASSES, "box": 4, "objectness": 1},
    }[head]


def anchored(head: str) -> bool:
    return head in ("yolov3", "yolov4", "yolov5", "yolov7", "ssd", "retinanet", "efficientdet")


def maps(head: str, batch: int = 2) -> list[Tensor]:
    """One map (B, A·n, h, w) a level."""
    generator = torch.Generator().manual_seed(3)
    count = sum(widths(head).values()) * (2 if anchored(head) else 1)
    return [torch.randn(batch, count, SIZE[0] // s, SIZE[1] // s, generator=generator) for s in STRIDES]


def meaning(head: str, levels: list[Tensor], image: int) -> list[tuple[list[float], list[float]]]:
    """(box, class scores) of every row."""
    found = []
    for level, (raw, stride) in enumerate(zip(levels, STRIDES, strict=True)):
        pairs = list(zip(ANCHORS[level][::2], ANCHORS[level][1::2], strict=True)) if anchored(head) else [(0.0, 0.0)]
        for row in range(raw.shape[2]):
            for column in range(raw.shape[3]):
                numbers = raw[image, :, row, column].tolist()
                each = len(numbers) // len(pairs)
                for a, anchor in enumerate(pairs):
                    found.append(_one(head, numbers[a * each : (a + 1) * each], column, row, stride, anchor))
    return found


def _one(head: str, numbers: list[float], column: int, row: int, stride: int, anchor: tuple) -> tuple:
    parts = {}
    for name, width in widths(head).items():
        parts[name], numbers = numbers[:width], numbers[width:]
    box, (aw, ah) = parts["box"], anchor
    scores = [sigmoid(v) for v in parts["classes"]]
    if head in ("fastestdet", "ssd"):
        scores = softmax(parts["classes"])
    objectness = sigmoid(parts.get("objectness", [0.0])[0])
    if head in ("yolov8", "nanodet", "picodet"):
        left, top, right, bottom = (
            stride * sum(i * p for i, p in enumerate(softmax(box[k * BINS : (k + 1) * BINS]))) for k in range(4)
        )
        half = 0 if head == "nanodet" else 0.5
        x, y = (column + half) * stride, (row + half) * stride
        return [x - left, y - top, x + right, y + bottom], scores
    if head == "rtmdet":
        x, y = column * stride, row * stride
        return [x - box[0], y - box[1], x + box[2], y + box[3]], scores
    if head == "fcos":
        x, y = (column + 0.5) * stride, (row + 0.5) * stride
        left, top, right, bottom = (max(v, 0) * stride for v in box)
        return [x - left, y - top, x + right, y + bottom], [(s * objectness) ** 0.5 for s in scores]
    if head in ("yolov3", "yolov4"):
        s = {"yolov3": (1, 1), "yolov4": (1.1, 1.05)}[head][STRIDES.index(stride)]
        x, y = ((c + s * sigmoid(t) - (s - 1) / 2) * stride for c, t in ((column, box[0]), (row, box[1])))
        w, h, scores = aw * math.exp(box[2]), ah * math.exp(box[3]), [s * objectness for s in scores]
    elif head == "efficientdet":
        y, x = (row + 0.5) * stride + box[0] * ah, (column + 0.5) * stride + box[1] * aw
        h, w = ah * math.exp(box[2]), aw * math.exp(box[3])
    elif head in ("yolov5", "yolov7"):
        x, y = (column - 0.5 + 2 * sigmoid(box[0])) * stride, (row - 0.5 + 2 * sigmoid(box[1])) * stride
        w, h = aw * (2 * sigmoid(box[2])) ** 2, ah * (2 * sigmoid(box[3])) ** 2
        scores = [s * objectness for s in scores]
    elif head == "yolox":
        x, y = (column + box[0]) * stride, (row + box[1]) * stride
        w, h = math.exp(box[2]) * stride, math.exp(box[3]) * stride
        scores = [s * objectness for s in scores]
    elif head == "fastestdet":
        x, y = (column + math.tanh(box[0])) * stride, (row + math.tanh(box[1])) * stride
        w, h = sigmoid(box[2]) * SIZE[1], sigmoid(box[3]) * SIZE[0]
        scores = [objectness**0.6 * s**0.4 for s in scores]
    elif head == "ssd":
        x, y = (column + 0.5) * stride + box[0] / 10 * aw, (row + 0.5) * stride + box[1] / 10 * ah
        w, h, scores = aw * math.exp(box[2] / 5), ah * math.exp(box[3] / 5), scores[1:]
    else:
        x, y = column * stride + box[0] * aw, row * stride + box[1] * ah
        w, h = aw * math.exp(box[2]), ah * math.exp(box[3])
    return [x - w / 2, y - h / 2, x + w / 2, y + h / 2], scores
