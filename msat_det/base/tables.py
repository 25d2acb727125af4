"""How values show themselves: plain text tables, and the same as HTML for notebooks."""

from collections.abc import Sequence
from html import escape
from typing import ClassVar


class Tabular:
    """A value that shows itself as a headline and a table; a notebook has every row, ``print`` the first ``_most``."""

    _headings: ClassVar[Sequence[str]]
    _most: ClassVar[int] = 60

    def _rows(self) -> list[list[str]]:
        """The cells under ``_headings``."""
        raise NotImplementedError

    @property
    def _headline(self) -> str:
        return repr(self)

    def __str__(self) -> str:
        rows = self._rows()
        if not rows:
            return self._headline
        more = f"\n… {len(rows) - self._most} more" if len(rows) > self._most else ""
        return f"{self._headline}\n{text_table(self._headings, rows[: self._most])}{more}"

    def _repr_html_(self) -> str:
        return html_table(self._headline, self._headings, self._rows())


def text_table(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Columns two blanks apart, the first ``left`` of them to the left and the others to the right."""
    lines = [headings, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def padded(line: Sequence[str]) -> str:
        cells = enumerate(zip(line, widths, strict=True))
        return "  ".join(cell.ljust(width) if i < left else cell.rjust(width) for i, (cell, width) in cells).rstrip()

    return "\n".join(map(padded, lines))


def html_table(caption: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with nothing but escaped text in it."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in headings)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
