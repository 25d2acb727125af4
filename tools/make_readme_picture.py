"""Make docs/demo.png for the README from a finished run: boxes at several t above the curve.

msat-det run yolo_voc && python tools/make_readme_picture.py runs/yolo_voc
"""

import sys
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from msat_det.base.errors import InputError
from msat_det.base.settings import PROJECT
from msat_det.run.arguments import Parser
from msat_det.run.terminal import once

WIDTH = 1400  # pixels


def draw(run: Path, target: Path) -> None:
    """Raises InputError where the run has no pictures."""
    boxes = next(iter(sorted((run / "detections").glob("*.png"))), None)
    if boxes is None or not (run / "curve.png").is_file():
        raise InputError(f"{run} holds no detections/*.png and curve.png: give a detector's finished run")
    rows = [Image.open(path).convert("RGB") for path in (boxes, run / "curve.png")]
    rows = [row.resize((WIDTH, round(row.height * WIDTH / row.width)), Image.Resampling.LANCZOS) for row in rows]
    page = Image.new("RGB", (WIDTH, sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        page.paste(row, (0, top))
        top += row.height
    target.parent.mkdir(exist_ok=True)
    page.quantize(128).save(target, optimize=True)


@once
def main(argv: list[str]) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("run", metavar="DIR", type=Path, help="the run directory")
    parser.add_argument("--out", metavar="FILE", type=Path, default=PROJECT / "docs" / "demo.png")
    given = parser.parse_args(argv)
    draw(given.run, given.out)


if __name__ == "__main__":
    sys.exit(main())
