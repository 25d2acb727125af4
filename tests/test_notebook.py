"""The site's notebook: its cells give what the page shows, the second time too, and its links lead somewhere."""

import copy
import re
import subprocess
import sys

import nbformat
import pytest
from make_notebook import PAGE, executed
from nbformat import NotebookNode
from support.pages import assert_prints

from msat_det.base.settings import PROJECT


@pytest.mark.slow
def test_every_cell_gives_what_the_page_shows_and_may_be_run_again() -> None:
    page = nbformat.read(PAGE, as_version=4)
    codes = [cell for cell in page.cells if cell.cell_type == "code"]
    twice = page | {"cells": [copy.deepcopy(cell) for cell in codes for _ in range(2)]}
    cells = executed(NotebookNode(twice)).cells
    for code, first, again in zip(codes, cells[::2], cells[1::2], strict=True):
        for run in (first, again):
            assert [sorted(output.get("data", ())) for output in run.outputs] == [
                sorted(output.get("data", ())) for output in code.outputs
            ], code.source
            assert_prints(printed(run), printed(code))


def test_what_a_notebook_imports_prints_no_warning() -> None:
    """As ``tqdm.auto`` does, which pooch imports, where Jupyter's widgets are not installed."""
    script = "import sys, msat_det.run.experiment, msat_det.models; sys.exit('tqdm.auto' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=PROJECT).returncode == 0


def printed(cell: NotebookNode) -> str:
    return "\n".join(output.get("text") or output.data["text/plain"] for output in cell.outputs)


def test_links_lead_somewhere() -> None:
    page = nbformat.read(PAGE, as_version=4)
    text = "\n".join(cell.source for cell in page.cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert links
    assert [link for link in links if not (PAGE.parent / link).is_file()] == []
