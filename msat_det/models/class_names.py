"""The names of a network's classes: COCO's, VOC's, or those in a file."""

from pathlib import Path

from torchvision.models.detection import SSDLite320_MobileNet_V3_Large_Weights

from msat_det.base.errors import InputError
from msat_det.base.files import text_of
from msat_det.data import VOC_CLASSES
from msat_det.data.base import class_names

COCO_COLUMNS = SSDLite320_MobileNet_V3_Large_Weights.COCO_V1.meta["categories"]  # background, then ids 1 to 90
MAX_NAMES = 1 << 20  # bytes of a file of class names
NO_CLASS = {"???", "N/A", "__background__"}
COCO_CLASSES = [name for name in COCO_COLUMNS if name not in NO_CLASS]


def read_names(path: str | Path, distinct: bool = True) -> list[str]:
    """VOC's 20 class names for "voc", COCO's 80 for "coco", or those of a file, one a line; blank lines don't count.

    distinct: whether each must be another one, as labels of boxes are compared by name; NO_CLASS may stand often.
    """
    if path in ("voc", "coco"):
        return list(VOC_CLASSES if path == "voc" else COCO_CLASSES)
    try:
        names = [name for line in text_of(path, MAX_NAMES).splitlines() if (name := line.strip())]
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: class names not readable ({error}); give --model.names a text file") from None
    if not names:
        raise InputError(f"{path}: holds no class names; write one name a line")
    return class_names(names, path, NO_CLASS if distinct else names)
