"""The pages as programs: the code blocks of a Markdown page, the commands in them, and what a block is to print."""

import re
import shlex
import textwrap
from dataclasses import dataclass
from pathlib import Path

from msat_det.base.settings import PROJECT
from msat_det.run.cli import COMMANDS, FORMER

PAGES = [PROJECT / "README.md", *sorted(PROJECT.glob("docs/**/*.md"))]
# a fence, or lines that are indented by four after an empty one, which are shell commands in our pages
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$|(?<=\n\n)((?: {4}[^\n]*\n|\n(?= {4}))+)", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


@dataclass(frozen=True)
class Block:
    """language: python, sh, text, yaml. line: where the text begins in the page, from 0."""

    language: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    """A page's code blocks in order."""
    text, found = page.read_text(encoding="utf-8"), []
    for match in BLOCK.finditer(text):
        fenced = match[3] is None
        inside = match[2] if fenced else textwrap.dedent(match[3])
        found.append(Block(match[1] if fenced else "sh", inside, text.count("\n", 0, match.start(2 if fenced else 3))))
    return found


def commands(block: Block) -> list[str]:
    """The commands of a shell block, one a line; of a whole script those that call this project."""
    lines = [line.strip() for line in re.sub(r"\\\n *", "", block.text).splitlines()]
    if block.text.startswith("#!"):
        return [line for line in lines if "tools/" in line or "msat-det" in line]
    return [line for line in lines if line and not line.startswith("#")]


def words_of(command: str) -> list[str]:
    """A command as words of ``msat-det``: tools/convert_det.py is its run, whatever starts it."""
    words = shlex.split(command, comments=True)
    for number, word in enumerate(words):
        if word in ("msat-det", ".venv/bin/msat-det"):
            return words[number + 1 :]
        if match := re.fullmatch(r"(?:tools|benchmarks)/(\w+)\.py", word):
            assert (PROJECT / word).is_file(), f"{command}: there is no {word}"
            name = match[1].replace("_", "-")
            return [name if name in COMMANDS | FORMER else word, *words[number + 1 :]]
    raise AssertionError(f"{command}: neither msat-det nor a script of this project")


def assert_prints(printed: str, wanted: str) -> None:
    """The output is the page's: … stands for anything, figures (they differ by machine) and widths don't count."""
    pattern = re.escape(_shape(wanted)).replace("…", ".*")
    assert re.fullmatch(pattern, _shape(printed), re.DOTALL), f"printed:\n{printed}\nthe page has:\n{wanted}"


def _shape(text: str) -> str:
    return re.sub(r"[ \n]+", " ", NUMBER.sub("#", text)).strip()


def anchors(page: Path) -> set[str]:
    """The fragments by which GitHub lets a page's headings be linked."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
