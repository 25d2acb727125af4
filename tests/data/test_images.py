"""Photographs that are made to take for ever or all memory."""

import io
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin
from support.roots import write_image

from msat_det.data import images
from msat_det.data.images import (
    MAX_SCANS,
    ORIENTATION,
    CorruptImage,
    image_size,
    read_image,
    read_upright,
    reduction,
    upright_size,
)
from msat_det.data.listing import image_names


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


def test_large_photographs_are_read_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kind of file: what is read is the mean of 2 x 2 or 4 x 4 of its pixels, of those at its edges fewer."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 13, 3), dtype=np.uint8)).resize(
        (103, 71), Image.Resampling.BICUBIC
    )
    kinds = {"rgb.png": coarse, "p.png": coarse.convert("P"), "a.png": coarse.convert("RGBA"), "w.webp": coarse}
    kinds |= {"b.bmp": coarse, "p.ppm": coarse, "l.png": coarse.convert("L"), "j.jpg": coarse, "c.jpg": coarse}
    for name, image in kinds.items():
        options = {"quality": 95} if "j" in name else {"lossless": True} if "w" in name else {}
        image.convert("CMYK" if name == "c.jpg" else image.mode).save(tmp_path / name, **options)
    coarse.save(tmp_path / "progressive.jpg", progressive=True, quality=95)
    Image.fromarray(rng.integers(0, 65536, (71, 103), dtype=np.uint16)).save(tmp_path / "sixteen.png")
    whole = {name: read_image(tmp_path / name).float() for name in [*kinds, "progressive.jpg", "sixteen.png"]}
    for most, factor, shape in ((103 * 71, 1, (3, 71, 103)), (2000, 2, (3, 36, 52)), (500, 4, (3, 18, 26))):
        monkeypatch.setattr(images, "WHOLE", most)
        monkeypatch.setattr(images, "STRIP", 1000)  # several strips each
        for name, before in whole.items():
            found = read_image(tmp_path / name)
            assert found.shape == shape
            inner = before[:, : 71 // factor * factor, : 103 // factor * factor]
            means = inner.unflatten(2, (-1, factor)).mean(-1).unflatten(1, (-1, factor)).mean(2)
            apart = (found[:, : means.shape[1], : means.shape[2]].float() - means).abs()
            assert apart.mean() < (0.6 if not name.endswith("jpg") else 3), (name, factor)
    assert [reduction(*size) for size in ((50, 10), (10, 51), (100, 20), (20, 101), (900, 900))] == [1, 2, 2, 4, 4]


def test_a_photograph_of_a_hundred_megapixels(tmp_path: Path) -> None:
    Image.new("L", (12_000, 9_000), 90).save(tmp_path / "a.jpg")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow calls it an attack
        assert image_size(tmp_path / "a.jpg") == (12_000, 9_000)
        found = read_image(tmp_path / "a.jpg")
    assert (found.shape, found.unique().tolist()) == ((3, 2250, 3000), [90])


@pytest.mark.parametrize(
    ("name", "options", "each"),
    [("a.png", {}, 4), ("a.webp", {}, 16), ("a.jpg", {"progressive": True}, 3), ("a.jpg", {}, 1)],
)
def test_what_a_decoder_would_need_too_much_memory_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, options: dict, each: int
) -> None:
    write_image(tmp_path / "b.png", size=(64, 48))
    with Image.open(tmp_path / "b.png") as image:
        image.save(tmp_path / name, **options)
    monkeypatch.setattr(images, "WHOLE", 1000)
    monkeypatch.setattr(images, "MAX_DECODING", 64 * 48 * each)
    assert read_image(tmp_path / name).shape == (3, 24, 32)
    monkeypatch.setattr(images, "MAX_DECODING", 64 * 48 * each - each)
    with pytest.raises(CorruptImage, match=r"64 x 48 pixels, a .* of its kind may have 3071: make it smaller"):
        read_image(tmp_path / name)


