"""Reading Darknet's ``.cfg`` text: sections of ``key=value`` lines, with the line numbers that errors name."""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msat_det.base.errors import InputError
from msat_det.base.files import bytes_of, show
from msat_det.data.catalogue import get_with

MAX_BYTES = 1 << 20
MAX_SECTIONS = 1000  # the longest networks have some 300


@dataclass
class Section:
    """One ``[kind]`` of a cfg file. Its options are asked for by type; those that nobody asked for can be listed."""

    path: Path
    line: int
    kind: str
    options: dict[str, tuple[str, int]] = field(default_factory=dict)  # key → value, line
    asked: set[str] = field(default_factory=set)

    def error(self, message: str, key: str | None = None) -> InputError:
        """An InputError about this section, or about the line of one of its options."""
        line = self.options[key][1] if key in self.options else self.line
        return InputError(f"{self.path}, line {line}: [{self.kind}] {message}")

    def get(self, key: str, default: Any, convert: Callable[[str], Any], what: str) -> Any:
        self.asked.add(key)
        if key not in self.options:
            if default is None:
                raise self.error(f"lacks '{key}': add {key}={what}")
            return default
        value = self.options[key][0]
        try:
            return convert(value)
        except ValueError:
            raise self.error(f"{key}={show(value)}: give {what}", key) from None

    def text(self, key: str, default: str | None = None) -> str:
        return self.get(key, default, str, "a word")

    def integer(self, key: str, default: int | None = None, least: int | None = 0) -> int:
        """A whole number, not below ``least``; none is ever near 2³¹."""
        value = self.get(key, default, int, "a whole number")
        if abs(value) >= 2**31:
            raise self.error(f"{key} is far too large: give a sensible number", key)
        if least is not None and value < least:
            raise self.error(f"{key}={value}: give a whole number ≥ {least}", key)
        return value

    def number(self, key: str, default: float | None = None) -> float:
        return self.get(key, default, finite, "a number")

    def integers(self, key: str, default: list[int] | None = None) -> list[int]:
        return self.get(key, default, lambda text: [int(n) for n in pieces(text)], "whole numbers with commas")

    def numbers(self, key: str, default: list[float] | None = None) -> list[float]:
        return self.get(key, default, lambda text: [finite(n) for n in pieces(text)], "numbers with commas")

    def refuse_unasked(self, harmless: frozenset[str]) -> None:
        """Raise for an option that nobody has asked for, unless it is switched off or known not to matter here."""
        for key, (value, _) in self.options.items():
            if key not in self.asked | harmless and value != "0":
                raise self.error(f"option {show(key)} is not supported: remove it, or use a layer without it", key)


def finite(text: str) -> float:
    number = float(text)
    if not abs(number) < 1e9:
        raise ValueError(text)
    return number


def pieces(text: str) -> list[str]:
    """Split at commas; a comma at the end is allowed, as Darknet allows it."""
    return text.rstrip(",").split(",")


def parse_cfg(path: str | Path) -> list[Section]:
    """The sections of a cfg file in order, ``[net]`` first. InputError names the file and the line.

    Blanks and comments (# or ;) are skipped; of an option given twice the first counts, as in Darknet. So are lines in
    a section that set nothing, which is told.
    """
    path = Path(path)
    sections: list[Section] = []
    stray: list[str] = []
    for number, text in enumerate(_lines(path), 1):
        line = "".join(text.split("#")[0].split(";")[0].split())
        if not line:
            continue
        if line.startswith("["):
            if not (line.endswith("]") and line[1:-1].isidentifier()):
                raise InputError(f"{path}, line {number}: {show(line)} is no section's name: write [name]")
            if len(sections) == MAX_SECTIONS:
                raise InputError(f"{path}, line {number}: more than {MAX_SECTIONS} sections; is this the right file?")
            sections.append(Section(path, number, line[1:-1].lower()))
            continue
        key, _, value = line.partition("=")
        if sections and value:
            sections[-1].options.setdefault(key, (value, number))
        elif sections and not {"[", "]"} & set(line):
            stray.append(f"line {number}: {show(line)}")
        elif "=" in line and not sections:
            raise InputError(f"{path}, line {number}: an option before the first section: begin the file with [net]")
        else:
            raise InputError(f"{path}, line {number}: {show(line)} is neither [section] nor key=value: mend the line")
    if not sections or sections[0].kind not in ("net", "network"):
        raise InputError(f"{path}: a Darknet cfg begins with a [net] section; is this the right file?")
    if stray:
        more = f" and {len(stray) - 1} more" if stray[1:] else ""
        told = f"{path}, {stray[0]}{more} set nothing (no key=value) and are passed over, as Darknet does"
        print(InputError(told), file=sys.stderr)
    return sections


def _lines(path: Path) -> list[str]:
    """The lines of a cfg. What isn't UTF-8 can only be in a comment: the rest is ASCII. Raises InputError."""
    try:
        text = bytes_of(path, MAX_BYTES).decode("utf-8-sig", "replace")
        if "\0" in text:
            raise ValueError("it is no text")
    except FileNotFoundError:
        mend = get_with(path) or "give model.cfg the path of one"
        raise InputError(f"{path}: no such Darknet cfg file; {mend}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as a Darknet cfg file ({error}); give model.cfg a text file") from None
    return re.split(r"\r\n?|\n", text)
