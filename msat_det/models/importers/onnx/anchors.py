"""The anchors of a YOLOv5 (to v7), out of the decoding that its ONNX file ends in: other versions have others."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.utils._pytree as pytree
from torch import fx

from msat_det.base.errors import InputError
from msat_det.models.importers.onnx.file import OnnxFile, OnnxNode
from msat_det.models.importers.onnx.network import network_of


def decoded_anchors(file: OnnxFile, raw: fx.GraphModule) -> dict[int, list[float]]:
    """For each stride the widths and heights of its anchors, one after the other, in input pixels.

    raw: the network up to its raw outputs. Where these are 0, a row x y w h of the file's own output is a cell's middle
    and an anchor, see ``heads.yolov5``. Empty where the file does not decode, or ends in what is not known here.
    """
    try:
        net = network_of(_at_zero(file, raw.meta["outputs"]), raw.meta["size"])
    except InputError:
        return {}
    with torch.no_grad():
        outputs = pytree.tree_leaves(net(torch.zeros(1, 3, *raw.meta["size"])))
    numbers = sum(map(math.prod, raw.meta["shapes"]))
    rows = [x[0, :, :4].tolist() for x in outputs if x.dim() == 3 and x.numel() == numbers]
    if len(rows) != 1:
        return {}
    nearest: dict[tuple[float, float], float] = {}  # to the left edge, of each anchor
    for x, _, width, height in rows[0]:
        nearest[width, height] = min(x, nearest.get((width, height), x))
    anchors: dict[int, list[float]] = {}
    for sides, x in nearest.items():
        anchors.setdefault(round(2 * x), []).extend(sides)
    return dict(sorted(anchors.items()))


def _at_zero(file: OnnxFile, names: Sequence[str]) -> OnnxFile:
    """The file with these tensors times 0."""
    nodes: list[OnnxNode] = []
    for node in file.nodes:
        before = {name: f"{name}, times 0" for name in node.outputs if name in names}
        nodes.append(replace(node, outputs=[before.get(name, name) for name in node.outputs]))
        nodes += [OnnxNode("Mul", "", [own, "the number 0"], [name], {}) for name, own in before.items()]
    return replace(file, nodes=nodes, tensors=file.tensors | {"the number 0": torch.zeros(())})
