#!/usr/bin/env python
"""Makes docs/reference.md from the docstrings of the public names: python tools/make_reference.py

The same sources give the same page; tests/test_docs.py says when it has to be made again.
"""

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterable
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import msat_det
from msat_det import data
from msat_det.base import settings
from msat_det.methods import METHODS, Method, registry
from msat_det.methods.observe import Observation
from msat_det.methods.options import Options
from msat_det.run import arguments, experiment
from msat_det.run.terminal import once
from msat_det.spiking.energy import Cost, Counts
from msat_det.spiking.neurons import Msat, Neuron
from msat_det.spiking.nodes import node_table

PAGE = settings.PROJECT / "docs/reference.md"
HEAD = """\
# Reference

Every public name, option and configuration key, for those who know what they look for. The [tutorial](tutorial.md) and
the [how-tos](howto.md) show these names at work; `msat-det --help` and each command's own `--help` explain the command
line. `python tools/make_reference.py` makes the page from the docstrings.
"""
LIBRARY = [getattr(msat_det, name) for name in msat_det.__all__ if name != "METHODS"]
RESULTS = [Observation, Counts, Cost, node_table, Neuron, Msat]
DATA = [data.build_dataset, data.subset, data.select, data.Dataset, data.Sample, data.Target]
RUNS = [arguments.load_config, experiment.run]
REGISTER = [registry.method, Method, registry.threshold, registry.neuron]
KEYS = (
    "In YAML a mapping, on the command line `--data.root DIR`. Keys that only evaluation needs (most of `data`, "
    "`draw`, `exit` …) are refused by `inspect`, `doctor`, `export` and `detect`, and passed over in a file."
)


def reference() -> str:
    """The whole page."""
    parts = [HEAD, "## The library", "Names of the module `msat_det`.", *map(described, LIBRARY)]
    parts += ["## What it gives and takes", *map(described, RESULTS)]
    parts += ["## Options of every method", paragraphs(Options.__doc__, names_of(Options))]
    parts.append(defaults(Options, {}))
    parts += ["## Methods", "Each takes the options above, and what it names here.", *map(of_method, METHODS.values())]
    parts += ["## A method of your own", *map(described, REGISTER)]
    parts += ["## Data sets", f"`data.kind` is one of {listed(data.DATASETS)}.", *map(described, DATA)]
    parts += ["## A run from Python", *map(described, RUNS)]
    parts += ["## Keys of a configuration", KEYS, keys()]
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def described(thing: Any) -> str:
    """A function or a class with its public methods: name, signature, docstring."""
    node = ast.parse(textwrap.dedent(inspect.getsource(thing))).body[0]
    parts = [f"### {thing.__name__}", "" if thing in LIBRARY else f"From `{thing.__module__}`."]
    if isinstance(node, ast.FunctionDef):
        parts += [f"**`{signature(node)}`**", paragraphs(thing.__doc__, argument_names(node))]
        return "\n\n".join(filter(None, parts))
    assert isinstance(node, ast.ClassDef)
    functions = [item for item in node.body if isinstance(item, ast.FunctionDef)]
    init = next((item for item in functions if item.name == "__init__"), None)
    names = argument_names(init) if init else names_of(thing)
    parts.append(f"**`{signature(init, node.name)}`**" if init else attributes(node))
    parts.append(paragraphs(thing.__doc__, names))
    for item in functions:
        if item.name[0] != "_" and ast.get_docstring(item):
            is_property = "property" in map(ast.unparse, item.decorator_list)
            heading = f"{node.name}.{item.name}" if is_property else signature(item, f"{node.name}.{item.name}")
            parts += [f"**`{heading}`**", paragraphs(ast.get_docstring(item), argument_names(item))]
    return "\n\n".join(filter(None, parts))


def of_method(method: Method) -> str:
    """A conversion method: what it does, and the options that are its own or start elsewhere."""
    own = [cls for cls in method.options.__mro__ if issubclass(cls, Options) and cls is not Options]
    told = [cls for cls in own if not str(cls.__doc__).startswith(f"{cls.__name__}(")]  # else it is the dataclass's own
    texts = [paragraphs(cls.__doc__, names_of(cls)) for cls in told]
    made = "Made anew for each recorded t." if method.needs_t else ""
    clips = f"What lies beyond its range stays clipped: {method.clips}." if method.clips else ""
    common = {item.name: item.default for item in fields(Options)}
    if method.base:
        return f"### {method.name}\n\n{_plain(str(method))}."
    parts = [f"### {method.name}", paragraphs(method.make.__doc__), made, clips, "\n".join(texts)]
    return "\n\n".join(filter(None, [*parts, defaults(method.options, common)]))


