"""Reading files that nobody vouches for: no name leads out of its folder, and every fault is an InputError."""

import codecs
import csv
import errno
import hashlib
import io
import os
import re
import reprlib
import shutil
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from msat_det.base.errors import InputError

MAX_BYTES, MAX_TEXT = 2 << 30, 64 << 20
MAX_NAME = 8192  # characters, twice as many as a path may have: of millions, each folder would be looked for
MAX_XML, MAX_YAML = 1 << 20, 128 << 10  # bytes: parsing takes a second, and hundreds of times the memory
MARKS = {  # byte order marks that editors and shells write; UTF-32's begins as UTF-16's does
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


class _Short(reprlib.Repr):
    def repr_int(self, x: int, level: int) -> str:
        return super().repr_int(x, level) if x.bit_length() < 1000 else "a number of hundreds of digits"


SHORT = _Short()
SHORT.maxstring = 100


class MissingData(InputError):
    """A part of a dataset that is not there at all, so that it may help to fetch it."""


def inside(folder: Path, *names: str) -> Path:
    """``folder/names…``, for names out of files. Raises InputError where one leaves the folder by ``..`` or a root.

    The names alone are looked at: a symbolic link in the folder is its owner's, and is followed.
    """
    path = Path(folder, *names)
    try:
        os.fsencode(path)
        out = any(Path(name).anchor or ".." in Path(name).parts or "\0" in name for name in names)
        lost = out or len(str(path)) > MAX_NAME
    except ValueError:  # half a character
        lost = True
    if lost:
        raise InputError(f"{show('/'.join(names))} is no path inside {folder}: name a file within it")
    return path


def absent(path: Path, what: str = "file") -> str:
    """What to say of a path at which there is none, with the reason that ``astray`` finds."""
    why = astray(path)
    return why if why.startswith(f"{path} is a link") else f"no {what} {path}" + (f", for {why}" if why else "")


def astray(path: Path) -> str:
    """Why nothing is at a path: a link in it that leads nowhere, or a name that is there in other capitals; else ""."""
    for place in (path, *path.parents):
        if os.path.islink(place) and not os.path.exists(place):  # noqa: PTH110, PTH114 (False for endless names, too)
            return f"{place} is a link that leads nowhere (to {show(os.readlink(place))})"  # noqa: PTH115
    missing = path
    while not is_folder(missing.parent) and missing.parent != missing.parent.parent:
        missing = missing.parent
    if os.path.lexists(missing) or not is_folder(missing.parent):
        return ""
    found = _by_capitals(missing.parent, os.stat(missing.parent).st_mtime_ns).get(missing.name.casefold())  # noqa: PTH116
    return f"{missing.with_name(found)} is there in other capitals, which must agree" if found else ""


@lru_cache(8)
def _by_capitals(folder: Path, changed: int) -> dict[str, str]:
    """The names in a folder by their small letters; none where it can't be listed. changed: when it was, last."""
    with suppress(OSError):
        return {name.casefold(): name for name in os.listdir(folder)}  # noqa: PTH208
    return {}


def bytes_of(path: str | Path, most: int = MAX_BYTES) -> bytes:
    """What a regular file of at most ``most`` bytes holds. Raises OSError, and ValueError for a longer one."""
    with open(path, "rb", opener=_open_at_once) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        if found.st_size > most:
            raise ValueError(f"it has {found.st_size} bytes, more than {most}")
        return file.read()


def text_of(path: str | Path, most: int = MAX_TEXT) -> str:
    """What a text file of at most ``most`` bytes holds: UTF-8, or what its byte order mark says, which is left out.

    Raises OSError, and ValueError for one of another kind.
    """
    content = bytes_of(path, most)
    return content.decode(next((name for mark, name in MARKS.items() if content.startswith(mark)), "utf-8"))


class _Loader(yaml.SafeLoader):
    """YAML's plain values; no merge keys (<<), of which a few lines can ask for all memory, and no key twice, of which
    PyYAML would take the last one in silence."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        pass

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        mapping = super().construct_mapping(node, deep)
        names: set[tuple[str, str]] = set()
        for key, _ in node.value if len(mapping) < len(node.value) else ():
            if (key.tag, key.value) in names:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} stands there twice", key.start_mark)
            names.add((key.tag, key.value))
        return mapping


class _Dumper(yaml.SafeDumper):
    """Writes what ``_Loader`` reads."""


for side in (_Loader, _Dumper):  # YAML 1.2 takes 1e-3 for a number, as people do; PyYAML keeps to 1.1: 1.0e-3
    number = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
    side.add_implicit_resolver("tag:yaml.org,2002:float", number, [*"-+.0123456789"])


def yaml_of(path: str | Path) -> Any:
    """What a YAML file of at most MAX_YAML bytes holds. Raises OSError, yaml.YAMLError, ValueError, RecursionError."""
    return yaml_value(text_of(path, MAX_YAML))


def yaml_value(text: str) -> Any:
    """What a text stands for in YAML. Raises yaml.YAMLError, ValueError, RecursionError."""
    return yaml.load(text, _Loader)


def yaml_text(value: Any) -> str:
    """A value of plain ones as YAML that ``yaml_value`` reads."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _open_at_once(path: str, flags: int) -> int:
    # a pipe would wait for who writes into it; Windows has neither
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_text(path: Path, most: int = MAX_TEXT) -> str:
    """``text_of`` a dataset's file. Raises InputError, MissingData where there is none."""
    if not is_file(path):
        raise MissingData(f"{absent(path)}: check the root, the split and the year")
    try:
        return text_of(path, most)
    except (OSError, ValueError) as error:
        raise InputError(f"can't read {path} as UTF-8 text ({error}): restore the file") from error


def is_file(path: str | Path) -> bool:
    """Whether a regular file is there; unlike ``Path.is_file``, False for a name too long to exist as well."""
    return os.path.isfile(path)  # noqa: PTH113


def is_folder(path: Path) -> bool:
    """Whether a folder is there; like ``is_file`` False for a name too long to exist."""
    return os.path.isdir(path)  # noqa: PTH112


def one_line(text: object) -> str:
    return " ".join(str(text).split())


def is_text(name: str) -> bool:
    """Whether a name can be written as UTF-8: JSON's and the file system's strings may hold half a character."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def show(value: object) -> str:
    """An untrusted value for a message: short, printable, on one line."""
    return SHORT.repr(value)


def csv_text(columns: list[str], lines: list[dict[str, Any]], digits: int) -> str:
    """Lines {column: value} as CSV, numbers that are no whole ones with ``digits`` decimals."""
    table = io.StringIO()
    writer = csv.DictWriter(table, columns, lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow({name: f"{v:.{digits}f}" if isinstance(v, float) else v for name, v in line.items()})
    return table.getvalue()


def make_folders(path: Path) -> list[Path]:
    """Make a folder and those above it that are missing. Returns what was made, the lowest first."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    return missing


def drop_empty(folders: Iterable[Path]) -> None:
    """Remove folders, the lowest first, up to one that holds something."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def write_whole(target: Path, write: Callable[[Path], Any]) -> None:
    """``write`` a file beside ``target`` and put it in its place, so that neither a reader nor a power cut finds half.

    Raises InputError where the disk does not take it.
    """
    if target.is_dir():
        raise InputError(f"cannot write {target}: it is a folder; name a file in it")
    part = part_of(target)
    try:
        write(part)
        with part.open("r+b") as file:  # Windows flushes only what may be written
            os.fsync(file)
        part.replace(target)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"cannot write {target}: {reason}; free space or name another place") from None
    finally:
        with suppress(OSError):
            part.unlink()


def part_of(target: Path) -> Path:
    """What ``write_whole`` writes first; one that is killed leaves it."""
    return target.with_name(f".{target.name}.part")


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all that it holds; nothing where nothing is. Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    whole = hashlib.sha256()
    with Path(path).open("rb") as file:
        while piece := file.read(1 << 20):
            whole.update(piece)
    return whole.hexdigest()


def digest(*contents: bytes) -> str:
    """SHA-256 of the contents, in hexadecimal."""
    whole = hashlib.sha256()
    for content in contents:
        whole.update(content)
    return whole.hexdigest()
