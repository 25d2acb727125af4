"""Make docs/demo.png for the README from a finished run: boxes at several t above the curve.

python tools/convert_det.py --cfg configs/yolo_voc.yaml && python tools/make_readme_picture.py runs/yolo_voc
"""

import sys
from pathlib import Path

from PIL import Image

WIDTH = 1400  # pixels


def main(run: Path, target: Path = Path(__file__).parents[1] / "docs" / "demo.png") -> None:
    boxes = sorted((run / "detections").glob("*.png"))[0]
    rows = [Image.open(path).convert("RGB") for path in (boxes, run / "curve.png")]
    rows = [row.resize((WIDTH, round(row.height * WIDTH / row.width)), Image.Resampling.LANCZOS) for row in rows]
    page = Image.new("RGB", (WIDTH, sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        page.paste(row, (0, top))
        top += row.height
    target.parent.mkdir(exist_ok=True)
    page.quantize(128).save(target, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
