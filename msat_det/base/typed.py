"""Untrusted JSON → dataclasses, field by field as their type hints say; nothing but the hinted types comes through."""

import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal

from torch import Tensor

from msat_det.base.errors import InputError
from msat_det.base.files import show

LARGEST = 2**31 - 1  # whole number
LONGEST = 4096  # list

Ranges = Mapping[tuple[type, str], tuple[float, float]]


class Reader:
    """Reads dataclasses whose fields are numbers, flags, words of a Literal, texts, lists of these, and dataclasses.

    where: what messages begin with. ranges: {(class, field): (least, most)}, for every number of a field.
    """

    def __init__(self, where: str, ranges: Ranges):
        self.where, self.ranges = where, ranges

    def read(self, cls: type, values: Any, name: str = "") -> Any:
        """An instance of ``cls``. A field that is not given takes its default. Raises InputError, naming the field."""
        if not isinstance(values, dict):
            raise self.wrong(name or cls.__name__.lower(), values, "a mapping of its fields")
        hints = typing.get_type_hints(cls)
        for key in values:
            if key not in hints:
                raise self.wrong(f"{name}{key}", values[key], f"no such field, but {', '.join(hints)}")
        found = {}
        for item in fields(cls):
            if item.name in values:
                hint, path = hints[item.name], f"{name}{item.name}"
                found[item.name] = self._field(cls, item.name, hint, values[item.name], path)
            elif item.default is MISSING and item.default_factory is MISSING:
                raise InputError(f"{self.where}: {name}{item.name} is missing: save it again")
        return cls(**found)

    def _field(self, cls: type, key: str, hint: Any, value: Any, name: str) -> Any:
        for kind in typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,):
            matches, found = self.match(kind, value, name)
            if matches:
                low, high = self.ranges.get((cls, key), (-math.inf, math.inf))
                if not all(low <= number <= high for number in _numbers(found)):
                    raise self.wrong(name, value, f"values from {low:g} to {high:g}")
                return found
        kind = hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else hint
        raise self.wrong(name, value, f"a value of its type, {kind}")

    def match(self, kind: Any, value: Any, name: str) -> tuple[bool, Any]:
        """Whether a JSON value is of this kind, and what it stands for."""
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if is_dataclass(kind):
            return isinstance(value, dict), self.read(kind, value, f"{name}.") if isinstance(value, dict) else None
        if origin is Literal:
            return isinstance(value, str) and value in arguments, value
        if origin in (Sequence, tuple, list):
            if not isinstance(value, list) or not 0 < len(value) <= LONGEST:
                return False, None
            fixed = origin is tuple and arguments[-1] is not Ellipsis
            kinds = arguments if fixed else arguments[:1] * len(value)
            if len(kinds) != len(value):
                return False, None
            pairs = [self.match(inner, item, name) for inner, item in zip(kinds, value, strict=True)]
            return all(matches for matches, _ in pairs), tuple(item for _, item in pairs)
        if kind in (types.NoneType, bool, str):
            return isinstance(value, kind), value
        if kind is int:
            return type(value) is int and abs(value) <= LARGEST, value
        if kind is float and type(value) in (int, float) and abs(value) < 1e38:
            return True, float(value)
        return False, None

    def wrong(self, name: str, value: Any, wanted: str) -> InputError:
        return InputError(f"{self.where}: {show(name)[1:-1]} is {show(value)}: give {wanted}")


def _numbers(value: Any) -> Iterator[float]:
    """The numbers in a field's value: its least and greatest ones stand for a tensor."""
    if isinstance(value, Tensor):
        yield from (value.amin().item(), value.amax().item()) if value.numel() else ()
    elif isinstance(value, tuple):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, int | float):
        yield value
