"""Triton's compiler, less lenient than the interpreter of the other tests, takes the kernels. It needs no GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
SCRIPT = Path(__file__).parents[1] / "support/compile_kernels.py"
MOST_SPILLED = 32  # bytes a thread


@pytest.mark.slow
def test_every_kernel_compiles_for_an_a100_and_an_h100_and_stays_in_registers(tmp_path: Path) -> None:
    package = str(SCRIPT.parents[2])
    environment = os.environ | {"PYTHONPATH": package, "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert {int(architecture) for architecture, *_ in rows} == {80, 90}
    assert len(rows) >= 40
    for architecture, name, registers, spilled in rows:
        assert int(registers) > 0
        assert int(spilled) <= MOST_SPILLED, (architecture, name)
