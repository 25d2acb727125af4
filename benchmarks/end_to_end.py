"""Images/s of the whole command convert_det.py: reading, simulation, decoding, scoring and the run directory.

The command runs twice, on few and on more images; the difference leaves out what happens once (imports, calibration).
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

from msat_det.base.settings import PROJECT, data_root, expanded

IMAGES = (16, 80)
T = 16


def rows(threads: int, images: tuple[int, int] = IMAGES) -> Iterator[dict]:
    """One dict for each of a constant and an adaptive threshold: seconds of both runs and the images/s between them."""
    real = (expanded(data_root()) / "coco_val128").is_dir()
    cfg, labels = "configs/ssd_coco.yaml", ("signed-b3", "msat")
    if real:
        cfg, labels = "configs/real/ssd_mobilenet_coco.yaml", ("if-signed-b3", "msat-reference")
    for label in labels:
        few, many = (seconds(cfg, label, number, threads) for number in images)
        yield {
            "config": cfg,
            "method": label,
            "T": T,
            "images": images[1],
            "seconds": many,
            "images_per_s": (images[1] - images[0]) / (many - few),
        }


def seconds(cfg: str, label: str, images: int, threads: int) -> float:
    """How long the command takes; its output is left out, its run directory thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, PROJECT / "tools/convert_det.py", "--cfg", PROJECT / cfg, "--methods", label]
        command += ["--sim.T", T, "--sim.record", "1,2,4,8,16", "--data.limit", images, "--threads", threads]
        command += ["--draw.images", 0, "--out", f"{folder}/run"]
        start = time.perf_counter()
        subprocess.run([str(word) for word in command], check=True, capture_output=True)
        return time.perf_counter() - start
