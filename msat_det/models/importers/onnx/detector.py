"""A detector out of an ONNX file: cut before the decoding or the choice of queries, a head by name behind it."""

import ast
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from msat_det.base.config import Model
from msat_det.base.errors import InputError
from msat_det.base.files import show
from msat_det.models.class_names import read_names
from msat_det.models.headed import HEAD_KEYS, HeadDetector, head_options
from msat_det.models.heads import HEADS, strides_of
from msat_det.models.importers.onnx.cut import raw_outputs, raw_queries
from msat_det.models.importers.onnx.decoding import Decoded, anchors_of, decoded, decodes, fits
from msat_det.models.importers.onnx.file import OnnxFile, channels_first, read_onnx
from msat_det.models.importers.onnx.network import network_of
from msat_det.models.importers.ultralytics import HEADS_BY_CLASS
from msat_det.models.preprocessing import Inputs, as_size

_FIRST = {"Transpose", "Identity", "Cast", "Add", "Sub", "Mul", "Div"}
_MOST_FIRST = 16
_OF_CELLS = [name for name, head in HEADS.items() if head.strides and name != "raw"]
_LONGEST = 1 << 16  # of the class names that a file notes, in letters


def load_detector(
    path: str | Path,
    head: str | None = None,
    classes: Sequence[str] | str | None = None,
    size: int | tuple[int, int] | None = None,
    outputs: Sequence[str] | None = None,
    **options: Any,
) -> HeadDetector:
    """The detector in an ONNX file: its network up to the last convolutions, and a head by name in place of the rest.

    head, classes: see ``HeadDetector``, as for ``options`` (strides, anchors, activated, inputs, score, nms_iou,
        top_k). Head raw keeps the file's own outputs: boxes and scores. None: as the file says, which those exported by
        Ultralytics' package do; if it does not, the head whose boxes the file decodes, and COCO's classes. Without
        strides they are those of its maps, without anchors those by which it decodes, or else the head's usual ones.
    size: the images' size if the file leaves it free and does not note it, or another one. outputs: names of the
        tensors that are the raw outputs, if they are not those of the last convolutions.
    Raises InputError as ``load_onnx``, for a head that neither you nor the file names, for outputs that do not fit the
    head, and for another head than that whose boxes the file decodes; where these are no head's, it warns.
    """
    file = channels_first(read_onnx(path))
    return _detector(file, head, classes, size, outputs, lambda _: options)


def _detector(
    file: OnnxFile,
    head: str | None,
    classes: Sequence[str] | str | None,
    size: int | tuple[int, int] | None,
    outputs: Sequence[str] | None,
    options: Callable[[str], dict[str, Any]],
) -> HeadDetector:
    """options: those given, for a head of this name."""
    if file.notes.get("task") == "obb":
        raise InputError(f"{file.path}: its boxes are rotated, which no head reads: convert what load_onnx gives of it")
    said = noted(file)
    head, classes = head or said.get("head"), classes or _class_names(file) or "coco"
    names = list(outputs) if outputs else None if head == "raw" else _raw(file, head)
    if size is None and any(None in sizes[1:] for sizes in file.inputs.values() if sizes):
        size = _noted_size(file)
    wanted = None if size is None else as_size(size)
    net = network_of(_unmasked(file, wanted), wanted, names)
    if len(net.meta["inputs"]) > 1:
        read = " and ".join(map(show, net.meta["inputs"]))
        raise InputError(f"{file.path}: its outputs depend on {read}: name some of the images alone (outputs)")
    compared = head is None or (head in _OF_CELLS and not said)
    known = read_names(classes) if isinstance(classes, str) else classes
    cut = _Cut(file, net, known, decoded(file, net) if compared else None, said.get("nms_iou"), options)
    if head is None:
        fitting = cut.heads()
        if len(fitting) != 1:
            raise InputError(f"{file.path} {_unsaid(file)}: give one of {', '.join(fitting or HEADS)}")
        head = fitting[0]
    try:
        one = cut.behind(head).check()
    except InputError as error:
        raise InputError(f"{file.path}: {error}; its raw outputs: {', '.join(net.meta['outputs'])}") from error
    if cut.after and cut.after.by_chance and not cut.fits(one):
        if others := [other for other in cut.heads() if other != head]:
            raise InputError(f"{file.path}: it decodes boxes as head {' or '.join(others)} does, not {head}: give that")
        if decodes(cut.after, sum(one.rows)):
            mend = "look at some, or give others of model.head, model.strides, model.anchors or model.outputs"
            warnings.warn(f"{file.path}: it decodes other boxes than head {head} does: {mend}", stacklevel=2)
    return one


