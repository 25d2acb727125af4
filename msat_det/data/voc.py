"""PASCAL VOC's layout and annotations."""

from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from msat_det.base.errors import InputError
from msat_det.base.files import MAX_XML, MissingData, inside, is_file, read_text, show
from msat_det.data.base import MAX_COORDINATE, Dataset, Target, make_target, require_images

# fmt: off
VOC_CLASSES = [
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
]
# fmt: on


class VocDetection(Dataset):
    """PASCAL VOC: ``root/VOCdevkit/VOC<year>/{Annotations,ImageSets/Main,JPEGImages}`` (Everingham et al. 2010).

    Ids are the image names of ``ImageSets/Main/<split>.txt``. An object without ``difficult`` is not difficult.
    Raises InputError for a missing list, annotation or image folder, and for annotations that can't be used.
    """

    name = "voc"

    def __init__(self, root: Path | str, split: str = "test", year: str = "2007"):
        home = inside(Path(root), "VOCdevkit", f"VOC{year}")
        listing = inside(home, "ImageSets", "Main", f"{split}.txt")
        if not is_file(listing):
            known = ", ".join(sorted(path.stem for path in listing.parent.glob("*.txt"))[:8]) or "none"
            raise MissingData(f"no image list {listing} (there: {known}): check the root, the split and the year")
        ids = [line.split()[0] for line in read_text(listing).splitlines() if line.strip()]
        if twice := [id for id, count in Counter(ids).items() if count > 1]:
            raise InputError(f"{listing}: {show(twice[0])} is listed twice: list each image once")
        folder = inside(home, "JPEGImages")
        files = {id: f"{id}.jpg" for id in ids}
        require_images(folder, files.values())
        index = {name: label for label, name in enumerate(VOC_CLASSES)}
        targets = {id: read_voc_xml(inside(home / "Annotations", f"{id}.xml"), index) for id in ids}
        super().__init__(folder, VOC_CLASSES.copy(), files, targets)


def read_voc_xml(path: Path, index: dict[str, int]) -> Target:
    """One VOC annotation file → its Target. ``index``: class name → label. Raises InputError that names the object."""
    text = read_text(path, MAX_XML)
    if "<!DOCTYPE" in text:  # no document type, so no entities: neither bombs nor files of the machine
        raise InputError(f"{path}: has a document type, which no VOC annotation needs: remove <!DOCTYPE …>")
    try:
        tree = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # the latter two: odd encodings
        raise InputError(f"{path}: broken XML ({error}): restore the file") from error
    if tree.tag != "annotation":
        raise InputError(f"{path}: the root element is {show(tree.tag)}, a VOC annotation has <annotation>")
    boxes, labels, difficult = [], [], []
    for number, element in enumerate(tree.findall("object"), 1):
        where = f"{path}, object {number}"
        name = element.findtext("name", "").strip()
        if name not in index:
            raise InputError(f"{where}: unknown class {show(name)}: VOC's classes are {', '.join(index)}")
        try:
            box = [float(element.findtext(f"bndbox/{edge}", "")) for edge in ("xmin", "ymin", "xmax", "ymax")]
        except ValueError as error:
            raise InputError(f"{where}: bndbox needs four numbers xmin, ymin, xmax, ymax") from error
        if not (all(abs(value) < MAX_COORDINATE for value in box) and box[0] <= box[2] and box[1] <= box[3]):
            raise InputError(f"{where}: box {box} must be finite with xmin ≤ xmax and ymin ≤ ymax")
        flag = element.findtext("difficult", "0").strip()
        if flag not in ("0", "1"):
            raise InputError(f"{where}: difficult is {show(flag)}, it must be 0 or 1")
        boxes.append(box)
        labels.append(index[name])
        difficult.append(flag == "1")
    return make_target(boxes, labels, difficult)
