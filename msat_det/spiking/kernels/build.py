"""C++ files compiled for this machine, once, and what else the kernels want of the C library."""

import ctypes
import functools
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch

from msat_det.base.errors import InputError
from msat_det.base.files import digest, show

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
        print(f"msat-det: {error}, {without} (slower); set CXX or XDG_CACHE_HOME", file=sys.stderr)
        return None


def compiled(source: Path, *flags: str) -> ctypes.CDLL:
    """A C++ file as a library, compiled for this processor once and cached; flags come after our own.

    Raises InputError where there is no compiler or the file does not compile.
    """
    command, flags = compiler(), (*_FLAGS, *flags)
    sources = [file.read_bytes() for file in (source, *sorted(source.parent.glob("*.h")))]
    key = digest(*sources, repr((command, flags, _cpu(), torch.__version__)).encode())
    target = cache() / f"{source.stem}-{key[:16]}.so"
    try:
        if target.exists():
            with suppress(OSError):  # another machine's, whose C library differs, or damaged
                return ctypes.CDLL(str(target))
        _build(command, flags, source, target)
        return ctypes.CDLL(str(target))
    except (OSError, subprocess.SubprocessError) as error:
        raise InputError(f"{source.name} did not compile ({_reason(error)})") from error


def compiler() -> list[str]:
    """The C++ compiler as the beginning of a command: $CXX, with its launcher and flags, else the first that is there.

    Raises InputError where there is none.
    """
    given = os.environ.get("CXX", "").strip()
    found = shutil.which(given) if given else shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    try:
        command = [found] if found else shlex.split(given)  # a file with a blank in its name is one word all the same
    except ValueError:
        raise InputError(f"CXX is {show(given)}: give a compiler and its flags") from None
    if not command:
        raise InputError("no C++ compiler found")
    return command


def cache() -> Path:
    """Where builds are kept: in $XDG_CACHE_HOME, which counts where it is a whole path, or else in ~/.cache.

    Raises InputError where neither is there.
    """
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        folder = given if given.is_absolute() else Path.home() / ".cache"
    except RuntimeError:
        folder = Path()
    if not folder.is_absolute():
        raise InputError("there is no home folder to keep a build in: set XDG_CACHE_HOME to a folder")
    return folder / "msat_det"


@functools.cache
def keep_freed_memory() -> None:
    """Let glibc keep what a layer frees for the next one, where it would hand it back and fault it in anew.

    Those page faults cost more than the neurons: without them a scan of 70 MB took a quarter of the time (0.8 ns an
    element instead of 3.2). Does nothing on another C library.
    """
    if sys.platform != "linux":
        return
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


def _build(command: list[str], flags: Sequence[str], source: Path, target: Path) -> None:
    print(f"msat-det: compiling {source.name} once into {target}", file=sys.stderr)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        built, object_file = f"{folder}/{target.name}", f"{folder}/{source.stem}.o"
        # OpenMP's symbols are left open on purpose: they resolve to the runtime that PyTorch has loaded, so that both
        # share one thread pool and torch.set_num_threads holds here too.
        for words in (
            [*command, *flags, "-fopenmp", "-c", str(source), "-o", object_file],
            [*command, "-shared", object_file, "-o", built],
        ):
            subprocess.run(words, check=True, capture_output=True, timeout=120)
        ctypes.CDLL(built)  # a build that does not load never enters the cache
        Path(built).replace(target)


def _reason(error: Exception) -> str:
    """Of a compiler what it says first of an error, else what the operating system says."""
    if not isinstance(error, subprocess.CalledProcessError):
        return str(error)
    lines = error.stderr.decode(errors="replace").splitlines()
    told = next((line for line in lines if "error" in line), lines[0] if lines else "")
    return f"{error.cmd[0]} ended with status {error.returncode}: {told}"[:300]
