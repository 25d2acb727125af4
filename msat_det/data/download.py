"""One file from a server: resumed, bounded, verified, and in its place only when all of that holds."""

import os
import re
import time
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

import pooch
import requests
from requests.exceptions import ChunkedEncodingError, ConnectionError, HTTPError, RequestException, Timeout

from msat_det.base.errors import InputError
from msat_det.base.files import one_line
from msat_det.base.progress import Progress
from msat_det.data.catalogue import Source

PAUSE = 1.0  # seconds before a broken transfer goes on
TIMEOUT = 30.0  # seconds without a byte
CHUNK = 1 << 16  # bytes; what a broken transfer loses at most


def download(source: Source, target: Path, show: bool = True) -> None:
    """The file at ``source.url``, or at its mirror, as ``target``; nothing to do if it is there with its checksum.

    The bytes gather in ``<target>.part``. A broken transfer goes on from there for as long as every attempt brings
    more, and so does the next call, where the server can and a checksum would tell of a change in between; otherwise
    it begins again. ``show``: draw a progress bar. Raises InputError; an OSError of the disk passes.
    """
    if target.exists() and matches(target, source.checksum):
        return
    url, part = mirrored(source.url), target.with_name(f"{target.name}.part")
    target.parent.mkdir(parents=True, exist_ok=True)
    best = _size(part) if source.checksum else 0
    while True:
        if not source.checksum:
            part.unlink(missing_ok=True)
        try:
            _transfer(url, part, source, show)
            break
        except HTTPError as error:
            answer = error.response
            assert answer is not None  # raise_for_status gives it
            if answer.status_code == 416 and _size(part):  # nothing comes after these bytes: all, or another file's
                if answer.headers.get("Content-Range", "").endswith(f"/{_size(part)}"):
                    break
                part.unlink()
                continue
            mend = "check the mirror" if url != source.url else "try later or name a mirror with MSAT_DET_MIRROR"
            raise InputError(f"{url}: the server says {answer.status_code} {answer.reason}: {mend}") from None
        except (ConnectionError, ChunkedEncodingError, Timeout) as error:
            if _size(part) <= best:
                raise _broken(url, part, source, error) from None
            best = _size(part)
            time.sleep(PAUSE)
        except RequestException as error:
            raise InputError(f"{url} can't be fetched ({one_line(error)}): check MSAT_DET_MIRROR") from None
    _verify(part, source, url)
    part.replace(target)


def mirrored(url: str) -> str:
    """The address that stands in for ``url`` by ``MSAT_DET_MIRROR``, a list of mirrors parted by blanks.

    ``FROM=TO`` puts TO in place of the beginning FROM; a bare ``TO`` puts it in place of ``https://``, so that a
    mirror of everything has a folder for every host. The first that fits counts.
    """
    for word in os.environ.get("MSAT_DET_MIRROR", "").split():
        start, equals, rest = word.partition("=http")
        to = f"http{rest}" if equals else word
        if not to.startswith(("http://", "https://")):
            raise InputError(f"MSAT_DET_MIRROR holds {word!r}: give https://mirror or https://from=https://to")
        if not equals:
            return f"{to.rstrip('/')}/{url.partition('://')[2]}"
        if url.startswith(start):
            return to + url.removeprefix(start)
    return url


def matches(file: Path, checksum: str) -> bool:
    """Whether the file has the checksum ``algorithm:digits``, which may be the first digits only; "" fits all."""
    algorithm, _, digits = checksum.partition(":")
    return not checksum or pooch.file_hash(file, algorithm).startswith(digits)


def _verify(part: Path, source: Source, url: str) -> None:
    if matches(part, source.checksum):
        return
    got = pooch.file_hash(part, source.checksum.partition(":")[0])
    part.unlink()
    raise InputError(
        f"{url}: wrong checksum {got}, it should be {source.checksum}: the copy is deleted; fetch it again or from a "
        "mirror with MSAT_DET_MIRROR"
    )


def _transfer(url: str, part: Path, source: Source, show: bool) -> None:
    start = _size(part)
    headers = {"Accept-Encoding": "identity"}  # so that lengths and ranges are those of the file
    if start:
        headers["Range"] = f"bytes={start}-"
    desc = source.name + (f", from {start / 1e6:.0f} MB" if start else "")
    bar = Progress(desc=desc, total=source.size, unit="B", unit_scale=True, disable=None if show else True)
    with part.open("ab") as file, bar:
        sink = _Sink(file, source)
        pooch.HTTPDownloader(
            progressbar=bar, chunk_size=CHUNK, headers=headers, timeout=TIMEOUT, hooks={"response": sink.begin}
        )(url, sink, None)


class _Sink:
    """What pooch writes into: a file that keeps to the bound and begins where the server does."""

    def __init__(self, file: IO[bytes], source: Source):
        self.file, self.source = file, source

    def begin(self, response: requests.Response, **_: object) -> None:
        """Called with every answer, before its body is read."""
        if response.is_redirect or not response.ok:
            return
        headers = response.headers
        if headers.get("Content-Type", "").startswith("text/html"):
            raise InputError(
                f"{response.url} answers with a web page, not with the file: log in to the network or give a mirror "
                "with MSAT_DET_MIRROR"
            )
        lasting = "Content-Length" in headers or headers.get("Transfer-Encoding") == "chunked"
        if not self.source.checksum and not lasting:
            raise InputError(f"{response.url} has neither length nor checksum, half of it would pass: give a mirror")
        start = 0
        if response.status_code == 206:
            found = re.match(r"bytes (\d+)-", headers.get("Content-Range", ""))
            if not found or int(found[1]) > self.file.tell():
                raise InputError(f"{response.url} sends another part than asked for: give a mirror, or try again")
            start = int(found[1])
        self.file.truncate(start)
        self.file.seek(0, os.SEEK_END)
        self._keep_to_bound(int(headers.get("Content-Length", 0)))

    def write(self, chunk: bytes) -> None:
        self._keep_to_bound(len(chunk))
        self.file.write(chunk)

    def flush(self) -> None:
        """Pooch asks for it after every chunk; the file's own buffer is better at it."""

    def _keep_to_bound(self, more: int) -> None:
        if self.file.tell() + more > self.source.size:
            self.file.truncate(0)
            raise InputError(
                f"{self.source.url}: the server sends more than the {self.source.size} bytes that the file may have: "
                "give another mirror with MSAT_DET_MIRROR"
            )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _broken(url: str, part: Path, source: Source, error: RequestException) -> InputError:
    """What to say of a transfer that does not go on, by whether it ever began."""
    if not _size(part) and not isinstance(error, ChunkedEncodingError):
        return InputError(
            f"no connection to {urlsplit(url).netloc} ({type(error).__name__}): check the network or name a mirror "
            "with MSAT_DET_MIRROR"
        )
    then = "goes on from there" if source.checksum else "begins the file again"
    return InputError(f"{url}: the transfer broke off after {_size(part)} bytes: the same command {then}")
