"""What an operator's function works with, ``Call``, and the table that it registers in."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from msat_det.base.errors import InputError
from msat_det.models.importers.onnx.building import Building, Moving, Value
from msat_det.models.importers.onnx.file import OnnxNode

MOST_PARTS = 4096
MIXED = "it mixes the images of a batch"
FREE = "export the network for a batch that stays free, or convert the module that it was made of"


@dataclass(frozen=True)
class Call:
    """A node as its function sees it. version: of the operators' set."""

    node: OnnxNode
    version: int
    building: Building

    def get(self, name: str, default: Any = None) -> Any:
        return self.node.attributes.get(name, default)

    def numbers(self, name: str, count: int, default: int) -> list[int]:
        """As many whole numbers as there are dimensions, out of an attribute."""
        found = list(self.get(name, [default] * count))
        if len(found) != count or not all(isinstance(number, int) and 0 <= number < 1 << 30 for number in found):
            raise InputError(f"its {name} are not {count} sensible whole numbers: give an undamaged file")
        return found

    def run(self, function: Callable | str, *args: Any, **kwargs: Any) -> Any:
        return self.building.call(function, *args, **kwargs)

    def constant(self, value: Value | None, what: str) -> Tensor:
        if not isinstance(value, Tensor):
            raise InputError(f"its {what} must be a constant, not depend on the image")
        return value

    def ints(self, value: Value | None, what: str) -> list[int]:
        numbers = self.constant(value, what).flatten().tolist()
        if len(numbers) > MOST_PARTS or not all(isinstance(number, int) for number in numbers):
            raise InputError(f"its {what} must be whole numbers, at most {MOST_PARTS} of them")
        return numbers

    def ints_of(self, name: str, value: Value | None, since: int) -> list[int] | None:
        """What was an attribute before version ``since``, and is an input from then on."""
        if self.version < since:
            return self.get(name)
        return None if value is None else self.ints(value, name)

    def refuse(self, what: str, mend: str = "export the network without it") -> InputError:
        return InputError(f"{what}: {mend}")


Operator = Callable[..., Any]
OPERATORS: dict[str, Operator] = {}


def operator(*names: str) -> Callable[[Operator], Operator]:
    def register(function: Operator) -> Operator:
        OPERATORS.update(dict.fromkeys(names, function))
        return function

    return register


def kind_of(x: Value) -> type:
    dtype = x.dtype if isinstance(x, Tensor) else x.probes[0].dtype
    return float if dtype.is_floating_point else bool if dtype is torch.bool else int


def along(n: Call, x: Value, axis: int) -> int:
    """A dimension of x, counted from the first one. Raises InputError for that of the images."""
    axis %= len(x.shape)
    if isinstance(x, Moving) and axis == x.images:
        raise n.refuse(MIXED)
    return axis
