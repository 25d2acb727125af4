"""Pictures of the documentation are made by scripts, which nothing else calls."""

from pathlib import Path
from types import ModuleType

import make_delta_picture
import make_frontier_picture
import pytest


@pytest.mark.parametrize("script", [make_delta_picture, make_frontier_picture])
def test_it_draws(script: ModuleType, tmp_path: Path) -> None:
    script.main(["--out", str(tmp_path / "picture.png")])
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
