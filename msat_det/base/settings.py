"""From plain values, out of a YAML file or words of a command line, to the run configuration."""

import functools
import math
import os
import re
import types
import typing
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from string import Template
from typing import Any

import yaml

from msat_det.base.config import Config
from msat_det.base.errors import InputError
from msat_det.base.files import show, yaml_of
from msat_det.base.names import hint

PROJECT = Path(__file__).resolve().parents[2]
PATH_KEYS = {"data.root", "calib.root", "model.weights", "model.cfg", "model.names", "energy", "out"}
BELOW_ROOT_KEYS = {f"{section}.{key}" for section in ("data", "calib") for key in ("annotations", "images")}
NAME_OR_PATH_KEYS = {"model.weights", "model.names", "energy"}  # a bare word is a name there: DEFAULT, voc, 45nm


def read_yaml(file: Path) -> dict:
    """One YAML mapping; InputError names the file and, where the text is not YAML, the line."""
    try:
        tree = yaml_of(file)
    except FileNotFoundError:
        raise InputError(f"no configuration {file}: {PROJECT / 'configs'} holds {known_configs()}") from None
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise InputError(f"{file}, line {line}, is not YAML: {' '.join(str(error.problem).split())}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{file} is not YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(tree, dict):
        raise InputError(f"{file} does not hold a mapping of keys to values: start from one in {PROJECT / 'configs'}")
    return tree


def shared_data() -> Path:
    """What ``$MSAT_SHARED_DATA`` stands for: the variable where set, else shared/data beside the project."""
    return Path(os.environ.get("MSAT_SHARED_DATA") or PROJECT.parent / "shared" / "data")


@functools.cache
def keys_of(cls: type = Config, prefix: str = "") -> dict[str, tuple[type, Any]]:
    """Every dotted key of the tree with the dataclass and the field that it belongs to."""
    keys = {}
    for item in fields(cls):
        if is_dataclass(item.type):
            keys |= keys_of(item.type, f"{prefix}{item.name}.")
        elif item.metadata.get("key", True):
            keys[prefix + item.name] = (cls, item)
    return keys


def flatten(tree: dict, file: Path) -> dict[str, Any]:
    """The nested mapping of a file as {dotted key: value}, every key known."""
    flat = _flat(tree, file, Config)
    for key in flat:
        if key not in keys_of():
            raise InputError(f"unknown key {key} in {file}: {nearest_key(key)}")
    return flat


def _flat(tree: dict, file: Path, cls: type, prefix: str = "") -> dict[str, Any]:
    sections = {item.name: item.type for item in fields(cls) if is_dataclass(item.type)}
    flat = {}
    for name, value in tree.items():
        if name not in sections:
            flat[f"{prefix}{name}"] = value
        elif isinstance(value, dict):
            flat |= _flat(value, file, sections[name], f"{prefix}{name}.")
        else:
            raise InputError(f"{prefix}{name} in {file} is {show(value)}: give a mapping of its keys to values")
    return flat


def kinds_of(hint: Any) -> tuple:
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def as_key_takes(key: str, value: Any, source: str, base: Path) -> Any:
    """A value out of YAML or a word of the command line as the key's type; a path made absolute from ``base``."""
    kinds = kinds_of(keys_of()[key][1].type)
    if types.NoneType in kinds and (value is None or value in ("null", "none")):
        return None
    lists = {list[int]: _wholes, list[str]: _words, list[dict]: _mappings}
    readers = {str: _text, int: _whole, float: _number, bool: _flag, **lists}
    try:
        value = readers[kinds[0]](value)
        if key in PATH_KEYS and not (key in NAME_OR_PATH_KEYS and re.fullmatch(r"[\w-]+", value)):
            value = _path(value, base)
        if key in BELOW_ROOT_KEYS:
            value = str(_shared(value))
    except ValueError as error:
        raise InputError(f"{key} is {show(value)} {source}: give {error}") from None
    return value


def expanded(text: str) -> Path:
    """The path with ``~`` replaced. Raises InputError where nobody knows that home."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise InputError(f"{text}: there is no such home folder: give the whole path") from None


def _shared(text: str) -> Path:
    try:
        return Path(Template(text).safe_substitute(MSAT_SHARED_DATA=str(shared_data()))).expanduser()
    except RuntimeError:  # ~someone without a home
        raise ValueError("a path that exists") from None


def _path(text: str, base: Path) -> str:
    try:
        return str((base / _shared(text)).resolve())
    except RuntimeError:  # a circle of links
        raise ValueError("a path that exists") from None
    except UnicodeEncodeError as error:
        raise ValueError(f"a path in {error.encoding}, this system's encoding, or set PYTHONUTF8=1") from None


def _text(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float) or str(value) == "" or "\0" in str(value):
        raise ValueError("a text")
    return str(value)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not re.fullmatch(r"[-+]?\d{1,18}", str(value)):
        raise ValueError("a whole number")
    return int(value)


def _number(value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError("a number")
    return number


def _flag(value: Any) -> bool:
    if str(value).lower() not in ("true", "false"):
        raise ValueError("true or false")
    return str(value).lower() == "true"


def _wholes(value: Any) -> list[int]:
    parts = value if isinstance(value, list) else str(value).strip("[]").split(",")
    try:
        return [_whole(part.strip() if isinstance(part, str) else part) for part in parts]
    except ValueError:
        raise ValueError("whole numbers such as 4,8,16") from None


def _words(value: Any) -> list[str]:
    words = value if isinstance(value, list) else str(value).strip("[]").split(",")
    if not all(isinstance(word, str) for word in words):
        raise ValueError("words such as burst,msat")
    return [word.strip() for word in words if word.strip()]


def _mappings(value: Any) -> list[dict]:
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise ValueError("a list of {label, method, …options}")
    return value


def build(cls: type, values: dict[str, Any], file: Path, prefix: str = "") -> Any:
    """The dataclass from {dotted key: value}; InputError names a key without value and default."""
    arguments = {}
    for item in fields(cls):
        key = prefix + item.name
        if is_dataclass(item.type):
            arguments[item.name] = build(item.type, values, file, f"{key}.")
        elif key in values:
            arguments[item.name] = values[key]
        elif item.default is MISSING and item.default_factory is MISSING:
            raise InputError(f"{key} is missing in {file}: give it there or with --{key} VALUE")
    return cls(**arguments)


def nearest_key(word: str) -> str:
    """What to say of an unknown key: the key that it was probably meant to be."""
    keys = list(keys_of())
    ending = [key for key in keys if key.endswith(f".{word}")]
    return hint(word, ending or keys, "--help lists all keys", 0 if ending else 0.4)


def known_configs() -> str:
    names = sorted(file.relative_to(PROJECT / "configs").as_posix() for file in PROJECT.glob("configs/**/*.yaml"))
    return ", ".join(names) or "none"


def read_config(file: Path) -> Config:
    """The configuration that a file holds, as it stands there. Raises InputError (one line) that names the file."""
    tree = read_yaml(file)
    values = {key: as_key_takes(key, value, f"in {file}", PROJECT) for key, value in flatten(tree, file).items()}
    return build(Config, values, file)
