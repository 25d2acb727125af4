"""The table of ONNX operators: each a small function on torch's own operations (onnx.ai/onnx/operators).

A function gets the node (``Call``) and its inputs, constants or values that images enter, and gives its output, or a
list of them. What a constant must be (weights, shapes, axes) is asked for by ``Call.ints`` and ``Call.constant``.
"""

from msat_det.models.importers.onnx.operators import (  # noqa: F401 - they register
    arithmetic,
    layers,
    picking,
    resizing,
    shapes,
)
from msat_det.models.importers.onnx.operators.call import OPERATORS, Call

__all__ = ["OPERATORS", "Call"]
