"""Between a command and whoever started it: exit status, one line for every way to end, streams of whatever kind."""

import errno
import functools
import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from msat_det.base import ranks
from msat_det.base.errors import InputError, lack_of_memory

RESUMES = "the same command with --resume goes on from here"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # nothing but writing ends so
CLOSED_PIPE = 141  # what a shell says of a program that SIGPIPE has ended: 128 + 13


def guarded(command: Callable[[list[str]], None], again: str = RESUMES) -> Callable[..., int]:
    """The command as a function of its words (the process's own by default) that returns an exit status.

    0: done. 2: bad input, or a disk or a stream that takes no more, told in one line on stderr. 130: interrupted (143:
    by SIGTERM), told with ``again``, how to go on. 141: nobody reads the output any more. No traceback for any of them.
    The word ``--quiet`` is taken out: no progress bars then. A warning of ours is one line.
    Under torchrun one rank tells it.
    """

    @functools.wraps(command)
    def run(argv: list[str] | None = None) -> int:
        with Signals() as signals, warnings.catch_warnings():
            warnings.showwarning = _warned
            try:
                make_streams_usable()
                words = sys.argv[1:] if argv is None else argv
                if "--quiet" in words:
                    os.environ["TQDM_DISABLE"] = "1"
                words = [word for word in words if word != "--quiet"]
                try:
                    if words and not {"-h", "--help"}.intersection(words):
                        _require_working_directory()
                    command(words)
                finally:
                    sys.stdout.flush()  # what is left in it may not fit, which Python itself would tell too late
            except BaseException as error:
                # an interrupt in the middle of an import or of C code may come out as any other error
                stopped = signals.seen or (signal.SIGINT if isinstance(error, KeyboardInterrupt) else 0)
                status = _interrupted(stopped, again) if stopped else _ended(error)
                if status is None:
                    raise
                return status
            finally:
                _give_up_full_streams()
        return 0

    return run


def _warned(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Our own warnings in one line, as what a command says itself; those of others with their place."""
    own = Path(filename).is_relative_to(Path(__file__).parents[1])
    told = f"warning: {message}\n" if own else warnings.formatwarning(message, category, filename, lineno, line)
    (file or sys.stderr).write(told)


def _require_working_directory() -> None:
    """Raise InputError where it is gone: relative paths mean nothing then, and Intel's MKL ends the whole process."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise InputError("the working directory is gone: change into another one") from None


once = functools.partial(guarded, again="")  # for a command that begins anew


def make_streams_usable() -> None:
    """Let stdout replace what its encoding lacks, and put the null device where a standard stream is closed.

    Else the next file that is opened would become the standard output, and receive what is meant for it.
    """
    while (null := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(null, True)
    os.close(null)
    for name, mode, number in (("stdin", "r", 0), ("stdout", "w", 1), ("stderr", "w", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 (it stays open)
    if isinstance(sys.stdout, io.TextIOWrapper):  # stderr escapes such characters by itself
        sys.stdout.reconfigure(errors="replace")


class Signals:
    """SIGINT (Ctrl-C) and SIGTERM interrupt what runs inside, as KeyboardInterrupt; a second one ends the process.

    Signals that are handled or ignored otherwise stay so, and so do those of processes that are forked inside.

    seen: the number of the one that came; 0: none.
    """

    def __init__(self) -> None:
        self.seen = 0
        self._before: dict[int, Any] = {}
        self._process = os.getpid()

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            for number, plain in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
                if signal.getsignal(number) is plain:
                    self._before[number] = signal.signal(number, self._came)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _came(self, number: int, frame: object) -> None:
        if os.getpid() != self._process or self.seen:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.seen = number
        raise KeyboardInterrupt


def _interrupted(number: int, again: str) -> int:
    exec("")  # noqa: S102 (an interrupt within an ``exec`` would make Python end by the signal: this takes it back)
    if ranks.rank() == 0:
        _tell(f"\ninterrupted: {again}" if again else "\ninterrupted")
    return 128 + number


def _ended(error: BaseException) -> int | None:
    """The exit status of a command that an error has ended, which is told. None: a fault of ours, to be raised."""
    if isinstance(error, BrokenPipeError):
        return CLOSED_PIPE
    if isinstance(error, OSError):
        error = InputError(_of_system(error))
    elif lack := lack_of_memory(error):
        error = InputError(f"{lack}: free some")
    if not isinstance(error, InputError):
        return None
    if ranks.is_first_to_tell():
        # another rank than the first may speak in the middle of the first one's progress bar
        _tell(f"\nerror: {error}" if ranks.rank() else f"error: {error}")
    return 2


def _of_system(error: OSError) -> str:
    """What to say of a refusal by the operating system that nobody nearer to it has explained."""
    reason = error.strerror or error
    if error.filename is not None:
        return f"{error.filename}: {reason}: free space, mend its rights or name another place"
    if error.errno in FULL:
        return f"the output can't be written ({reason}): free space or send it elsewhere"
    return str(reason)


def _tell(line: str) -> None:
    with suppress(OSError):  # stderr is full, too: the exit status says it
        print(line, file=sys.stderr, flush=True)


def _give_up_full_streams() -> None:
    """Drop what can't be written, which Python would try again at its end, with a traceback and a status of its own."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
