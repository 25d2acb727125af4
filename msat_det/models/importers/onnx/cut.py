"""Where an ONNX network's raw outputs are: before the decoding of boxes, or the choice of queries, that
exporters put behind them."""

from collections.abc import Sequence

from msat_det.models.importers.onnx.file import OnnxFile, OnnxNode

_AFFINE = {"Add", "Mul", "BatchNormalization"}  # with a constant: still the convolution's raw outputs
_SIZES = {"Shape", "Size"}  # what they give is no part of the outputs
_MOVING = {"Reshape", "Transpose", "Slice", "Split", "Squeeze", "Unsqueeze", "Flatten", "Concat", "Identity"}
_PICKING = {"Gather", "GatherElements", "GatherND"}
# what makes classes and queries of places, and puts what is picked side by side
_CHOOSING = (
    _MOVING | _PICKING | set("Cast Div Floor Mod Mul Sub Add Where Less Equal Not And Or Xor Expand Tile".split())
)


def raw_outputs(file: OnnxFile) -> list[str]:
    """The tensors that the last convolutions before the outputs give, in the order in which the outputs use them.

    A convolution of what a softmax gives takes the mean of a distribution: it belongs to the decoding.
    """
    makers = _makers(file)
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


def raw_queries(file: OnnxFile) -> list[str]:
    """The tensors of all queries' boxes and logits: the outputs, or what the best queries are chosen from before them.

    Empty where something is chosen in a way that is not known here.
    """
    makers = _makers(file)
    choosing = _before(file.outputs, makers)
    scores = {node.inputs[0] for node in choosing if node.op == "TopK"}
    if not scores:
        named = [name for name in file.outputs if name in ("logits", "pred_logits", "pred_boxes")]
        return named if len(named) == 2 else file.outputs
    boxes = [node.inputs[0] for node in choosing if node.op in _PICKING and _chosen(node, makers) == (False, True)]
    if not boxes or len(scores) > 1:
        return []
    images = {name for name, sizes in file.inputs.items() if sizes is not None and len(sizes) == 4}
    found = [_centred(boxes[0], makers, images), _logits(scores.pop(), makers)]
    return found if all(found) else []


def _makers(file: OnnxFile) -> dict[str, OnnxNode]:
    return {name: node for node in file.nodes for name in node.outputs if name}


def _before(names: Sequence[str], makers: dict[str, OnnxNode]) -> list[OnnxNode]:
    """The nodes of a choice that lead to these tensors, and those before it, whose results it uses."""
    found: dict[OnnxNode, None] = {}
    waiting = list(names)
    while waiting:
        node = makers.get(waiting.pop())
        if node is not None and node not in found:
            found[node] = None
            waiting += node.inputs if node.op in _CHOOSING else []
    return list(found)


def _chosen(node: OnnxNode, makers: dict[str, OnnxNode]) -> tuple[bool, ...]:
    """Of each of its inputs, whether it is a choice's."""
    return tuple(any(before.op == "TopK" for before in _before([name], makers)) for name in node.inputs)


def _centred(name: str, makers: dict[str, OnnxNode], images: set[str]) -> str:
    """Boxes before they were corners of a photograph's pixels, as the authors of RT-DETR and D-FINE export them.

    Empty where they are pixels, but not of corners that are known as such.
    """
    node = makers[name]
    factors = [found for found in node.inputs if not images & _leading(found, makers)] if node.op == "Mul" else []
    if factors:
        name = next((found for found in node.inputs if found not in factors), "")
        node = makers.get(name, node)
    ends = [makers.get(_unmoved(found, makers)) for found in node.inputs] if node.op == "Concat" else []
    if [end.op for end in ends if end is not None] != ["Sub", "Sub", "Add", "Add"]:
        return "" if factors else name
    waiting, sources = [found for end in ends if end is not None for found in end.inputs], set()
    while waiting:
        before = makers.get(_unmoved(waiting.pop(), makers))
        if before is not None and before.op in ("Mul", "Div"):  # half of the sides
            waiting += before.inputs
        elif before is not None and before.op in ("Slice", "Gather", "Split"):
            sources.add(before.inputs[0])
    return sources.pop() if len(sources) == 1 else ""


def _unmoved(name: str, makers: dict[str, OnnxNode]) -> str:
    """Before a dimension was added to it, or taken away."""
    while name in makers and makers[name].op in ("Squeeze", "Unsqueeze", "Identity"):
        name = makers[name].inputs[0]
    return name


def _leading(name: str, makers: dict[str, OnnxNode]) -> set[str]:
    """All tensors that lead to one, itself among them."""
    found, waiting = {name}, [name]
    while waiting:
        node = makers.get(waiting.pop())
        others = set(node.inputs) - found if node is not None else set()
        found |= others
        waiting += others
    return found


def _logits(name: str, makers: dict[str, OnnxNode]) -> str:
    """Before the sigmoid that scores come from."""
    node = makers.get(name)
    while node is not None and node.op in _MOVING:
        node = makers.get(node.inputs[0])
    return node.inputs[0] if node is not None and node.op == "Sigmoid" else name


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
