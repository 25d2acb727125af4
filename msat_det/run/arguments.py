"""From a YAML file and ``--key value`` words to the run configuration."""

import argparse
import re
import shlex
import typing
from pathlib import Path
from typing import Any

import yaml

from msat_det.base.config import Config, checked_method
from msat_det.base.errors import InputError
from msat_det.base.files import show, yaml_value
from msat_det.base.settings import (
    BELOW_ROOT_KEYS,
    PATH_KEYS,
    PROJECT,
    as_key_takes,
    build,
    expanded,
    flatten,
    keys_of,
    known_configs,
    nearest_key,
    read_yaml,
    sections_of,
)
from msat_det.base.typed import kinds_of

METHODS_HELP = (
    "labels of the file's methods to run; all: every registered method under its own name; "
    "--methods.LABEL.OPTION VALUE sets one option of a method"
)


def load_config(argv: list[str], prog: str = "convert_det.py", about: str = "", examples: str = "") -> Config:
    """``--cfg FILE [--key value …]`` → Config.

    Relative paths in the file are relative to the project root, those on the command line to the working directory;
    ``~`` and ``$MSAT_SHARED_DATA`` expand in both. A later source wins: defaults, file, command line.

    Raises InputError (one line) for a missing file, an unknown key, a wrong type, a value out of range, an unknown
    label in ``--methods``. ``--help`` prints every key and exits with SystemExit(0).
    """
    arguments, unknown = make_parser(prog, about, examples).parse_known_args(argv)
    given = vars(arguments)
    if "cfg" not in given:
        raise InputError(f"no configuration: give one with --cfg FILE; configs/ holds {known_configs()}")
    file = expanded(given.pop("cfg"))
    tree = read_yaml(file)
    picked = given.pop("methods", None)
    tree["methods"] = _pick_methods(tree.get("methods", []), picked, _method_overrides(unknown), file)

    values = {key: as_key_takes(key, value, f"in {file}", PROJECT) for key, value in flatten(tree, file).items()}
    command = {key: as_key_takes(key, value, "on the command line", Path.cwd()) for key, value in given.items()}
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
    values["free_batch"] = "batch" not in values
    return build(Config, values, file)


def command_line(prog: str, argv: list[str]) -> str:
    """The words of a run as a shell takes them, without --resume: with it and without it a run ends the same."""
    words = ["python", f"tools/{prog}"] if prog.endswith(".py") else prog.split()
    for before, word in zip(["", *argv], argv, strict=False):
        asked = word.partition("=")[0] == "--resume" or (before == "--resume" and word in ("true", "false"))
        words += [] if asked else [word]
    return shlex.join(words)


def make_parser(prog: str, about: str = "", examples: str = "") -> argparse.ArgumentParser:
    """The command line of a run: --cfg and one option for every key of the tree, help from what annotates them."""
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
    groups |= {name: parser.add_argument_group(name, text) for name, text in sections_of().items()}
    for name, key in keys_of().items():
        group = groups[name.rpartition(".")[0]]
        if name == "methods":
            group.add_argument("--methods", metavar="LABEL,LABEL", help=METHODS_HELP)
        else:
            add_option(group, name, key.hint, key.text, "PATH" if name in PATH_KEYS | BELOW_ROOT_KEYS else "NAME")
    return parser


def add_option(group: Any, name: str, hint: Any, text: str, word: str = "TEXT", **settings: Any) -> None:
    """An option for values of a hint, which ``base.typed`` reads from its word. word: what stands for a text."""
    text = text.replace("%", "%%")
    kind = next(kind for kind in kinds_of(hint) if kind is not type(None))
    if kind is bool:
        group.add_argument(f"--{name}", nargs="?", const="true", metavar="true|false", help=text, **settings)
    else:
        metavar = {int: "N", float: "X", list[int]: "N,N", list[str]: "NAME,NAME"}.get(kind, word)
        group.add_argument(f"--{name}", metavar=metavar, help=text, **settings)


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


def _method_overrides(words: list[str]) -> list[tuple[str, str, Any]]:
    """``--methods.LABEL.OPTION VALUE`` → (label, option, value as YAML reads it); any other word is an unknown key."""
    overrides = []
    while words:
        key, equals, value = words.pop(0).partition("=")
        match = re.fullmatch(r"--methods\.(.+)\.(\w+)", key)
        if not key.startswith("--"):
            raise InputError(f"{key!r} on the command line belongs to no option: write --key value")
        if not match:
            raise InputError(f"unknown key {key[2:]} on the command line: {nearest_key(key[2:])}")
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
        for entry in map(checked_method, as_key_takes("methods", entries, f"in {file}", PROJECT))
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
