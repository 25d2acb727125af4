"""Run docs/notebook.ipynb's cells in an empty folder and keep what they give: python tools/make_notebook.py

mkdocs takes this file as a hook, too: notebooks become pages whose links it checks like any other's.
"""

import copy
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from nbclient import NotebookClient
from nbconvert import MarkdownExporter

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from msat_det.base.checks import present
from msat_det.base.settings import PROJECT
from msat_det.run.arguments import Parser
from msat_det.run.terminal import once

PAGE = PROJECT / "docs" / "notebook.ipynb"


@once
def main(argv: list[str]) -> None:
    Parser(description=__doc__).parse_args(argv)
    nbformat.write(executed(nbformat.read(PAGE, as_version=4)), PAGE)


def executed(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A copy with its outputs anew. Raises CellExecutionError."""
    run = copy.deepcopy(notebook)
    with tempfile.TemporaryDirectory() as folder:
        place = {"metadata": {"path": folder}}
        NotebookClient(run, timeout=300, kernel_name="python3", resources=place, record_timing=False).execute()
    run.metadata = notebook.metadata  # not the kernel's version
    return run


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """mkdocs: beside every notebook its Markdown page and pictures."""
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        text, resources = MarkdownExporter().from_filename(present(file.abs_src_path), {"unique_key": file.name})
        files.append(File.generated(config, f"{file.src_uri[:-6]}.md", content=text))
        for name, content in resources["outputs"].items():
            files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(text: str, **_: Any) -> str:
    """mkdocs: a page's links to notebooks lead to their pages."""
    return re.sub(r"\]\(([\w/]+)\.ipynb\)", r"](\1.md)", text)


if __name__ == "__main__":
    sys.exit(main())
