"""Photographs that are made to take for ever or all memory, and folders that are."""

import io
import sys
from pathlib import Path

import pytest
from PIL import Image
from support.roots import write_image

from msat_det.base.errors import InputError
from msat_det.data.images import MAX_SCANS, CorruptImage, image_names, read_image


def jpeg_of_scans(count: int) -> bytes:
    """A progressive JPEG of one grey, its last scan, of a few bytes, given ``count`` times."""
    out = io.BytesIO()
    Image.new("L", (64, 64), 90).save(out, "JPEG", progressive=True)
    data = out.getvalue()
    start = data.rindex(b"\xff\xda")
    return data[:start] + (data[start:-2]) * count + data[-2:]


def test_a_jpeg_of_endless_scans_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg_of_scans(2))
    assert read_image(path).float().mean() == pytest.approx(90, abs=2)
    path.write_bytes(jpeg_of_scans(MAX_SCANS))
    with pytest.raises(CorruptImage, match=rf"a\.jpg \(more than {MAX_SCANS} scans\)"):
        read_image(path)


@pytest.mark.parametrize("size", [(1, 300), (300, 1)])
def test_a_line_of_pixels_is_no_photograph(tmp_path: Path, size: tuple[int, int]) -> None:
    write_image(tmp_path / "a.png", size=size)
    with pytest.raises(CorruptImage, match="too narrow"):
        read_image(tmp_path / "a.png")
    write_image(tmp_path / "a.png", size=(1, 200))
    assert read_image(tmp_path / "a.png").shape == (3, 200, 1)


def test_a_large_ppm_that_is_read_number_by_number_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.ppm"
    for form in (b"P3", b"P1", b"P6"):
        path.write_bytes(form + b" 5000 4000 " + b"100 " * (form != b"P1"))
        with pytest.raises(CorruptImage, match="5000 x 4000 pixels in text or of odd depth"):
            read_image(path)
    path.write_bytes(b"P3 2 1 100 0 100 50 100 100 100")
    assert read_image(path).flatten().tolist() == [0, 255, 255, 255, 128, 255]


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


def frames() -> object:
    frame = sys._getframe()
    while frame is not None:
        yield frame
        frame = frame.f_back


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"can't list the folder .*gone \(No such file or directory\)"):
        image_names(tmp_path / "gone")
