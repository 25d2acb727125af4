"""Where an ONNX network's raw outputs are: before the decoding of boxes that exporters put behind them."""

from msat_det.models.importers.onnx.file import OnnxFile, OnnxNode

_AFFINE = {"Add", "Mul", "BatchNormalization"}  # with a constant: still the convolution's raw outputs
_SIZES = {"Shape", "Size"}  # what they give is no part of the outputs
_MOVING = {"Reshape", "Transpose", "Slice", "Split", "Squeeze", "Unsqueeze", "Flatten", "Concat", "Identity"}


def raw_outputs(file: OnnxFile) -> list[str]:
    """The tensors that the last convolutions before the outputs give, in the order in which the outputs use them.

    A convolution of what a softmax gives takes the mean of a distribution: it belongs to the decoding.
    """
    makers = {name: node for node in file.nodes for name in node.outputs if name}
    found: dict[str, None] = {}
    seen: set[str] = set()
    waiting = file.outputs[::-1]
    while waiting:
        name = waiting.pop()
        node = makers.get(name)
        if node is None or name in seen or node.op in _SIZES:
            continue
        seen.add(name)
        if _is_raw(node, makers):
            found[name] = None
        else:
            waiting += node.inputs[::-1]
    return list(found)


def _is_raw(node: OnnxNode, makers: dict[str, OnnxNode]) -> bool:
    """Whether it is a convolution, or affine in one's outputs."""
    if node.op in _AFFINE:
        sources = [makers[name] for name in node.inputs if name in makers and makers[name].op != "Constant"]
        return len(sources) == 1 and _is_raw(sources[0], makers)
    if node.op != "Conv":
        return False
    before = makers.get(node.inputs[0])
    while before is not None and before.op in _MOVING:
        before = makers.get(before.inputs[0])
    return before is None or before.op != "Softmax"
