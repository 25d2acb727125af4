"""Unpacking archives that nobody vouches for: nothing is written outside the folder, and there is a bound on it all."""

import errno
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from gzip import BadGzipFile
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import IO

from msat_det.base.errors import InputError
from msat_det.base.files import one_line, show
from msat_det.base.progress import Progress

MAX_MEMBERS = 200_000
MAX_NAME = 1 << 20  # bytes of a tar's long names and other extended headers, which are read at once
BROKEN = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    BadGzipFile,
    LZMAError,
    EOFError,
    IndexError,  # a zip's empty name
    MemoryError,  # that an xz stream asks for
    RuntimeError,  # an encrypted zip; NotImplementedError, an unknown compression, is one too
    ValueError,
)


@dataclass(frozen=True)
class Member:
    """One entry of an archive; ``plain``: a regular file or a folder, neither a link nor a device."""

    name: str
    size: int
    folder: bool
    plain: bool
    open: Callable[[], IO[bytes]]


def unpack(archive: Path, folder: Path, wanted: str, bound: int) -> None:
    """Write the members below the path ``wanted`` of a tar (compressed or not) or zip into ``folder``.

    Raises InputError, before the member in question is written, if any member's path leads out of the archive, if it is
    a link or a device, or if the members together have more than ``bound`` bytes; also for a damaged archive. An
    OSError of the disk passes.
    """
    total = 0
    try:
        members = (_tar if _is_tar(archive) else _zip)(archive)
        for count, member in enumerate(Progress(members, archive.name, unit=" files", disable=None)):
            path = PurePosixPath(member.name)
            if path.is_absolute() or ".." in path.parts or set(member.name) & {"\\", "\0"}:
                raise _refused(archive, f"its member {show(member.name)} leads out of the folder")
            if not member.plain:
                raise _refused(archive, f"its member {show(member.name)} is a link or a device")
            if member.size < 0:
                raise ValueError("a size below 0")
            total += member.size
            if total > bound or count >= MAX_MEMBERS:
                raise _refused(archive, f"it holds more than {bound} bytes or {MAX_MEMBERS} files")
            if not member.folder and path.is_relative_to(wanted):
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                with member.open() as source, target.open("wb") as file:
                    shutil.copyfileobj(source, file, 1 << 20)
    except (OSError, *BROKEN) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise  # the disk's; without a number, or with this one, it is the archive's
        raise _refused(archive, f"it is damaged ({one_line(error) or type(error).__name__})") from error


class _TarInfo(tarfile.TarInfo):
    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_TarInfo":
        info = super().frombuf(buf, encoding, errors)
        if not 0 <= info.size <= MAX_NAME and info.type in (b"x", b"g", b"X", b"L", b"K"):
            raise tarfile.ReadError("a name of more than a megabyte")
        return info


def _is_tar(archive: Path) -> bool:
    try:
        with tarfile.open(archive, tarinfo=_TarInfo):
            return True
    except tarfile.TarError:
        return False


def _zip(archive: Path) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            plain = kind in (0, stat.S_IFREG, stat.S_IFDIR)  # 0: written on a system without modes
            yield Member(info.filename, info.file_size, info.is_dir(), plain, partial(opened.open, info))


def _tar(archive: Path) -> Iterator[Member]:
    with tarfile.open(archive, tarinfo=_TarInfo) as opened:
        for info in opened:
            plain = info.isreg() or info.isdir()
            yield Member(info.name, info.size, info.isdir(), plain, partial(_opened, opened, info))


def _opened(archive: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    file = archive.extractfile(info)
    assert file is not None  # a folder has none, and is never opened
    return file


def _refused(archive: Path, reason: str) -> InputError:
    return InputError(f"{archive} is not unpacked, for {reason}: delete it and fetch it again, or from another mirror")
