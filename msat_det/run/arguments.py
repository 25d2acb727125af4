"""From a YAML file and ``--key value`` words to the run configuration."""

import argparse
import itertools
import re
import shlex
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from msat_det.base import ranks
from msat_det.base.config import Config, checked_method
from msat_det.base.errors import InputError
from msat_det.base.files import show, yaml_value
from msat_det.base.names import hint
from msat_det.base.reader import kinds_of
from msat_det.base.settings import (
    BELOW_ROOT_KEYS,
    PATH_KEYS,
    as_key_takes,
    build,
    find_config,
    keys_of,
    nearest_key,
    read_yaml,
    sections_of,
    values_of,
)

METHODS_HELP = (
    "labels of the file's methods to run; all: every registered method under its own name; "
    "--methods.LABEL.OPTION VALUE sets one option of a method"
)


def load_config(
    argv: list[str], prog: str = "msat-det run", about: str = "", examples: str = "", idle: Sequence[str] = ()
) -> Config:
    """``CONFIG [--key value …]`` → Config. CONFIG, or ``--cfg CONFIG``: a file, or the name of an included one. It may
    come behind its keys, too.

    idle: keys and sections without effect on ``prog``, refused on the command line and passed over in a file, which may
    be for several commands.

    Relative paths in the file count from the file's folder, those on the command line from the working directory; ``~``
    and ``$MSAT_DET_DATA`` (by default ~/data) expand in both. Later sources win: defaults, file, command line.

    Raises InputError (one line) for a missing file, an unknown key, a wrong type, a value out of range, an unknown
    label in ``--methods``. ``--help`` prints every key and exits with SystemExit(0).
    """
    named = argv[:1] if argv and not argv[0].startswith("-") else []
    arguments, unknown = make_parser(prog, about, examples, idle).parse_known_args(argv[len(named) :])
    given = vars(arguments)
    if without := [key for key in given if _within(key, idle)]:
        raise InputError(f"--{without[0]} has no effect on {prog}: leave it out")
    named += [given.pop("cfg")] if "cfg" in given else []
    overrides, bare = _method_overrides(unknown)
    if not named:
        named, bare = bare[:1], bare[1:]
    if bare:
        raise InputError(f"{bare[0]!r} on the command line belongs to no option: write --key value")
    if len(named) != 1:
        found = "two configurations" if named else "no configuration"
        raise InputError(f"{found}: give a file or a name of `msat-det list configs`")
    file = find_config(named[0])
    tree = read_yaml(file)
    picked = given.pop("methods", None)
    tree["methods"] = _pick_methods(tree.get("methods", []), picked, overrides, file)

    command = {key: as_key_takes(key, value, "on the command line", Path.cwd()) for key, value in given.items()}
    from_file = {key: value for key, value in values_of(tree, file, but=given).items() if not _within(key, idle)}
    values = _with_command(from_file, command)
    if values.get("out") is None:
        values["out"] = str(_run_directory(file.stem, bool(values.get("resume")), bool(values.get("overwrite"))))
    values["command"] = command_line(prog, argv)
    values["free_batch"] = "batch" not in values
    return build(Config, values, file)


def _within(key: str, idle: Sequence[str]) -> bool:
    return any(f"{key}.".startswith(f"{name}.") for name in idle)


def _with_command(values: dict[str, Any], command: dict[str, Any]) -> dict[str, Any]:
    """A file's values, and in their place those of the command line, some of which say more than their own key."""
    if "sim.T" in command and values.get("sim.record"):  # --sim.T 8 shortens the file's record
        values["sim.record"] = [t for t in values["sim.record"] if t < command["sim.T"]] + [command["sim.T"]]
    if "sim.record" in command:  # --sim.record 8,64 need not repeat T
        values.pop("sim.T", None)
    if "model.cfg" in command:  # a Darknet file says what the network is
        if values.get("model.name") != "darknet":
            values.pop("model.weights", None)  # another network's
        values["model.name"] = "darknet"
    return values | command


def _run_directory(name: str, resume: bool, overwrite: bool) -> Path:
    """runs/NAME, or the first of runs/NAME-2 … that holds no finished run, said on stderr; to go on: the last one."""
    first = Path.cwd() / "runs" / name
    numbered = itertools.chain([first], (first.with_name(f"{name}-{number}") for number in itertools.count(2)))
    if overwrite:
        return first
    if resume:
        return [first, *itertools.takewhile(Path.exists, numbered)][-1]
    free = next(folder for folder in numbered if not (folder / "summary.json").exists())
    if free != first and ranks.rank() == 0:
        print(f"{first} holds a finished run, this goes to {free.name}; --overwrite would replace it", file=sys.stderr)
    return free


