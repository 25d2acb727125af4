"""Commands at terminals and on machines of every kind: how they end, what they say, what they leave."""

import errno
import os
import re
import runpy
import signal
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from torch import OutOfMemoryError

from msat_det.base.errors import InputError
from msat_det.base.settings import PROJECT
from msat_det.run import cli
from msat_det.run.terminal import guarded

FULL = Path("/dev/full")  # a device that takes nothing
MODULE = ["-m", "msat_det"]
needs_full = pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")


def python(*words: str, before: Callable[[], Any] | None = None, **more: Any) -> subprocess.CompletedProcess:
    """A Python process in which this checkout's package is found. before: runs in it first; env: added to ours."""
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "COLUMNS": "100"} | more.pop("env", {})
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8", "errors": "replace"} | more
    return subprocess.run([sys.executable, *words], env=environment, preexec_fn=before, timeout=200, **streams)


def guarded_script(body: str, again: str = "") -> list[str]:
    """The words of a process that is one guarded command with this body."""
    lines = [
        "import os, signal, sys, time",
        "from msat_det.run.terminal import guarded",
        "def command(words):",
        textwrap.indent(textwrap.dedent(body), "    "),
        f"sys.exit(guarded(command, {again!r})())",
    ]
    return ["-c", "\n".join(lines)]


def closed_pipe() -> int:
    reads, writes = os.pipe()
    os.close(reads)
    return writes


def test_our_own_warnings_are_one_line() -> None:
    """As a command's own; those of others say where they come from."""
    body = """
        import warnings, msat_det
        warnings.warn_explicit("look at some", UserWarning, msat_det.__file__, 1)
        warnings.warn("something old", UserWarning)
    """
    ended = python(*guarded_script(body))
    first, second = ended.stderr.splitlines()
    assert first == "warning: look at some"
    assert second.endswith("UserWarning: something old")
    assert ended.returncode == 0


# -- streams


SPEAKING = pytest.mark.parametrize("words", [["--help"], ["convert-det", "--help"]], ids=" ".join)
BUFFERED = pytest.mark.parametrize("env", [{"PYTHONUNBUFFERED": ""}, {"PYTHONUNBUFFERED": "1"}], ids=["", "unbuffered"])


@SPEAKING
@BUFFERED
def test_a_pipe_that_closes_ends_the_command_quietly(words: list[str], env: dict[str, str]) -> None:
    """As ``| true`` does; 141 is what a shell says of SIGPIPE."""
    done = python(*MODULE, *words, stdout=closed_pipe(), env=env)
    assert (done.returncode, done.stderr) == (141, "")


def test_errors_into_a_closed_pipe_keep_their_status() -> None:
    assert python(*MODULE, "nope", stderr=closed_pipe()).returncode == 2


@needs_full
@pytest.mark.parametrize("words", [["--help"], ["convert-det", "--help"], ["fetch", "--list"]], ids=" ".join)
def test_a_full_device_is_one_line(words: list[str]) -> None:
    with FULL.open("w") as full:
        done = python(*MODULE, *words, stdout=full)
    assert done.returncode == 2
    wanted = "error: the output can't be written (No space left on device): free space or send it elsewhere\n"
    assert done.stderr == wanted


@needs_full
def test_stderr_on_a_full_device_keeps_the_status() -> None:
    with FULL.open("w") as full:
        assert python(*MODULE, "nope", stderr=full).returncode == 2
        assert python(*guarded_script("print('x', file=sys.stderr)"), stderr=full).returncode == 2
        assert python(*guarded_script("pass"), stderr=full).returncode == 0


def test_closed_streams_are_no_fault() -> None:
    """``>&-``, ``2>&-``, ``<&-``: the status is the same as ever, what is left open is written."""
    usage = cli.USAGE + "\n"
    done = [python(*MODULE, "--help", before=lambda number=number: os.close(number)) for number in (0, 1, 2)]
    assert [one.returncode for one in done] == [0, 0, 0]
    assert [one.stdout for one in done] == [usage, "", usage]
    assert [one.stderr for one in done] == ["", "", ""]
    assert python(*MODULE, "nope", before=lambda: os.close(2)).returncode == 2
    assert python(*MODULE, "nope", before=lambda: os.closerange(0, 3)).returncode == 2


