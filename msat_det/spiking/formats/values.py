"""The arguments of a graph's nodes and layers as JSON and back: what JSON does not know stands as {kind: content}."""

from collections import OrderedDict, namedtuple
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import fx

from msat_det.base.errors import InputError
from msat_det.base.files import show
from msat_det.models.checkpoint import DTYPES

LARGEST = 1 << 62  # whole number
_TABLES: dict[str, tuple[type, dict[str, Any]]] = {
    "dtype": (torch.dtype, DTYPES),
    "format": (torch.memory_format, {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}),
    "float": (float, {"inf": float("inf"), "-inf": float("-inf")}),
    "ellipsis": (type(...), {"": ...}),
}
_DICTS = {"dict": dict, "ordered": OrderedDict}


def encode(value: Any, node: str) -> Any:
    """A value as JSON. Raises InputError, naming the node that has it, for what can't be saved."""
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, tuple) and (keys := getattr(value, "_fields", ())):
        items = [[key, encode(item, node)] for key, item in zip(keys, value, strict=True)]
        return {"named": [type(value).__name__, *items]}
    if isinstance(value, tuple):
        return {"tuple": [encode(item, node) for item in value]}
    if isinstance(value, list):
        return [encode(item, node) for item in value]
    if isinstance(value, slice):
        return {"slice": [encode(item, node) for item in (value.start, value.stop, value.step)]}
    if isinstance(value, dict):
        tag = "ordered" if isinstance(value, OrderedDict) else "dict"
        return {tag: [[_key(k), encode(v, node)] for k, v in value.items()]}
    for tag, (kind, table) in _TABLES.items():
        if isinstance(value, kind):
            for name, known in table.items():
                if known == value:
                    return {tag: name}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise InputError(f"node '{node}' has or gives {show(value)}, which can't be saved: write it otherwise")


def decode(value: Any, nodes: dict[str, fx.Node]) -> Any:
    """What ``encode`` made JSON of. nodes: those that the value may name.

    Raises InputError, and for what does not have ``encode``'s form KeyError, ValueError, TypeError or RecursionError.
    """
    if isinstance(value, list):
        return [decode(item, nodes) for item in value]
    if not isinstance(value, dict):
        if isinstance(value, int) and abs(value) > LARGEST:
            raise InputError(f"a number {show(value)} is too large")
        return value
    ((tag, content),) = value.items()
    if tag == "node":
        return nodes[content]
    if tag == "tuple":
        return tuple(decode(item, nodes) for item in content)
    if tag == "named":
        (name, *items) = content
        return _named(name, tuple(key for key, _ in items))(*(decode(item, nodes) for _, item in items))
    if tag == "slice":
        return slice(*(decode(item, nodes) for item in content))
    if tag in _DICTS:
        return _DICTS[tag]((_key(k), decode(v, nodes)) for k, v in content)
    return _TABLES[tag][1][content]


@lru_cache(64)
def _named(name: str, fields: tuple[str, ...]) -> Callable[..., tuple]:
    """The class of a named tuple, the same one for all that are alike. Raises InputError for what are no names."""
    if not all(isinstance(word, str) and word.isidentifier() and len(word) < 300 for word in (name, *fields)):
        raise InputError(f"a named tuple {show(name)} of {show(fields)}: names must be identifiers")
    return namedtuple(name, fields)


def _key(key: Any) -> str | int:
    if not isinstance(key, str | int):
        raise InputError(f"a key {show(key)} of a dict can't be saved: use texts")
    return key
