"""The one error that a user is meant to see, and the one warning."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LONGEST = 1500  # characters of a message


class InputError(Exception):
    """Bad input: its message is one line that says what is wrong, where, and how to mend it.

    The command line prints it as ``error: …`` and exits with status 2; a library user catches it by this name.
    Whatever file or name the message quotes, it is printable, and not endless.
    """

    def __str__(self) -> str:
        line = " ".join(super().__str__().split())
        line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
        return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} … {line[-LONGEST // 2 :]}"


def lack_of_memory(error: BaseException) -> str | None:
    """``not enough memory on GPU 0 (tried to allocate 2.00 GiB)``, where that is what an error says; else None.

    Python has an error for it, PyTorch one for GPUs, and for the CPU, CUDA's libraries and drivers none but the text.
    """
    text = str(error)
    lacks = ("can't allocate memory", "out of memory", "not enough memory", "STATUS_ALLOC_FAILED")
    told = isinstance(error, RuntimeError) and any(lack in text for lack in lacks)
    if not told and not isinstance(error, MemoryError):
        return None
    where, amount = re.search(r"GPU \d+", text), re.search(r"[Tt](ried to allocate [\d.]+ \w+)", text)
    return "not enough memory" + (f" on {where[0]}" if where else "") + (f" (t{amount[1]})" if amount else "")


@contextmanager
def told_of_memory(tell: Callable[[str], str]) -> Iterator[None]:
    """Raise InputError where memory runs out within it: what ``tell`` makes of ``lack_of_memory``."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not (lack := lack_of_memory(error)):
            raise
        raise InputError(tell(lack)) from error


@contextmanager
def enough_memory(*mends: str) -> Iterator[None]:
    """The same with what to do besides: mends, of which ``--device …`` where a GPU's memory ran out."""

    def tell(lack: str) -> str:
        fitting = [mend for mend in ("free some", *mends) if "GPU" in lack or "--device" not in mend]
        return f"{lack}: {', or '.join(fitting)}"

    with told_of_memory(tell):
        yield


class CalibrationWarning(UserWarning):
    """The calibration images do not determine something, and the conversion had to guess it."""
