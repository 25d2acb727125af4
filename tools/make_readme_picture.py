"""Make docs/demo.png, boxes at several t above the curve, and docs/boxes.gif for the README from a finished run.

msat-det run yolo_voc && python tools/make_readme_picture.py runs/yolo_voc
"""

import shutil
import sys
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from msat_det.base.errors import InputError
from msat_det.base.settings import PROJECT
from msat_det.run.arguments import Parser
from msat_det.run.terminal import once

WIDTH = 1400  # pixels


def draw(run: Path, folder: Path) -> None:
    """Raises InputError where the run has no pictures."""
    boxes = next(iter(sorted((run / "detections").glob("*.png"))), None)
    if boxes is None or not all((run / name).is_file() for name in ("curve.png", "boxes.gif")):
        raise InputError(f"{run} holds no detections/*.png, curve.png and boxes.gif: give a detector's finished run")
    rows = [Image.open(path).convert("RGB") for path in (boxes, run / "curve.png")]
    rows = [row.resize((WIDTH, round(row.height * WIDTH / row.width)), Image.Resampling.LANCZOS) for row in rows]
    page = Image.new("RGB", (WIDTH, sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        page.paste(row, (0, top))
        top += row.height
    folder.mkdir(exist_ok=True)
    page.quantize(256, kmeans=3).save(folder / "demo.png", optimize=True)
    shutil.copyfile(run / "boxes.gif", folder / "boxes.gif")


@once
def main(argv: list[str]) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("run", metavar="DIR", type=Path, help="the run directory")
    parser.add_argument("--out", metavar="DIR", type=Path, default=PROJECT / "docs")
    given = parser.parse_args(argv)
    draw(given.run, given.out)


if __name__ == "__main__":
    sys.exit(main())
