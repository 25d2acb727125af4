"""The public API's types hold: mypy over its modules, and over a file that uses it."""

import inspect
import subprocess
import sys
from pathlib import Path

import msat_det
from msat_det.base.settings import PROJECT

ROOMS = "base", "data", "graph", "measure", "models", "report", "run"  # checked as a whole
# What the public names are made of in the others, where types are for readers.
MODULES = "__init__ methods/__init__ methods/api methods/convert methods/presets spiking/energy spiking/network".split()


def test_public_types_hold() -> None:
    files = [*(f"msat_det/{room}" for room in ROOMS), *(f"msat_det/{name}.py" for name in MODULES)]
    command = [sys.executable, "-m", "mypy", "--warn-unused-ignores", "--python-version"]
    version = f"{sys.version_info.major}.{max(sys.version_info.minor, 11)}"  # assert_type is of 3.11
    words = [version, *files, "tests/support/typed_use.py"]
    done = subprocess.run([*command, *words], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("Success"), done.stdout + done.stderr


def test_every_public_name_is_checked() -> None:
    homes = {inspect.getmodule(getattr(msat_det, name)) for name in msat_det.__all__ if name != "METHODS"}
    found = {Path(home.__file__).relative_to(PROJECT / "msat_det").with_suffix("").as_posix() for home in homes}
    assert {name for name in found if name.split("/")[0] not in ROOMS} <= {*MODULES}
    assert sorted(dir(msat_det)) == sorted([*msat_det.__all__, "__version__"])
    assert (PROJECT / "msat_det/py.typed").is_file()