def test_what_is_said_on_a_closed_stream_never_lands_in_a_file(tmp_path: Path) -> None:
    """The first file that a process opens takes the lowest free number: that of the stream that is closed."""
    body = """
        with open(words[0], "w") as file:
            print("on stdout", flush=True)
            print("on stderr", file=sys.stderr, flush=True)
            os.write(1, b"from C")
            os.system("echo from a child; echo from a child >&2")
            file.write("content")
    """
    done = python(*guarded_script(body), str(tmp_path / "a"), before=lambda: os.closerange(0, 3))
    assert done.returncode == 0
    assert (tmp_path / "a").read_text() == "content"


@pytest.mark.parametrize(
    ("encoding", "env"),
    [
        ("ascii", {"PYTHONIOENCODING": "ascii"}),
        ("cp1252", {"PYTHONIOENCODING": "cp1252"}),
        ("latin-1", {"PYTHONIOENCODING": "latin-1:strict"}),
        ("ascii", {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
    ],
)
def test_an_encoding_without_our_signs_shows_a_mark_for_each(encoding: str, env: dict[str, str]) -> None:
    plain = python(*MODULE, "inspect", "--help", env={"PYTHONIOENCODING": "utf-8"}).stdout
    assert "θ" in plain
    done = python(*MODULE, "inspect", "--help", env=env, encoding=None, errors=None)
    assert done.returncode == 0
    assert done.stdout == plain.encode(encoding, "replace")
    assert python(*MODULE, "→", env=env).returncode == 2


@pytest.mark.parametrize("columns", ["1", "0", "-5", "x", "100000"])
def test_any_width_of_a_terminal(columns: str) -> None:
    done = python(*MODULE, "convert-det", "--help", env={"COLUMNS": columns})
    assert (done.returncode, done.stderr) == (0, "")
    assert "--sim.record" in done.stdout


# -- how Python is started


def test_python_m_msat_det_is_msat_det() -> None:
    assert python(*MODULE, "--help").stdout == cli.USAGE + "\n"
    done = python(*MODULE, "nope")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: no command nope: give one of {', '.join(cli.COMMANDS)}\n"


HELPED = [[*MODULE, name] for name in ("convert-det", "compare", "doctor", "export", "report")]


@pytest.mark.parametrize("words", [*HELPED, [str(PROJECT / "tools/train_cls.py")]], ids=lambda words: words[-1])
def test_help_needs_no_docstrings(words: list[str]) -> None:
    """``python -OO`` drops them; the help stays the same to the letter, a text for every key."""
    plain, bare = (python(*how, *words, "--help") for how in ([], ["-OO"]))
    assert (plain.returncode, bare.returncode, bare.stderr) == (0, 0, "")
    assert bare.stdout == plain.stdout
    if "--data.root" in plain.stdout:
        assert re.search(r"--data\.root PATH\s+its folder; a COCO root", plain.stdout)


FRESH = """
import sys
sys.path.insert(0, sys.argv[1])
import warnings
import importlib, pkgutil
warnings.filterwarnings("error", module="msat_det")
import msat_det
{before}
for module in pkgutil.walk_packages(msat_det.__path__, "msat_det."):
    importlib.import_module(module.name)
{after}
"""


@pytest.mark.parametrize("how", [["-OO", "-X", "utf8=0"], ["-I", "-b", "-X", "dev"]], ids=" ".join)
def test_every_module_imports_however_python_is_started(how: list[str]) -> None:
    """And none of them warns, be it of an encoding that is left to the machine."""
    strict = ["-X", "warn_default_encoding"]
    done = python(*how, *strict, "-c", FRESH.format(before="", after="print('done')"), str(PROJECT), cwd="/")
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["done"]), done.stderr


def test_sources_compile_without_a_warning() -> None:
    sources = [path for folder in ("msat_det", "tools", "benchmarks") for path in (PROJECT / folder).rglob("*.py")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for path in sources:
            compile(path.read_text("utf-8"), str(path), "exec")


# What Windows lacks. Other people's packages are imported before it goes: on Linux they count on it.
WINDOWS = """
import torch, torchvision, matplotlib.figure, torch.utils.tensorboard, pooch, pycocotools.cocoeval, PIL.Image
import os, shutil, signal
shutil._use_fd_functions = False  # else it counts on O_NONBLOCK, from Python 3.13 on
for name in ("fcntl", "resource", "termios", "pwd", "grp"):
    sys.modules[name] = None
for name in ("O_NONBLOCK", "fork", "sync", "getuid", "uname", "mkfifo", "sysconf", "sched_getaffinity"):
    delattr(os, name)
for name in ("SIGHUP", "SIGPIPE", "SIGALRM", "SIGPROF", "SIGKILL", "setitimer"):
    delattr(signal, name)
"""


def test_modules_that_only_unix_has_are_not_needed(tmp_path: Path) -> None:
    """Every module is imported without them, and a run ends in the files that it leaves here."""
    words = "convert-det --cfg configs/yolo_voc.yaml --data.limit 1 --calib.limit 1 --methods signed --sim.record 1,2"
    after = f"from msat_det.run import cli, fetch\nprint(cli.main({words.split()!r} + ['--out', sys.argv[2]]))\n"
    after += "from pathlib import Path\nwith fetch.alone(Path(sys.argv[2])): pass"
    script = FRESH.format(before=WINDOWS, after=after)
    done = python("-c", script, str(PROJECT), str(tmp_path / "run"), cwd=PROJECT, env={"MSAT_DET_KERNEL": "off"})
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["0"]), done.stderr
    assert {"curve.csv", "summary.json", "report.html"} <= {path.name for path in (tmp_path / "run").iterdir()}


# -- interrupts


INTERRUPTED_IMPORT = """
import os, signal, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["AT"]:
            sys.meta_path.remove(self)
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Watch())
from msat_det.__main__ import start
sys.exit(start())
"""


@pytest.mark.parametrize("module", ["argparse", "yaml", "torch", "msat_det.base.config", "torchvision", "tqdm"])
def test_ctrl_c_while_something_is_imported(module: str) -> None:
    words = ["inspect", "--cfg", str(PROJECT / "configs/vgg_demo.yaml"), "--out", "/dev/null/x"]
    done = python("-c", INTERRUPTED_IMPORT, *words, env={"AT": module})
    assert (done.returncode, done.stderr) == (130, "\ninterrupted\n")


INTERRUPT = "signal.raise_signal(signal.SIGINT)"


@pytest.mark.parametrize(
    "body",
    [
        INTERRUPT,
        f"exec({INTERRUPT!r})",  # after which Python ends by the signal, unless it is told not to
        f"try:\n    {INTERRUPT}\nexcept KeyboardInterrupt:\n    raise ImportError('in the middle')",
        f"try:\n    {INTERRUPT}\nexcept KeyboardInterrupt:\n    sys.exit('in the middle')",
        "raise KeyboardInterrupt",
    ],
    ids=["plain", "within exec", "turned into an error", "turned into an exit", "raised by itself"],
)
def test_ctrl_c_is_130_and_one_line(body: str) -> None:
    done = python(*guarded_script(body, "it goes on from here"))
    assert (done.returncode, done.stderr) == (130, "\ninterrupted: it goes on from here\n")


def test_sigterm_is_143_and_one_line() -> None:
    done = python(*guarded_script("signal.raise_signal(signal.SIGTERM)", "it goes on from here"))
    assert (done.returncode, done.stderr) == (143, "\ninterrupted: it goes on from here\n")


def test_a_second_ctrl_c_ends_what_does_not_end() -> None:
    done = python(*guarded_script(f"try:\n    {INTERRUPT}\nfinally:\n    {INTERRUPT}\n    time.sleep(60)"))
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_an_ignored_signal_stays_ignored() -> None:
    """As ``nohup`` and a shell's ``&`` leave it."""
    ignore = lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)  # noqa: E731
    done = python(*guarded_script(f"{INTERRUPT}\nprint('on')"), before=ignore)
    assert (done.returncode, done.stdout) == (0, "on\n")


