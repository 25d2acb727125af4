"""The windows of a max pooling, read off a node of the graph."""

from dataclasses import dataclass

from torch import nn
from torch.fx.node import Node

from msat_det.graph.facts import facts

LARGEST = 32  # elements of a window that fit a kernel's registers


@dataclass(frozen=True)
class Window:
    """Of a two-dimensional pooling without dilation; every pair is (rows, columns)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    ceil: bool

    @property
    def overlaps(self) -> bool:
        return any(size > step for size, step in zip(self.kernel, self.stride, strict=True))

    def size(self, length: int, axis: int) -> int:
        """Outputs along an axis for inputs of this length, as PyTorch counts them."""
        kernel, stride, padding = self.kernel[axis], self.stride[axis], self.padding[axis]
        free = length + 2 * padding - kernel
        outputs = (-(-free // stride) if self.ceil else free // stride) + 1
        return outputs - (self.ceil and (outputs - 1) * stride >= length + padding)


def window_of(node: Node, module: nn.Module | None) -> Window | None:
    """What a max pooling's node pools over, or None where it is no such pooling of numbers."""
    if facts(node).op != "maxpool2d":
        return None
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    if module is None:
        given = dict(zip(names, node.args[1:], strict=False)) | node.kwargs
    else:
        given = {name: getattr(module, name) for name in names}
    kernel, stride = given.get("kernel_size"), given.get("stride")
    values = [kernel, kernel if stride in (None, []) else stride, given.get("padding", 0), given.get("dilation", 1)]
    pairs = [pair for value in values if (pair := _pair(value))]
    if len(pairs) < len(values) or pairs[3] != (1, 1) or pairs[0][0] * pairs[0][1] > LARGEST:
        return None
    return Window(pairs[0], pairs[1], pairs[2], bool(given.get("ceil_mode", False)))


def _pair(value: object) -> tuple[int, int] | None:
    parts = tuple(value) if isinstance(value, list | tuple) else (value, value)
    return parts * (2 // len(parts)) if all(isinstance(part, int) for part in parts) and len(parts) in (1, 2) else None
