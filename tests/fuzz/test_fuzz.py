"""A short form of ``run.py``, every input that ever showed a fault, and whether the guard sees what it must see."""

import base64
import contextlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import SafetensorError, safe_open
from support.roots import write_image

from msat_det.base.settings import PROJECT

HERE = Path(__file__).parent
INPUTS = 150  # of each reader
NAMES = re.findall(r'^    "(\w+)": ', (HERE / "readers.py").read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """What a short run of all readers, in processes of their own, has found."""
    file = tmp_path_factory.mktemp("fuzz") / "table.json"
    words = ["--inputs", str(INPUTS), "--forget", "--json", str(file)]
    done = subprocess.run([sys.executable, HERE / "run.py", *words], capture_output=True, text=True)
    assert file.is_file(), done.stdout + done.stderr
    return json.loads(file.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_reader_ends_well_or_with_an_input_error(name: str, table: dict[str, dict]) -> None:
    found = table[name]
    assert found["faults"] == {}
    assert found["inputs"] >= INPUTS
    assert found["read"] > 0
    assert found["ways"] > 1


def outcome(tmp_path: Path, read: Callable[[Path], object], writes: bool = False) -> str:
    """What the guard says of a read, in a process of its own, which a hang ends: its exit status then, negative."""
    root, outside, elsewhere = (tmp_path / name for name in ("root", "outside", "elsewhere"))
    root.mkdir()
    write_image(elsewhere / "mine.jpg")
    (root / "link").symlink_to("../elsewhere")
    (root / "out").symlink_to("../outside")
    write_image(outside / "secret.jpg")
    (root / "mine").write_text("1")
    child = os.fork()
    if not child:
        sys.path.insert(0, str(HERE))
        import guard

        guard.SECONDS = 1 if read is hang else 5
        watching = guard.Guard(root, outside, elsewhere, writes)
        guard.limit_memory()
        (tmp_path / "fault").write_text(watching.watch(read).fault)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return (tmp_path / "fault").read_text() if status == 0 else str(status)


def hang(root: Path) -> None:
    while True:
        pass


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "another exception": (lambda root: 1 / 0, "ZeroDivisionError"),
    "a hang": (hang, "-27"),
    "a folder elsewhere is removed": (lambda root: shutil.rmtree(root / "../elsewhere"), "touched "),
    "memory": (lambda root: bytearray(1 << 30).count(0), "took"),
    "too much memory": (lambda root: bytearray(1 << 33), "MemoryError"),
    "a file outside": (lambda root: (root / "../outside/secret.jpg").read_bytes(), "touched open"),
    "a file far away": (lambda root: Path("/etc/passwd").read_bytes(), "touched open"),
    "a file elsewhere, not by a link": (lambda root: (root / "../elsewhere/mine.jpg").read_bytes(), "touched open"),
    "a way up behind a link": (lambda root: (root / "link/../elsewhere/mine.jpg").read_bytes(), "touched open"),
    "a file outside by a link": (lambda root: (root / "out/secret.jpg").read_bytes(), "touched open"),
    "a file changed by a link": (lambda root: (root / "link/mine.jpg").write_bytes(b""), "touched open"),
    "a folder outside": (lambda root: list((root / "../outside").iterdir()), "touched os.listdir"),
    "a file written": (lambda root: (root / "mine").write_text("2"), "touched open"),
    "a pickle": (lambda root: pickle.loads(b"cbuiltins\nlen\n."), "touched pickle.find_class"),  # noqa: S301
    "a program": (lambda root: subprocess.run(["true"]), "touched"),
}


def test_an_input_is_kept_without_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths of the project, of the home and of the workplace, in text and in bytes, keep their length and no name."""
    secrets = [str(PROJECT), str(Path.home()), str(tmp_path)]
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import run; from pathlib import Path\n"
        "run.FOUND, place = Path(sys.argv[2], 'found'), Path(sys.argv[2])\n"
        "text = '\\n'.join(f'root: {word}/a' for word in sys.argv[3:]).encode()\n"
        "(place / 'current').write_bytes(run.dump({'a.yaml': text, 'b.bin': b'\\xff' + text}))\n"
        "run.blame(run.Report(), 'x', 'a fault', place / 'current', True)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(HERE), str(tmp_path), *secrets], check=True, cwd=PROJECT)
    (kept,) = (tmp_path / "found/x").glob("*.json")
    case = {path: content_of(data) for path, data in json.loads(kept.read_text()).items()}
    assert not any(secret.encode() in content for secret in secrets for content in case.values())
    wanted = "\n".join(f"root: {re.sub('[^/]', 'x', word)}/a" for word in secrets).encode()
    assert case == {"a.yaml": wanted, "b.bin": b"\xff" + wanted}


def test_a_hang_is_one_that_comes_again(tmp_path: Path) -> None:
    """An input that a reader never ends on, and one that it does end on."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import guard; guard.SECONDS = 1\n"
        "import run; from pathlib import Path\n"
        "def read(root):\n"
        "    while (root / 'for ever').exists(): pass\n"
        "place, reader = run.Workplace(Path(sys.argv[2])), run.Reader(lambda: [{'a': b''}], None, read)\n"
        "for name in ('for ever', 'once'):\n"
        "    (place.path / 'current').write_bytes(run.dump({name: b''}))\n"
        "    print(run.hangs_again(reader, place))\n"
    )
    words = [sys.executable, "-c", script, str(HERE), str(tmp_path)]
    assert subprocess.run(words, check=True, cwd=PROJECT, capture_output=True, text=True).stdout == "True\nFalse\n"


def content_of(data: str | list[str]) -> bytes:
    return base64.b64decode(data[0]) if isinstance(data, list) else data.encode()


def test_kept_inputs_name_no_place_of_a_machine() -> None:
    places = set()
    for file in (HERE / "found").rglob("*.json"):
        for data in json.loads(file.read_text()).values():
            places |= set(re.findall(rb"(?<![\w.~$:/])/[a-z]{3,}/[\w./-]+", content_of(data)))
    made_up = (b"/data/", b"/runs/", b"/project/", b"/etc/passwd", b"/dev/zero", b"/proc/self/mem", b"/xxx")
    assert not {place for place in places if not place.startswith(made_up)}


@pytest.mark.parametrize("name", BAD)
def test_the_guard_sees(name: str, tmp_path: Path) -> None:
    read, part = BAD[name]
    assert outcome(tmp_path, read).startswith(part)


def test_the_guard_lets_pass(tmp_path: Path) -> None:
    assert outcome(tmp_path, lambda root: (root / "mine").write_text((root / "mine").read_text()), writes=True) == ""


def test_the_guard_lets_a_folder_be_removed(tmp_path: Path) -> None:
    """Whose files Python names by the folder that it has opened."""

    def read(root: Path) -> None:
        (root / "parts").mkdir()
        (root / "parts/1").touch()
        shutil.rmtree(root / "parts")

    assert outcome(tmp_path, read, writes=True) == ""


def test_the_guard_lets_the_users_links_pass(tmp_path: Path) -> None:
    def read(root: Path) -> None:
        (root / "link/mine.jpg").read_bytes()
        list((root / "link").iterdir())

    assert outcome(tmp_path, read) == ""


def test_the_guard_sees_what_other_languages_open(tmp_path: Path) -> None:
    def read(root: Path) -> None:
        with contextlib.suppress(SafetensorError):
            safe_open(root / "../outside/secret.jpg", "pt")

    assert outcome(tmp_path, read) == "touched a file outside the root"
