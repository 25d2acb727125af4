"""The tensors in a file that ``torch.save`` wrote, read without running anything of it.

Such a file is a pickle, a program for a machine with a stack, beside the numbers of its tensors. The machine here works
on plain values: no name in the pickle is ever looked up, so nothing in it can run. A tensor becomes the record of where
its numbers lie, an object of any other class a ``Foreign``, of which the name is kept and, where it is a mapping, what
was put into it. Training options, dates, paths and optimisers beside the weights therefore do no harm.

Two readers that exist do not do: ``torch.load(weights_only=True)`` reads no pickle of protocol 4 and no mapping of a
class that it does not know, allowed or not; Python's ``Unpickler``, with a ``find_class`` that gives stand-ins, hashes
keys (nested pairs take 2^n steps for n bytes) and sets whatever attributes the file names.
"""

import io
import mmap
import pickletools
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

MAX_STEPS = 3_000_000  # of the machine: some five seconds; weights need twenty a tensor
DTYPES = {
    **{"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16},
    **{"int64": torch.int64, "int32": torch.int32, "int16": torch.int16, "int8": torch.int8},
    **{"uint8": torch.uint8, "bool": torch.bool},
}
_STORAGES = dict(
    zip("Double Float Half BFloat16 Long Int Short Char Byte Bool".split(), DTYPES.values(), strict=True),
)
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # what the older of the two forms begins with
_TENSORS = {f"torch._utils._rebuild_tensor{version}" for version in ("", "_v2", "_v3")}
_WRAPPED = {"torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"}
_MAPPINGS = {"collections.OrderedDict", "collections.Counter", "collections.defaultdict"}
# What can be wrong with a damaged pickle, or with one that was made to do harm.
FAULTS = (
    *(ValueError, TypeError, LookupError, RuntimeError, ArithmeticError, MemoryError, OSError, EOFError),
    *(zipfile.BadZipFile, NotImplementedError),
)


class Foreign(dict):
    """A class, or an object of one, that is not made here.

    kind: its full name. tensor: whether it is one, of a kind that networks here don't have (sparse, quantised …).
    """

    def __init__(self, kind: str, tensor: bool = False):
        super().__init__()
        self.kind, self.tensor = kind, tensor


@dataclass(frozen=True)
class Storage:
    """A run of numbers in the file. dtype: None where it is none of ``DTYPES``, or is told by the tensor."""

    kind: str
    key: str
    dtype: torch.dtype | None
    start: int = 0  # in numbers, where it is a part of what the key names

    @classmethod
    def of(cls, identity: Any) -> "Storage":
        """From the identity by which a pickle refers to it: a tuple of kind, class, key, device, count and part."""
        word, storage, key, *_ = identity
        if word != "storage" or not isinstance(storage, Foreign) or not isinstance(key, str):
            raise ValueError("a pickle that refers to something other than the file's own tensors")
        name = storage.kind.rpartition(".")[2]
        part = identity[5] if len(identity) > 5 else None
        return cls(f"torch.{name}", key, _STORAGES.get(name.removesuffix("Storage")), 0 if part is None else part[1])


@dataclass(frozen=True)
class Stored:
    """A tensor in the file: its numbers' storage, and how they lie in it."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class Machine:
    """Carries out a pickle's opcodes on plain values. storages: {key: the storage that the pickle refers to}."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def run(self, file: Any) -> Any:
        """The value that the pickle at the file's position stands for. Raises one of ``FAULTS``."""
        for step, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if step > MAX_STEPS:
                raise ValueError(f"a pickle of more than {MAX_STEPS} steps")
            if opcode.name == "STOP":
                return self.stack.pop()
            _OPERATIONS[opcode.name](self, argument)
        raise ValueError("a pickle without an end")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        return self.stack.pop()

    def take(self, count: int) -> list[Any]:
        return [self.pop() for _ in range(count)][::-1]

    def mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def append(self, items: Iterable[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)

    def set(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], dict):
            self.stack[-1].update(named(items))

    def call(self, arguments: Any) -> None:
        self.push(made(self.pop(), arguments))

    def make(self, items: list[Any]) -> None:
        self.push(made(items[0], tuple(items[1:])))

    def refer(self, identity: Any) -> None:
        if isinstance(identity, tuple) and identity[:1] == ("module",):
            self.push(identity[1])  # the class of a network, with its source, in the older form
            return
        storage = Storage.of(identity)
        self.storages.setdefault(storage.key, storage)
        self.push(storage)


def named(items: list[Any]) -> dict[str, Any]:
    """Keys and values in turn → those whose key is a text; no weights have others."""
    return {key: value for key, value in zip(items[::2], items[1::2], strict=True) if isinstance(key, str)}


def made(function: Any, arguments: Any) -> Any:
    """What stands for the result of a call: only tensors and mappings are more than a name."""
    if not isinstance(function, Foreign) or not isinstance(arguments, tuple):
        raise ValueError("a pickle that calls what is no class")
    kind = function.kind
    if kind in _TENSORS:
        return _tensor(arguments[6] if kind.endswith("_v3") else None, *arguments[:4])
    if kind in _WRAPPED:
        return arguments[0]
    if kind == "torch._tensor._rebuild_from_type_v2":
        return made(arguments[0], arguments[2])
    if kind in _MAPPINGS:  # Python 2 gave the items along
        pairs = arguments[0] if arguments and isinstance(arguments[0], list) else []
        return named([item for key, value in pairs for item in (key, value)])
    if kind == "torch.Size":
        return arguments[0]
    return Foreign(kind.replace("_utils._rebuild_", ""), tensor=kind.startswith("torch._utils._rebuild_"))


def _tensor(dtype: Any, storage: Any, offset: Any, size: Any, stride: Any) -> Stored | Foreign:
    if not isinstance(storage, Storage):
        raise ValueError("a pickle with a tensor of no storage")
    kind = dtype.kind if isinstance(dtype, Foreign) else storage.kind
    found = DTYPES.get(kind.removeprefix("torch.")) if dtype else storage.dtype
    return Foreign(kind, tensor=True) if found is None else Stored(storage, found, offset, size, stride)


def _class(name: Any) -> Foreign:
    return Foreign(str(name).replace(" ", "."))


_LITERALS = (
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE "
    "SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8"
)
_OPERATIONS: dict[str, Callable[[Machine, Any], Any]] = {
    **dict.fromkeys(_LITERALS.split(), Machine.push),
    **dict.fromkeys(["PROTO", "FRAME"], lambda machine, _: None),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "EMPTY_SET": lambda machine, _: machine.push(Foreign("builtins.set")),
    "MARK": lambda machine, _: machine.mark(),
    "POP": lambda machine, _: machine.pop() if machine.stack else machine.since_mark(),
    "POP_MARK": lambda machine, _: machine.since_mark(),
    "DUP": lambda machine, _: machine.push(machine.stack[-1]),
    **dict.fromkeys(["PUT", "BINPUT", "LONG_BINPUT"], lambda machine, at: machine.memo.update({at: machine.stack[-1]})),
    "MEMOIZE": lambda machine, _: machine.memo.update({len(machine.memo): machine.stack[-1]}),
    **dict.fromkeys(["GET", "BINGET", "LONG_BINGET"], lambda machine, at: machine.push(machine.memo[at])),
    "LIST": lambda machine, _: machine.push(machine.since_mark()),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.since_mark())),
    "TUPLE1": lambda machine, _: machine.push(tuple(machine.take(1))),
    "TUPLE2": lambda machine, _: machine.push(tuple(machine.take(2))),
    "TUPLE3": lambda machine, _: machine.push(tuple(machine.take(3))),
    "DICT": lambda machine, _: machine.push(named(machine.since_mark())),
    "FROZENSET": lambda machine, _: machine.make([Foreign("builtins.frozenset"), machine.since_mark()]),
    "APPEND": lambda machine, _: machine.append([machine.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.since_mark()),
    "SETITEM": lambda machine, _: machine.set(machine.take(2)),
    "SETITEMS": lambda machine, _: machine.set(machine.since_mark()),
    "ADDITEMS": lambda machine, _: machine.since_mark(),
    "GLOBAL": lambda machine, name: machine.push(_class(name)),
    "STACK_GLOBAL": lambda machine, _: machine.push(_class(".".join(map(str, machine.take(2))))),
    **dict.fromkeys(["EXT1", "EXT2", "EXT4"], lambda machine, code: machine.push(_class(f"copyreg.{code}"))),
    **dict.fromkeys(["REDUCE", "NEWOBJ"], lambda machine, _: machine.call(machine.pop())),
    "NEWOBJ_EX": lambda machine, _: machine.call(machine.take(2)[0]),  # behind the arguments those by name
    "OBJ": lambda machine, _: machine.make(machine.since_mark()),
    "INST": lambda machine, name: machine.make([_class(name), *machine.since_mark()]),
    "BUILD": lambda machine, _: machine.pop(),  # an object's state: it stays a name
    "PERSID": lambda machine, text: machine.refer(text),
    "BINPERSID": lambda machine, _: machine.refer(machine.pop()),
}  # without the two opcodes for buffers outside the pickle: there are none