def command_line(prog: str, argv: list[str]) -> str:
    """The words of a run as a shell takes them, without --resume and --overwrite, with which a run ends the same."""
    words = prog.split()
    for before, word in zip(["", *argv], argv, strict=False):
        again = ("--resume", "--overwrite")
        asked = word.partition("=")[0] in again or (before in again and word in ("true", "false"))
        words += [] if asked else [word]
    return shlex.join(words)


def make_parser(prog: str, about: str, examples: str, idle: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The command line of a run: --cfg and one option for every key of the tree, help from what annotates them, but for
    those in ``idle``."""
    settings: dict[str, Any] = {"argument_default": argparse.SUPPRESS, "allow_abbrev": False}
    parser = Parser(prog, "CONFIG [--key value …]", about, examples, **settings)
    parser.add_argument("--cfg", metavar="CONFIG", help="the same as CONFIG: a YAML file, or an included one by name")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")  # ``guarded`` takes it out
    groups = {"": parser.add_argument_group("run")}
    for name, text in sections_of().items():
        groups[name] = parser.add_argument_group(name, None if name in idle else text)
    for name, key in keys_of().items():
        group = groups[name.rpartition(".")[0]]
        if name == "methods":
            group.add_argument("--methods", metavar="LABEL,LABEL", help=METHODS_HELP)
        else:
            text = argparse.SUPPRESS if _within(name, idle) else key.text
            add_option(group, name, key.hint, text, "PATH" if name in PATH_KEYS | BELOW_ROOT_KEYS else "NAME")
    return parser


def add_option(group: Any, name: str, hint: Any, text: str, word: str = "TEXT", **settings: Any) -> None:
    """An option for values of a hint, which ``base.reader`` reads from its word. word: what stands for a text."""
    text = text.replace("%", "%%")
    kind = next(kind for kind in kinds_of(hint) if kind is not type(None))
    if kind is bool:
        group.add_argument(f"--{name}", nargs="?", const="true", metavar="true|false", help=text, **settings)
    else:
        metavar = {int: "N", float: "X", list[int]: "N,N", list[float]: "X,X", list[str]: "NAME,NAME"}.get(kind, word)
        group.add_argument(f"--{name}", metavar=metavar, help=text, **settings)


class Paragraphs(argparse.HelpFormatter):
    """Fills paragraphs to the terminal's width; one with an indented line, examples say, keeps its lines."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.split("\n\n")
        return "\n\n".join(
            part if "\n " in part else super(Paragraphs, self)._fill_text(part, width, indent) for part in paragraphs
        )


class Parser(argparse.ArgumentParser):
    """A parser whose errors are InputErrors. usage: what comes behind ``prog``; none: argparse's. more: what an error
    ends in, where to read on."""

    def __init__(
        self,
        prog: str | None = None,
        usage: str | None = None,
        description: str | None = None,
        epilog: str | None = None,
        *,
        more: str = "--help lists all options",
        **settings: Any,
    ):
        usage = usage and f"{prog} {usage}"
        super().__init__(prog, usage, description, epilog, formatter_class=Paragraphs, **settings)
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


def _method_overrides(words: list[str]) -> tuple[list[tuple[str, str, Any]], list[str]]:
    """``--methods.LABEL.OPTION VALUE`` → (label, option, value as YAML reads it), and the words that are no option's.

    Raises InputError for an option that is none.
    """
    overrides, bare = [], []
    while words:
        word = words.pop(0)
        if not word.startswith("-"):
            bare.append(word)
            continue
        key, equals, value = word.partition("=")
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
    return overrides, bare


def _pick_methods(entries: Any, picked: str | None, overrides: list[tuple[str, str, Any]], file: Path) -> Any:
    """The file's methods that ``--methods`` names, all without it, with single options overridden.

    The word ``all`` stands for every registered method under its own name, with the options that the file gives to an
    entry of that label.
    """
    by_label = {
        entry["label"]: dict(entry)
        for entry in map(checked_method, as_key_takes("methods", entries, f"in {file}", Path()))
    }
    if len(by_label) < len(entries):
        return entries  # Config names the label that stands twice
    labels = [label.strip() for label in picked.split(",")] if picked else list(by_label)
    if "all" in labels:
        from msat_det.methods import METHODS  # only now: PyTorch takes seconds to import

        by_label = {name: {"label": name, "method": name} for name in METHODS} | by_label
        labels = [name for label in labels for name in (METHODS if label == "all" else [label])]
    for label in [*labels, *(label for label, _, _ in overrides)]:
        if label and label not in by_label:
            known = f"{file} has {', '.join(by_label) or 'none'}; {{label: {label}, method: …}} in its methods adds one"
            raise InputError(f"unknown method label {label}: {hint(label, by_label, known)}")
    for label, option, value in overrides:
        by_label[label][option] = value
    return [by_label[label] for label in dict.fromkeys(labels) if label]
