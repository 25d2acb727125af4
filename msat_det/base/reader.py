"""Plain values, out of a file or off a command line, as the types of their hints; nothing else comes through.

The one reader of keys of a configuration, options of methods, prices, a training's settings, saved neurons and
detectors. Others were measured: importing argparse alone takes 32 ms, msgspec 128, cattrs 179, pydantic 224,
jsonargparse 325; msgspec and pydantic let NaN through, and none lists the choices of a word.
"""

import contextlib
import math
import os
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, Union

from msat_det.base.errors import InputError
from msat_det.base.files import show
from msat_det.base.names import hint as nearest

LARGEST = 2**31 - 1  # whole number of a document
LONGEST = 4096  # list of a document
_DIGITS = r"[-+]?\d{1,18}"  # a whole number of a person

Ranges = Mapping[tuple[type, str], tuple[float, float]]


class Reader:
    """Reads numbers, flags, words of a Literal, texts, lists of these, {T: number} and dataclasses, made ones too.

    where: what messages begin with. ranges: {(class, field): (least, most)}, for every number of a field. by_hand: a
    person wrote the values, not a program: numbers and flags may be words, ``4,8`` or one value is a list, ``null``
    nothing. Subclasses say it otherwise (``wrong``, ``unknown``, ``missing``) or know more kinds (``match``).
    """

    def __init__(self, where: str, ranges: Ranges | None = None, by_hand: bool = False):
        self.where, self.ranges, self.by_hand = where, ranges or {}, by_hand

    def read(self, cls: type, values: Any, name: str = "") -> Any:
        """An instance of ``cls``. A field that is not given takes its default. Raises InputError, naming the field."""
        if not isinstance(values, dict):
            raise self.wrong(name or cls.__name__.lower(), values, "a mapping of its fields")
        hints = typing.get_type_hints(cls)
        for key in values:
            if key not in hints:
                raise self.unknown(f"{name}{key}", hints)
        found = {}
        for item in fields(cls):
            path = f"{name}{item.name}"
            if item.name in values:
                found[item.name] = self.value(hints[item.name], values[item.name], path)
                low, high = self.ranges.get((cls, item.name), (-math.inf, math.inf))
                if not all(low <= number <= high for number in self.numbers(found[item.name])):
                    raise self.wrong(path, values[item.name], f"values from {low:g} to {high:g}")
            elif item.default is MISSING and item.default_factory is MISSING:
                raise self.missing(path)
        return cls(**found)

    def value(self, hint: Any, value: Any, name: str) -> Any:
        """A value as its hint takes it. Raises InputError, naming it, that says what to give."""
        for kind in sorted(kinds_of(hint), key=lambda kind: kind is not types.NoneType):
            meant = str(value) if self.by_hand and kind is str and type(value) in (int, float) else value
            matches, found = self.match(kind, meant, name)
            if matches:
                return found
        raise self.wrong(name, value, wanted(hint))

    def match(self, kind: Any, value: Any, name: str) -> tuple[bool, Any]:
        """Whether a value is of this kind, and what it stands for."""
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if isinstance(kind, type) and is_dataclass(kind):
            made = self.read(kind, value, f"{name}.") if isinstance(value, dict) else value
            return isinstance(made, kind), made
        if origin is Literal:
            return isinstance(value, str) and value in arguments, value
        if origin in (Sequence, tuple, list):
            return self._sequence(origin, arguments, value, name)
        if dict in (kind, origin):
            by_t = isinstance(value, dict) and (kind is dict or _is_by_t(value))
            return by_t, {t: float(number) for t, number in value.items()} if by_t and origin else value
        value = _meant(kind, value) if self.by_hand else value
        if kind is int:
            return type(value) is int and abs(value) <= (10**18 if self.by_hand else LARGEST), value
        if kind is float:
            fits = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e38
            return fits, float(value) if fits else None
        return kind in (types.NoneType, bool, str) and isinstance(value, kind), value

    def _sequence(self, origin: type, arguments: tuple, value: Any, name: str) -> tuple[bool, Any]:
        inner, fixed = arguments[0], origin is tuple and arguments[-1] is not Ellipsis
        if self.by_hand and isinstance(value, str | int | float | tuple | list):
            value = _listed(inner, value)
        elif self.by_hand or not isinstance(value, list) or not 0 < len(value) <= LONGEST:
            return False, None
        kinds = arguments if fixed else (inner,) * len(value)
        if len(kinds) != len(value):
            return False, None
        pairs = [self.match(each, item, name) for each, item in zip(kinds, value, strict=True)]
        found = [item for _, item in pairs]
        return all(matches for matches, _ in pairs), found if origin is list else tuple(found)

    def numbers(self, value: Any) -> Iterator[float]:
        """The numbers in a field's value."""
        if isinstance(value, tuple | list):
            for item in value:
                yield from self.numbers(item)
        elif isinstance(value, int | float):
            yield value

    def wrong(self, name: str, value: Any, wanted: str) -> InputError:
        return InputError(f"{self.where}: {show(name)[1:-1]} is {show(value)}: give {wanted}")

    def unknown(self, name: str, names: Iterable[str]) -> InputError:
        mend = nearest(name, names, f"it takes {listing(names)}")
        return InputError(f"{self.where}: there is no {show(name)}: {mend}")

    def missing(self, name: str) -> InputError:
        return InputError(f"{self.where}: {name} is missing: save it again")


