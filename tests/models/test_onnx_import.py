"""ONNX files come in: every operator over its opsets against onnxruntime, real files, and what is refused."""

import copy
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from support.head_outputs import ANCHORS, SIZE, STRIDES, anchored, widths
from support.onnx_files import IMAGE, node, onnxruntime_outputs, write_onnx
from torch import Tensor, nn

import msat_det
from msat_det import load_onnx
from msat_det.base.config import Model
from msat_det.base.errors import InputError
from msat_det.data import build_dataset
from msat_det.models import build_detector
from msat_det.models.headed import HeadDetector
from msat_det.models.heads import HEADS
from msat_det.models.importers.onnx.operators import OPERATORS
from msat_det.models.preprocessing import Inputs

RANDOM = np.random.default_rng(0)


def weights(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape) * 0.5


def one(op: str, **attributes: Any) -> list[onnx.NodeProto]:
    return [node(op, "x", "y", **attributes)]


VECTOR = {"s": weights(4), "b": weights(4), "m": weights(4), "v": RANDOM.random(4) + 0.5}
CONV = {"w": weights(6, 4, 3, 3), "b": weights(6)}
EMPTY = np.zeros(0)
# the places, i of (1, 5), of the rows with the largest values
BEST = [node("ReduceMax", "x", "m", axes=[3], keepdims=0), node("Reshape", "m flat", "n"), node("TopK", "n k", "v i")]
BLOCK = np.stack(np.meshgrid(*map(np.arange, (1, 4, 6, 2)), indexing="ij"), -1)  # of x, two wide
ROWS = {"rows": np.array([24, 8]), "flat": np.array([1, 24]), "k": np.array([5])}
# what, opsets, nodes, constants: each file is run on three images at once
CASES: list[tuple[str, tuple[int, ...], list[onnx.NodeProto], dict[str, Any]]] = [
    *((op, (9, 13, 21), one(op), {}) for op in "Relu Sigmoid Tanh Abs Neg Exp Softplus Softsign Erf Sin Cos".split()),
    *((op, (9, 13, 21), one(op), {}) for op in "LeakyRelu Elu Selu HardSigmoid Floor Ceil Identity".split()),
    *((op, (12, 21), one(op), {}) for op in "Round Sign Celu ThresholdedRelu".split()),
    *((op, (14, 21), one(op), {}) for op in ("HardSwish",)),
    ("Mish", (18,), one("Mish"), {}),
    ("Gelu", (20,), one("Gelu", approximate="tanh"), {}),
    ("leaky", (16,), one("LeakyRelu", alpha=0.3), {}),
    ("paddle's hard sigmoid", (11,), one("HardSigmoid", alpha=1 / 6, beta=0.5), {}),
    ("PRelu", (9, 16), [node("PRelu", "x s", "y")], {"s": weights(4, 1, 1)}),
    ("PRelu, one slope", (16,), [node("PRelu", "x s", "y")], {"s": weights(1)}),
    ("Sqrt", (13,), [node("Abs", "x", "a"), node("Sqrt", "a", "b"), node("Log", "b", "c"), node("Exp", "c", "y")], {}),
    ("Reciprocal", (13,), [node("Exp", "x", "a"), node("Reciprocal", "a", "y")], {}),
    ("arithmetic", (9, 14), [node("Add", "x c", "a"), node("Sub", "c a", "b"), node("Mul", "b x", "d"),
                             node("Div", "d e", "f"), node("Pow", "f two", "y")],
     {"c": weights(4, 1, 1), "e": 3.0, "two": 2.0}),
    ("one minus", (13,), [node("Sub", "c x", "a"), node("Div", "c a", "y")], {"c": np.array([1.5])}),
    ("Max", (13,), [node("Max", "c x", "a"), node("Min", "a x d", "y")], {"c": 0.25, "d": weights(4, 1, 8)}),
    ("heads of constant queries", (13,), [node("Reshape", "x s", "k"), node("MatMul", "q k", "y")],
     {"s": np.array([4, 6, 8]), "q": weights(4, 5, 6)}),
    ("heads with the images, and before them", (13,), [node("Reshape", "x t", "k"), node("MatMul", "x k", "y")],
     {"t": np.array([4, 8, 6])}),
    ("Sum", (13,), [node("Sum", "x x c", "a"), node("Mean", "a x", "y")], {"c": weights(1, 8)}),
    ("Clip", (9, 10), one("Clip", min=-0.5, max=0.75), {}),
    ("Clip", (11, 21), [node("Clip", "x lo hi", "y")], {"lo": 0.0, "hi": 6.0}),
    ("Clip below", (13,), [node("Clip", "x _ hi", "y")], {"hi": 0.5}),
    ("Where", (9, 16), [node("Greater", "x c", "m"), node("Where", "m x d", "y")], {"c": 0.0, "d": weights(8)}),
    ("Not", (13,), [node("Less", "x c", "a"), node("Greater", "x d", "b"), node("Or", "a b", "m"),
                    node("Not", "m", "k"), node("Where", "k x c", "y")], {"c": 0.0, "d": 1.0}),
    *((f"Softmax {a}", (9, 11, 13, 21), one("Softmax", axis=a), {}) for a in (1, 2, 3)),
    ("LogSoftmax", (12, 13), one("LogSoftmax", axis=1), {}),
    ("Conv", (9, 11, 21), [node("Conv", "x w b", "y", pads=[1, 1, 1, 1], strides=[2, 1])], CONV),
    ("Conv, ends", (11,), [node("Conv", "x w", "y", pads=[0, 1, 1, 2], dilations=[1, 2], kernel_shape=[3, 3])], CONV),
    ("Conv, same", (11,), [node("Conv", "x w b", "y", auto_pad="SAME_UPPER", strides=[2, 2])], CONV),
    ("Conv, lower", (11,), [node("Conv", "x w b", "y", auto_pad="SAME_LOWER", strides=[2, 2])], CONV),
    ("Conv, groups", (11,), [node("Conv", "x w", "y", group=4)], {"w": weights(8, 1, 3, 3)}),
    ("ConvTranspose", (11,), [node("ConvTranspose", "x w b", "y", strides=[2, 2], output_padding=[1, 0],
                                   pads=[1, 1, 1, 1])], {"w": weights(4, 5, 3, 3), "b": weights(5)}),
    ("ConvTranspose, ends", (11,), [node("ConvTranspose", "x w", "y", strides=[2, 2], pads=[0, 1, 1, 2], group=2)],
     {"w": weights(4, 3, 3, 3)}),
    ("Gemm", (9, 13), [node("Flatten", "x", "a"), node("Gemm", "a w b", "y", alpha=0.5, beta=2.0, transB=1)],
     {"w": weights(5, 192), "b": weights(5)}),
    ("MatMul", (9, 13), [node("MatMul", "x w", "a"), node("MatMul", "v a", "y")],
     {"w": weights(8, 5), "v": weights(3, 6)}),
    ("Einsum", (12,), [node("Einsum", "x w", "y", equation="bchw,wk->bkhc")], {"w": weights(8, 5)}),
    ("BatchNormalization", (9, 14, 15), [node("BatchNormalization", "x s b m v", "y", epsilon=0.01)], VECTOR),
    ("InstanceNormalization", (9,), [node("InstanceNormalization", "x s b", "y")], VECTOR),
    ("GroupNormalization", (21,), [node("GroupNormalization", "x s b", "y", num_groups=2)], VECTOR),
    ("LayerNormalization", (17,), [node("LayerNormalization", "x s b", "y")], {"s": weights(8), "b": weights(8)}),
    ("LpNormalization", (11,), one("LpNormalization", axis=1), {}),
    ("MaxPool", (9, 12), one("MaxPool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]), {}),
    ("MaxPool, end", (11,), one("MaxPool", kernel_shape=[2, 2], pads=[0, 0, 1, 1], strides=[1, 1]), {}),
    ("MaxPool, same", (11,), one("MaxPool", kernel_shape=[3, 3], auto_pad="SAME_UPPER", strides=[2, 2]), {}),
    ("MaxPool, ceil", (11,), one("MaxPool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1), {}),
    ("AveragePool", (9, 11), one("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]), {}),
    ("AveragePool, pads", (11,), one("AveragePool", kernel_shape=[2, 2], pads=[0, 0, 1, 1], count_include_pad=1), {}),
    *((op, (9, 21), one(op), {}) for op in ("GlobalAveragePool", "GlobalMaxPool")),
    *((f"{op} keeps", (9, 13), one(op, axes=[2, 3]), {}) for op in "ReduceMean ReduceMax ReduceMin ReduceL2".split()),
    *((f"{op} axes", (18,), [node(op, "x a", "y", keepdims=0)], {"a": np.array([1, -1])})
      for op in "ReduceMean ReduceSum ReduceMax ReduceL2 ReduceLogSumExp".split()),
    ("ReduceSum", (11,), one("ReduceSum", axes=[1], keepdims=0), {}),
    ("Transpose", (9, 13), one("Transpose", perm=[0, 2, 3, 1]), {}),
    ("Reshape", (9, 14), [node("Reshape", "x s", "y")], {"s": np.array([1, 4, -1])}),
    ("Reshape, kept", (14,), [node("Reshape", "x s", "y")], {"s": np.array([0, -1, 0])[[0, 1]]}),
    ("heads", (13,), [node("Reshape", "x s", "a"), node("MatMul", "a w", "b"), node("Reshape", "b t", "y")],
     {"s": np.array([4, 6, 8]), "t": np.array([1, 4, 6, 5]), "w": weights(8, 5)}),
    ("rows", (13,), [node("Transpose", "x", "a", perm=[0, 2, 3, 1]), node("Reshape", "a s", "y")],
     {"s": np.array([-1, 4])}),
    ("Flatten", (9, 13), one("Flatten", axis=1), {}),
    ("Squeeze", (9, 11), [node("ReduceMean", "x", "a", axes=[2, 3]), node("Squeeze", "a", "y", axes=[2, 3])], {}),
    ("Squeeze", (13, 17), [node("ReduceMean", "x", "a", axes=[3]), node("Squeeze", "a s", "y")], {"s": np.array([-1])}),
    ("Unsqueeze", (9, 11), one("Unsqueeze", axes=[1, 5]), {}),
    ("Unsqueeze", (13,), [node("Unsqueeze", "x s", "y")], {"s": np.array([2])}),
    ("Expand", (9, 13), [node("GlobalAveragePool", "x", "a"), node("Expand", "a s", "y")],
     {"s": np.array([1, 4, 5, 7])}),
    ("Tile", (13,), [node("Tile", "x s", "y")], {"s": np.array([1, 2, 1, 3])}),
    ("Tile, an image's rows", (13,), [node("Tile", "x s", "y")], {"s": np.array([3, 1, 1, 2])}),
    ("Concat", (9, 13), [node("Concat", "x x x", "y", axis=-3)], {}),
    ("Concat, token", (13,), [node("Concat", "c x", "y", axis=2)], {"c": weights(1, 4, 1, 8)}),
    ("Split", (9, 11), [node("Split", "x", "a b", axis=1, split=[1, 3]), node("Concat", "b a", "y", axis=1)], {}),
    ("Split", (13,), [node("Split", "x s", "a b", axis=3), node("Concat", "b a", "y", axis=3)],
     {"s": np.array([2, 6])}),
    ("Split", (18,), [node("Split", "x", "a b c", axis=3, num_outputs=3), node("Concat", "c a b", "y", axis=3)], {}),
    ("Slice", (9,), one("Slice", starts=[1, -3], ends=[3, 2147483647], axes=[1, 3]), {}),
    ("Slice", (10, 13), [node("Slice", "x s e a t", "y")],
     {"s": np.array([0, 1]), "e": np.array([2**63 - 1, 2**63 - 1]), "a": np.array([2, 3]), "t": np.array([2, 2])}),
    ("Slice back", (13,), [node("Slice", "x s e a t", "y")],
     {"s": np.array([-1]), "e": np.array([-(2**63)]), "a": np.array([3]), "t": np.array([-1])}),
    ("Gather", (9, 13), [node("Gather", "x i", "y", axis=3)], {"i": np.array([[1, 7], [-1, 0]])}),
    ("Gather one", (13,), [node("Gather", "x i", "y", axis=1)], {"i": np.array(2)}),
    ("Pad", (9, 10), one("Pad", pads=[0, 0, 1, 2, 0, 0, 0, 1], value=0.5), {}),
    ("Pad", (11, 13, 21), [node("Pad", "x p v", "y")], {"p": np.array([0, 1, 1, 0, 0, 0, 2, 0]), "v": -1.0}),
    ("Pad, axes", (18,), [node("Pad", "x p _ a", "y")], {"p": np.array([1, 2]), "a": np.array([-1])}),
    *((f"Pad, {mode}", (13,), [node("Pad", "x p", "y", mode=mode)], {"p": np.array([0, 0, 1, 2, 0, 0, 2, 1])})
      for mode in ("reflect", "edge")),
    *((f"DepthToSpace {mode}", (11, 13), one("DepthToSpace", blocksize=2, mode=mode), {}) for mode in ("DCR", "CRD")),
    ("SpaceToDepth", (9, 13), one("SpaceToDepth", blocksize=2), {}),
    ("Cast", (9, 13), [node("Greater", "x c", "m"), node("Cast", "m", "f", to=1), node("Mul", "x f", "y")], {"c": 0.0}),
    ("Dropout", (9, 13), one("Dropout"), {}),
    ("Upsample", (9,), [node("Upsample", "x s", "y", mode="nearest")], {"s": np.array([1.0, 1.0, 2.0, 2.0])}),
    ("Upsample, linear", (9,), [node("Upsample", "x s", "y", mode="linear")], {"s": np.array([1.0, 1.0, 2.0, 2.0])}),
    ("Resize", (10,), [node("Resize", "x s", "y", mode="nearest")], {"s": np.array([1.0, 1.0, 2.0, 1.5])}),
    *((f"Resize {way} {rounding}", (11, 13, 19), [node("Resize", "x r s", "y", mode="nearest",
       coordinate_transformation_mode=way, nearest_mode=rounding)], {"s": np.array([1.0, 1.0, 2.0, 1.5]), "r": EMPTY})
      for way in ("asymmetric", "half_pixel", "align_corners") for rounding in ("floor", "round_prefer_floor", "ceil")),
    *((f"Resize linear {way}", (11, 13), [node("Resize", "x r r s", "y", mode="linear",
       coordinate_transformation_mode=way)], {"s": np.array([1, 4, 9, 16]), "r": EMPTY})
      for way in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")),
    ("Resize cubic", (13,), [node("Resize", "x _ s", "y", mode="cubic")], {"s": np.array([1.0, 1.0, 2.0, 2.0])}),
    ("shapes", (9, 13), [node("Shape", "x", "s"), node("Gather", "s i", "b", axis=0),
                         node("Gather", "s j", "c", axis=0), node("Concat", "b c k", "t", axis=0),
                         node("Reshape", "x t", "y")],
     {"i": np.array([0]), "j": np.array([1]), "k": np.array([-1])}),
    ("shape's arithmetic", (15,), [node("Shape", "x", "s", start=2), node("ReduceProd", "s", "p"),
                                   node("Div", "p two", "q"), node("Cast", "q", "f", to=1),
                                   node("Sqrt", "f", "r"), node("Mul", "x r", "a"),
                                   node("ConstantOfShape", "s", "z"), node("Add", "a z", "y")], {"two": np.array([5])}),
    ("Range", (13,), [node("Range", "o e t", "r"), node("Add", "x r", "y")], {"o": 0.0, "e": 8.0, "t": 1.0}),
    ("Size", (13,), [node("Size", "x", "s"), node("Cast", "s", "f", to=1), node("Div", "x f", "y")], {}),
    ("CastLike", (15,), [node("Greater", "x c", "m"), node("CastLike", "m x", "f"), node("Add", "x f", "y")],
     {"c": 0.5}),
    ("Where, constant", (13,), [node("Where", "t x c", "a"), node("Greater", "x c", "m"), node("And", "t m", "k"),
                                node("Where", "k a c", "y")], {"t": np.array(True), "c": weights(4, 1, 1)}),
    ("Mod", (15,), [node("Shape", "x", "s", start=3), node("Mod", "s k", "m"), node("Cast", "m", "f", to=1),
                    node("Mod", "f h", "q", fmod=1), node("Add", "x q", "y")],
     {"k": np.array([-5]), "h": np.array([1.5])}),
    *((f"GridSample {pad}", (16,), [node("Transpose", "x", "t", perm=[0, 3, 2, 1]), node("Slice", "t s e a", "g"),
       node("GridSample", "x g", "y", mode="bilinear", padding_mode=pad, align_corners=1)],
       {"s": np.array([0]), "e": np.array([2]), "a": np.array([3])}) for pad in ("zeros", "border", "reflection")),
    ("GridSample, constant", (20,), [node("GridSample", "x g", "y", mode="cubic")], {"g": weights(1, 5, 7, 2)}),
    ("And", (16,), [node("LessOrEqual", "x c", "a"), node("GreaterOrEqual", "x d", "b"), node("And", "a b", "m"),
                    node("Equal", "x x", "e"), node("And", "m e", "k"), node("Where", "k x c", "y")],
     {"c": 1.0, "d": 0.0}),
    ("IsNaN", (13, 20), [node("Log", "x", "l"), node("IsNaN", "l", "m"), node("Where", "m c l", "y")], {"c": 0.5}),
    ("CumSum", (11, 14), [node("CumSum", "c a", "s"), node("Add", "x s", "b"), node("CumSum", "b d", "y")],
     {"c": weights(6, 8), "a": np.array(0), "d": np.array(-1)}),
    ("LayerNormalization of a constant", (17,), [node("LayerNormalization", "c w b", "n"), node("Add", "x n", "y")],
     {"c": weights(6, 8), "w": weights(8), "b": weights(8)}),
    *((f"Resize {mode}, smooth", (18,), [node("Resize", "x _ _ s", "y", mode=mode, antialias=1, exclude_outside=1,
       cubic_coeff_a=-0.5)], {"s": np.array([1, 4, 3, 5])}) for mode in ("linear", "cubic")),
    ("Xor", (13,), [node("Less", "x c", "a"), node("Greater", "x d", "b"), node("Xor", "a b", "m"),
                    node("Where", "m x c", "y")], {"c": 0.5, "d": 0.0}),
    ("TopK", (9,), [node("TopK", "x", "v i", k=3), node("Cast", "i", "f", to=1), node("Mul", "v f", "y")], {}),
    *((f"TopK, {axis} {largest}", (11, 23), [node("TopK", "x k", "v i", axis=axis, largest=largest),
       node("GatherElements", "x i", "g", axis=axis), node("Cast", "i", "f", to=1), node("Mul", "g f", "h"),
       node("Add", "v h", "y")], {"k": np.array([4])}) for axis in (1, -1) for largest in (0, 1)),
    ("ArgMax", (11, 13), [node("ArgMax", "x", "i", axis=2), node("GatherElements", "x i", "y", axis=2)], {}),
    ("ArgMin", (9, 13), [node("ArgMin", "x", "i", axis=-1, keepdims=0), node("Mul", "i k", "j"),
                         node("Cast", "j", "y", to=1)], {"k": np.array([3])}),
    ("GatherElements, constant places", (13,), [node("GatherElements", "x i", "y", axis=3)],
     {"i": RANDOM.integers(0, 8, (1, 3, 6, 2))}),
    ("places in a constant", (13,), [node("ArgMax", "x", "i", axis=3), node("GatherElements", "c i", "a", axis=3),
                                     node("Add", "a x", "y")], {"c": weights(1, 4, 6, 8)}),
    ("places in another order", (13,), [node("Transpose", "x", "t", perm=[2, 0, 1, 3]),
                                        node("ArgMax", "t", "i", axis=3), node("GatherElements", "t i", "g", axis=3),
                                        node("Transpose", "g", "y", perm=[1, 2, 0, 3])], {}),
    ("Gather, places in another order", (13,), [node("ArgMax", "x", "i", axis=1, keepdims=0),
                                                node("Transpose", "i", "j", perm=[1, 0, 2]),
                                                node("Gather", "c j", "g", axis=2),
                                                node("Transpose", "g", "y", perm=[3, 0, 1, 4, 2])],
     {"c": weights(2, 3, 4)}),
    # rows of all images in one dimension, and a constant's: as Ultralytics' RT-DETR picks its queries
    ("rows of places", (13, 17), [node("Reshape", "x rows", "r"), *BEST, node("Reshape", "i all", "j"),
                                  node("Add", "j zeros", "p"), node("Gather", "r p", "g", axis=0),
                                  node("Gather", "c j", "h", axis=1), node("Reshape", "g back", "a"),
                                  node("Reshape", "h back", "b"), node("Add", "a b", "y")],
     {**ROWS, "all": np.array([-1]), "zeros": np.zeros(5, int), "c": weights(1, 24, 8), "back": np.array([1, 5, 8])}),
    ("Gather, places of each image", (13,), [node("Reshape", "x rows", "r"), *BEST, node("Gather", "r i", "y", axis=0)],
     ROWS),
    ("GatherND", (13,), [node("Reshape", "x all", "r"), *BEST, node("Unsqueeze", "i last", "j"),
                         node("Concat", "zero j", "p", axis=-1), node("GatherND", "r p", "y")],
     {**ROWS, "all": np.array([1, 24, 8]), "last": np.array([2]), "zero": np.zeros((1, 5, 1), int)}),
    ("GatherND, rows", (13,), [node("Reshape", "x all", "r"), *BEST, node("Reshape", "i column", "j"),
                               node("Concat", "zero j", "p", axis=-1), node("GatherND", "r p", "a"),
                               node("Reshape", "a back", "y")],
     {**ROWS, "all": np.array([1, 24, 8]), "column": np.array([-1, 1]), "zero": np.zeros((5, 1), int),
      "back": np.array([1, 5, 8])}),
    ("GatherND, batch_dims", (13,), [node("Reshape", "x all", "r"), *BEST, node("Unsqueeze", "i last", "j"),
                                     node("GatherND", "r j", "y", batch_dims=1)],
     {**ROWS, "all": np.array([1, 24, 8]), "last": np.array([2])}),
    ("GatherND, two dimensions", (13,), [node("ArgMin", "x", "a", axis=2), node("ArgMax", "x", "b", axis=3),
                                         node("Slice", "a zero four three", "c"), node("Slice", "b zero four two", "d"),
                                         node("Reshape", "c flat", "i"), node("Reshape", "d flat", "j"),
                                         node("Concat", "i j", "p", axis=3),
                                         node("GatherND", "x p", "y", batch_dims=2)],
     {"zero": np.array([0]), "four": np.array([4]), "two": np.array([2]), "three": np.array([3]),
      "flat": np.array([1, 4, 4, 1])}),
    ("ScatterND", (11, 18), [node("ScatterND", "c i u", "s"), node("Add", "x s", "y")],
     {"c": weights(4, 6, 8), "i": np.array([[1, 2], [3, -1]]), "u": weights(2, 8)}),
    ("ScatterND, a block", (18,), [node("Slice", "x zero two three", "u"), node("ScatterND", "x i u", "s"),
                                   node("Slice", "s zero two three", "v"), node("Neg", "v", "m"),
                                   node("ScatterND", "s j m", "y")],
     {"zero": np.array([0]), "two": np.array([2]), "three": np.array([3]), "i": np.add(BLOCK, [0, 0, 0, 5]),
      "j": np.add(BLOCK, [0, 0, 0, 3])}),
    ("places' arithmetic", (13,), [node("ArgMax", "x", "i", axis=1), node("Div", "i two", "d"),
                                   node("Mod", "i two", "m"), node("Sub", "d m", "s"), node("Equal", "s zero", "e"),
                                   node("Where", "e i two", "w"), node("Cast", "w", "f", to=1),
                                   node("Mul", "x f", "y")],
     {"two": np.array(2), "zero": np.array(0)}),
    ("rows of images", (13,), one("Transpose", perm=[1, 0, 2, 3]), {}),
    *(("DequantizeLinear", (opset,), [node("DequantizeLinear", "q s z", "w", **axis), node("Conv", "x w", "y")],
       {"q": RANDOM.integers(-128, 128, (6, 4, 3, 3)).astype(np.int8), "s": np.abs(weights(*sizes)),
        "z": RANDOM.integers(-9, 9, sizes).astype(np.int8)})
      for opset, axis, sizes in ((10, {}, ()), (13, {"axis": 0}, (6,)), (19, {"axis": -4}, (6,)), (13, {}, (4,)))),
    ("images inside", (13,), [node("Transpose", "x", "a", perm=[1, 2, 0, 3]),
                              node("MaxPool", "a", "b", kernel_shape=[1, 2]),
                              node("Transpose", "b", "y", perm=[2, 0, 1, 3])],
     {}),
    ("images inside rows", (13,), [node("Transpose", "x", "a", perm=[1, 0, 2, 3]), node("Reshape", "a s", "b"),
                                   node("Softmax", "b", "c", axis=1), node("Reshape", "c t", "y")],
     {"s": np.array([2, 96]), "t": np.array([1, 2, 96])}),
    # onnxslim's: queries and keys are rows of images, values are images of rows
    ("attention, simplified", (13,), [node("Transpose", "x", "a", perm=[2, 0, 1, 3]), node("Reshape", "a s", "q"),
                                      node("Reshape", "x s", "k"), node("Transpose", "q", "r", perm=[1, 0, 2]),
                                      node("Transpose", "k", "l", perm=[1, 2, 0]), node("MatMul", "r l", "m"),
                                      node("Softmax", "m", "n", axis=-1), node("MatMul", "n r", "o"),
                                      node("Transpose", "o", "p", perm=[1, 0, 2]), node("Reshape", "p t", "u"),
                                      node("Gemm", "u w", "v"), node("Reshape", "v z", "y")],
     {"s": np.array([6, 4, 8]), "t": np.array([6, 32]), "w": weights(32, 5), "z": np.array([1, 6, 5])}),
    ("attention's rows", (13,), [node("Transpose", "x", "a", perm=[2, 0, 1, 3]), node("MatMul", "a v", "b"),
                                 node("Reshape", "b s", "c"), node("Gemm", "c w b0", "d"), node("Reshape", "d t", "e"),
                                 node("Transpose", "e", "y", perm=[1, 0, 2])],
     {"v": weights(8, 3), "s": np.array([6, 12]), "w": weights(12, 5), "b0": weights(5), "t": np.array([6, 1, 5])}),
]  # fmt: skip
FILES = [
    pytest.param(nodes, constants, opset, id=f"{what}, {opset}")
    for what, opsets, nodes, constants in CASES
    for opset in opsets
]


def assert_as_onnxruntime(path: Path, batch: Tensor) -> nn.Module:
    """Equal within 1e-4 of the largest value."""
    net = load_onnx(path)
    with torch.no_grad():
        found = net(batch)
    expected = onnxruntime_outputs(path, batch)
    for a, b in zip([found] if isinstance(found, Tensor) else found, expected, strict=True):
        b = b.unflatten(0, (len(batch), -1)) if len(b) > len(batch) else b  # rows of an image
        assert a.shape == b.shape
        assert (a - b).abs().max() <= 1e-4 * max(1.0, b.abs().max().item())
    return net


@pytest.mark.parametrize(("nodes", "constants", "opset"), FILES)
def test_operators(nodes: list, constants: dict, opset: int, tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "net.onnx", nodes, opset, constants)
    assert_as_onnxruntime(path, torch.randn(3, *IMAGE[1:], generator=torch.Generator().manual_seed(1)))


def test_every_operator_is_tested() -> None:
    tested = {proto.op_type for case in CASES for proto in case[2]} | {"Constant"}  # of the real files below
    assert set(OPERATORS) == tested


REAL = {"yolox_nano": 255, "picodet_s_320_coco": 1, "version-RFB-320": 1, "yunet_n_320_320": 255}


@pytest.mark.parametrize("name", REAL)
def test_real_files(name: str, shared_data: Path) -> None:
    path = shared_data / "weights" / f"{name}.onnx"
    size = {"version-RFB-320": (240, 320), "yolox_nano": (416, 416)}.get(name, (320, 320))
    batch = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)) * REAL[name]
    net = assert_as_onnxruntime(path, batch)
    assert net.meta["size"] == size
    assert sum(p.numel() for p in net.parameters()) > 50_000


class Detector(nn.Module):
    """What exports of detectors are made of: shapes out of sizes, halves, heads side by side, a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(4, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.SiLU())
        self.deep = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.Hardswish(), nn.MaxPool2d(3, 1, 1))
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Hardsigmoid())
        self.norm, self.attend = nn.LayerNorm(16), nn.Linear(16, 48)
        self.head = nn.Conv2d(16, 12, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept, deep = self.stem(x).chunk(2, 1)
        deep = self.deep(deep)
        x = torch.cat((kept, deep * self.gate(deep)), 1)
        b, c, h, w = x.shape
        shuffled = x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
        tokens = self.norm(shuffled.flatten(2).transpose(1, 2))
        query, key, value = self.attend(tokens).reshape(b, h * w, 3, 4, 4).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = (query @ key.transpose(-2, -1) / 2).softmax(-1) @ value
        x = x + mixed.transpose(1, 2).reshape(b, h * w, c).transpose(1, 2).reshape(b, c, h, w)
        x = nn.functional.interpolate(x, scale_factor=2, mode="nearest")
        boxes, scores = self.head(x).flatten(2).transpose(1, 2).split((8, 4), -1)
        return boxes.reshape(b, -1, 4, 2).softmax(-1), scores.sigmoid()


@pytest.mark.parametrize("opset", [18, 20])
def test_torchs_own_exports(opset: int, tmp_path: Path) -> None:
    path, net = tmp_path / "net.onnx", Detector().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (torch.rand(IMAGE),), path, opset_version=opset, dynamo=True, verbose=False)
    batch = torch.rand(3, *IMAGE[1:])
    assert_as_onnxruntime(path, batch)


@pytest.mark.filterwarnings("ignore::msat_det.CalibrationWarning")
def test_the_module_is_like_any_other(shared_data: Path) -> None:
    """It is copied, its state dict goes into its copy, it traces and it is converted."""
    net = load_onnx(shared_data / "weights/yunet_n_320_320.onnx", size=(64, 64), outputs=["297", "303"])
    batch = torch.rand(2, 3, 64, 64) * 255
    twin = copy.deepcopy(net)
    twin.load_state_dict(net.state_dict())
    with torch.no_grad():
        for a, b in zip(net(batch), twin(batch), strict=True):
            assert torch.equal(a, b)
        expected = net(batch)
    outputs = msat_det.convert(net, batch, "delta").run(batch, 4)[4]
    for a, b in zip(outputs, expected, strict=True):
        assert a.shape == b.shape
        assert (a - b).norm() < 0.05 * b.norm()


def test_free_sizes(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "net.onnx", one("GlobalAveragePool"), shape=("n", 3, "h", "w"))
    with pytest.raises(InputError, match=r"leaves sizes free: give size="):
        load_onnx(path)
    assert load_onnx(path, size=(5, 7))(torch.ones(2, 3, 5, 7)).shape == (2, 3, 1, 1)


def test_a_size_that_the_files_shapes_are_not_for(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "net.onnx", [node("Reshape", "x s", "y")], constants={"s": np.array([1, 4, 48])})
    assert load_onnx(path, size=(6, 8)).meta["size"] == (6, 8)
    with pytest.raises(InputError, match=r"its own size is \[6, 8\]: leave size out, or export it for the other one"):
        load_onnx(path, size=(12, 8))


def test_nodes_may_stand_in_any_order(tmp_path: Path) -> None:
    """ONNX asks for those first that others read; onnxruntime does not, nor do its own tools, such as float16's."""
    nodes = [node("Conv", "x w b", "a"), node("Relu", "a", "c"), node("Sigmoid", "a", "d"), node("Add", "c d", "y")]
    batch = torch.rand(3, *IMAGE[1:])
    nets = []
    for order in ([0, 1, 2, 3], [3, 1, 0, 2], [1, 2, 3, 0]):
        path = write_onnx(tmp_path / "net.onnx", [nodes[i] for i in order], 17, CONV)
        nets.append(assert_as_onnxruntime(path, batch))
    assert len({net.code for net in nets}) == 1


def test_external_data_lie_in_the_folder(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    path = write_onnx(home / "net.onnx", [node("Conv", "x w", "y")], 17, {"w": CONV["w"]})
    batch = torch.rand(3, *IMAGE[1:])
    expected = load_onnx(path)(batch)
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert (home / "weights.bin").stat().st_size == CONV["w"].size * 4
    assert torch.equal(load_onnx(path)(batch), expected)
    (home / "weights.bin").rename(tmp_path / "weights.bin")
    for location, message in (("../weights.bin", "is no path inside"), ("weights.bin", "not readable")):
        model = onnx.load(path, load_external_data=False)
        model.graph.initializer[0].external_data[0].value = location
        path.write_bytes(model.SerializeToString())
        with pytest.raises(InputError, match=message):
            load_onnx(path)


REFUSED: dict[str, tuple[list[onnx.NodeProto], dict[str, Any]]] = {
    r"node 'NonZero_of_y' \(NonZero, which gives 'y'\): operator 'NonZero' is not known": (one("NonZero"), {}),
    r"'DynamicQuantizeLinear' is not known: the file is quantised: give the float one that": (
        [node("DynamicQuantizeLinear", "x", "y scale zero")],
        {},
    ),
    r"'QuantizeLinear' is not known: the file is quantised": (
        [node("QuantizeLinear", "x s", "q"), node("DequantizeLinear", "q s", "y")], {"s": 0.1}),
    "it is quantised in blocks": (
        [node("DequantizeLinear", "q s", "w", block_size=2), node("Add", "x w", "y")],
        {"q": np.ones((6, 8), np.int8), "s": np.ones((3, 8))}),
    r"operator 'com.microsoft::FusedConv' is not known": (
        [onnx.helper.make_node("FusedConv", ["x"], ["y"], domain="com.microsoft")],
        {},
    ),
    "did you mean Relu": ([onnx.helper.make_node("ReLu", ["x"], ["y"])], {}),
    r"node 'Add_of_y' \(Add, which gives 'y'\) reads 'z', which nothing": ([node("Add", "x z", "y")], {}),
    "it mixes the images of a batch": (one("ReduceMean", axes=[0]), {}),
    "picks one image of a batch": ([node("Gather", "x i", "y", axis=0)], {"i": np.array(0)}),
    "in which the images mix": ([node("Reshape", "x s", "y")], {"s": np.array([2, 97])}),
    "it mixes the images of a batch: export": (one("Softmax", axis=0), {}),
    "mixes the images of a batch: export the": ([node("Concat", "x x", "y", axis=0)], {}),
    "ArgMax_of_y.* it mixes the images of a batch": (one("ArgMax"), {}),
    "it sums up backwards, or what comes before": ([node("CumSum", "x a", "y", reverse=1)], {"a": np.array(1)}),
    "of equal ones it takes the last": (one("ArgMin", axis=1, select_last_index=1), {}),
    "it writes to places that are no block": (
        [node("ScatterND", "x i u", "y")], {"i": np.array([[0, 1], [0, 3]]), "u": weights(2, 6, 8)}),
    "does not write values, but joins them": (
        [node("ScatterND", "c i u", "y", reduction="add")], {"c": weights(2), "i": np.array([[0]]), "u": weights(1)}),
    "calculates with whole numbers: cast it to float": ([node("ArgMax", "x", "a", axis=1), node("Relu", "a", "y")], {}),
    "calculates with what is true or false": ([node("Greater", "x x", "a"), node("Relu", "a", "y")], {}),
    "its strides are not 2 sensible": ([node("Conv", "x w", "y", strides=[1, 1, 1])], CONV),
    "output 'y' is empty": ([node("Slice", "x s s i", "y")], {"s": np.array([0]), "i": np.array([3])}),
    "output 'y' is a constant": ([node("Shape", "x", "y")], {}),
    "its shape must be a constant": ([node("Reshape", "x x", "y")], {}),
    "far too large": ([node("Tile", "x s", "y")], {"s": np.array([1, 2**20, 2**20, 1])}),
    "too much is calculated from constants": (
        [node("ConstantOfShape", "s", "a"), node("Add", "x a", "y")], {"s": np.array([1, 2**15, 2**15])}),
    "is in training mode": ([node("BatchNormalization", "x s b m v", "y", training_mode=1)], VECTOR),
    "not finite": ([node("Conv", "x w", "y")], {"w": np.full((1, 4, 1, 1), np.nan)}),
    "does not fit its inputs": ([node("Conv", "x w", "y")], {"w": weights(6, 3, 3, 3)}),
    "rounds what the image gives": (one("Cast", to=7), {}),
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_refused(message: str, tmp_path: Path) -> None:
    nodes, constants = REFUSED[message]
    path = write_onnx(tmp_path / "net.onnx", nodes, 14, constants)
    with pytest.raises(InputError, match=message) as caught:
        load_onnx(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(("opset", "message"), [(8, "opset 8; export it with one from 9 to 23"), (99, "opset 99")])
def test_versions_that_are_not_known(opset: int, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        load_onnx(write_onnx(tmp_path / "net.onnx", one("Relu"), opset))


def test_files_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    for content, message in ((b"no such thing", "not readable as ONNX"), (b"", "holds no ONNX network")):
        path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            load_onnx(path)
    with pytest.raises(InputError, match=r"not readable as ONNX .No such file"):
        load_onnx(tmp_path / "none.onnx")
    path = write_onnx(path, one("Relu"), shape=(4, 3, 8, 8))
    with pytest.raises(InputError, match="is for 4 images at once"):
        load_onnx(path)


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_onnx(tmp_path / "net.onnx", one("Relu"))
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(InputError, match=r"pip install 'msat-det\[onnx\]'"):
        load_onnx(path)


NOTED = {"author": "Ultralytics", "task": "detect", "names": "{0: 'cat', 1: 'dog'}"}
UNSAID = {
    "no notes": ({}, "does not say what head it has: give one of yolov3"),
    "another task": (
        NOTED | {"task": "segment"},
        "is for task 'segment', its head is 'of its own': of it boxes and cla",
    ),
    "another head": (NOTED | {"head": "WorldDetect"}, r"'WorldDetect': .* name their raw outputs \(outputs\), and the"),
    "rotated boxes": (NOTED | {"task": "obb"}, "its boxes are rotated, which no head reads"),
    "of a size that it does not say": (NOTED | {"imgsz": "640"}, "leaves sizes free: give size="),
    "queries that are none": (
        NOTED | {"head": "RTDETRDecoder"},
        "do not fit head rtdetr with 2 classes: give model.nam",
    ),
    "names of another form": (NOTED | {"names": "cat, dog"}, "class names that it notes are not readable: give yours"),
    "names that leave one out": (NOTED | {"names": "{0: 'cat', 2: 'dog'}"}, "not readable"),
    "a tower of brackets": (NOTED | {"names": "[" * 60000}, "not readable"),
    "no end of names": (NOTED | {"names": "[" + "1," * 40000 + "]"}, "not readable"),
    "names that are none": (NOTED | {"names": "[1, 2]"}, "class name 1 is 1"),
    "other outputs": (NOTED | {"names": "{0: 'cat'}"}, "do not fit head yolov8 with 1 classes"),
}


def detecting(path: Path, notes: dict[str, str], strides: tuple[int, ...] = (8, 16, 32), after: str = "") -> Path:
    """The maps of head yolov8 with two classes, at 64 pixels unless ``imgsz`` is noted, and what the exporter notes.

    after: an operator on each map.
    """
    nodes = [node("Conv", f"x v{s}", f"c{s}", strides=[s, s]) for s in strides]
    nodes += [node(after or "Identity", f"c{s}", f"y{s}") for s in strides]
    constants = {f"v{s}": weights(18, 3, s, s) for s in strides}
    sides = ("h", "w") if "imgsz" in notes else (64, 64)
    write_onnx(path, nodes, constants=constants, outputs=" ".join(f"y{s}" for s in strides), shape=(1, 3, *sides))
    model = onnx.load(path)
    onnx.helper.set_model_props(model, notes)
    onnx.save(model, path)
    return path


def test_what_a_file_says_of_its_head_is_taken(tmp_path: Path) -> None:
    found = msat_det.load_detector(detecting(tmp_path / "a.onnx", NOTED))
    assert (found.head, found.classes, found.nms_iou) == ("yolov8", ["cat", "dog"], 0.7)
    found = msat_det.load_detector(detecting(tmp_path / "a.onnx", NOTED | {"end2end": "True"}), classes=["a", "b"])
    assert (found.head, found.classes, found.nms_iou) == ("yolov8", ["a", "b"], 1.0)
    found = msat_det.load_detector(detecting(tmp_path / "a.onnx", NOTED | {"imgsz": "[64, 96]"}))
    assert found.size == (64, 96)
    given = msat_det.load_detector(tmp_path / "a.onnx", size=32)
    assert given.size == (32, 32)


def test_names_count_whoever_noted_them(tmp_path: Path) -> None:
    path = detecting(tmp_path / "a.onnx", {"stride": "32", "names": "['cat', 'dog']"})  # as YOLOv5's exporter does
    assert msat_det.load_detector(path, "yolov8").classes == ["cat", "dog"]
    path = detecting(tmp_path / "a.onnx", {"names": "cat dog"})
    assert msat_det.load_detector(path, "yolov8", ["cat", "dog"]).classes == ["cat", "dog"]


def test_files_from_before_it_was_noted(tmp_path: Path) -> None:
    """Heads that need no suppression, and RT-DETR's, are known by what their decoding is made of."""
    for after, least in (("Identity", 0.7), ("TopK", 1.0)):
        path = detecting(tmp_path / "a.onnx", NOTED, after=after)
        found = msat_det.load_detector(path)
        assert (found.nms_iou, found.names) == (least, ["c8", "c16", "c32"])
    path = detecting(tmp_path / "a.onnx", NOTED, after="GridSample")
    with pytest.raises(InputError, match="do not fit head rtdetr"):
        msat_det.load_detector(path, outputs=["c8", "c16"])


class Decoding(nn.Module):
    """A YOLOv5 that decodes its boxes, as its own exporter leaves it, with one class. anchors: (levels, 3, 2)."""

    def __init__(self, anchors: Tensor, strides: tuple[int, ...]):
        super().__init__()
        self.anchors, self.strides = anchors, strides
        self.maps = nn.ModuleList(nn.Conv2d(3, 18, stride, stride) for stride in strides)

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for conv, anchors, stride in zip(self.maps, self.anchors, self.strides, strict=True):
            maps = conv(x).unflatten(1, (3, 6)).movedim(2, -1).sigmoid()  # (B, 3, h, w, 6)
            h, w = maps.shape[2:4]
            rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
            places = torch.stack((columns, rows), -1)
            centre = (2 * maps[..., :2] - 0.5 + places) * stride
            sides = (2 * maps[..., 2:4]) ** 2 * anchors.reshape(1, 3, 1, 1, 2)
            found.append(torch.cat((centre, sides, maps[..., 4:]), -1).flatten(1, 3))
        return torch.cat(found, 1)


@pytest.mark.filterwarnings("ignore")  # of PyTorch's exporter
@pytest.mark.parametrize("strides", [(8, 16, 32), (8, 16, 32, 64)])
def test_a_yolov5s_anchors_are_those_of_its_file(strides: tuple[int, ...], tmp_path: Path) -> None:
    """YOLOv7's, say, or those that its training fitted: its boxes are the file's own."""
    path, size = tmp_path / "net.onnx", (64, 128)
    anchors = torch.rand(len(strides), 3, 2) * 100 + 5
    torch.onnx.export(
        Decoding(anchors, strides).eval(), (torch.rand(1, 3, *size),), path, dynamo=False, opset_version=17
    )
    one = msat_det.load_detector(path, "yolov5", ["cat"])
    assert one.strides == strides
    torch.testing.assert_close(torch.tensor(one.anchors).reshape(-1, 3, 2), anchors)
    batch = torch.rand(2, 3, *size)
    with torch.no_grad():
        boxes, scores = one.found(one.net(batch))
    own = onnxruntime_outputs(path, batch)[0].split([3 * size[0] * size[1] // s**2 for s in strides], 1)
    own = torch.cat([rows.unflatten(1, (3, -1)).transpose(1, 2).flatten(1, 2) for rows in own], 1)
    centre, sides, objectness, classes = own.split((2, 2, 1, 1), -1)
    torch.testing.assert_close(boxes, torch.cat((centre - sides / 2, centre + sides / 2), -1), atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(scores, objectness * classes)
    with pytest.warns(UserWarning, match="it decodes other boxes than head yolov5 does: look at some, or give others"):
        given = msat_det.load_detector(path, "yolov5", ["cat"], anchors=[[8] * 6] * len(strides))
    assert set(sum(given.anchors, ())) == {8}
    raw = msat_det.load_detector(path, "yolov5", ["cat"], size=size, outputs=one.names)
    assert raw.anchors == one.anchors
    model = onnx.load(path)
    model.graph.node.append(node("NonZero", model.graph.output[0].name, "kept"))  # suppression, which is not known
    model.graph.output[0].name = "kept"
    onnx.save(model, path)
    assert msat_det.load_detector(path, "yolov5", ["cat"]).anchors == one.anchors


class Decoded(nn.Module):
    """Maps of two levels, all parts in one or each ``apart``, decoded as ``one`` does and put into another form."""

    def __init__(self, one: HeadDetector, form: Callable[[Tensor], Tensor], apart: bool = False):
        super().__init__()
        each = [n * (2 if anchored(one.head) else 1) for n in widths(one.head).values()]
        counts = each if apart else [sum(each)]
        self.maps = nn.ModuleList(nn.Conv2d(3, n, stride, stride) for stride in STRIDES for n in counts)
        self.one, self.form = one, form

    def forward(self, x: Tensor) -> Tensor:
        boxes, scores = self.one.found([conv(x) for conv in self.maps])
        return torch.cat((self.form(boxes), scores), -1)


def middle(boxes: Tensor) -> Tensor:
    """x1 y1 x2 y2 → x y w h."""
    return torch.cat(((boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]), -1)


EXTENT = torch.tensor([SIZE[1], SIZE[0]] * 2)
WRITTEN = {  # how the boxes of a head may be written, and another head that takes the same outputs
    "yolov3": (middle, "yolov5"),
    "yolov4": (torch.clone, "yolov3"),
    "yolov5": (lambda boxes: middle(boxes) / EXTENT, "yolov3"),
    "yolov8": (middle, "nanodet"),
    "nanodet": (torch.clone, "picodet"),
    "yolox": (torch.clone, "yolov3"),
    "ssd": (lambda boxes: (boxes / EXTENT).clamp(0, 1), None),
    "retinanet": (lambda boxes: boxes.clamp(min=0).minimum(EXTENT), "efficientdet"),
    "efficientdet": (lambda boxes: boxes[..., [1, 0, 3, 2]], "retinanet"),
    "fcos": (torch.clone, None),
    "rtmdet": (torch.clone, "nanodet"),
}


@pytest.mark.filterwarnings("ignore")  # of PyTorch's exporter
@pytest.mark.parametrize("head", WRITTEN)
def test_a_head_is_that_whose_boxes_the_file_decodes(head: str, tmp_path: Path) -> None:
    form, wrong = WRITTEN[head]
    classes = ["cat", "dog", "bus"]
    of = HeadDetector(nn.Identity(), head, classes, SIZE, STRIDES, ANCHORS if anchored(head) else None)
    path = tmp_path / "net.onnx"
    example = torch.rand(1, 3, *SIZE)
    torch.onnx.export(Decoded(of, form).eval(), (example,), path, dynamo=False, opset_version=17)
    one = msat_det.load_detector(path, classes=classes)
    assert (one.head, one.strides) == (head, STRIDES)
    if anchored(head):
        torch.testing.assert_close(torch.tensor(one.anchors), torch.tensor(ANCHORS))
    own = onnxruntime_outputs(path, example)[0]
    with torch.no_grad():
        boxes, scores = one.found(one.net(example))
    torch.testing.assert_close(form(boxes), own[..., :4], atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(scores, own[..., 4:])
    if wrong:
        with pytest.raises(InputError, match=rf"decodes boxes as head .*{head}.* does, not {wrong}: give that"):
            msat_det.load_detector(path, wrong, classes)


def test_the_priors_of_a_real_file(shared_data: Path) -> None:
    """UltraFace: its maps of 8 and 4 rows divide 240 pixels, but its columns 32 and 64; as its authors write them."""
    path = shared_data / "weights/version-RFB-320.onnx"
    one = msat_det.load_detector(path, classes=["face"], inputs=Inputs(mean=(127.0,) * 3, std=(128.0,) * 3))
    assert (one.head, one.strides) == ("ssd", ((8, 8), (16, 16), (32, 30), (64, 60)))
    sides = [(10, 16, 24), (32, 48), (64, 96), (128, 192, 256)]
    expected = [tuple(side for n in level for side in (n, min(n, 240))) for level in sides]
    torch.testing.assert_close(one.anchors, tuple(expected), check_dtype=False)
    dataset = build_dataset("coco", shared_data / "coco_val128", "val2017")
    image = one.preprocess(dataset.image(dataset.ids[0]))[0][None]
    with torch.no_grad():
        boxes, scores = one.found(one.net(image))
    own_scores, own_boxes = onnxruntime_outputs(path, image)
    torch.testing.assert_close(scores, own_scores[..., 1:], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(boxes, own_boxes * torch.tensor([320.0, 240, 320, 240]), atol=1e-2, rtol=1e-4)


class Distances(nn.Module):
    """RTMDet's distances in pixels as its larger models make them, and its smaller ones; their boxes, or not yet."""

    def __init__(self, powers: bool, decoding: bool):
        super().__init__()
        self.maps = nn.ModuleList(nn.Conv2d(3, n, s, s) for s in STRIDES for n in (3, 4))
        self.powers, self.decoding = powers, decoding

    def forward(self, x: Tensor) -> list[Tensor]:
        scores, boxes = ([conv(x) for conv in self.maps[first::2]] for first in (0, 1))
        boxes = [(0.8 * (map_.exp() if self.powers else map_)) * s for map_, s in zip(boxes, STRIDES, strict=True)]
        if not self.decoding:
            return [*scores, *boxes]
        scores, boxes = (torch.cat([map_.flatten(2) for map_ in maps], 2).transpose(1, 2) for maps in (scores, boxes))
        corner = torch.cat([_corners(stride) for stride in STRIDES])
        return [torch.cat((corner - boxes[..., :2], corner + boxes[..., 2:]), -1), scores.sigmoid()]


def _corners(stride: int) -> Tensor:
    y, x = (torch.arange(0.0, side, stride) for side in SIZE)
    return torch.cartesian_prod(y, x).flip(1)


@pytest.mark.filterwarnings("ignore")  # of PyTorch's exporter
@pytest.mark.parametrize("decoding", [False, True])
@pytest.mark.parametrize("powers", [False, True])
def test_powers_of_distances_are_rtmdets_raw_outputs(powers: bool, decoding: bool, tmp_path: Path) -> None:
    net, x, path = Distances(powers, decoding).eval(), torch.rand(1, 3, *SIZE), tmp_path / "net.onnx"
    torch.onnx.export(net, (x,), path, dynamo=False, opset_version=17)
    one = msat_det.load_detector(path, "rtmdet", ["cat", "dog", "bus"], size=SIZE, strides=STRIDES)
    net.decoding = True
    with torch.no_grad():
        for found, expected in zip(one.found(one.net(x)), net(x), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.filterwarnings("ignore")  # of PyTorch's exporter
def test_heads_whose_boxes_are_the_same(tmp_path: Path) -> None:
    """Their images are not made ready alike: whose it is has to be said."""
    classes, path = ["cat", "dog", "bus"], tmp_path / "net.onnx"
    of = HeadDetector(nn.Identity(), "picodet", classes, SIZE, STRIDES)
    net = Decoded(of, torch.clone, apart=True).eval()
    torch.onnx.export(net, (torch.rand(1, 3, *SIZE),), path, dynamo=False, opset_version=17)
    with pytest.raises(InputError, match=r"does not say what head it has: give one of yolov8, picodet$"):
        msat_det.load_detector(path, classes=classes)
    assert msat_det.load_detector(path, "picodet", classes).inputs.mean[0] > 100


@pytest.mark.parametrize("after", ["Identity", "Sigmoid"])
def test_a_yolov5_that_does_not_decode_has_the_usual_anchors(after: str, tmp_path: Path) -> None:
    nodes = []
    for s in (8, 16, 32):
        nodes += [node("Conv", f"x v{s}", f"c{s}", strides=[s, s]), node(after, f"c{s}", f"d{s}")]
        nodes += [node("Reshape", f"d{s} parts", f"e{s}"), node("Transpose", f"e{s}", f"f{s}", perm=[0, 1, 3, 2])]
        nodes.append(node("Reshape", f"f{s} rows", f"r{s}"))
    nodes.append(node("Concat", "r8 r16 r32", "y", axis=1))
    constants = {"parts": np.array([1, 3, 6, -1]), "rows": np.array([1, -1, 6])}
    constants |= {f"v{s}": weights(18, 3, s, s) for s in (8, 16, 32)}
    path = write_onnx(tmp_path / "net.onnx", nodes, 13, constants, shape=(1, 3, 64, 96))
    assert msat_det.load_detector(path, "yolov5", ["cat"]).anchors == HEADS.find("yolov5").anchors((8, 16, 32))


@pytest.mark.parametrize("sizes", [(1, 1, 64, 96), (1, 64, 96, 1), ("n", "h", "w", 1)])
@pytest.mark.parametrize("normalised", [False, True])
def test_files_of_grey_images(sizes: tuple[int | str, ...], normalised: bool, tmp_path: Path) -> None:
    """They were refused as no networks of three channels; what they normalise themselves is left to them."""
    last = sizes[3] == 1
    nodes = [node("Transpose", "x", "t", perm=[0, 3, 1, 2]) if last else node("Identity", "x", "t")]
    nodes += [node("Sub", "t mean", "u"), node("Div", "u half", "v")] if normalised else [node("Identity", "t", "v")]
    nodes += [node("Conv", f"v v{s}", f"y{s}", strides=[s, s]) for s in (8, 16, 32)]
    constants = {"mean": np.full((1, 1, 1, 1), 127.5), "half": 127.5} if normalised else {}
    constants |= {f"v{s}": weights(18, 1, s, s) for s in (8, 16, 32)}
    path = write_onnx(tmp_path / "net.onnx", nodes, 13, constants, "y8 y16 y32", shape=sizes)
    one = msat_det.load_detector(path, "yolov8", ["cat", "dog"], size=(64, 96))
    assert one.inputs == Inputs("letterbox", 114, mean=(0.0,), std=(1.0 if normalised else 255.0,))
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    x = one.preprocess(image)[0]
    with torch.no_grad():
        maps = one.net(x[None])
    for found, own in zip(maps, onnxruntime_outputs(path, (x.movedim(0, -1) if last else x)[None]), strict=True):
        torch.testing.assert_close(found, own, atol=1e-3, rtol=1e-4)
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    by_name = Model("onnx", str(path), head="yolov8", names=str(tmp_path / "names.txt"), size=64)
    assert build_detector(by_name).inputs == one.inputs
    assert build_detector(replace(by_name, mean=[9], std=[2])).inputs.mean == (9,)


@pytest.mark.parametrize("sizes", [(1, 64, 96, 3), ("n", "h", "w", 3)])
def test_files_made_from_tensorflow(sizes: tuple[int | str, ...], tmp_path: Path) -> None:
    """Images with their channels last, which the network itself brings from 0..255 to -1..1: heads ask for 0..1."""
    strides = (8, 16, 32)
    nodes = [node("Transpose", "x", "t", perm=[0, 3, 1, 2]), node("Sub", "t mean", "u"), node("Div", "u half", "v")]
    for s in strides:
        nodes.append(node("Conv", f"v v{s}", f"c{s}", strides=[s, s]))
        nodes += [node("Transpose", f"c{s}", f"l{s}", perm=[0, 2, 3, 1]), node("Reshape", f"l{s} rows", f"r{s}")]
    nodes.append(node("Concat", " ".join(f"r{s}" for s in strides), "y", axis=1))
    constants = {"mean": np.full((1, 3, 1, 1), 127.5), "half": 127.5, "rows": np.array([1, -1, 18])}
    constants |= {f"v{s}": weights(18, 3, s, s) for s in strides}
    path = write_onnx(tmp_path / "net.onnx", nodes, 13, constants, shape=sizes)
    one = msat_det.load_detector(path, "yolov8", ["cat", "dog"], size=(64, 96))
    assert (one.size, one.inputs) == ((64, 96), Inputs("letterbox", 114, std=(1.0,) * 3))
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    x = one.preprocess(image)[0]
    assert torch.equal(x, image.float())
    with torch.no_grad():
        maps = one.net(x[None])
    rows = torch.cat([level.flatten(2) for level in maps], 2).transpose(1, 2)
    (own,) = onnxruntime_outputs(path, image.float().movedim(0, -1)[None])
    torch.testing.assert_close(rows, own, atol=1e-3, rtol=1e-4)
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    names = str(tmp_path / "names.txt")
    by_name = build_detector(Model("onnx", str(path), head="yolov8", names=names, size=64))
    assert by_name.inputs == one.inputs
    given = msat_det.load_detector(path, "yolov8", ["cat", "dog"], (64, 96), inputs=Inputs())
    assert given.inputs == Inputs()


@pytest.mark.parametrize(
    ("nodes", "std"),
    [
        ([node("Sub", "x mean", "a"), node("Div", "a deviation", "v")], 255.0),  # as torchvision's do
        ([node("Mul", "x share", "a"), node("Sub", "a mean", "b"), node("Div", "b deviation", "v")], 1.0),
        ([node("Sub", "x middle", "v")], 1.0),
        ([node("Identity", "x", "v")], None),
    ],
)
def test_what_a_file_does_to_its_images_is_not_done_twice(nodes: list, std: float | None, tmp_path: Path) -> None:
    constants = {"mean": np.full((3, 1, 1), 0.45), "deviation": np.full((3, 1, 1), 0.22), "middle": 127.0}
    constants |= {"share": 1 / 255, "w": weights(12, 3, 8, 8)}
    path = write_onnx(
        tmp_path / "net.onnx", [*nodes, node("Conv", "v w", "y", strides=[8, 8])], 17, constants, shape=(1, 3, 64, 64)
    )
    found = msat_det.load_detector(path, "ssd", ["cat"], anchors=[[8, 8, 16, 16]], outputs=["y"], strides=[8]).inputs
    usual = HEADS.find("ssd").inputs
    assert found == (usual if std is None else replace(usual, mean=(0.0,) * 3, std=(std,) * 3))


def test_networks_that_do_not_take_one_image_are_refused(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "net.onnx", [node("Conv", "x w", "y")], 17, CONV, shape=(1, 4, 64, 64))
    with pytest.raises(
        InputError, match=r"an image \(1, 3, 64, 64\) does not fit it \(.*\): give a network of one image"
    ):
        msat_det.load_detector(path, "yolov8", ["cat"])
    path = write_onnx(tmp_path / "net.onnx", [node("Div", "x scale", "y")], shape=(1, 3, 64, 64))
    model = onnx.load(path)
    model.graph.input.append(onnx.helper.make_tensor_value_info("scale", onnx.TensorProto.FLOAT, (1, 1, 1, 1)))
    onnx.save(model, path)
    with pytest.raises(InputError, match=r"its outputs depend on 'x' and 'scale': name some of the images alone"):
        msat_det.load_detector(path, "raw", ["cat"])


@pytest.mark.parametrize("strides", [(16, 32), (4, 8, 16), (2, 4, 8, 16)])
def test_maps_say_their_strides(strides: tuple[int, ...], tmp_path: Path) -> None:
    """Of networks with other levels than usual, P2 or P6 say; a map of one cell could be of many."""
    found = msat_det.load_detector(detecting(tmp_path / "a.onnx", NOTED, strides))
    assert found.strides == strides
    assert msat_det.load_detector(tmp_path / "a.onnx", size=(64, 160)).strides == strides
    with pytest.raises(InputError, match=r"strides \[8, 16, 32\] and .* give model\.names, model\.strides"):
        msat_det.load_detector(detecting(tmp_path / "a.onnx", NOTED, (*strides, 64)))


@pytest.mark.parametrize(("notes", "message"), UNSAID.values(), ids=UNSAID)
def test_what_it_does_not_say_is_asked_for(notes: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as caught:
        msat_det.load_detector(detecting(tmp_path / "a.onnx", notes))
    assert "\n" not in str(caught.value)


def of_queries(path: Path, nodes: list[onnx.NodeProto], outputs: str, **constants: Any) -> Path:
    """Six queries of three classes, ``logits`` and ``pred_boxes``, and what an exporter puts behind them."""
    rows = [node("Conv", "x w", "a", strides=[16, 16]), node("Reshape", "a flat", "r"),
            node("Gemm", "r v", "c"), node("Reshape", "c parts", "d"), node("Split", "d lengths", "logits e", axis=2),
            node("Sigmoid", "e", "pred_boxes")]  # fmt: skip
    constants |= {"w": weights(8, 3, 16, 16), "flat": np.array([1, 128]), "v": weights(128, 42)}
    constants |= {"parts": np.array([1, 6, 7]), "lengths": np.array([3, 4])}
    return write_onnx(path, rows + nodes, constants=constants, outputs=outputs, shape=(1, 3, 64, 64))


# the best of all queries' classes, each a class and a query
CHOICE = [node("Sigmoid", "logits", "p"), node("Reshape", "p all", "q"), node("TopK", "q k", "scores i"),
          node("Mod", "i count", "labels"), node("Div", "i count", "j"), node("Unsqueeze", "j last", "m"),
          node("Tile", "m four", "n"), node("GatherElements", "pred_boxes n", "boxes", axis=1)]  # fmt: skip
CHOSEN = {"all": np.array([1, 18]), "k": np.array([4]), "count": np.array(3), "last": np.array([2])}
CHOSEN |= {"four": np.array([1, 1, 4])}
# as the authors of RT-DETR and D-FINE export theirs: corners in a photograph's pixels, whose sides are another input
CORNERS = [node("Split", "pred_boxes ones", "cx cy wide high", axis=2), node("Mul", "wide half", "w2"),
           node("Mul", "high half", "h2"), node("Sub", "cx w2", "left"), node("Sub", "cy h2", "top"),
           node("Add", "cx w2", "right"), node("Add", "cy h2", "bottom"),
           node("Concat", "left top right bottom", "corners", axis=2), node("Tile", "sides two", "t"),
           node("Unsqueeze", "t one", "u"), node("Cast", "u", "f", to=1), node("Mul", "corners f", "pixels"),
           *CHOICE[:-1], node("GatherElements", "pixels n", "boxes", axis=1)]  # fmt: skip
SIDES = CHOSEN | {"ones": np.ones(4, int), "half": 0.5, "two": np.array([1, 2]), "one": np.array([1])}


def with_sides(path: Path) -> Path:
    model = onnx.load(path)
    model.graph.input.append(onnx.helper.make_tensor_value_info("sides", onnx.TensorProto.INT64, (1, 2)))
    onnx.save(model, path)
    return path


def test_photographs_sizes_are_no_part_of_the_network(tmp_path: Path) -> None:
    path = with_sides(of_queries(tmp_path / "net.onnx", CORNERS, "labels boxes scores", **SIDES))
    one = msat_det.load_detector(path, "rtdetr", ["cat", "dog", "hen"])
    assert (one.names, list(one.net.meta["inputs"])) == (["pred_boxes", "logits"], ["x"])
    with pytest.raises(InputError, match="its input 'sides' is no float tensor; only those can be read"):
        load_onnx(path)
    for other in ([*CORNERS[:6], node("Mul", "cy h2", "bottom")], [*CORNERS[:3], node("Add", "cx w2", "left")]):
        nodes = [*other, *CORNERS[len(other) :]]
        path = with_sides(of_queries(tmp_path / "net.onnx", nodes, "labels boxes scores", **SIDES))
        with pytest.raises(InputError, match="its queries are chosen in an unknown way"):
            msat_det.load_detector(path, "rtdetr", ["cat", "dog", "hen"])


@pytest.mark.parametrize("sides", [(64, 64), ("h", "w")])
def test_a_mask_of_what_is_photograph_is_full(sides: tuple[int | str, ...], tmp_path: Path) -> None:
    """As in DETR exported by optimum, which asks for it beside the image."""
    nodes = [node("Cast", "pixel_mask", "m", to=1), node("ReduceMean", "m", "n"), node("Mul", "logits n", "scores")]
    path = of_queries(tmp_path / "net.onnx", nodes, "scores pred_boxes")
    model = onnx.load(path)
    model.graph.input.append(onnx.helper.make_tensor_value_info("pixel_mask", onnx.TensorProto.INT64, (1, *sides)))
    onnx.save(model, path)
    one = msat_det.load_detector(path, "rtdetr", ["cat", "dog", "hen"])
    batch = torch.rand(2, 3, 64, 64)
    for found, expected in zip(one.net(batch), load_onnx(path, outputs=["logits", "pred_boxes"])(batch), strict=True):
        torch.testing.assert_close(found, expected)
    with pytest.raises(InputError, match="its input 'pixel_mask' is no float tensor"):
        load_onnx(path)


@pytest.mark.parametrize(
    ("nodes", "outputs", "found"),
    [
        ([], "logits pred_boxes", ["logits", "pred_boxes"]),
        ([node("Relu", "d", "hidden")], "hidden pred_boxes logits", ["pred_boxes", "logits"]),
        ([node("Concat", "pred_boxes logits", "y", axis=2)], "y", ["y"]),
        (CHOICE, "labels boxes scores", ["pred_boxes", "logits"]),
    ],
)
def test_queries_are_taken_before_the_best_are_chosen(
    nodes: list[onnx.NodeProto], outputs: str, found: list[str], tmp_path: Path
) -> None:
    path = of_queries(tmp_path / "net.onnx", nodes, outputs, **(CHOSEN if nodes is CHOICE else {}))
    one = msat_det.load_detector(path, "rtdetr", ["cat", "dog", "hen"])
    assert one.names == found
    batch = torch.rand(2, 3, 64, 64)
    boxes, logits = load_onnx(path, outputs=["pred_boxes", "logits"])(batch)
    around, scores = one.found(one.net(batch))
    torch.testing.assert_close(scores, logits.sigmoid())
    torch.testing.assert_close((around[..., 2:] - around[..., :2]) / 64, boxes[..., 2:])


def test_a_choice_inside_the_network_is_part_of_it(tmp_path: Path) -> None:
    """As LW-DETR's, whose boxes are those of the queries that it has picked, and something added."""
    path = of_queries(tmp_path / "net.onnx", CHOICE, "logits boxes", **CHOSEN | {"k": np.array([6])})
    assert msat_det.load_detector(path, "rtdetr", ["cat", "dog", "hen"]).names == ["logits", "boxes"]


def test_queries_chosen_in_another_way_are_refused(tmp_path: Path) -> None:
    nodes = [node("ReduceMax", "logits", "m", axes=[2], keepdims=0), node("TopK", "m k", "scores i")]
    path = of_queries(tmp_path / "net.onnx", nodes, "scores i", k=np.array([4]))
    with pytest.raises(InputError, match=r"its queries are chosen in an unknown way: name the raw ones \(outputs\)"):
        msat_det.load_detector(path, "rtdetr", ["cat", "dog", "hen"])
    found = msat_det.load_detector(path, "rtdetr", ["cat", "dog", "hen"], outputs=["logits", "pred_boxes"])
    assert found.names == ["logits", "pred_boxes"]


def test_quantised_files_are_named_so(tmp_path: Path) -> None:
    """Also where no convolution is left, as onnxruntime's dynamic quantisation leaves it."""
    nodes = [
        node("DynamicQuantizeLinear", "x", "q s z"),
        node("ConvInteger", "q w z", "i"),
        node("Cast", "i", "y", to=1),
    ]
    path = write_onnx(tmp_path / "net.onnx", nodes, constants={"w": np.ones((1, 4, 3, 3), np.uint8)})
    with pytest.raises(InputError, match="its convolutions are quantised: give the float file that it was made of"):
        msat_det.load_detector(path, "yolov8", ["cat"])


@pytest.mark.parametrize("head", ["rtdetr", "yolov8"])
def test_tensors_made_of_themselves_are_refused(head: str, tmp_path: Path) -> None:
    nodes = [node("Reshape", "a s", "b"), node("Identity", "b", "a"), node("TopK", "a s", "v i"),
             node("Mul", "v v", "y"), node("Conv", "a w", "z")]  # fmt: skip
    path = write_onnx(
        tmp_path / "net.onnx", nodes, constants={"s": np.array([4]), "w": weights(4, 4, 1, 1)}, outputs="y z"
    )
    with pytest.raises(InputError, match=r"no convolution leads|reads 'a', which nothing before it gives"):
        msat_det.load_detector(path, head, ["cat"])


class QueriesFirst(nn.Module):
    """As DETR's authors wrote it: positions and queries before images, and all layers' outputs in one stack."""

    def __init__(self):
        super().__init__()
        self.stem, self.queries = nn.Conv2d(3, 8, 16, 16), nn.Parameter(torch.randn(5, 1, 8))
        self.layers = nn.ModuleList(nn.TransformerDecoderLayer(8, 2, 16, dropout=0) for _ in range(2))
        self.classes, self.boxes = nn.Linear(8, 3), nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        memory = self.stem(x).relu().flatten(2).permute(2, 0, 1)
        queries, found = self.queries.repeat(1, x.shape[0], 1), []
        for layer in self.layers:
            queries = layer(queries, memory)
            found.append(queries)
        stacked = torch.stack(found).transpose(1, 2)
        middle, sides = self.boxes(stacked).split(2, -1)
        return self.classes(stacked)[-1], torch.cat((middle * sides, sides), -1).sigmoid()[-1]


@pytest.mark.filterwarnings("ignore")  # of PyTorch's exporter
def test_images_behind_queries_and_layers_convert(tmp_path: Path) -> None:
    """Neurons, and products of two values, need them in front: such a file was read, and refused by the trace."""
    net, x, path = QueriesFirst().eval(), torch.rand(3, 3, *SIZE), tmp_path / "net.onnx"
    torch.onnx.export(net, (x[:1],), path, output_names=["logits", "pred_boxes"], dynamo=False, opset_version=17)
    one = msat_det.load_detector(path, "rtdetr", ["cat", "dog", "bus"])
    snn = msat_det.convert(one, x, "delta", bits=12, terms=6)
    with torch.no_grad():
        for found, read, expected in zip(snn.run(x, 4)[4], one.net(x), net(x), strict=True):
            torch.testing.assert_close(read, expected, atol=1e-4, rtol=1e-4)
            assert (found - expected).norm() < 0.02 * expected.norm()
