"""Class names: VOC's, how COCO spells them, and which names the labels of a data set in VOC's layout index."""

from collections.abc import Iterable, Sequence

from msat_det.base.files import show
from msat_det.base.names import hint

# fmt: off
VOC_CLASSES = [
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
]
# fmt: on
COCO_NAMES = {  # of VOC's classes that COCO spells otherwise
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}
MOST_NAMES = 20  # of a vocabulary, in a message


def common_name(name: str) -> str:
    """One name, COCO's, for a class that VOC and COCO spell differently."""
    return COCO_NAMES.get(name, name)


def class_index(classes: Sequence[str]) -> dict[str, int]:
    """Name, in VOC's spelling and in COCO's → label. A class of that very name goes before one that is spelled
    otherwise, for some data sets have both a sofa and a couch."""
    own = {name: label for label, name in enumerate(classes)}
    voc = {coco: name for name, coco in COCO_NAMES.items()}
    return {other[name]: label for other in (COCO_NAMES, voc) for name, label in own.items() if name in other} | own


def vocabulary(annotated: Iterable[str], network: Sequence[str] | None = None) -> list[str]:
    """What labels index: a network's classes, unless it and the annotations name some of VOC's 20 alone and it lacks
    some of theirs. Without a network: VOC's 20, where no other class is annotated, else the annotated ones, sorted."""
    voc, found, known = (set(map(common_name, names)) for names in (VOC_CLASSES, annotated, network or ()))
    if network and (found <= known or not found | known <= voc):
        return list(network)
    return VOC_CLASSES.copy() if found <= voc else sorted(set(annotated))


def unknown_class(name: str, classes: Sequence[str]) -> str:
    """What a message says of a name that is none of ``classes``."""
    known = ", ".join(classes[:MOST_NAMES]) + (", …" if len(classes) > MOST_NAMES else "")
    mend = hint(name, classes, "correct the annotation or the network's names (model.names)")
    return f"unknown class {show(name)}, the network's classes are {known}: {mend}"
