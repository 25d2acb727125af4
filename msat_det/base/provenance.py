"""Which code computes: its commit, and its version with those of what last bits depend on."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from msat_det.base import __version__


def commit_id() -> str | None:
    """The project's git commit, ``-dirty`` added where files differ from it; None where git does not keep this file: an
    installed package may lie inside somebody else's checkout."""
    file = Path(__file__)
    how: dict[str, Any] = {"cwd": file.parent, "capture_output": True, "text": True, "check": True}
    try:
        subprocess.run(["git", "ls-files", "--error-unmatch", file.name], **how)
        done = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"], **how)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def versions() -> dict[str, str]:
    """Of what last bits depend on, by its name."""
    own = {"python": platform.python_version(), "msat-det": __version__}
    return own | {name: version(name) for name in ("torch", "torchvision")}
