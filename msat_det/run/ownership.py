"""Who may write into a run directory: one command at a time, over its own files and no others."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from msat_det.base import ranks
from msat_det.base.config import Config
from msat_det.base.errors import InputError
from msat_det.base.files import remove
from msat_det.report.directory import CONFIG, RunDirectory
from msat_det.run.locks import lock


@contextmanager
def owned(directory: RunDirectory) -> Iterator[None]:
    """Keep every other run out of the directory for as long as a rank of this one lives, however it ends.

    Raises InputError, naming the owner, where another run holds it.
    """
    path = directory.lock
    with path.open("a+", encoding="utf-8") as file:

        def take(shared: bool) -> None:
            try:
                lock(file, shared)
            except BlockingIOError:
                owner = path.read_text("utf-8").strip()
                raise InputError(
                    f"{directory.path} belongs to a run that is still going ({owner}): wait for its end, stop it, or "
                    "give another folder with --out DIR"
                ) from None
            except OSError as error:
                raise InputError(f"cannot lock {path} ({error.strerror}): give --out on another disk") from None

        def own() -> None:
            take(shared=False)
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
            take(shared=True)  # before any other rank tries

        ranks.from_first(own)
        take(shared=True)  # every rank holds it: one that has outlived rank 0 keeps others out, too
        yield


@contextmanager
def taken(config: Config) -> Iterator[RunDirectory]:
    """The directory of a command, which alone may write into it meanwhile. Raises InputError where another one does,
    and where files would be replaced that are no run's, unless ``config.overwrite`` allows it."""
    for part in (config.data, config.calib):
        if part.kind == "images" and Path(part.root or "", part.split or "").resolve() == Path(config.folder).resolve():
            raise InputError(f"--out is {config.folder}, whose images are read: the run's pictures would be among them")
    directory = RunDirectory(config.folder)
    ranks.from_first(lambda: _refuse_foreign(directory, config))
    with owned(directory), directory:
        yield directory


def _refuse_foreign(directory: RunDirectory, config: Config) -> None:
    marks = directory.lock, directory.begun, directory.summary
    there = directory.found(directory.names)
    if there and not config.overwrite and not any(mark.exists() for mark in marks):
        raise InputError(
            f"{there[0]} would be replaced, and {directory.path} is no run's directory: give another folder with --out "
            "DIR, or add --overwrite"
        )


def refuse_finished(directory: RunDirectory, config: Config) -> None:
    """Raise InputError where the directory holds a finished run, unless that is to be overwritten."""
    if directory.summary.exists() and not config.overwrite:
        raise InputError(
            f"{directory.path} holds a finished run: give another folder with --out DIR, or --overwrite to replace it"
        )


def drop_finished(directory: RunDirectory) -> None:
    """Remove a finished run that may be overwritten, before results of another command are written."""
    if directory.summary.exists():
        directory.clear()
        remove(directory.path / CONFIG)
