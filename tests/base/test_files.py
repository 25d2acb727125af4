"""What every reader of files shares: one line for every fault, and no waiting or filling of the memory."""

import os
from pathlib import Path

import pytest
import yaml

from msat_det.base.errors import LONGEST, InputError
from msat_det.base.files import bytes_of, inside, show, text_of, write_whole, yaml_of, yaml_text, yaml_value


def test_a_message_is_one_printable_line_whatever_it_quotes() -> None:
    error = InputError("a \n b\r\nc\x1b[31m \u202e\ud800\0 é😀")
    assert str(error) == r"a b c\x1b[31m \u202e\ud800\x00 é😀"
    str(error).encode()


def test_a_message_is_not_endless() -> None:
    text = str(InputError("begin" + "\0" * 10_000 + "end"))
    assert len(text) < LONGEST + 10
    assert text.startswith("begin")
    assert text.endswith("end")


def test_only_regular_files_of_sensible_size_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    assert bytes_of(path) == bytes_of(str(path), 5) == b"12345"
    with pytest.raises(ValueError, match="5 bytes, more than 4"):
        bytes_of(path, 4)
    os.truncate(path, 1 << 40)  # a hole: it takes no room on the disk
    with pytest.raises(ValueError, match="more than"):
        bytes_of(path)
    os.mkfifo(tmp_path / "pipe")
    for other in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(OSError, match="no regular file"):
            bytes_of(other)
    with pytest.raises(FileNotFoundError):
        text_of(tmp_path / "none")
    with pytest.raises(IsADirectoryError):
        text_of(tmp_path)


@pytest.mark.parametrize("code", ["utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_a_byte_order_mark_says_how_to_read_and_is_left_out(tmp_path: Path, code: str) -> None:
    text = "dog\r\nzebra é 😀\r\n"
    mark = "" if code in ("utf-8-sig", "utf-16", "utf-32") else "\ufeff"  # the three write it themselves
    (tmp_path / "a.txt").write_bytes((mark + text).encode(code))
    assert text_of(tmp_path / "a.txt") == text
    (tmp_path / "a.yaml").write_bytes((mark + "data: {root: é}\r\n").encode(code))
    assert yaml_of(tmp_path / "a.yaml") == {"data": {"root": "é"}}


def test_half_a_character_after_a_byte_order_mark_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff\xfed\x00o")
    with pytest.raises(ValueError, match="utf-16"):
        text_of(tmp_path / "a.txt")


def test_names_out_of_files_stay_inside_and_links_are_followed(tmp_path: Path) -> None:
    for names in ((), ("a",), ("a/b.jpg", "c"), ("./a",), ("a..b", "..."), ("a\\..\\b",), ("x" * 5000,)):
        assert inside(tmp_path, *names) == Path(tmp_path, *names)
    for names in (("..",), ("a", "../b"), ("a/../b",), ("/etc/passwd",), ("a", "/b"), ("a\0",), ("\ud800",)):
        with pytest.raises(InputError, match=r"is no path inside .*: name a file within it$"):
            inside(tmp_path, *names)
    (tmp_path / "link").symlink_to("/")
    assert inside(tmp_path, "link/etc") == tmp_path / "link/etc"


@pytest.mark.parametrize("place", ["/", ".", "folder"])
def test_a_file_does_not_take_the_place_of_a_folder(place: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="it is a folder; name a file in it"):
        write_whole(tmp_path / place, lambda file: file.write_text("x"))
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_yaml_asks_for_no_more_than_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: &a [1, 2.5, x]\nb: [*a, *a]\nc: {d: null, e: !!str 2}\n")
    assert yaml_of(path) == {"a": [1, 2.5, "x"], "b": [[1, 2.5, "x"]] * 2, "c": {"d": None, "e": "2"}}
    merges = "".join(f"x{i}: &x{i} {{<<: [*x{i - 1}, *x{i - 1}]}}\n" for i in range(1, 60))
    for text in (f"x0: &x0 {{a: 1}}\n{merges}", "a: !!python/name:os.system"):
        path.write_text(text)
        with pytest.raises(yaml.YAMLError, match="could not determine a constructor"):
            yaml_of(path)
    path.write_text("a: 1\n" * 30_000)
    with pytest.raises(ValueError, match="more than"):
        yaml_of(path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("1e-3", 0.001), ("-2E5", -200000.0), ("1.5e+3", 1500.0), ("+.5e1", 5.0), ("[1e0, 2]", [1.0, 2])),
        *(("1.0e-3", 0.001), ("12", 12), ("e5", "e5"), ("1e", "1e"), ("1e5x", "1e5x"), ("'1e5'", "1e5")),
    ],
)
def test_numbers_are_read_as_people_write_them(text: str, value: object) -> None:
    """YAML 1.1 takes 1e-3 for a word; texts that look like numbers are written so that they stay texts."""
    assert yaml_value(text) == value
    assert type(yaml_value(text)) is type(value)
    assert yaml_value(yaml_text({"a": value})) == {"a": value}


def test_values_are_shown_short(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb: list = ["x"]
    for _ in range(40):
        bomb = [bomb, bomb]
    for value in (bomb, {"a": bomb}, "y" * 10**6, 10**5000, [10**5000] * 9, {1: "z" * 999}):
        assert len(show(value)) < 10_000
    assert show(-123456) == "-123456"
    assert show("a\nb") == r"'a\nb'"


def test_a_path_longer_than_any_system_takes_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no path inside"):
        inside(tmp_path, "a/" * 100_000 + "1.jpg")
    assert inside(tmp_path, "a/" * 2000 + "1.jpg")


@pytest.mark.parametrize("text", ["a: 1\nb: 2\na: 3", "{a: {b: 1, b: 1}}", "[{1: x, 1: y}]"])
def test_a_key_that_stands_twice_in_yaml_is_refused(text: str) -> None:
    with pytest.raises(yaml.MarkedYAMLError, match="stands there twice") as caught:
        yaml_value(text)
    assert caught.value.problem_mark.line == (2 if text.startswith("a") else 0)
    assert yaml_value("{1: x, '1': y, a: {1: z}}") == {1: "x", "1": "y", "a": {1: "z"}}
