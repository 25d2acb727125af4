"""Compiling on machines of every kind: what $CXX may hold, where builds are kept, what is said where neither works."""

import ctypes
import shutil
import sys
from pathlib import Path

import pytest

from msat_det.base.errors import InputError
from msat_det.spiking.kernels import build
from msat_det.spiking.kernels.build import cache, compiled, compiler, keep_freed_memory, wanted

needs_compiler = pytest.mark.skipif(not (shutil.which("c++") or shutil.which("g++")), reason="no C++ compiler here")
COMPILER = shutil.which("c++") or shutil.which("g++") or ""


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file whose function ``value`` gives 1, or VALUE where that is defined; builds go below ``tmp_path``/cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(build, "_FLAGS", ["-fPIC"])
    path = tmp_path / "tiny.cpp"
    path.write_text('#ifndef VALUE\n#define VALUE 1\n#endif\nextern "C" int value() { return VALUE; }\n')
    return path


def launcher(path: Path) -> Path:
    """What ccache is: a program that runs its words. It notes that it was asked."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'#!/bin/sh\necho "$@" >> "{path}.log"\nexec "$@"\n')
    path.chmod(0o755)
    return path


@needs_compiler
@pytest.mark.parametrize(
    ("words", "value"),
    [
        ("", 1),
        ("  ", 1),
        ("{compiler}", 1),
        ("{compiler} -DVALUE=7", 7),
        ("{launcher} {compiler} -O1 -DVALUE=8", 8),
        ("'{spaced}' {compiler} -DVALUE='3 + 6'", 9),
    ],
)
def test_cxx_may_hold_a_launcher_and_flags(
    words: str, value: int, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, spaced = launcher(tmp_path / "launch"), launcher(tmp_path / "a b" / "launch")
    monkeypatch.setenv("CXX", words.format(compiler=COMPILER, launcher=plain, spaced=spaced))
    assert compiled(source).value() == value
    asked = [len(log.read_text().splitlines()) for log in tmp_path.rglob("launch.log")]
    assert asked == ([2] if "{launcher}" in words or "{spaced}" in words else [])  # to compile and to link


@needs_compiler
def test_a_compiler_whose_path_has_a_blank(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrapper = tmp_path / "my tools" / "c++"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\nexec {COMPILER} -DVALUE=4 "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("CXX", str(wrapper))
    assert compiler() == [str(wrapper)]
    assert compiled(source).value() == 4


@pytest.mark.parametrize(
    ("cxx", "said"),
    [
        ("/nowhere/c++", "tiny.cpp did not compile ([Errno 2] No such file or directory: '/nowhere/c++')"),
        ("false", "false ended with status 1"),
        ("'c++", 'CXX is "\'c++": give a compiler and its flags'),
    ],
)
def test_a_compiler_that_is_none(
    cxx: str, said: str, source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("CXX", cxx)
    assert wanted(source, "it runs in PyTorch") is None
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("msat-det: ")
    assert said in told
    assert told.endswith(", it runs in PyTorch (slower); set CXX or XDG_CACHE_HOME")


@needs_compiler
def test_the_compiler_s_own_first_error_is_told(source: Path) -> None:
    source.write_text("int a = 1;\nno C++ at all;\n")
    with pytest.raises(InputError, match=r"tiny\.cpp did not compile \(.*ended with status 1: .*tiny\.cpp:2:.*error"):
        compiled(source)


def test_where_builds_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """XDG's specification: a path that is empty or relative does not count."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", "relative/path", "~/x"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache() == tmp_path / ".cache/msat_det"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache() == tmp_path / ".cache/msat_det"
    monkeypatch.setenv("XDG_CACHE_HOME", "/else where")
    assert cache() == Path("/else where/msat_det")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", "relative")
    with pytest.raises(InputError, match="set XDG_CACHE_HOME to a folder"):
        cache()
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(InputError, match="set XDG_CACHE_HOME to a folder"):
        cache()


def no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


@needs_compiler
@pytest.mark.parametrize("place", ["/dev/null", "/proc/x", "file"])
def test_a_cache_that_cannot_be_written(
    place: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / place))
    assert wanted(source, "it runs in PyTorch") is None
    told = capsys.readouterr().err.splitlines()[-1]
    assert f"'{tmp_path / place}" in told
    assert told.endswith("(slower); set CXX or XDG_CACHE_HOME")


@needs_compiler
def test_a_build_that_does_not_load_is_made_again(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that a machine with a newer C library has left in a shared home."""
    compiled(source)
    (first,) = cache().glob("*.so")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))  # a loaded library is not read again
    cache().mkdir(parents=True)
    (cache() / first.name).write_bytes(b"no library")
    assert compiled(source).value() == 1
    assert (cache() / first.name).stat().st_size == first.stat().st_size


@needs_compiler
def test_a_missing_temporary_folder(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/nowhere")
    assert compiled(source).value() == 1


def test_only_linux_is_asked_to_keep_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows ``ctypes.CDLL(None)`` is a TypeError."""

    def load(name: object) -> None:
        raise TypeError(name)

    monkeypatch.setattr(ctypes, "CDLL", load)
    for platform in ("win32", "darwin"):
        monkeypatch.setattr(sys, "platform", platform)
        keep_freed_memory.__wrapped__()