def plain(value: Any) -> Any:
    """Numbers and arrays of NumPy and PyTorch, paths and tuples as the plain values of a file."""
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.tolist() if hasattr(value, "dtype") and hasattr(value, "tolist") else value


def kinds_of(hint: Any) -> tuple:
    """The alternatives of a hint; its annotation aside."""
    hint = hint.__origin__ if typing.get_origin(hint) is typing.Annotated else hint
    return typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, Union) else (hint,)


def wanted(hint: Any) -> str:
    """What to give where a hint stands, in words."""
    return " or ".join(_in_words(kind) for kind in kinds_of(hint) if kind is not types.NoneType)


def listing(names: Iterable[str]) -> str:
    return ", ".join(map(str, names))


def _in_words(kind: Any) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return f"one of {listing(arguments)}" if arguments[1:] else str(arguments[0])
    if origin is dict:
        return "one for each T as in {4: 3.1, 8: 4.8}"
    if origin in (Sequence, tuple, list):
        lists = {
            int: "whole numbers such as 4,8,16",
            float: "a list of numbers such as 2,1,0.5",
            str: "a list of names",
        }
        return (lists | {dict: "a list of {label, method, …options}"}).get(arguments[0], "a list")
    if is_dataclass(kind):
        return "a mapping of its fields"
    plain = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    return plain.get(kind, f"a {kind.__name__.lower()}")


def _is_by_t(value: dict) -> bool:
    return bool(value) and all(type(t) is int and t > 0 and type(n) in (int, float) for t, n in value.items())


def _listed(inner: Any, value: Any) -> Sequence:
    """What a person wrote for a list."""
    if isinstance(value, list | tuple):
        return value
    if not isinstance(value, str):
        return [value]
    words = [word.strip() for word in value.strip("[]").split(",")]
    return [word for word in words if word] if inner is str else words


def _meant(kind: Any, value: Any) -> Any:
    """What a person meant by a word where this kind is asked for, or the value as it is."""
    if not isinstance(value, str):
        return value
    if kind is float:
        with contextlib.suppress(ValueError):
            return float(value)
    if kind is types.NoneType and value in ("null", "none"):
        return None
    if kind is bool:
        return {"true": True, "on": True, "false": False, "off": False}.get(value.lower(), value)
    if kind is int and re.fullmatch(_DIGITS, value):
        return int(value)
    return None if kind is str and (value == "" or "\0" in value) else value
