"""C++ files compiled for this machine, once, and what else the kernels want of the C library."""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from msat_det.base.errors import InputError

_FLAGS = "-O3 -march=native -fno-math-errno -fno-trapping-math -ffp-contract=off -fPIC -std=c++17".split()
if platform.machine() in ("x86_64", "AMD64"):  # for Intel's processors GCC would take half of a vector
    _FLAGS.append("-mprefer-vector-width=512")


def wanted(source: Path, without: str, *flags: str) -> ctypes.CDLL | None:
    """``compiled``, or None: silently with MSAT_DET_KERNEL=off, else with a line on stderr that ends in ``without``."""
    if os.environ.get("MSAT_DET_KERNEL") == "off":
        return None
    try:
        return compiled(source, *flags)
    except InputError as error:
        print(f"msat-det: {error}, {without} (slower)", file=sys.stderr)
        return None


def compiled(source: Path, *flags: str) -> ctypes.CDLL:
    """A C++ file as a library, compiled for this processor once and cached; flags come after our own.

    Raises InputError where there is no compiler or the file does not compile.
    """
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        raise InputError("no C++ compiler found")
    flags = (*_FLAGS, *flags)
    key = hashlib.sha256(source.read_bytes() + repr((compiler, flags, _cpu(), torch.__version__)).encode()).hexdigest()
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "msat_det"
    target = cache / f"{source.stem}-{key[:16]}.so"
    if not target.exists():
        try:
            _build([compiler, *flags], source, target)
        except (OSError, subprocess.SubprocessError) as error:
            raise InputError(f"{source.name} did not compile ({error})") from error
    return ctypes.CDLL(str(target))


@functools.cache
def keep_freed_memory() -> None:
    """Let glibc keep what a layer frees for the next one, where it would hand it back and fault it in anew.

    Those page faults cost more than the neurons: without them a scan of 70 MB took a quarter of the time (0.8 ns an
    element instead of 3.2). Does nothing on another C library.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        mmap_threshold, trim_threshold = -3, -1
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, (1 << 31) - 1)


def _cpu() -> str:
    """What -march=native sees, so that a cache shared by several machines keeps their builds apart."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())
    except OSError:
        return platform.machine() + platform.processor()


def _build(compiler: list[str], source: Path, target: Path) -> None:
    print(f"msat-det: compiling {source.name} once into {target}", file=sys.stderr)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        built, object_file = f"{folder}/{target.name}", f"{folder}/{source.stem}.o"
        # OpenMP's symbols are left open on purpose: they resolve to the runtime that PyTorch has loaded, so that both
        # share one thread pool and torch.set_num_threads holds here too.
        for command in (
            [*compiler, "-fopenmp", "-c", str(source), "-o", object_file],
            [compiler[0], "-shared", object_file, "-o", built],
        ):
            subprocess.run(command, check=True, capture_output=True, timeout=120)
        ctypes.CDLL(built)  # a build that does not load never enters the cache
        Path(built).replace(target)
