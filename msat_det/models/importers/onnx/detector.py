"""A detector out of an ONNX file: cut before the decoding, a head by name behind it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msat_det.base.errors import InputError
from msat_det.models.headed import HeadDetector, head_options
from msat_det.models.importers.onnx.cut import raw_outputs
from msat_det.models.importers.onnx.file import read_onnx
from msat_det.models.importers.onnx.network import network_of
from msat_det.models.preprocessing import as_size


def load_detector(
    path: str | Path,
    head: str,
    classes: Sequence[str] | str = "coco",
    size: int | tuple[int, int] | None = None,
    outputs: Sequence[str] | None = None,
    **options: Any,
) -> HeadDetector:
    """The detector in an ONNX file: its network up to the last convolutions, and a head by name in place of the rest.

    head, classes: see ``HeadDetector``, as for ``options`` (strides, anchors, activated, inputs, score, nms_iou,
        top_k). Head raw keeps the file's own outputs: boxes and scores.
    size: the images' size if the file leaves it free, or another one. outputs: names of the tensors that are the raw
        outputs, if they are not those of the last convolutions.
    Raises InputError as ``load_onnx``, and for outputs that do not fit the head.
    """
    file = read_onnx(path)
    names = list(outputs) if outputs else None if head == "raw" else raw_outputs(file)
    if names == []:
        raise InputError(f"{path}: no convolution leads to its outputs: name the raw ones (outputs)")
    net = network_of(file, None if size is None else as_size(size), names)
    try:
        return HeadDetector(net, head, classes, net.meta["size"], **options).check()
    except InputError as error:
        raise InputError(f"{path}: {error}; its raw outputs: {', '.join(net.meta['outputs'])}") from error


def onnx_detector(model: Any) -> HeadDetector:
    """The detector of ``model.weights``, an ONNX file, with ``model.head``; see ``load_detector``."""
    if model.weights is None:
        raise InputError("model.weights is not set: detector 'onnx' needs an ONNX file; give --model.weights FILE")
    head, options = head_options(model)
    return load_detector(model.weights, head, size=model.size, outputs=model.outputs, **options)