class Checkpoint:
    """A file that ``torch.save`` wrote, in today's form (a zip archive) or in that before PyTorch 1.6.

    content: what was saved, every tensor in it a ``Stored``. A context manager: ``tensor`` reads from the file.
    Raises one of ``FAULTS`` for a file of any other kind or a damaged one.
    """

    def __init__(self, path: str | Path):
        self._file = Path(path).open("rb")  # noqa: SIM115 (closed at the context's end)
        self._numbers: dict[tuple[str, torch.dtype], Tensor] = {}
        try:
            self._read: Callable[[str], bytes]
            is_zip = self._file.read(2) == b"PK"
            self.content, self._read, self._swapped = (_zipped if is_zip else _in_one_piece)(self._file)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def tensor(self, stored: Stored) -> Tensor:
        """The tensor; those of one storage share their memory. Raises one of ``FAULTS``."""
        key = stored.storage.key, stored.dtype
        if key not in self._numbers:
            data, size = self._read(stored.storage.key), stored.dtype.itemsize
            data = data[: len(data) // size * size]
            if self._swapped:
                data = np.frombuffer(data, f"u{size}").byteswap().tobytes()
            empty = torch.empty(0, dtype=stored.dtype)
            self._numbers[key] = torch.frombuffer(bytearray(data), dtype=stored.dtype) if data else empty
        return self._numbers[key].as_strided(stored.size, stored.stride, stored.storage.start + stored.offset)


Parts = tuple[Any, Callable[[str], bytes], bool]  # content, storage key → its bytes, whether these are big-endian


def _zipped(file: Any) -> Parts:
    if not zipfile.is_zipfile(file):
        raise ValueError("a zip archive that ends too early")
    archive = zipfile.ZipFile(file)
    names = archive.namelist()
    (root,) = {name.partition("/")[0] for name in names if name.partition("/")[2] == "data.pkl"}
    swapped = f"{root}/byteorder" in names and archive.read(f"{root}/byteorder") == b"big"
    with archive.open(f"{root}/data.pkl") as stream:
        content = Machine().run(io.BytesIO(stream.read()))
    return content, lambda key: archive.read(f"{root}/data/{key}"), swapped


def _in_one_piece(file: Any) -> Parts:
    """Pickles in a row: two numbers, facts about the machine, the content, the order of the storages; then these."""
    data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if Machine().run(data) != _MAGIC or Machine().run(data) != _PROTOCOL:
        raise ValueError("a pickle that torch.save did not write")
    Machine().run(data)
    machine = Machine()
    content, order = machine.run(data), Machine().run(data)
    places: dict[str, tuple[int, int]] = {}
    at = data.tell()
    for key in order:
        dtype = machine.storages[key].dtype
        if dtype is None:
            raise ValueError(f"numbers of {machine.storages[key].kind}")
        begin = at + 8
        at = begin + int.from_bytes(data[at:begin], "little") * dtype.itemsize
        if at > len(data):
            raise ValueError("a file that ends too early")
        places[key] = begin, at
    return content, lambda key: data[slice(*places[key])], False
