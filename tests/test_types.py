"""The types hold: mypy over the package, a file that uses its public API, the tools and the benchmarks."""

import subprocess
import sys

import msat_det
from msat_det.base.settings import PROJECT


def test_types_hold() -> None:
    command = [sys.executable, "-m", "mypy", "--warn-unused-ignores", "--python-version"]
    version = f"{sys.version_info.major}.{max(sys.version_info.minor, 11)}"  # assert_type is of 3.11
    words = [version, "msat_det", "tests/support/typed_use.py", "tools", "benchmarks"]
    done = subprocess.run([*command, *words], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("Success"), done.stdout + done.stderr


def test_every_public_name_is_there() -> None:
    assert sorted(dir(msat_det)) == sorted([*msat_det.__all__, "__version__"])
    assert (PROJECT / "msat_det/py.typed").is_file()