def test_processes_that_a_command_forks_end_by_their_signals() -> None:
    body = """
        child = os.fork()
        if not child:
            signal.raise_signal(signal.SIGTERM)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    done = python(*guarded_script(body))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{-signal.SIGTERM}\n", "")


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert guarded(lambda words: None)([]) == 0
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


# -- errors of the system

CPU_MEMORY = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 12 bytes. Error code 12"


GPU_MEMORY = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 1 has a total capacity of 79.10 GiB of which 1.9 GiB"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/a/b"), "/a/b: Permission denied: free space, mend its"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (MemoryError(), "not enough memory: free some\n"),
        (RuntimeError(CPU_MEMORY), "not enough memory (tried to allocate 12 bytes): free some\n"),
        (OutOfMemoryError(GPU_MEMORY), "not enough memory on GPU 1 (tried to allocate 2.50 GiB): free some\n"),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            "not enough memory",
        ),
        (InputError("two\nlines"), "two lines"),
    ],
)
def test_what_the_system_refuses_is_one_line(error: Exception, line: str, capsys: pytest.CaptureFixture) -> None:
    def command(_: list[str]) -> None:
        raise error

    assert guarded(command)([]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {line}")
    assert told.count("\n") == 1


LESS = ", or give a smaller --batch, --sim.chunk or --model.size"
CPU = ", or give --device cpu"
HEAVY = {  # what a command calls, and what it offers where memory runs out
    "run yolo_voc": ("msat_det.run.experiment.run", LESS, CPU),
    "compare yolo_voc": ("msat_det.run.compare.compare", LESS, CPU),
    "inspect yolo_voc": ("msat_det.run.inspect.inspect_network", LESS, CPU),
    "doctor yolo_voc": ("msat_det.run.doctor.doctor", LESS, CPU),
    "export yolo_voc --method signed --out x": ("msat_det.run.export.export", LESS, CPU),
    "detect x.jpg --cfg yolo_voc": ("msat_det.run.detect.detect", LESS, CPU),
    "detect x.jpg --model x.safetensors": ("msat_det.run.detect.detect", "", CPU),
    "train --model resnet20 --root x --out y": ("training.classifiers.main", ", or give a smaller --batch", ""),
    "report x": ("msat_det.report.page.page.write_report", "", ""),
}


@pytest.mark.parametrize("words", HEAVY)
def test_where_memory_runs_out_a_command_names_what_it_has(
    words: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, less, elsewhere = HEAVY[words]
    flags = re.findall(r"--[\w.]+", less + elsewhere)
    for error, told in (
        (MemoryError(), f"error: not enough memory: free some{less}\n"),
        (OutOfMemoryError(GPU_MEMORY), f"on GPU 1 (tried to allocate 2.50 GiB): free some{less}{elsewhere}\n"),
    ):
        monkeypatch.setattr(place, Mock(side_effect=error))
        assert cli.main(words.split()) == 2
        assert capsys.readouterr().err.endswith(told)
    monkeypatch.setattr(place, Mock())
    given = [word for flag in flags for word in (flag, "cpu" if flag == "--device" else "4")]
    assert cli.main([*words.split(), *given]) == 0


def test_a_fault_of_ours_keeps_its_traceback() -> None:
    def command(_: list[str]) -> None:
        raise ZeroDivisionError("ours")

    with pytest.raises(ZeroDivisionError, match="ours"):
        guarded(command)([])


def gone(folder: Path) -> Callable[[], None]:
    """Make the working directory one that is no longer there."""

    def go() -> None:
        folder.mkdir()
        os.chdir(folder)
        folder.rmdir()

    return go


GONE = [["--help"], ["inspect", "--help"], ["inspect", "--cfg", "x"], ["list", "methods"], ["compare", "a", "b"]]
GONE += [["fetch", "voc2007"], ["report", "x"], ["export", "--cfg", "x"]]


@pytest.mark.parametrize("words", GONE, ids=" ".join)
def test_a_working_directory_that_is_gone(words: list[str], tmp_path: Path) -> None:
    done = python(*MODULE, *words, before=gone(tmp_path / "gone"))
    if "--help" in words:
        assert (done.returncode, done.stderr) == (0, "")
    else:
        told = "error: the working directory is gone: change into another one\n"
        assert (done.returncode, done.stderr) == (2, told)


@pytest.mark.parametrize(
    "words",
    [
        ["convert-det", "--cfg", "~nobody-of-that-name/x.yaml"],
        ["fetch", "voc2007", "--root", "~nobody-of-that-name/x"],
    ],
    ids=lambda words: words[-2],
)
def test_a_home_that_nobody_has(words: list[str], capsys: pytest.CaptureFixture, monkeypatch: Any) -> None:
    monkeypatch.chdir(PROJECT)
    assert cli.main(words) == 2
    told = capsys.readouterr().err
    assert told == f"error: {words[-1]}: there is no such home folder: give the whole path\n"


@pytest.mark.parametrize("place", ["file", "file/below", "/dev/null", "/proc/run", "n" * 300, "loop"])
def test_an_output_folder_that_cannot_be(place: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to("loop")
    out = str(tmp_path / place)
    assert cli.main(["inspect", "--cfg", str(PROJECT / "configs/vgg_demo.yaml"), "--out", out]) == 2
    told = capsys.readouterr().err
    assert re.fullmatch(r"error: (cannot write into|out is) .*give .*\n", told)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_run_in_a_hostile_place_leaves_the_same_files(tmp_path: Path) -> None:
    """No streams, no home, no cache, no temporary folder, no docstrings, another locale, a strange path."""
    words = ["inspect", "--cfg", str(PROJECT / "configs/vgg_demo.yaml"), "--methods", "signed,msat"]
    words += ["--calib.limit", "4", "--threads", "1", "--out"]
    usual, strange = tmp_path / "usual", tmp_path / "a b\né"
    assert python(*MODULE, *words, str(usual)).returncode == 0
    before = sources()
    env = {"HOME": "/dev/null", "XDG_CACHE_HOME": "", "TMPDIR": "/nowhere", "COLUMNS": "1", "LC_ALL": "de_DE.UTF-8"}
    env |= {"LC_NUMERIC": "de_DE.UTF-8", "MPLCONFIGDIR": str(tmp_path / "mpl"), "PYTHONDONTWRITEBYTECODE": "1"}

    done = python("-OO", *MODULE, *words, str(strange), env=env, before=lambda: os.closerange(0, 3), cwd="/")
    assert done.returncode == 0
    for name in ("coverage.json", "coverage.txt", "coverage.svg"):
        assert (strange / name).read_bytes() == (usual / name).read_bytes()
    assert sources() == before  # an installation may be read-only


def sources() -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in (PROJECT / "msat_det").rglob("*")}


# -- the scripts in tools/


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., tuple[object, str, str]]:
    """A function that runs a script of tools/ here: exit status, what it says on stdout and on stderr."""

    def run(name: str, *words: str) -> tuple[object, str, str]:
        path = str(PROJECT / "tools" / name)
        monkeypatch.setattr(sys, "argv", [path, *words])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(path, run_name="__main__")
        return stop.value.code, *capsys.readouterr()

    monkeypatch.syspath_prepend(str(PROJECT / "tools"))
    monkeypatch.setattr(sys, "path", sys.path.copy())
    return run


@pytest.mark.parametrize("tool", sorted(path.name for path in (PROJECT / "tools").glob("*.py")))
def test_tools_answer_help_and_refuse_in_one_line(tool: str, script: Callable) -> None:
    code, told, errors = script(tool, "--help")
    assert (code, errors) == (0, "")
    assert told.startswith("usage: ")
    code, told, errors = script(tool, "--nope")
    assert (code, told) == (2, "")
    assert re.fullmatch(r"error: .*\n", errors)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["train_demo.py", "yolo", "--threads", "0"], "argument --threads: '0' is no whole number from 1 to 1024"),
        (["train_demo.py", "yolo", "--steps", "1e9"], "argument --steps: '1e9' is no whole number from 1 to"),
        (["train_demo.py", "yolo", "--pictures", "-1"], "argument --pictures: '-1' is no whole number from 1 to"),
        (["make_results.py", "--only", "x"], "no experiment x: --only takes ssd_mobilenet_coco:codings, "),
        (
            ["make_readme_picture.py", "/nowhere"],
            "/nowhere holds no detections/*.png, curve.png and boxes.gif: give a detector's",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_tools_check_what_they_are_given(words: list[str], line: str, script: Callable) -> None:
    code, told, errors = script(*words)
    assert (code, told) == (2, "")
    assert errors.startswith(f"error: {line}")
    assert errors.count("\n") == 1
