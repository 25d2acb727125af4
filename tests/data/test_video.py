"""Videos as cameras write them."""

import struct
from pathlib import Path

import numpy as np
import pytest

from msat_det.base.errors import InputError
from msat_det.data.sources import images_of
from msat_det.data.video import VideoFile, frames_of, is_video

pytest.importorskip("av")
PLAIN = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)


@pytest.mark.parametrize(("turns", "cosine", "sine"), [(0, 1, 0), (1, 0, 1), (2, -1, 0), (3, 0, -1)])
def test_frames_are_upright_as_the_camera_was_held(tmp_path: Path, turns: int, cosine: int, sine: int) -> None:
    """turns: by a right angle clockwise, which players do by the matrix in an MP4's track header (tkhd)."""
    picture = np.zeros((48, 64, 3), dtype=np.uint8)
    picture[:24, :16] = 255, 0, 0
    with VideoFile(tmp_path / "a.mp4", 10) as video:
        for _ in range(3):
            video.write(picture)
    before, track = (tmp_path / "a.mp4").read_bytes().split(b"tkhd")
    matrix = struct.pack(">9i", cosine << 16, sine << 16, 0, -sine << 16, cosine << 16, 0, 0, 0, 1 << 30)
    (tmp_path / "a.mp4").write_bytes(before + b"tkhd" + track.replace(PLAIN, matrix, 1))
    upright = np.rot90(picture, -turns)
    for _, frame in frames_of(tmp_path / "a.mp4"):
        assert frame.is_contiguous() or frame.permute(1, 2, 0).is_contiguous()
        assert frame.shape == (3, *upright.shape[:2])
        assert np.abs(frame.permute(1, 2, 0).numpy().astype(int) - upright).mean() < 8


def test_a_home_is_that_of_videos_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no shell has put it in the place of ~: from Python, or in quotes."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "a.mp4").touch()
    assert is_video("~/a.mp4")
    for look in (is_video, images_of):
        with pytest.raises(InputError, match=r"^~nobody-here/a.mp4: there is no such home folder: give the whole path"):
            look("~nobody-here/a.mp4")