LACKING = """
import resource, sys
from pathlib import Path
from msat_det.data.images import CorruptImage, read_image
mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
for room in (50 << 20, 1 << 30):
    resource.setrlimit(resource.RLIMIT_AS, (mapped + room, -1))
    for path in map(Path, sys.argv[1:]):
        try:
            read_image(path)
            print("read")
        except (MemoryError, CorruptImage) as error:
            print("damaged" if isinstance(error, CorruptImage) else "lacking")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads its own size from /proc")
def test_what_no_memory_is_left_for_is_not_damaged(tmp_path: Path) -> None:
    """libjpeg says of a progressive one, whose coefficients it keeps, that its data are broken, and libwebp of all."""
    files = [tmp_path / name for name in ("a.jpg", "a.webp", "b.webp")]
    Image.new("RGB", (4000, 3000)).save(files[0], progressive=True)
    Image.new("RGB", (4000, 3000)).save(files[1], method=0)
    files[2].write_bytes(b"RIFF\x10\0\0\0WEBPVP8 " + bytes(16))
    command = [sys.executable, "-c", LACKING, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.stdout.split() == [*["lacking"] * 3, *["read"] * 2, "damaged"], done.stderr


def test_a_jpeg_in_one_scan_needs_no_memory_for_its_size(tmp_path: Path) -> None:
    """Nor does one with a thumbnail in EXIF; one whose channels come one by one needs as much as a progressive one."""
    for name, options in (("a", {}), ("t", {"exif": b"Exif\0\0" + jpeg_of_scans(1)}), ("p", {"progressive": True})):
        Image.new("RGB", (64, 48)).save(tmp_path / f"{name}.jpg", subsampling=0, **options)
    apart = bytearray((tmp_path / "t.jpg").read_bytes())
    apart[apart.rindex(b"\xff\xda") + 4] = 1
    (tmp_path / "b.jpg").write_bytes(apart)
    (tmp_path / "c.jpg").write_bytes(b"\xff\xd8\0" + (tmp_path / "a.jpg").read_bytes()[2:])
    needs = {}
    for name in "atpbc":
        with Image.open(tmp_path / "a.jpg" if name == "c" else tmp_path / f"{name}.jpg") as image:
            needs[name] = images._bytes_a_pixel(tmp_path / f"{name}.jpg", image)
    assert needs == {"a": 1, "t": 1, "p": 6, "b": 6, "c": 6}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_transposition_is_undone_where_the_annotation_says_so(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / "a.png"
    write_image(path, size=(7, 4))
    with Image.open(path) as image:
        image.load()
        image.save(path, exif=exif)
    with Image.open(path) as image:
        upright = np.asarray(ImageOps.exif_transpose(image)).transpose(2, 0, 1)
        stored = np.asarray(image).transpose(2, 0, 1)
    for size in (None, (7, 4), (8, 4), (8, 14)):
        assert read_image(path, size).numpy().tolist() == stored.tolist()
    found = read_image(path, (4, 7))
    assert found.is_contiguous()
    assert found.numpy().tolist() == (upright if orientation >= 5 else stored).tolist()


@pytest.mark.parametrize("size", [(7, 4), (5, 5)])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_is_what_exif_says(tmp_path: Path, orientation: int, size: tuple[int, int]) -> None:
    """A square too, whose size tells nothing, and what stands on its head."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    write_image(tmp_path / "a.png", size=size)
    with Image.open(tmp_path / "a.png") as image:
        image.load()
        image.save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        upright = np.asarray(ImageOps.exif_transpose(image)).transpose(2, 0, 1)
    found = read_upright(tmp_path / "a.png")
    assert found.is_contiguous()
    assert found.numpy().tolist() == upright.tolist()
    assert upright_size(tmp_path / "a.png") == (found.shape[2], found.shape[1])


XMP = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>"""


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_an_orientation_in_xmp_alone_turns_nothing(tmp_path: Path, suffix: str) -> None:
    """Neither browsers nor OpenCV, with which the boxes were drawn and networks trained, obey it."""
    path = tmp_path / f"a.{suffix}"
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", XMP.decode())
    Image.new("RGB", (7, 4)).save(path, **({"pnginfo": text} if suffix == "png" else {"xmp": XMP}))
    with Image.open(path) as image:
        assert image.getexif()[ORIENTATION] == 6  # as Pillow says
    assert upright_size(path) == (7, 4)
    assert read_upright(path).shape == read_image(path, (4, 7)).shape == (3, 4, 7)


def test_exif_behind_the_pixels_is_found_without_decoding_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    write_image(tmp_path / "a.png", size=(7, 4))
    with Image.open(tmp_path / "a.png") as image:
        image.save(tmp_path / "b.png", exif=exif)
    data = (tmp_path / "b.png").read_bytes()
    first, size = data.index(b"eXIf") - 4, 12 + len(exif.tobytes()) - 6
    chunk, rest = data[first : first + size], data[:first] + data[first + size :]
    (tmp_path / "b.png").write_bytes(rest[:-12] + chunk + rest[-12:])
    with monkeypatch.context() as patch:
        patch.delattr(PngImagePlugin.PngImageFile, "load_end")  # a megabyte of PNG may be gigabytes of pixels
        assert upright_size(tmp_path / "b.png") == (4, 7)
    assert read_upright(tmp_path / "b.png").shape == read_image(tmp_path / "b.png", (4, 7)).shape == (3, 7, 4)


def test_a_picture_with_a_second_one_in_it(tmp_path: Path) -> None:
    first, second = (Image.new("RGB", (16, 8), color) for color in ("red", "blue"))
    first.save(tmp_path / "a.MPO", format="MPO", save_all=True, append_images=[second])
    assert image_names(tmp_path) == ["a.MPO"]
    assert read_image(tmp_path / "a.MPO")[:, 4, 8].tolist() == pytest.approx([254, 0, 0], abs=2)


def test_grey_of_any_depth_is_scaled(tmp_path: Path) -> None:
    levels = np.array([[0, 341, 682, 1023]])
    (tmp_path / "a.pgm").write_bytes(b"P5 4 1 1023\n" + levels.astype(">u2").tobytes())
    assert read_image(tmp_path / "a.pgm")[0].tolist() == [[0, 85, 170, 255]]
    (tmp_path / "a.pgm").write_bytes(b"Pf 4 1 -1.0\n" + (levels / 1023).astype("<f4").tobytes())
    with pytest.raises(CorruptImage, match="its pixels are no whole numbers"):  # Pillow would make all of them black
        read_image(tmp_path / "a.pgm")


def test_a_large_photograph_is_set_upright_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.linear_gradient("L").resize((64, 32)).convert("RGB").save(tmp_path / "a.jpg", exif=exif, quality=95)
    monkeypatch.setattr(images, "WHOLE", 600)
    found = read_image(tmp_path / "a.jpg", (32, 64)).float()  # dark at the top as it is stored, at the right upright
    assert found.shape == (3, 32, 16)
    assert found.mean((0, 1)).diff().lt(0).all()
