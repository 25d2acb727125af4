"""Which files of a folder are images."""

import os
import sys
from pathlib import Path

import pytest
from support.roots import write_image

from msat_det.base.errors import InputError
from msat_det.data.listing import image_finder, image_names


def test_folders_behind_links_are_listed_once(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in ("root/a/1.jpg", "root/b.png", "far/2.jpg", "far/deep/3.JPG"):
        write_image(tmp_path / name)
    for name, target in {"a/up": "..", "self": ".", "far": "../far", "again": "far/deep", "z.jpg": "../far"}.items():
        (root / name).symlink_to(target)
    (root / "4.jpg").symlink_to("../far/2.jpg")
    (root / "gone.jpg").symlink_to("nowhere")
    (root / "notes.txt").symlink_to("nowhere")
    write_image(root / ".git/annex/5.jpg")
    (root / "5.jpg").symlink_to(".git/annex/5.jpg")
    (root / "._5.jpg").write_bytes(b"a Mac's")
    assert image_names(root) == ["4.jpg", "5.jpg", "a/1.jpg", "again/3.JPG", "b.png", "far/2.jpg", "gone.jpg"]
    (root / "val").symlink_to("/unmounted")
    with pytest.raises(InputError, match=r"root/val is a link that leads nowhere \(to '/unmounted'\): put there"):
        image_names(root)


def test_a_name_without_suffix_finds_its_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("1.jpg", "2.JPG", "3.jpeg", "4.Png", "5.webp", "6.x.bmp", "a/7.PNG", "8.jpg", "8.png", "9.gif"):
        write_image(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.png").rename(tmp_path / name)
    for name in ("10.png", "10.webp"):
        write_image(tmp_path / name)
    (tmp_path / "11.PNG").symlink_to("nowhere")
    find = image_finder(tmp_path)
    listed = []
    monkeypatch.setattr("os.scandir", lambda path, scan=os.scandir: listed.append(path) or scan(path))
    names = ("1", "2", "3", "4", "5", "6.x", "a/7", "8", "9", "11", "12", "none/1", "2.JPG", "8.png")
    assert [find(name) for name in names] == [
        *("1.jpg", "2.JPG", "3.jpeg", "4.Png", "5.webp", "6.x.bmp", "a/7.PNG", "8.jpg", "9.jpg", "11.PNG", "12.jpg"),
        *("none/1.jpg", "2.JPG", "8.png"),
    ]
    assert len(listed) == 3  # the folder, a and none
    with pytest.raises(InputError, match=r"holds 10\.png and 10\.webp: leave one of them there"):
        find("10")
    with pytest.raises(InputError, match="inside"):
        find("../1")


def test_images_are_found_however_deep(tmp_path: Path) -> None:
    for name in ("b/c.JPG", "a.png", "b/d/e.webp", "b/f.txt", "z.jpeg"):
        write_image(tmp_path / name) if not name.endswith("txt") else (tmp_path / name).write_text("")
    (tmp_path / "g.jpg").mkdir()
    (tmp_path / "h").symlink_to(tmp_path / "b")
    assert image_names(tmp_path) == ["a.png", "b/c.JPG", "b/d/e.webp", "z.jpeg"]

    deep = tmp_path / "/".join("x" * 150)
    deep.mkdir(parents=True)
    write_image(deep / "i.jpg")
    limit, depth = sys.getrecursionlimit(), len(list(frames()))
    sys.setrecursionlimit(depth + 100)
    try:
        assert len(image_names(tmp_path)) == 5
    finally:
        sys.setrecursionlimit(limit)


def test_pictures_of_a_run_are_no_images_of_the_folder_that_it_lies_in(tmp_path: Path) -> None:
    for name in ("a.png", "runs/x/curve.png", "runs/x/detections/a.png", "runs/look/doctor/sin.png", "runs/b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_image(tmp_path / name)
    for name in ("runs/x/.lock", "runs/look/.lock", "runs/look/doctor.json"):
        (tmp_path / name).touch()
    with_a_lock_alone = ["a.png", "runs/b.png", "runs/x/curve.png", "runs/x/detections/a.png"]
    assert image_names(tmp_path) == with_a_lock_alone
    (tmp_path / "runs/x/config.yaml").touch()
    assert image_names(tmp_path) == ["a.png", "runs/b.png"]
    assert image_names(tmp_path / "runs/x") == ["curve.png", "detections/a.png"]  # asked for


def frames() -> object:
    frame = sys._getframe()
    while frame is not None:
        yield frame
        frame = frame.f_back


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"can't list the folder .*gone \(No such file or directory\)"):
        image_names(tmp_path / "gone")
