"""From a YAML file and ``--key value`` words to the run configuration."""

import argparse
import ast
import functools
import inspect
import math
import os
import re
import shlex
import sys
import types
import typing
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from string import Template
from typing import Any

import yaml

from msat_det.base.config import Config, checked_method
from msat_det.base.errors import InputError
from msat_det.base.files import show, yaml_of, yaml_value
from msat_det.base.names import hint

PROJECT = Path(__file__).resolve().parents[2]
PATH_KEYS = {"data.root", "calib.root", "model.weights", "model.cfg", "model.names", "energy", "out"}
BELOW_ROOT_KEYS = {f"{section}.{key}" for section in ("data", "calib") for key in ("annotations", "images")}
NAME_OR_PATH_KEYS = {"model.weights", "model.names", "energy"}  # a bare word is a name there: DEFAULT, voc, 45nm


def load_config(argv: list[str], prog: str = "convert_det.py", about: str = "", examples: str = "") -> Config:
    """``--cfg FILE [--key value …]`` → Config.

    Relative paths in the file are relative to the project root, those on the command line to the working directory;
    ``~`` and ``$MSAT_SHARED_DATA`` expand in both. A later source wins: defaults, file, command line.

    Raises InputError (one line) for a missing file, an unknown key, a wrong type, a value out of range, an unknown
    label in ``--methods``. ``--help`` prints every key and exits with SystemExit(0).
    """
    arguments, unknown = make_parser(prog, about, examples).parse_known_args(argv)
    given = vars(arguments)
    _require_working_directory()
    if "cfg" not in given:
        raise InputError(f"no configuration: give one with --cfg FILE; configs/ holds {_known_configs()}")
    file = expanded(given.pop("cfg"))
    tree = read_yaml(file)
    picked = given.pop("methods", None)
    tree["methods"] = _pick_methods(tree.get("methods", []), picked, _method_overrides(unknown), file)

    values = {key: _convert(key, value, f"in {file}", PROJECT) for key, value in _flatten(tree, file).items()}
    command = {key: _convert(key, value, "on the command line", Path.cwd()) for key, value in given.items()}
    if "sim.T" in command and values.get("sim.record"):  # --sim.T 8 shortens the file's record
        values["sim.record"] = [t for t in values["sim.record"] if t < command["sim.T"]] + [command["sim.T"]]
    if "sim.record" in command:  # --sim.record 8,64 need not repeat T
        values.pop("sim.T", None)
    if "model.cfg" in command:  # a Darknet file says what the network is
        if values.get("model.name") != "darknet":
            values.pop("model.weights", None)  # another network's
        values["model.name"] = "darknet"
    values |= command
    if values.get("out") is None:
        values["out"] = str(Path.cwd() / "runs" / file.stem)
    values["command"] = command_line(prog, argv)
    return _build(Config, values, file)


def _require_working_directory() -> None:
    """Raise InputError where it is gone: relative paths mean nothing then, and Intel's MKL ends the whole process."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise InputError("the working directory is gone: change into another one") from None


def command_line(prog: str, argv: list[str]) -> str:
    """The words of a run as a shell takes them, without --resume: with it and without it a run ends the same."""
    words = ["python", f"tools/{prog}"] if prog.endswith(".py") else prog.split()
    for before, word in zip(["", *argv], argv, strict=False):
        asked = word.partition("=")[0] == "--resume" or (before == "--resume" and word in ("true", "false"))
        words += [] if asked else [word]
    return shlex.join(words)


def read_yaml(file: Path) -> dict:
    """One YAML mapping; InputError names the file and, where the text is not YAML, the line."""
    try:
        tree = yaml_of(file)
    except FileNotFoundError:
        raise InputError(f"no configuration {file}: {PROJECT / 'configs'} holds {_known_configs()}") from None
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


def make_parser(prog: str, about: str = "", examples: str = "") -> argparse.ArgumentParser:
    """The command line of a run: --cfg and one option for every key of the tree, help from the docstrings."""
    parser = Parser(
        prog=prog,
        usage=f"{prog} --cfg FILE [--key value …]",
        description=about,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("--cfg", metavar="FILE", help="the YAML file that holds the run's values; see configs/")
    groups = {"": parser.add_argument_group("run")}
    for key, (cls, item) in _keys().items():
        section = key.rpartition(".")[0]
        if section not in groups:
            groups[section] = parser.add_argument_group(section, docstring(cls).partition("\n")[0])
        kind = _kinds(item.type)[0]
        text = field_help(cls, item.name).replace("%", "%%")
        if key == "methods":
            text = (
                "labels of the file's methods to run; all: every registered method under its own name; "
                "--methods.LABEL.OPTION VALUE sets one option of a method"
            )
            groups[section].add_argument("--methods", metavar="LABEL,LABEL", help=text)
        elif kind is bool:
            groups[section].add_argument(f"--{key}", nargs="?", const="true", metavar="true|false", help=text)
        else:
            metavar = {int: "N", float: "X", list[int]: "N,N", list[str]: "NAME,NAME"}.get(
                kind, "PATH" if key in PATH_KEYS | BELOW_ROOT_KEYS else "NAME"
            )
            groups[section].add_argument(f"--{key}", metavar=metavar, help=text)
    return parser


class Parser(argparse.ArgumentParser):
    """A parser whose errors are InputErrors. more: what they end in, where to read on."""

    def __init__(self, *arguments: Any, more: str = "--help lists all options", **settings: Any):
        super().__init__(*arguments, **settings)
        self.more = more

    def error(self, message: str) -> typing.NoReturn:
        raise InputError(f"{message} ({self.more})")

    def print_help(self, file: Any = None) -> None:
        print(self.format_help(), end="", file=file)  # argparse keeps quiet where that can't be written


def whole(least: int, most: int = 2**31 - 1) -> typing.Callable[[str], int]:
    """What an option of ``argparse`` that counts something takes for its type."""

    def read(word: str) -> int:
        if not re.fullmatch(r"[-+]?\d{1,18}", word) or not least <= int(word) <= most:
            raise argparse.ArgumentTypeError(f"{show(word)} is no whole number from {least} to {most}")
        return int(word)

    return read


@functools.cache
def _keys(cls: type = Config, prefix: str = "") -> dict[str, tuple[type, Any]]:
    """Every dotted key of the tree with the dataclass and the field that it belongs to."""
    keys = {}
    for item in fields(cls):
        if is_dataclass(item.type):
            keys |= _keys(item.type, f"{prefix}{item.name}.")
        elif item.metadata.get("key", True):
            keys[prefix + item.name] = (cls, item)
    return keys


def _flatten(tree: dict, file: Path) -> dict[str, Any]:
    """The nested mapping of a file as {dotted key: value}, every key known."""
    flat = _flat(tree, file, Config)
    for key in flat:
        if key not in _keys():
            raise InputError(f"unknown key {key} in {file}: {_nearest(key)}")
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


def _kinds(hint: Any) -> tuple:
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def _convert(key: str, value: Any, source: str, base: Path) -> Any:
    """A value out of YAML or a word of the command line as the key's type; a path made absolute from ``base``."""
    kinds = _kinds(_keys()[key][1].type)
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


