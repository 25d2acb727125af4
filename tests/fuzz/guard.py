"""What a reader must not do, watched while it reads: time, memory, files outside its root, processes, pickles."""

import ctypes
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msat_det.base.errors import InputError
from msat_det.base.settings import PROJECT

SECONDS, PATIENCE = 5, 900  # of the process's own time, and of the clock: much other work may share the machine
GIBIBYTE = 1 << 30
MOST = 600 << 20  # bytes that a read may take, above what the process (with the fuzzer's own seeds in it) has held
LONGEST = 2000  # characters of a message

# Events that stand for reaching out of the process, or for running what a file says.
FORBIDDEN = {
    *("pickle.find_class", "os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.spawn", "os.fork"),
    *("os.forkpty", "pty.spawn", "os.kill", "socket.connect", "socket.bind", "socket.getaddrinfo", "urllib.Request"),
    *("ctypes.dlopen", "ftplib.connect", "http.client.connect", "os.putenv", "webbrowser.open"),
}
PATHS = {  # event → which of its arguments are paths
    **dict.fromkeys(["open", "os.listdir", "os.scandir", "os.remove", "os.rmdir", "os.mkdir", "os.chmod"], (0,)),
    **dict.fromkeys(["os.truncate", "os.utime", "os.chdir", "shutil.rmtree", "tempfile.mkstemp"], (0,)),
    **dict.fromkeys(["os.rename", "os.link", "os.symlink", "shutil.move", "shutil.copyfile"], (0, 1)),
}
OUTSIDE = "touched a file outside the root"  # whoever did it
CHANGES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


@dataclass
class Outcome:
    """How one read ended. fault: what it must not have done, or "". trace: the lines that raised, innermost last."""

    kind: str
    fault: str = ""
    trace: tuple[str, ...] = ()
    seconds: float = 0.0
    message: str = ""


@dataclass
class Guard:
    """Watches reads below ``root``; ``outside`` is a folder in which nothing may be opened, by whatever library.

    elsewhere: a folder in which files may be read, but only by a path that goes through a link below the root.
    """

    root: Path
    outside: Path
    elsewhere: Path
    writes: bool = False
    armed: bool = False
    seen: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._root, self._elsewhere = os.path.realpath(self.root), os.path.realpath(self.elsewhere)
        self._code = tuple({os.path.realpath(prefix) + "/" for prefix in (sys.prefix, sys.base_prefix)})
        self._code += tuple(os.path.realpath(path) for path in sys.path if path)
        self._code += (str(PROJECT / "configs"),)  # whose names a message may list
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._watch = self._libc.inotify_init1(os.O_NONBLOCK)
        opened_or_changed = 0x20 | 0x2 | 0x100 | 0x200 | 0x400
        if self._libc.inotify_add_watch(self._watch, os.fsencode(self.outside), opened_or_changed) < 0:
            raise OSError(ctypes.get_errno(), "inotify")
        sys.addaudithook(self._audit)

    def watch(self, read: Callable[[Path], Any], links: bool = True) -> Outcome:
        """``read(root)`` under all eyes; links: whether there are any below the root.

        A hang kills the process (SIGPROF, SIGALRM): whoever forked it sees that.
        """
        self.seen.clear()
        held, highest = resident(), peak()
        self._real = os.path.realpath if links else os.path.abspath  # the former is slow on deep paths
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.setitimer(signal.ITIMER_REAL, PATIENCE)
        began, error = time.process_time(), None
        self.armed = True
        try:
            read(self.root)
        except (SystemExit, Exception) as caught:  # noqa: BLE001 (its type is what is tested)
            error = caught
        self.armed = False
        seconds = time.process_time() - began
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        outcome = Outcome("read") if error is None else described(error)
        outcome.seconds = seconds
        try:
            os.read(self._watch, 4096)
            self.seen.append(OUTSIDE.removeprefix("touched "))
        except BlockingIOError:
            pass
        if self.seen:
            outcome.fault = f"touched {self.seen[0]}"
        elif peak() > highest and peak() - held > MOST:
            outcome.fault = f"took {peak() - held >> 20} MiB"
        return outcome

    def _audit(self, event: str, arguments: tuple) -> None:
        if not self.armed:
            return
        if event in FORBIDDEN:
            self.seen.append(f"{event} {str(arguments)[:100]}")
        for index in PATHS.get(event, ()):
            path = arguments[index]
            if isinstance(path, str | bytes | os.PathLike):
                self.armed = False  # what follows raises events of its own
                path = os.path.join(_opened(event, arguments), os.fsdecode(path))  # noqa: PTH118 (what is given)
                changes = event != "open" or bool((arguments[2] or 0) & CHANGES)
                if not self._allowed(path, changes and "dir" not in event[-7:]):
                    self.seen.append(f"{event} {path[:200]}")
                self.armed = True

    def _allowed(self, given: str, changes: bool) -> bool:
        path, named = self._real(given), os.path.abspath(given)  # noqa: PTH100 (links stay)
        if within(path, self._root):
            return self.writes or not changes
        if within(path, self._elsewhere):  # a name that leads out by itself must not do that through a link either
            return within(named, self._root) and ".." not in given.split("/") and not changes
        return not changes and path.startswith(self._code)  # modules that are imported when first needed


def _opened(event: str, arguments: tuple) -> str:
    """The open folder that a relative path of this event begins in, as ``shutil.rmtree`` gives it, or ""."""
    folder = arguments[-1] if event in ("os.remove", "os.rmdir", "os.mkdir") else -1
    return os.readlink(f"/proc/self/fd/{folder}") if folder >= 0 else ""  # noqa: PTH115 (it may be no path)


def within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + "/")


def described(error: BaseException) -> Outcome:
    """The outcome that an exception is: expected where it is an InputError of one printable line."""
    lines, chain = [], []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        frame = link.__traceback__
        while frame is not None:
            code = frame.tb_frame.f_code
            if "msat_det" in code.co_filename:
                lines.append(f"{Path(code.co_filename).name}:{frame.tb_lineno}")
            frame = frame.tb_next
        link = link.__cause__ or link.__context__
    message, fault = str(error), ""
    if not isinstance(error, InputError):
        fault = f"{type(error).__name__} at {', '.join(lines[-1:])}: {message[:300]}"
    elif not message.isprintable() or len(message) > LONGEST:
        fault = f"message of {len(message)} characters, not one printable line: {message[:200]!a}"
    return Outcome(type(error).__name__, fault, tuple(lines), message=message[:300])


def peak() -> int:
    """Most memory that this process has held, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def resident() -> int:
    """Memory that this process holds, bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def limit_memory() -> None:
    """Let allocations fail 2 GiB above what the process has mapped now."""
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + 2 * GIBIBYTE,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
