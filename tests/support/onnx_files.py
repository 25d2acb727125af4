"""Small ONNX files made by hand, and what onnxruntime makes of a file."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

IMAGE = (1, 4, 6, 8)


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    """A node from its inputs' and outputs' names, with spaces between; ``_`` is an input that is left out."""
    names = ["" if name == "_" else name for name in inputs.split()]
    return helper.make_node(op, names, outputs.split(), f"{op}_of_{outputs.split()[0]}", **attributes)


def write_onnx(
    path: Path,
    nodes: list[onnx.NodeProto],
    opset: int = 17,
    constants: dict[str, Any] | None = None,
    outputs: str = "y",
    shape: tuple[int | str, ...] = IMAGE,
) -> Path:
    """A file whose input is ``x``. constants: floats become float32, whole numbers int64."""
    weights = []
    for name, value in (constants or {}).items():
        array = np.asarray(value)
        array = array.astype(np.float32) if array.dtype.kind == "f" else array
        weights.append(numpy_helper.from_array(array, name))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    found = [helper.make_empty_tensor_value_info(name) for name in outputs.split()]
    graph = helper.make_graph(nodes, "small", inputs, found, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def onnxruntime_outputs(path: Path, batch: Tensor) -> list[Tensor]:
    """What onnxruntime gives, image by image: files are for one."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = onnxruntime.InferenceSession(path, options)
    name = session.get_inputs()[0].name
    runs = [session.run(None, {name: image[None].numpy()}) for image in batch]
    return [torch.cat([torch.from_numpy(run[i]) for run in runs]) for i in range(len(runs[0]))]