def _method_overrides(words: list[str]) -> list[tuple[str, str, Any]]:
    """``--methods.LABEL.OPTION VALUE`` → (label, option, value as YAML reads it); any other word is an unknown key."""
    overrides = []
    while words:
        key, equals, value = words.pop(0).partition("=")
        match = re.fullmatch(r"--methods\.(.+)\.(\w+)", key)
        if not key.startswith("--"):
            raise InputError(f"{key!r} on the command line belongs to no option: write --key value")
        if not match:
            raise InputError(f"unknown key {key[2:]} on the command line: {_nearest(key[2:])}")
        if not equals:
            if not words:
                raise InputError(f"{key} has no value: write {key} VALUE")
            value = words.pop(0)
        try:
            overrides.append((*match.groups(), yaml_value(value)))
        except (yaml.YAMLError, ValueError, RecursionError):
            raise InputError(f"{key} is {show(value)}: give one value or a list such as [2, 1]") from None
    return overrides


def _pick_methods(entries: Any, picked: str | None, overrides: list[tuple[str, str, Any]], file: Path) -> Any:
    """The file's methods that ``--methods`` names, all without it, with single options overridden.

    The word ``all`` stands for every registered method under its own name, with the options that the file gives to an
    entry of that label.
    """
    by_label = {
        entry["label"]: dict(entry)
        for entry in map(checked_method, _convert("methods", entries, f"in {file}", PROJECT))
    }
    if len(by_label) < len(entries):
        return entries  # Config names the label that stands twice
    labels = picked.split(",") if picked else list(by_label)
    if "all" in labels:
        from msat_det.methods import METHODS  # only now: PyTorch takes seconds to import

        by_label = {name: {"label": name, "method": name} for name in METHODS} | by_label
        labels = [name for label in labels for name in (METHODS if label == "all" else [label])]
    for label in [*labels, *(label for label, _, _ in overrides)]:
        if label and label not in by_label:
            raise InputError(f"unknown method label {label}: {file} has {', '.join(by_label) or 'none'}")
    for label, option, value in overrides:
        by_label[label][option] = value
    return [by_label[label] for label in dict.fromkeys(labels) if label]


def _build(cls: type, values: dict[str, Any], file: Path, prefix: str = "") -> Any:
    """The dataclass from {dotted key: value}; InputError names a key without value and default."""
    arguments = {}
    for item in fields(cls):
        key = prefix + item.name
        if is_dataclass(item.type):
            arguments[item.name] = _build(item.type, values, file, f"{key}.")
        elif key in values:
            arguments[item.name] = values[key]
        elif item.default is MISSING and item.default_factory is MISSING:
            raise InputError(f"{key} is missing in {file}: give it there or with --{key} VALUE")
    return cls(**arguments)


def field_help(cls: type, name: str) -> str:
    """The line of the dataclass's docstring that describes the field; empty where no docstring can be had."""
    line = re.search(rf"^    {name}: (.+)$", docstring(cls), re.MULTILINE)
    return line[1] if line else ""


def docstring(cls: type) -> str:
    """A class's docstring, read from its source under ``python -OO``, which drops it; empty without a source."""
    if sys.flags.optimize < 2:
        return cls.__doc__ or ""
    try:
        return _docstrings(cls.__module__).get(cls.__name__, "")
    except OSError:
        return ""


@functools.cache
def _docstrings(module: str) -> dict[str, str]:
    """Class → docstring, as the module's source has them."""
    nodes = ast.parse(inspect.getsource(sys.modules[module])).body
    return {node.name: ast.get_docstring(node, clean=False) or "" for node in nodes if isinstance(node, ast.ClassDef)}


def _nearest(word: str) -> str:
    """What to say of an unknown key: the key that it was probably meant to be."""
    keys = list(_keys())
    ending = [key for key in keys if key.endswith(f".{word}")]
    return hint(word, ending or keys, "--help lists all keys", 0 if ending else 0.4)


def _known_configs() -> str:
    names = sorted(file.relative_to(PROJECT / "configs").as_posix() for file in PROJECT.glob("configs/**/*.yaml"))
    return ", ".join(names) or "none"
