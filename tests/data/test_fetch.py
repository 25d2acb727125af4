"""msat-det fetch against a server on this machine that breaks off, lies and sends traps."""

import errno
import gzip
import hashlib
import http.server
import io
import re
import resource
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from msat_det.base.config import Model
from msat_det.base.errors import InputError
from msat_det.base.settings import PROJECT, keys_of
from msat_det.data import build_dataset
from msat_det.data import download as downloads
from msat_det.data.catalogue import CATALOGUE, INSTEAD, Entry, Item, Source, get_with
from msat_det.data.unpack import unpack
from msat_det.models import build_detector
from msat_det.models.classifiers import build_classifier
from msat_det.run import cli
from msat_det.run import fetch as command
from msat_det.run.arguments import load_config
from msat_det.run.prepare import task_of

CONTENT = bytes(range(256)) * 4096  # 1 MiB, more than one chunk
CUT = 6 * downloads.CHUNK


class Server(http.server.ThreadingHTTPServer):
    """Serves ``files`` by path. Faults: ``cut`` (an answer's bytes), ``ranges``, ``length``, ``status``, ``moved``."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.cut: int | None = None
        self.ranges, self.length, self.status = True, True, 200
        self.headers: dict[str, str] = {}
        self.moved: dict[str, str] = {}
        self.asked: list[tuple[str, str | None]] = []

    def handle_error(self, *_: object) -> None:
        """The client hung up: that is what some tests are about."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers["Range"]))
        assert self.headers["Accept-Encoding"] == "identity"  # else lengths are those of the packed file
        if self.path in self.server.moved:
            self.send_response(302)
            self.send_header("Location", self.server.moved[self.path])
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = self.server.files.get(self.path)
        if content is None or self.server.status != 200:
            self.send_error(404 if content is None else self.server.status)
            return
        start = int(self.headers["Range"][len("bytes=") : -1]) if self.headers["Range"] and self.server.ranges else 0
        if start and start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if self.server.length:
            self.send_header("Content-Length", str(len(content) - start))
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content[start:] if self.server.cut is None else content[start:][: self.server.cut])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(downloads, "PAUSE", 0)
    monkeypatch.delenv("MSAT_DET_MIRROR", raising=False)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def tar(members: dict[str, bytes], extra: tuple[tarfile.TarInfo, ...] = (), mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for info in extra:
            archive.addfile(info)
    return buffer.getvalue()


def zipped(members: dict[str, bytes], modes: dict[str, int] | None = None) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (modes or {}).get(name, 0o100644) << 16
            archive.writestr(info, content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


@pytest.fixture
def offer(server: Server, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put a name into the catalogue: an item ``path`` made of the given files on the server."""

    def offer(name: str, path: str, files: dict[str, bytes], checksum: bool = True, **more: int) -> None:
        sources = []
        for file, content in files.items():
            server.files[f"/{file}"] = content
            sources.append(Source(f"{server.url}/{file}", len(content), sha256(content) if checksum else ""))
        entry = Entry("for the test", (Item(path, tuple(sources), **more),))
        monkeypatch.setitem(CATALOGUE, name, entry)

    return offer


def tree(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def refused(capsys: pytest.CaptureFixture, *words: str) -> str:
    """The one line with which the command refuses."""
    capsys.readouterr()
    assert cli.main(["fetch", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def test_a_file_comes_once_and_is_then_left_alone(server: Server, offer, tmp_path: Path) -> None:
    offer("net", "weights/net.cfg", {"a/net.cfg": CONTENT})
    for _ in range(2):
        assert cli.main(["fetch", "net", "--root", str(tmp_path / "new")]) == 0
        assert tree(tmp_path / "new") == {"weights/net.cfg": CONTENT}
    assert server.asked == [("/a/net.cfg", None)]


def test_archives_merge_into_one_folder_and_nothing_else_stays(server: Server, offer, tmp_path: Path) -> None:
    first = tar({"VOCdevkit/VOC2007/a": b"1", "VOCdevkit/other": b"x", "README": b"y"}, mode="w:gz")
    second = zipped({"VOCdevkit/VOC2007/b/": b"", "VOCdevkit/VOC2007/b/c": b"2"})
    offer("voc", "VOCdevkit/VOC2007", {"first.tar.gz": first, "second.zip": second}, unpacked=100, least=2)
    (tmp_path / "VOCdevkit").mkdir()
    (tmp_path / "VOCdevkit/mine").write_text("kept")
    for _ in range(2):
        assert cli.main(["fetch", "voc", "--root", str(tmp_path)]) == 0
    assert tree(tmp_path) == {"VOCdevkit/VOC2007/a": b"1", "VOCdevkit/VOC2007/b/c": b"2", "VOCdevkit/mine": b"kept"}
    assert len(server.asked) == 2
    assert not (tmp_path / ".fetching").exists()


def test_what_a_kill_at_the_very_end_has_left_goes_with_the_next_call(offer, tmp_path: Path) -> None:
    offer("net", "weights/net.cfg", {"a/net.cfg": CONTENT})
    assert cli.main(["fetch", "net", "--root", str(tmp_path)]) == 0
    (tmp_path / ".fetching/weights_net.cfg/whole").mkdir(parents=True)
    (tmp_path / ".fetching/weights_net.cfg/archive.zip").write_bytes(b"gigabytes")
    assert cli.main(["fetch", "net", "--root", str(tmp_path)]) == 0
    assert tree(tmp_path) == {"weights/net.cfg": CONTENT}
    assert not (tmp_path / ".fetching").exists()


def test_a_broken_transfer_goes_on_where_it_stopped(server: Server, offer, tmp_path: Path) -> None:
    offer("net", "net", {"net": CONTENT})
    server.cut = CUT
    assert cli.main(["fetch", "net", "--root", str(tmp_path)]) == 0
    assert tree(tmp_path) == {"net": CONTENT}
    assert server.asked == [("/net", None), ("/net", f"bytes={CUT}-"), ("/net", f"bytes={2 * CUT}-")]


def test_the_next_call_goes_on_as_well(server: Server, offer, tmp_path: Path, capsys) -> None:
    offer("net", "net", {"net": CONTENT})
    server.cut, server.ranges = CUT, False
    error = refused(capsys, "net", "--root", str(tmp_path))
    assert f"broke off after {CUT} bytes" in error
    assert "the same command goes on from there" in error
    assert not (tmp_path / "net").exists()
    server.cut, server.ranges = None, True
    server.asked.clear()
    assert cli.main(["fetch", "net", "--root", str(tmp_path)]) == 0
    assert server.asked == [("/net", f"bytes={CUT}-")]
    assert tree(tmp_path) == {"net": CONTENT}


def test_redirections_are_followed(server: Server, offer, tmp_path: Path) -> None:
    offer("net", "net", {"net": CONTENT})
    server.files["/moved"] = server.files.pop("/net")
    server.moved = {"/net": "/moved"}
    server.cut = CUT
    assert cli.main(["fetch", "net", "--root", str(tmp_path)]) == 0
    assert tree(tmp_path) == {"net": CONTENT}
    assert server.asked[:4] == [
        ("/net", None),
        ("/moved", None),
        ("/net", f"bytes={CUT}-"),
        ("/moved", f"bytes={CUT}-"),
    ]


def test_a_server_without_ranges_begins_again(server: Server, offer, tmp_path: Path, capsys) -> None:
    offer("net", "net", {"net": CONTENT})
    server.cut = 0
    refused(capsys, "net", "--root", str(tmp_path))
    part = tmp_path / ".fetching/net/whole/net.part"
    part.write_bytes(CONTENT[:300_000])
    server.cut, server.ranges = None, False
    assert cli.main(["fetch", "net", "--root", str(tmp_path)]) == 0
    assert tree(tmp_path) == {"net": CONTENT}


@pytest.mark.parametrize("left", [CONTENT, CONTENT + b"more"], ids=["all", "too much"])
def test_a_part_with_nothing_left_to_ask_for(server: Server, offer, tmp_path: Path, left: bytes) -> None:
    offer("net", "net", {"net": CONTENT})
    part = tmp_path / ".fetching/net/whole/net.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(left)
    assert cli.main(["fetch", "net", "--root", str(tmp_path)]) == 0
    assert tree(tmp_path) == {"net": CONTENT}


def test_wrong_checksum(server: Server, offer, tmp_path: Path, capsys) -> None:
    offer("net", "net", {"net": CONTENT})
    server.files["/net"] = CONTENT[:-1] + b"!"
    error = refused(capsys, "net", "--root", str(tmp_path))
    assert "wrong checksum" in error
    assert sha256(CONTENT) in error
    assert tree(tmp_path) == {}
    server.files["/net"] = CONTENT  # and the bad copy is not gone on from
    assert cli.main(["fetch", "net", "--root", str(tmp_path)]) == 0


def test_a_file_that_is_there_but_another(offer, tmp_path: Path, capsys) -> None:
    offer("net", "net", {"net": CONTENT})
    (tmp_path / "net").write_text("mine")
    assert "another file" in refused(capsys, "net", "--root", str(tmp_path))
    assert tree(tmp_path) == {"net": b"mine"}


@pytest.mark.parametrize(("status", "said"), [(404, "404"), (403, "403"), (503, "503")])
def test_the_server_refuses(server: Server, offer, tmp_path: Path, capsys, status: int, said: str) -> None:
    offer("net", "net", {"net": CONTENT})
    server.status = status
    error = refused(capsys, "net", "--root", str(tmp_path))
    assert said in error
    assert "MSAT_DET_MIRROR" in error


def test_no_network(server: Server, offer, tmp_path: Path, capsys) -> None:
    offer("net", "net", {"net": CONTENT})
    server.shutdown()
    server.server_close()
    assert f"no connection to 127.0.0.1:{server.server_port}" in refused(capsys, "net", "--root", str(tmp_path))


def test_a_server_that_falls_silent(server: Server, offer, tmp_path: Path, capsys, monkeypatch) -> None:
    offer("net", "net", {"net": CONTENT})
    monkeypatch.setattr(downloads, "TIMEOUT", 0.2)
    monkeypatch.setattr(Handler, "do_GET", lambda self: time.sleep(0.6))
    assert "no connection" in refused(capsys, "net", "--root", str(tmp_path))


def test_full_disk_while_transferring_and_while_unpacking(
    server: Server, offer, tmp_path: Path, capsys, monkeypatch
) -> None:
    offer("data", "data", {"data.zip": zipped({"data/a": CONTENT})}, unpacked=2**20)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "x"))

    with monkeypatch.context() as patch:
        patch.setattr(downloads._Sink, "write", full)
        assert "No space left on device): free space" in refused(capsys, "data", "--root", str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr("msat_det.data.unpack.shutil.copyfileobj", full)
        assert "No space left on device): free space" in refused(capsys, "data", "--root", str(tmp_path))
    assert not (tmp_path / "data").exists()
    server.files.clear()  # the archive has come: only the unpacking is done again
    assert cli.main(["fetch", "data", "--root", str(tmp_path)]) == 0
    assert tree(tmp_path) == {"data/a": CONTENT}


def test_a_root_that_can_t_be_written(offer, tmp_path: Path, capsys) -> None:
    offer("net", "net", {"net": CONTENT})
    (tmp_path / "file").touch()
    assert "can't write" in refused(capsys, "net", "--root", str(tmp_path / "file"))


def test_more_bytes_than_announced_in_the_catalogue(server: Server, offer, tmp_path: Path, capsys) -> None:
    offer("net", "net", {"net": CONTENT})
    server.files["/net"] = CONTENT + b"x"
    for server.length, server.cut in ((True, 0), (False, None)):
        assert f"more than the {len(CONTENT)} bytes" in refused(capsys, "net", "--root", str(tmp_path))
    assert sum(map(len, tree(tmp_path).values())) == 0


def test_a_web_page_in_place_of_the_file(server: Server, offer, tmp_path: Path, capsys) -> None:
    offer("image", "image", {"image.jpg": b"<html>log in"}, checksum=False)
    server.headers["Content-Type"] = "text/html; charset=utf-8"
    assert "web page" in refused(capsys, "image", "--root", str(tmp_path))


@pytest.mark.parametrize("hostile", ["../x", "/tmp/msat-det-x", "data/../../x", "data\\..\\..\\x"])
@pytest.mark.parametrize("pack", [tar, zipped])
def test_archives_that_lead_out(offer, tmp_path: Path, capsys, pack, hostile: str) -> None:
    offer("data", "data", {"data.x": pack({"data/a": b"1", hostile: b"2"})}, unpacked=100)
    error = refused(capsys, "data", "--root", str(tmp_path / "root"))
    assert "leads out of the folder" in error
    assert not (tmp_path / "root/data").exists()
    assert not (tmp_path / "x").exists()
    assert not Path("/tmp/msat-det-x").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_tar_with_links_and_devices(tmp_path: Path, kind: bytes) -> None:
    link = tarfile.TarInfo("data/link")
    link.type, link.linkname = kind, "../../secret"
    (tmp_path / "a.tar").write_bytes(tar({"data/a": b"1"}, (link,)))
    with pytest.raises(InputError, match="link or a device"):
        unpack(tmp_path / "a.tar", tmp_path / "out", "data", 100)
    assert tree(tmp_path / "out") == {"data/a": b"1"}


def test_zip_with_a_symbolic_link(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zipped({"data/link": b"../secret"}, {"data/link": 0o120777}))
    with pytest.raises(InputError, match="link or a device"):
        unpack(tmp_path / "a.zip", tmp_path / "out", "data", 100)


@pytest.mark.parametrize("pack", [zipped, lambda members: tar(members, mode="w:gz")], ids=["zip", "tar.gz"])
def test_bombs(offer, tmp_path: Path, capsys, pack) -> None:
    bomb = pack({"data/a": b"1", "data/zeros": bytes(50_000_000)})
    assert len(bomb) < 100_000
    offer("data", "data", {"data.x": bomb}, unpacked=1_000_000)
    assert "more than 1000000 bytes" in refused(capsys, "data", "--root", str(tmp_path))
    assert not (tmp_path / "data").exists()
    assert sum(map(len, tree(tmp_path).values())) < 200_000


@pytest.mark.parametrize(("kind", "size"), [(b"x", 1 << 28), (b"L", 1 << 28), (b"g", -1024), (b"0", -5)])
def test_a_tar_whose_headers_are_no_headers(tmp_path: Path, kind: bytes, size: int) -> None:
    bad = tarfile.TarInfo("data/b")
    bad.type, bad.size = kind, size
    head = bad.tobuf(tarfile.GNU_FORMAT)
    with gzip.open(tmp_path / "a.tgz", "wb", 1) as file:
        file.write(head)
        for _ in range(max(size, 0) >> 20):
            file.write(bytes(1 << 20))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match="it is damaged"):
        unpack(tmp_path / "a.tgz", tmp_path / "out", "data", 100)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_a_bomb_of_many_files(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("msat_det.data.unpack.MAX_MEMBERS", 10)
    (tmp_path / "a.tar").write_bytes(tar({f"data/{i}": b"" for i in range(11)}))
    with pytest.raises(InputError, match="10 files"):
        unpack(tmp_path / "a.tar", tmp_path / "out", "data", 100)


@pytest.mark.parametrize("pack", [zipped, tar, lambda members: tar(members, mode="w:gz")], ids=["zip", "tar", "tar.gz"])
def test_damaged_archives(tmp_path: Path, pack) -> None:
    content = pack({"data/a": CONTENT, "data/b": CONTENT})
    for damaged in (content[: len(content) // 2], content[:300] + b"\xff" * 200 + content[500:], b"", b"text"):
        (tmp_path / "a").write_bytes(damaged)
        try:
            unpack(tmp_path / "a", tmp_path / "out", "data", 2**22)
        except InputError as error:
            assert "damaged" in str(error)  # noqa: PT017
        else:
            assert damaged[:300] == content[:300]  # a tar has no checksum of its contents


def test_half_a_folder_is_never_taken_for_a_whole_one(server: Server, offer, tmp_path: Path, capsys) -> None:
    members = {f"data/{i}": b"1" for i in range(3)}
    offer("data", "data", {"data.tar": tar(members)}, unpacked=100, least=3)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/0").write_text("1")  # somebody's tar was stopped
    assert "incomplete, 1 files of at least 3" in refused(capsys, "data", "--root", str(tmp_path))
    (tmp_path / "data/0").unlink()
    (tmp_path / "data").rmdir()
    half = tmp_path / ".fetching/data/whole/data/9"  # ours was killed
    half.parent.mkdir(parents=True)
    half.write_text("half")
    assert cli.main(["fetch", "data", "--root", str(tmp_path)]) == 0
    assert tree(tmp_path) == members
    offer("more", "more", {"more.tar": tar({"more/a": b"1"})}, unpacked=100, least=2)
    assert "1 files in more, at least 2 belong" in refused(capsys, "more", "--root", str(tmp_path))


def test_first_copies_bind_later_ones(server: Server, offer, tmp_path: Path, capsys) -> None:
    images = {"1.jpg": b"one", "2.jpg": b"two"}
    offer("calib", "calib", images, checksum=False, least=2)
    fetch = ["calib", "--root", str(tmp_path)]
    for _ in range(2):
        assert cli.main(["fetch", *fetch]) == 0
    assert len(server.asked) == 2
    assert subprocess.run(["sha256sum", "-c", "--quiet", "calib.sha256"], cwd=tmp_path).returncode == 0
    (tmp_path / "calib/2.jpg").write_bytes(b"TWO")
    assert "calib/2.jpg is not what the first fetch brought" in refused(capsys, *fetch)
    (tmp_path / "calib").rename(tmp_path / "away")
    server.files["/1.jpg"] = b"ONE"
    assert "calib/1.jpg is not what the first fetch brought" in refused(capsys, *fetch)
    assert not (tmp_path / "calib").exists()
    (tmp_path / "calib.sha256").unlink()
    assert cli.main(["fetch", *fetch]) == 0
    assert (tmp_path / "calib/1.jpg").read_bytes() == b"ONE"


def test_without_checksum_a_transfer_begins_again_and_needs_a_length(
    server: Server, offer, tmp_path: Path, capsys
) -> None:
    offer("image", "image.jpg", {"image.jpg": CONTENT}, checksum=False)
    server.cut = downloads.CHUNK + 1
    assert "begins the file again" in refused(capsys, "image", "--root", str(tmp_path))
    assert all(asked == ("/image.jpg", None) for asked in server.asked)
    server.length = False
    assert "neither length nor checksum" in refused(capsys, "image", "--root", str(tmp_path))
    server.cut, server.length = None, True
    assert cli.main(["fetch", "image", "--root", str(tmp_path)]) == 0
    assert (tmp_path / "image.jpg").read_bytes() == CONTENT


def test_mirrors(server: Server, tmp_path: Path, monkeypatch, capsys) -> None:
    source = Source("https://example.invalid/a/net", len(CONTENT), sha256(CONTENT))
    monkeypatch.setitem(CATALOGUE, "net", Entry("", (Item("net", (source,)),)))
    server.files = {"/example.invalid/a/net": CONTENT, "/b/net": CONTENT}
    for number, mirror in enumerate(
        (server.url, f"{server.url}/", f"https://else=http://x https://example.invalid/a={server.url}/b")
    ):
        monkeypatch.setenv("MSAT_DET_MIRROR", mirror)
        assert cli.main(["fetch", "net", "--root", str(tmp_path / str(number))]) == 0
    assert [path for path, _ in server.asked] == ["/example.invalid/a/net"] * 2 + ["/b/net"]
    monkeypatch.setenv("MSAT_DET_MIRROR", f"https://example.invalid/a={server.url}/c")
    assert "check the mirror" in refused(capsys, "net", "--root", str(tmp_path / "3"))
    monkeypatch.setenv("MSAT_DET_MIRROR", "ftp://mirror")
    assert "give https://mirror or" in refused(capsys, "net", "--root", str(tmp_path / "4"))


def test_an_archive_that_came_is_fetched_again_only_if_damaged(server: Server, offer, tmp_path: Path) -> None:
    content = tar({"data/a": b"1"})
    offer("data", "data", {"data.tar": content}, unpacked=100)
    for left, asked in ((content, 0), (content[:-1], 1)):
        archive = tmp_path / f"{asked}/.fetching/data/data.tar"
        archive.parent.mkdir(parents=True)
        archive.write_bytes(left)
        assert cli.main(["fetch", "data", "--root", str(tmp_path / str(asked))]) == 0
        assert len(server.asked) == asked


def test_only_what_is_wanted_is_unpacked(tmp_path: Path) -> None:
    members = {"a/b/1": b"1", "a/b2": b"2", "c": b"3"}
    for pack in (tar, zipped):
        (tmp_path / "x").write_bytes(pack(members))
        unpack(tmp_path / "x", tmp_path / pack.__name__, "a/b", 100)
        assert tree(tmp_path / pack.__name__) == {"a/b/1": b"1"}


def test_two_fetches_into_one_root(offer, tmp_path: Path, capsys) -> None:
    offer("net", "net", {"net": CONTENT})
    with command.alone(tmp_path):
        assert "another fetch writes to" in refused(capsys, "net", "--root", str(tmp_path))
    assert cli.main(["fetch", "net", "--root", str(tmp_path)]) == 0


def test_ctrl_c_says_how_to_go_on(offer, tmp_path: Path, capsys, monkeypatch) -> None:
    offer("net", "net", {"net": CONTENT})

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(downloads._Sink, "write", stop)
    assert cli.main(["fetch", "net", "--root", str(tmp_path)]) == 130
    assert capsys.readouterr().err.endswith("\ninterrupted: the same command goes on from here\n")


def test_torchvision_s_weights_by_their_enum(server: Server, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("MSAT_DET_MIRROR", server.url)
    file = "ssd300_vgg16_coco-b556d3b4.pth"
    server.files[f"/download.pytorch.org/models/{file}"] = b"weights"
    error = refused(capsys, "torchvision:ssd300_vgg16")
    assert "wrong checksum" in error
    assert "sha256:b556d3b4" in error
    cached = tmp_path / "hub/checkpoints" / file
    digits = hashlib.sha256(b"weights").hexdigest()[:8]
    monkeypatch.setattr(torch.hub, "HASH_REGEX", re.compile(f"()|({digits})"))
    assert torch.hub.HASH_REGEX.search(file)[1] == ""
    assert cli.main(["fetch", "torchvision:ssd300_vgg16:COCO_V1"]) == 0
    assert cached.read_bytes() == b"weights"
    assert "no weights 'X'" in refused(capsys, "torchvision:ssd300_vgg16:X")
    assert "did you mean ssd300_vgg16?" in refused(capsys, "torchvision:ssd300")


def test_imagenet_is_explained(tmp_path: Path, capsys) -> None:
    error = refused(capsys, "imagenet", "--root", str(tmp_path))
    assert all(part in error for part in ("val/WNID/", "image-net.org", "--data.kind imagenet"))
    for number in range(1000):
        assert number % 500 or refused(capsys, "imagenet", "--root", str(tmp_path))
        (tmp_path / f"val/n{number:08}").mkdir(parents=True)
    assert cli.main(["fetch", "imagenet", "--root", str(tmp_path)]) == 0


def test_names_and_list(capsys) -> None:
    assert cli.main(["fetch", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [
        *CATALOGUE,
        *(Path(place).stem for place in INSTEAD),
        "imagenet",
        "torchvision:MODEL[:WEIGHTS]",
    ]
    assert "did you mean voc2007?" in refused(capsys, "voc2077")
    assert "--list shows all" in refused(capsys)
    assert "--list shows all" in refused(capsys, "voc2007", "--what")
    assert "voc2007 beside --list" in refused(capsys, "voc2007", "--list")
    assert "--root beside --list" in refused(capsys, "--list", "--root", "x")
    assert "TORCH_HOME" in refused(capsys, "torchvision:ssd300_vgg16", "--root", "x")
    with pytest.raises(SystemExit) as stop:
        cli.main(["fetch", "--help"])
    assert stop.value.code == 0
    assert "MSAT_DET_MIRROR" in capsys.readouterr().out


def test_the_tool_is_the_command(tmp_path: Path) -> None:
    words = [sys.executable, str(PROJECT / "tools/fetch.py"), "nope"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: nothing is called 'nope'")


def test_the_catalogue_keeps_its_rules() -> None:
    places = {}
    for name, entry in CATALOGUE.items():
        assert entry.about
        assert entry.licence
        for item in entry.items:
            assert places.setdefault(item.path, item) is item, f"{name}: two things at {item.path}"
            assert item.unpacked == 0 or item.unpacked >= item.sources[0].size // 2
            for source in item.sources:
                assert source.url.startswith("https://")
                assert re.fullmatch(r"(md5:[0-9a-f]{32}|sha256:[0-9a-f]{8}([0-9a-f]{56})?)", source.checksum)
    assert len(CATALOGUE["coco2017"].items[-1].sources) == 64


@pytest.mark.parametrize(
    "file", [*sorted(PROJECT.glob("configs/**/*.yaml")), PROJECT / "README.md"], ids=lambda p: p.name
)
def test_commands_in_configurations_and_readme_name_what_there_is(file: Path) -> None:
    for words in re.findall(r"(?:tools/fetch\.py|msat-det fetch)((?: (?!--)[\w:-]+)+)", file.read_text("utf-8")):
        for name in words.split():
            assert name in {*CATALOGUE, "imagenet"} or command.find(name, Path())


def test_a_missing_network_names_the_command_that_gets_it(tmp_path: Path) -> None:
    model = Model(
        "darknet", cfg=str(tmp_path / "weights/yolo-fastest-1.1.cfg"), weights=str(tmp_path / "x"), names="coco"
    )
    with pytest.raises(InputError, match=f"get it with: msat-det fetch yolo-fastest --root {tmp_path}$"):
        build_detector(model)
    assert get_with(tmp_path / "yolo-fastest-1.1.cfg") == ""  # it would go into another folder
    assert "fetch yolo-nano-voc" in get_with(tmp_path / "weights/MobileNetV2-YOLOv3-Nano-voc.weights")


@pytest.mark.parametrize("file", sorted((PROJECT / "configs/real").glob("*.yaml")), ids=lambda p: p.stem)
def test_whatever_a_real_configuration_lacks_names_what_gets_it(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MSAT_DET_DATA", str(tmp_path))
    config = load_config([str(file)])
    build = build_detector if task_of(config) == "detection" else build_classifier
    for get in (
        lambda: build(config.model),
        lambda: build_dataset(config.data.kind, config.data.root, config.data.split),
        lambda: build_dataset(config.calib.kind, config.calib.root, config.calib.split),
    ):
        with pytest.raises(InputError) as told:
            get()
        (name,) = re.findall(r"msat-det fetch (\S+) --root", str(told.value))
        assert name in {*CATALOGUE, "imagenet"} or command.find(name, tmp_path)


def test_what_nobody_publishes_has_a_way_round(tmp_path: Path) -> None:
    keys = set(keys_of())
    for other in INSTEAD.values():
        assert other.name in {*CATALOGUE, "imagenet"} or command.find(other.name, tmp_path)
        assert {word[2:] for word in other.words.split() if word.startswith("--")} <= keys
    assert INSTEAD["weights/yolov8n_fused_fp16.safetensors"].words.endswith(" --model.trust true")  # it is a pickle
    told = get_with(tmp_path / "weights/cifar100_resnet20.safetensors")
    file = f"{tmp_path}/weights/cifar100_resnet20-23dac2f1.pt"
    assert told == (
        f"it can't be fetched: run msat-det fetch resnet20-cifar100 --root {tmp_path}, then add --model.weights {file} "
        "(cifar100_resnet20.safetensors was made from https://github.com/chenyaofo/pytorch-cifar-models, BSD-3-Clause)"
    )
    assert file == str(tmp_path / CATALOGUE["resnet20-cifar100"].items[0].path)


@pytest.mark.parametrize("place", INSTEAD)
def test_fetch_says_of_what_nobody_publishes_where_it_is_from(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for name in (place, Path(place).name, Path(place).stem):
        assert cli.main(["fetch", name, "--root", str(tmp_path)]) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1
        assert told.startswith(f"error: {place} can't be fetched: run msat-det fetch {INSTEAD[place].name} --root ")
        assert re.search(r" was made from https://\S+/\S+, \w.*\)\n$", told)
    assert cli.main(["fetch", "--list"]) == 0
    assert re.search(
        rf"^{Path(place).stem} +can't be fetched: made from https://\S+ \(.+\)$", capsys.readouterr().out, re.M
    )


def test_the_catalogue_s_networks_are_those_of_the_configurations(shared_data: Path) -> None:
    for name in ("yolo-nano-voc", "yolo-nano-coco", "yolo-fastest"):
        assert cli.main(["fetch", name, "--root", str(shared_data)]) == 0
    for name in ("coco_calib64", "coco_val128"):
        for item in CATALOGUE[name].items:
            place = shared_data / item.path
            files = {source.name: place / source.name for source in item.sources} if place.is_dir() else {"": place}
            assert place.is_file() or set(files) == {path.name for path in place.iterdir()}
            for source, path in zip(item.sources, files.values(), strict=True):
                assert source.checksum == f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
