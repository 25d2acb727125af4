"""Peak resident memory: of this process from a moment on, and of a simulation in a process of its own.

getrusage's maximum is no use here: a process takes it over from the one that started it.
"""

import ctypes
import gc
import json
import subprocess
import sys
from pathlib import Path

STATUS, MARK = Path("/proc/self/status"), Path("/proc/self/clear_refs")
ALONE = Path(__file__).with_name("one_simulation.py")


def resident(key: str) -> float | None:
    """VmRSS (now) or VmHWM (the peak) of this process in MB (2^20 bytes); None where the system does not tell it."""
    if not STATUS.exists():
        return None
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) / 1024


def forget_peak() -> None:
    """Hand back what is free and let the peak be what is resident now."""
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    try:
        MARK.write_text("5")
    except OSError as error:
        print(f"{MARK}: {error.strerror}: peaks hold all that went before", file=sys.stderr)


def peak(network: str, neuron: str, batch: int, T: int, threads: int) -> dict[str, float]:
    """peak_mb of the simulation, and before_mb: what was resident before it. In a new process.

    neuron: a name in ``networks.NEURONS``, or ``spikingjelly/NODE/LAYOUT``.
    """
    return alone(ALONE, network, neuron, batch, T, threads)


def alone(script: Path, *words: object) -> dict[str, float]:
    """What a script prints in its last line, as JSON. In a new process."""
    command = [sys.executable, str(script), *map(str, words)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])
