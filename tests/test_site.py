"""The documentation builds as a site: every link and anchor leads somewhere, and every page is in the navigation."""

import os
import subprocess
import sys
from pathlib import Path

from msat_det.base.settings import PROJECT


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "tutorial/index.html").is_file()
    assert "Detections(" not in (tmp_path / "notebook/index.html").read_text("utf-8")  # a table instead
    assert 'href="notebook/"' in (tmp_path / "index.html").read_text("utf-8").split("<article")[1]
