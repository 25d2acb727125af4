"""From plain values, out of a YAML file or words of a command line, to the run configuration."""

import functools
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from string import Template
from typing import Annotated, Any, NamedTuple, get_args, get_origin

import yaml

from msat_det.base.config import Config
from msat_det.base.errors import InputError
from msat_det.base.files import show, yaml_of
from msat_det.base.names import hint as nearest
from msat_det.base.reader import Reader

PACKAGE = Path(__file__).resolve().parents[1]
PROJECT = PACKAGE.parent
# where configs/ and data/ lie: in a wheel, which has no checkout around it, setup.py puts them into the package
SHARE = PACKAGE / "share" if (PACKAGE / "share").is_dir() else PROJECT
PATH_KEYS = {"data.root", "calib.root", "model.weights", "model.cfg", "model.names", "energy", "out"}
BELOW_ROOT_KEYS = {f"{section}.{key}" for section in ("data", "calib") for key in ("annotations", "images")}
NAME_OR_PATH_KEYS = {"model.weights", "model.names", "energy"}  # a bare word is a name there: DEFAULT, voc, 45nm


NETWORKS = (".pt", ".pth", ".onnx", ".safetensors", ".weights", ".torchscript")  # what they are kept in


def read_yaml(file: Path) -> dict:
    """One YAML mapping; InputError names the file and, where the text is not YAML, the line."""
    if file.suffix in NETWORKS:
        raise InputError(
            f"{file} holds a network: give a configuration that names it, {{model: {{weights: {file.name}, …}}, …}}"
        )
    try:
        tree = yaml_of(file)
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise InputError(f"{file}, line {line}, is not YAML: {' '.join(str(error.problem).split())}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{file} is not YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(tree, dict):
        raise InputError(f"{file} does not hold a mapping of keys to values: start from one in {SHARE / 'configs'}")
    if "names" in tree and tree.keys() & {"train", "val", "test"}:
        raise InputError(f"{file} describes a data set: name it as data.root, with data.kind yolo, in a configuration")
    return tree


def data_root() -> str:
    """What ``$MSAT_DET_DATA`` stands for, and where ``fetch`` puts things: the variable where set, else ~/data."""
    return os.environ.get("MSAT_DET_DATA") or "~/data"


def find_config(word: str) -> Path:
    """The file of that path; where there is none, the configuration of that name among those that come along.

    Raises InputError where neither is there.
    """
    file = expanded(word)
    if os.path.exists(file):  # noqa: PTH110 (False for a name too long to exist, too)
        return file
    name, known = word.removesuffix(".yaml"), known_configs()
    if name not in known:
        near = nearest(Path(name).name, known, "`msat-det list configs` shows those that come along")
        raise InputError(f"no configuration {word}: {near}")
    return SHARE / "configs" / f"{name}.yaml"


class Key(NamedTuple):
    """A key of the configuration: the hint of its values, its default (MISSING where it has none), and what it is."""

    hint: Any
    default: Any
    text: str


@functools.cache
def keys_of(cls: type = Config, prefix: str = "") -> dict[str, Key]:
    """Every dotted key of the tree."""
    keys: dict[str, Key] = {}
    for item, hint, text in described(cls):
        if isinstance(hint, type) and is_dataclass(hint):
            keys |= keys_of(hint, f"{prefix}{item.name}.")
        elif item.metadata.get("key", True):
            default = item.default if item.default_factory is MISSING else item.default_factory()
            keys[prefix + item.name] = Key(hint, default, text)
    return keys


@functools.cache
def sections_of(cls: type = Config, prefix: str = "") -> dict[str, str]:
    """Every section of the tree by its dotted name, and what it holds."""
    sections: dict[str, str] = {}
    for item, hint, text in described(cls):
        if isinstance(hint, type) and is_dataclass(hint):
            sections |= {prefix + item.name: text} | sections_of(hint, f"{prefix}{item.name}.")
    return sections


def described(cls: type) -> Iterator[tuple[Field, Any, str]]:
    """A dataclass's fields, the hints of their values and the texts that annotate these."""
    for item in fields(cls):
        annotated = get_origin(item.type) is Annotated
        yield (item, *get_args(item.type)) if annotated else (item, item.type, "")


def dotted(tree: dict, prefix: str = "") -> dict[str, Any]:
    """A configuration as {dotted key: value}, a method's options under methods.LABEL."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if key == "methods" and not prefix:
            flat[key] = [entry["label"] for entry in value]
            value = {entry["label"]: entry for entry in value}
        flat |= dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def flatten(tree: dict, file: Path) -> dict[str, Any]:
    """The nested mapping of a file as {dotted key: value}, every key known."""
    flat = _flat(tree, file, Config)
    for key in flat:
        if key not in keys_of():
            raise InputError(f"unknown key {key} in {file}: {nearest_key(key)}")
    return flat


def _flat(tree: dict, file: Path, cls: type, prefix: str = "") -> dict[str, Any]:
    sections = {item.name: hint for item, hint, _ in described(cls) if isinstance(hint, type) and is_dataclass(hint)}
    flat = {}
    for name, value in tree.items():
        if name not in sections:
            flat[f"{prefix}{name}"] = value
        elif isinstance(value, dict):
            flat |= _flat(value, file, sections[name], f"{prefix}{name}.")
        else:
            raise InputError(f"{prefix}{name} in {file} is {show(value)}: give a mapping of its keys to values")
    return flat


class _KeyReader(Reader):
    """where: in FILE, or on the command line."""

    def wrong(self, name: str, value: Any, wanted: str) -> InputError:
        return InputError(f"{name} is {show(value)} {self.where}: give {wanted}")


def as_key_takes(key: str, value: Any, source: str, base: Path) -> Any:
    """A value out of YAML or a word of the command line as the key's type; a path made absolute from ``base``."""
    reader = _KeyReader(source, by_hand=True)
    found = reader.value(keys_of()[key].hint, value, key)
    try:
        if found is not None and key in PATH_KEYS and not (key in NAME_OR_PATH_KEYS and re.fullmatch(r"[\w-]+", found)):
            found = _path(found, base)
        if found is not None and key in BELOW_ROOT_KEYS:
            found = str(_shared(found))
    except ValueError as error:
        raise reader.wrong(key, value, str(error)) from None
    return found


def expanded(text: str) -> Path:
    """The path with ``~`` replaced. Raises InputError where nobody knows that home."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise InputError(f"{text}: there is no such home folder: give the whole path") from None


def _shared(text: str) -> Path:
    try:
        return Path(Template(text).safe_substitute(MSAT_DET_DATA=data_root())).expanduser()
    except RuntimeError:  # ~someone without a home
        raise ValueError("a path that exists") from None


def _path(text: str, base: Path) -> str:
    try:
        return str((base / _shared(text)).resolve())
    except RuntimeError:  # a circle of links
        raise ValueError("a path that exists") from None
    except UnicodeEncodeError as error:
        raise ValueError(f"a path in {error.encoding}, this system's encoding, or set PYTHONUTF8=1") from None


def build(cls: type, values: dict[str, Any], file: Path, prefix: str = "") -> Any:
    """The dataclass from {dotted key: value}; InputError names a key without value and default."""
    arguments = {}
    for item, hint, _ in described(cls):
        key = prefix + item.name
        if isinstance(hint, type) and is_dataclass(hint):
            arguments[item.name] = build(hint, values, file, f"{key}.")
        elif key in values:
            arguments[item.name] = values[key]
        elif item.default is MISSING and item.default_factory is MISSING:
            raise InputError(f"{key} is missing in {file}: give it there or with --{key} VALUE")
    return cls(**arguments)


def nearest_key(word: str) -> str:
    """What to say of an unknown key: the key that it was probably meant to be."""
    keys = list(keys_of())
    ending = [key for key in keys if key.endswith(f".{word}") or key == f"{word}s"]
    return nearest(word, ending or keys, "--help lists all keys", 0 if ending else 0.4)


def known_configs() -> list[str]:
    """The names of the configurations that come along: their paths below configs/, without the ending."""
    folder = SHARE / "configs"
    return sorted(file.relative_to(folder).with_suffix("").as_posix() for file in folder.glob("**/*.yaml"))


def read_config(file: Path) -> Config:
    """The configuration that a file holds, as it stands there. Raises InputError (one line) that names the file."""
    return build(Config, values_of(read_yaml(file), file), file)


def values_of(tree: dict, file: Path, but: Iterable[str] = ()) -> dict[str, Any]:
    """A file's mapping as {dotted key: value of the key's type}, relative paths counted from the file's folder.

    but: keys whose values will not be used. Raises InputError (one line) for a key or a value that can't be.
    """
    folder, flat = file.absolute().parent, flatten(tree, file)
    for key in flat.keys() & PATH_KEYS - set(but):
        if isinstance(flat[key], str):
            _refuse_old_path(key, flat[key], file, folder)
    return {key: as_key_takes(key, value, f"in {file}", folder) for key, value in flat.items()}


def _refuse_old_path(key: str, path: str, file: Path, folder: Path) -> None:
    """Raise InputError for a path that is right from the project's root alone, from which paths counted once."""
    if "$MSAT_SHARED_DATA" in path:
        raise InputError(f"{key} in {file} names $MSAT_SHARED_DATA: it is $MSAT_DET_DATA now, ~/data unless set")
    old = PROJECT / path
    there = os.path.exists  # False, too, for names that are too long or hold half a character
    if key != "out" and not there(folder / path) and there(old):
        raise InputError(
            f"{key} is {path} in {file}, which is not there: a relative path counts from the file's folder, no longer "
            f"from the project's; write {os.path.relpath(old, folder)}"
        )