@dataclass(frozen=True, eq=False)
class _Cut:
    """A file's network up to its raw outputs, and what the file makes of them."""

    file: OnnxFile
    net: fx.GraphModule
    classes: Sequence[str]
    after: Decoded | None
    nms_iou: float | None
    options: Callable[[str], dict[str, Any]]

    def behind(self, head: str) -> HeadDetector:
        """The network with a head behind it. Raises InputError where it does not fit."""
        kind, given, meta = HEADS.find(head), self.options(head), self.net.meta
        own: dict[str, Any] = {"names": meta["outputs"], "nms_iou": self.nms_iou}
        own["inputs"] = own_inputs(self.file, kind.inputs)
        own["strides"] = strides_of(meta["shapes"], meta["size"], kind.strides)
        if self.after and kind.anchored and given.get("anchors") is None:
            strides, anchors = anchors_of(self.after, kind, len(self.classes), meta["size"])
            if strides and given.get("strides", strides) == strides:
                own |= {"strides": strides, "anchors": anchors}
        return HeadDetector(self.net, head, self.classes, meta["size"], **own | given)

    def fits(self, one: HeadDetector) -> bool:
        """Whether its boxes are those that the file decodes."""
        return self.after is not None and fits(self.after, one)

    def heads(self) -> list[str]:
        """The heads whose boxes are those that the file decodes; the first of those that differ in usual anchors."""
        found: dict[Any, str] = {}
        for head in _OF_CELLS:
            try:
                if self.fits(self.behind(head)):
                    found.setdefault((HEADS[head].decode, HEADS[head].inputs), head)
            except InputError:
                continue
        return list(found.values())


def _raw(file: OnnxFile, head: str | None) -> list[str]:
    kind = None if head is None else HEADS.find(head)
    of_queries = kind is not None and not kind.strides
    names = raw_queries(file) if of_queries else raw_outputs(file, kind is not None and kind.powers)
    if not names and any("Integer" in node.op or "QLinear" in node.op for node in file.nodes):
        raise InputError(f"{file.path}: its convolutions are quantised: give the float file that it was made of")
    if not names and head is None:
        raise InputError(f"{file.path} {_unsaid(file)}: give one of {', '.join(HEADS)}")
    if not names:
        why = "its queries are chosen in an unknown way" if of_queries else "no convolution leads to its outputs"
        raise InputError(f"{file.path}: {why}: name the raw ones (outputs)")
    return names


def noted(file: OnnxFile) -> dict[str, Any]:
    """Head and nms_iou of a detector that Ultralytics' package exported: by its notes, or what those of before say."""
    notes, operators = file.notes, {node.op for node in file.nodes}
    head = HEADS_BY_CLASS.get(notes.get("head", "RTDETRDecoder" if "GridSample" in operators else "Detect"))
    if notes.get("author") != "Ultralytics" or notes.get("task") != "detect" or head is None:
        return {}
    # as before they noted it: only heads that need no suppression choose the best of all boxes
    chosen = "end2end" not in notes and "TopK" in operators and "NonMaxSuppression" not in operators
    return {"head": head} | ({"nms_iou": 1.0} if chosen or notes.get("end2end") == "True" else {})