def defaults(cls: type, common: dict[str, Any]) -> str:
    """The defaults of a method's options but for those that are as in ``common``."""
    shown = [f"`{i.name} = {i.default!r}`" for i in fields(cls) if common.get(i.name, MISSING) != i.default]
    return f"Defaults: {', '.join(shown)}." if shown else ""


def keys() -> str:
    """A table of all keys of the configuration, with defaults."""
    rows = ["| key | default | what it is |", "|---|---|---|"]
    for name, key in sorted(settings.keys_of().items(), key=lambda item: "." in item[0]):
        default = "" if key.default is MISSING else f"`{key.default!r}`".replace("None", "null").lower()
        rows.append(f"| `{name}` | {default} | {_plain(key.text)} |".replace("|  |", "| |"))
    return "\n".join(rows)


def signature(node: ast.FunctionDef, name: str = "") -> str:
    """``name(arguments) -> result`` as the source has it, without self."""
    arguments = re.sub(r"^self(, )?", "", ast.unparse(node.args))
    result = f" -> {ast.unparse(node.returns)}" if node.returns and node.name != "__init__" else ""
    return f"{name or node.name}({arguments}){result}"


def attributes(node: ast.ClassDef) -> str:
    """The annotated attributes of a class's body in one line."""
    annotated = [item for item in node.body if isinstance(item, ast.AnnAssign)]
    found = [ast.unparse(item).partition(" = field(")[0] for item in annotated]
    bases = [ast.unparse(base) for base in node.bases]
    return f"**`{node.name}({', '.join(found or bases)})`**"


def argument_names(node: ast.FunctionDef) -> set[str]:
    every = [*node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
    return {argument.arg for argument in every if argument}


def names_of(cls: type) -> set[str]:
    return {item.name for item in fields(cls)} if is_dataclass(cls) else set(getattr(cls, "__annotations__", {}))


def paragraphs(text: str | None, names: Iterable[str] = ()) -> str:
    """A docstring as Markdown, what it says of ``names`` as a list."""
    parts = []
    for name, part in _split(text or "", names):
        parts.append(f"- {name}: {part}" if name else part)
    return re.sub(r"(?m)(^- .*)\n\n(?=- )", r"\1\n", "\n\n".join(parts))


def _split(text: str, names: Iterable[str]) -> list[tuple[str, str]]:
    """(names as code, text) of the items ``name, name: text``, ("", text) of everything else, in order."""
    word = "|".join(sorted(map(re.escape, names), key=len, reverse=True)) or "(?!)"
    start = re.compile(rf"(?:^|(?<=[.;] ))((?:(?:{word})(?:, )?)+): ")
    found = []
    for chunk in _chunks(inspect.cleandoc(text).splitlines(), start):
        first, *rest = start.split(" ".join(chunk.split()))
        found += [("", _plain(first))] if first.strip() else []
        pairs = zip(rest[::2], rest[1::2], strict=True)
        found += [(listed(name.split(", ")), _plain(part.strip().rstrip(";"))) for name, part in pairs]
    return found


def _chunks(lines: list[str], start: re.Pattern) -> list[str]:
    """The lines of a docstring as paragraphs and items; both may also begin without a blank line before them."""
    chunks, before = [""], ""
    for line in lines:
        own_item = start.match(line) and not before.endswith(",")
        after_items = start.match(chunks[-1]) and line[:1] not in ("", " ")
        ended = before.startswith(" ") or (before.endswith(".") and line[:1].isupper())
        if not line or own_item or (after_items and ended) or line.startswith(("Raises ", "Returns ")):
            chunks.append("")
        if late := re.search(r"(?<=\. )(?:Raises|Returns) ", line):
            chunks[-1] += f"\n{line[: late.start()]}"
            chunks.append(line[late.start() :])
        else:
            chunks[-1] += f"\n{line}" if chunks[-1] else line
        before = line
    return [chunk for chunk in chunks if chunk.strip()]


def listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _plain(text: str) -> str:
    """Text whose signs mean themselves, code aside."""
    pieces = re.split(r"(``.+?``)", text.strip())
    escaped = [f"`{piece[2:-2]}`" if piece.startswith("``") else re.sub(r"([*<|])", r"\\\1", piece) for piece in pieces]
    return "".join(escaped)


@once
def main(argv: list[str]) -> None:
    parser = arguments.Parser(description="Makes docs/reference.md from the docstrings of the public names.")
    parser.add_argument("--out", metavar="FILE", type=Path, default=PAGE, help="the page (default: %(default)s)")
    page = parser.parse_args(argv).out
    page.write_text(reference(), encoding="utf-8")
    print(page)


if __name__ == "__main__":
    sys.exit(main())
