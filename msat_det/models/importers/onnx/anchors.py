"""The anchors of a YOLOv5 (to v7), out of the decoding that its ONNX file ends in: other versions have others."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import fx

from msat_det.base.errors import InputError
from msat_det.models.importers.onnx.file import OnnxFile, OnnxNode
from msat_det.models.importers.onnx.network import network_of

_MOST = 32  # tensors that may be the decoded boxes


def decoded_anchors(file: OnnxFile, raw: fx.GraphModule) -> dict[int, list[float]]:
    """For each stride the widths and heights of its anchors, one after the other, in input pixels.

    raw: the network up to its raw outputs. Where these are 0, a row x y w h of what the file decodes is a cell's middle
    and an anchor, see ``heads.yolov5``. Empty where the file does not decode, or ends in what is not known here.
    """
    size, numbers = raw.meta["size"], sum(map(math.prod, raw.meta["shapes"]))
    zeros = _at_zero(file, raw.meta["outputs"])
    for name in _after(file, raw.meta["outputs"]):
        try:
            net = network_of(zeros, size, [name])
        except InputError:
            continue
        (shape,) = net.meta["shapes"]
        if len(shape) == 2 and math.prod(shape) == numbers:
            with torch.no_grad():
                rows = net(torch.zeros(1, 3, *size))[0, :, :4].nan_to_num().tolist()
            anchors = _anchors(rows)
            cells = [math.prod(-(-side // stride) for side in size) if stride else 0 for stride in anchors]
            if sum(n * len(sides) // 2 for n, sides in zip(cells, anchors.values(), strict=True)) == len(rows):
                return anchors
    return {}


def _anchors(rows: list[list[float]]) -> dict[int, list[float]]:
    nearest: dict[tuple[float, float], float] = {}  # to the left edge, of each anchor
    for x, _, width, height in rows:
        nearest[width, height] = min(x, nearest.get((width, height), x))
    anchors: dict[int, list[float]] = {}
    for sides, x in nearest.items():
        anchors.setdefault(round(2 * x), []).extend(sides)
    return dict(sorted(anchors.items()))


def _after(file: OnnxFile, names: Sequence[str]) -> list[str]:
    """The file's outputs, and what is put together of these tensors before them, the last one first."""
    after, joined = set(names), list[str]()
    for node in file.nodes:
        if after.intersection(node.inputs):
            after.update(node.outputs)
            joined += node.outputs if node.op == "Concat" else []
    return [*file.outputs, *joined[:-_MOST:-1]]


def _at_zero(file: OnnxFile, names: Sequence[str]) -> OnnxFile:
    """The file with these tensors times 0."""
    nodes: list[OnnxNode] = []
    for node in file.nodes:
        before = {name: f"{name}, times 0" for name in node.outputs if name in names}
        nodes.append(replace(node, outputs=[before.get(name, name) for name in node.outputs]))
        nodes += [OnnxNode("Mul", "", [own, "the number 0"], [name], {}) for name, own in before.items()]
    return replace(file, nodes=nodes, tensors=file.tensors | {"the number 0": torch.zeros(())})