def _unmasked(file: OnnxFile, size: tuple[int, int] | None) -> OnnxFile:
    """The file for images that fill its input, for an exporter of transformers' that asks which pixels are theirs."""
    sides = next((sizes[2:] for sizes in file.inputs.values() if sizes and len(sizes) == 4), [None])
    if "pixel_mask" not in file.inputs or (size is None and None in sides):
        return file
    inputs = {name: sizes for name, sizes in file.inputs.items() if name != "pixel_mask"}
    ones = torch.ones(1, *(size or sides), dtype=torch.int64)
    return replace(file, inputs=inputs, tensors=file.tensors | {"pixel_mask": ones})


def own_inputs(file: OnnxFile, usual: Inputs) -> Inputs:
    """As ``usual``, but RGB / 255, or pixels of 0..255, where the file's first operators do the rest themselves."""
    known = dict(file.tensors)
    for node in file.nodes:
        known |= {name: value for name in node.outputs if isinstance(value := node.attributes.get("value"), Tensor)}
    name = next((name for name, sizes in file.inputs.items() if sizes and len(sizes) == 4), "")
    scale, offset = 1.0, 0.0
    for _ in range(_MOST_FIRST):
        readers = [node for node in file.nodes if name in node.inputs]
        if len(readers) != 1 or readers[0].op not in _FIRST or not readers[0].outputs:
            break
        (node,) = readers
        for other in (known[other] for other in node.inputs if other in known and known[other].numel()):
            largest = other.abs().max().item()
            scale *= {"Mul": largest, "Div": 1 / max(largest, 1e-9)}.get(node.op, 1.0)
            offset = max(offset, largest / max(scale, 1e-9)) if node.op in ("Add", "Sub") else offset
        name = node.outputs[0]
    if scale < 1 / 16 or offset > 16:
        return replace(usual, mean=(0.0,) * 3, std=(1.0,) * 3)
    return replace(usual, mean=(0.0,) * 3, std=(255.0,) * 3) if offset else usual


def _unsaid(file: OnnxFile) -> str:
    """Why a file's head is not known."""
    task, head = file.notes.get("task"), file.notes.get("head", "of its own")
    if file.notes.get("author") != "Ultralytics" or task is None:
        return "does not say what head it has"
    of = "boxes and classes alone convert: name their raw outputs (outputs), and the head they are of"
    return f"is for task {show(task)}, its head is {show(head)}: of it {of}"


def _noted_size(file: OnnxFile) -> tuple[int, int] | None:
    """[640, 640], height and width, as Ultralytics' package notes them; None where they are not there."""
    found = re.fullmatch(r"\[(\d{1,5}), (\d{1,5})\]", file.notes.get("imgsz", ""))
    return (int(found[1]), int(found[2])) if found else None


def _class_names(file: OnnxFile) -> list[str] | None:
    """Out of {0: 'person', 1: 'bicycle', …} or a list, as Ultralytics' and YOLOv5's exporters note them."""
    text = file.notes.get("names")
    if text is None:
        return None
    try:
        names: Any = ast.literal_eval(text) if len(text) <= _LONGEST else None
        return [names[i] for i in range(len(names))]
    except (ValueError, TypeError, LookupError, SyntaxError, MemoryError, RecursionError):
        raise InputError(f"{file.path}: the class names that it notes are not readable: give yours (names)") from None


def onnx_detector(model: Model) -> HeadDetector:
    """The detector of ``model.weights``, an ONNX file, with ``model.head``; see ``load_detector``."""
    model.refuse_others("weights", "outputs", *HEAD_KEYS)
    if model.weights is None:
        raise InputError("model.weights is not set: detector 'onnx' needs an ONNX file; give --model.weights FILE")
    file = channels_first(read_onnx(model.weights))

    def options(head: str) -> dict[str, Any]:
        found = head_options(model, head)
        found.pop("classes", None)
        if not model.given("mean", "std"):
            found["inputs"] = own_inputs(file, found["inputs"])
        return found

    return _detector(file, model.head, model.names, model.size, model.outputs, options)
