"""Where an ONNX network's raw outputs are: before the decoding of boxes, or the choice of queries, that
exporters put behind them."""

from collections.abc import Sequence

from msat_det.models.importers.onnx.file import OnnxFile, OnnxNode

_AFFINE = {"Add", "Mul", "BatchNormalization"}  # with a constant: still the convolution's raw outputs
_SIZES = {"Shape", "Size"}  # what they give is no part of the outputs
_MOVING = {"Reshape", "Transpose", "Slice", "Split", "Squeeze", "Unsqueeze", "Flatten", "Concat", "Identity"}
_ADDED = {"Squeeze", "Unsqueeze", "Identity"}  # a dimension of one element
_PICKING = {"Gather", "GatherElements", "GatherND"}
# what makes classes and queries of places, and puts what is picked side by side
_CHOOSING = (
    _MOVING | _PICKING | set("Cast Div Floor Mod Mul Sub Add Where Less Equal Not And Or Xor Expand Tile".split())
)


def raw_outputs(file: OnnxFile, powers: bool = False) -> list[str]:
    """The tensors that the last convolutions before the outputs give, in the order in which the outputs use them.

    powers: whether powers of e of them are still raw, where there are any. A convolution of what a softmax gives takes
    the mean of a distribution: it belongs to the decoding.
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
        if _is_raw(node, makers, _AFFINE | {"Exp"} if powers else _AFFINE):
            found[name] = None
        else:
            waiting += node.inputs[::-1]
    return list(found)


def raw_queries(file: OnnxFile) -> list[str]:
    """The tensors of all queries' boxes and logits: the outputs, or what the best queries are chosen from before them.

    Empty where something is chosen in a way that is not known here.
    """
    makers = _makers(file)
    chosen: set[str] = set()  # what comes from a choice
    for node in makers.values():
        if node.op == "TopK" or (node.op in _CHOOSING and chosen.intersection(node.inputs)):
            chosen.update(node.outputs)
    if not chosen.issuperset(file.outputs):
        named = [name for name in file.outputs if name in ("logits", "pred_logits", "pred_boxes")]
        return named if len(named) == 2 else file.outputs
    choosing = _before(file.outputs, makers, _CHOOSING)
    scores = {node.inputs[0] for node in choosing if node.op == "TopK"}
    picks = [[name in chosen for name in node.inputs] == [False, True] and node.op in _PICKING for node in choosing]
    boxes = [node.inputs[0] for node, picked in zip(choosing, picks, strict=True) if picked]
    if not boxes or len(scores) > 1:
        return []
    images = {name for name, sizes in file.inputs.items() if sizes is not None and len(sizes) == 4}
    found = [_centred(boxes[0], makers, images), _logits(scores.pop(), makers)]
    return found if all(found) else []


def _makers(file: OnnxFile) -> dict[str, OnnxNode]:
    """The node that gives each tensor; none that reads what only it or a later one gives, in a damaged file."""
    given = {name for node in file.nodes for name in node.outputs if name}
    makers: dict[str, OnnxNode] = {}
    for node in file.nodes:
        if (node.inputs or node.op == "Constant") and all(name in makers or name not in given for name in node.inputs):
            for name in filter(None, node.outputs):
                makers.setdefault(name, node)
    return makers


def _before(names: Sequence[str], makers: dict[str, OnnxNode], through: set[str] | None = None) -> list[OnnxNode]:
    """The nodes that lead to these tensors through some operators, or any, and those whose results these use first."""
    found: dict[OnnxNode, None] = {}
    waiting = list(names)
    while waiting:
        node = makers.get(waiting.pop())
        if node is not None and node not in found:
            found[node] = None
            waiting += node.inputs if through is None or node.op in through else []
    return list(found)


def _centred(name: str, makers: dict[str, OnnxNode], images: set[str]) -> str:
    """Boxes before they were corners of a photograph's pixels, as the authors of RT-DETR and D-FINE export them.

    Empty where they are pixels, but not of corners that are known as such.
    """
    node = makers.get(name)
    if node is None:
        return name
    entered = [
        found in images or any(images.intersection(before.inputs) for before in _before([found], makers))
        for found in node.inputs
    ]
    factors = [found for found, image in zip(node.inputs, entered, strict=True) if not image and node.op == "Mul"]
    if factors:
        name = next((found for found in node.inputs if found not in factors), "")
        node = makers.get(name, node)
    ends = [makers.get(_unmoved(found, makers)) for found in node.inputs] if node.op == "Concat" else []
    if [end.op for end in ends if end is not None] != ["Sub", "Sub", "Add", "Add"]:
        return "" if factors else name
    corners = [found for end in ends if end is not None for found in end.inputs]
    parts = _before(corners, makers, _ADDED | {"Mul", "Div"})  # by half of the sides
    sources = {part.inputs[0] for part in parts if part.op in ("Slice", "Gather", "Split")}
    return sources.pop() if len(sources) == 1 else ""


def _unmoved(name: str, makers: dict[str, OnnxNode]) -> str:
    while name in makers and makers[name].op in _ADDED:
        name = makers[name].inputs[0]
    return name


def _logits(name: str, makers: dict[str, OnnxNode]) -> str:
    """Before the sigmoid that scores come from."""
    node = makers.get(name)
    while node is not None and node.op in _MOVING:
        node = makers.get(node.inputs[0])
    return node.inputs[0] if node is not None and node.op == "Sigmoid" else name


def _is_raw(node: OnnxNode, makers: dict[str, OnnxNode], passing: set[str]) -> bool:
    """Whether it is a convolution, or what operators that are ``passing`` make of one's outputs."""
    if node.op in passing:
        sources = [makers[name] for name in node.inputs if name in makers and makers[name].op != "Constant"]
        return len(sources) == 1 and _is_raw(sources[0], makers, passing)
    if node.op != "Conv":
        return False
    before = makers.get(node.inputs[0])
    while before is not None and before.op in _MOVING:
        before = makers.get(before.inputs[0])
    return before is None or before.op != "Softmax"
