"""A detector out of an ONNX file: cut before the decoding or the choice of queries, a head by name behind it."""

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msat_det.base.config import Model
from msat_det.base.errors import InputError
from msat_det.models.headed import HEAD_KEYS, HeadDetector, head_options
from msat_det.models.heads import HEADS
from msat_det.models.importers.onnx.cut import raw_outputs, raw_queries
from msat_det.models.importers.onnx.file import OnnxFile, read_onnx
from msat_det.models.importers.onnx.network import network_of
from msat_det.models.importers.ultralytics import HEADS_BY_CLASS
from msat_det.models.preprocessing import as_size

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
        Ultralytics' package do; if it does not, classes are COCO's.
    size: the images' size if the file leaves it free, or another one. outputs: names of the tensors that are the raw
        outputs, if they are not those of the last convolutions.
    Raises InputError as ``load_onnx``, for a head that neither you nor the file names, and for outputs that do not fit
    the head.
    """
    return _detector(read_onnx(path), head, classes, size, outputs, options)


def _detector(
    file: OnnxFile,
    head: str | None,
    classes: Sequence[str] | str | None,
    size: int | tuple[int, int] | None,
    outputs: Sequence[str] | None,
    options: dict[str, Any],
) -> HeadDetector:
    said = {"head": None, "classes": "coco"} | noted(file)
    usual, named = said.pop("head"), said.pop("classes")
    head, classes = head or usual, classes or named
    if head is None:
        raise InputError(f"{file.path} does not say what head it has: give one of {', '.join(HEADS)}")
    names = list(outputs) if outputs else None if head == "raw" else _raw(file, head)
    net = network_of(file, None if size is None else as_size(size), names)
    try:
        said = {"names": net.meta["outputs"]} | said
        return HeadDetector(net, head, classes, net.meta["size"], **said | options).check()
    except InputError as error:
        raise InputError(f"{file.path}: {error}; its raw outputs: {', '.join(net.meta['outputs'])}") from error


def _raw(file: OnnxFile, head: str) -> list[str]:
    of_queries = not HEADS.find(head).strides
    names = raw_queries(file) if of_queries else raw_outputs(file)
    if not names:
        why = "its queries are chosen in an unknown way" if of_queries else "no convolution leads to its outputs"
        raise InputError(f"{file.path}: {why}: name the raw ones (outputs)")
    return names


def noted(file: OnnxFile) -> dict[str, Any]:
    """Head, classes and options that Ultralytics' package notes in what it exports: a text each. Raises InputError."""
    notes = file.notes
    head = HEADS_BY_CLASS.get(notes.get("head", "Detect"))
    if notes.get("author") != "Ultralytics" or notes.get("task") != "detect" or head is None:
        return {}
    found: dict[str, Any] = {"head": head} | ({"nms_iou": 1.0} if notes.get("end2end") == "True" else {})
    if "names" in notes:
        found["classes"] = _class_names(file)
    return found


def _class_names(file: OnnxFile) -> list[str]:
    """Out of {0: 'person', 1: 'bicycle', …}, as Python writes it down."""
    text = file.notes["names"]
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
    file = read_onnx(model.weights)
    head, options = head_options(model, noted(file).get("head"))
    return _detector(file, head, options.pop("classes", None), model.size, model.outputs, options)
