"""Videos, read and written frame by frame by PyAV, which is an extra."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msat_det.base.errors import InputError
from msat_det.base.files import is_file
from msat_det.base.settings import expanded

VIDEO_SUFFIXES = set(".mp4 .m4v .mov .mkv .webm .avi .mpg .mpeg .ts .ogv .flv .wmv .gif".split())
# A playlist would make FFmpeg open other files: none of these formats is one, and nothing but files is opened.
_TRUST = {
    "protocol_whitelist": "file",
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,ogg,flv,asf,gif",
}


def is_video(source: str) -> bool:
    path = expanded(source)
    return path.suffix.lower() in VIDEO_SUFFIXES and is_file(path)


def frames_of(path: Path) -> Iterator[tuple[float, Tensor]]:
    """(seconds, uint8 RGB (3, H, W)) of each frame of a video's first track, upright, by PyAV. Raises InputError."""
    av = pyav()
    try:
        with av.open(str(path), options=_TRUST) as container:
            if not container.streams.video:
                raise InputError(f"{path} has no pictures: give a video")
            for frame in container.decode(container.streams.video[0]):
                upright = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))  # as a phone was held
                image = torch.from_numpy(np.ascontiguousarray(upright))
                yield float(frame.time or 0.0), image.permute(2, 0, 1)
    except av.error.FFmpegError as error:
        raise InputError(f"{path} can't be read as a video ({error.strerror}): give another one") from error


class VideoFile:
    """Writes pictures of one size as an MP4 video; a context manager."""

    def __init__(self, path: Path, rate: float):
        self.path, self.rate = path, max(1, round(rate))
        self.stream: Any = None

    def __enter__(self) -> "VideoFile":
        self.container = pyav().open(str(self.path), "w", format="mp4")
        return self

    def write(self, picture: np.ndarray) -> None:
        """picture: uint8 (H, W, 3) RGB; an odd last row or column is left out, as the format wants it."""
        av = pyav()
        height, width = (side // 2 * 2 for side in picture.shape[:2])
        if self.stream is None:
            codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
            self.stream = self.container.add_stream(codec, rate=self.rate)
            self.stream.width, self.stream.height, self.stream.pix_fmt = width, height, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[:height, :width]), format="rgb24")
        self.container.mux(self.stream.encode(frame))

    def __exit__(self, *_: object) -> None:
        if self.stream is not None:
            self.container.mux(self.stream.encode())
        self.container.close()


def pyav():
    """PyAV. Raises InputError where it is not installed."""
    try:
        import av
    except ImportError:
        raise InputError("videos need PyAV: pip install 'msat-det[video]'") from None
    return av
