"""PASCAL VOC's layout."""

import copy
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from msat_det.base.errors import InputError
from msat_det.base.files import MAX_NAME, MissingData, absent, inside, is_file, is_folder, read_text, show
from msat_det.data.base import Dataset, Target, require_images
from msat_det.data.listing import IMAGE_SUFFIXES, image_names
from msat_det.data.voc_classes import VOC_CLASSES, vocabulary
from msat_det.data.voc_xml import read_voc_xml

__all__ = ["VOC_CLASSES", "VocDetection"]
FLAGS = ("-1", "0", "1")  # in a list of one class: not there, difficult, there


class VocDetection(Dataset):
    """PASCAL VOC: ``root/VOCdevkit/VOC<year>/{Annotations,ImageSets/Main,JPEGImages}`` (Everingham et al. 2010).

    Ids are the image names of ``ImageSets/Main/<split>.txt``. ``classes`` are VOC's 20 where no other is annotated,
    else the annotated ones, sorted; ``for_classes`` takes a network's. Raises InputError for a missing list, annotation
    or image folder, and for annotations that can't be used.
    """

    name = "voc"

    def __init__(self, root: Path | str, split: str = "test", year: str = "2007"):
        home = inside(Path(root), "VOCdevkit", f"VOC{year}")
        listing = inside(home, "ImageSets", "Main", f"{split}.txt")
        if not is_file(listing):
            lists = listing.parent.glob("*.txt") if is_folder(listing.parent) else ()
            known = ", ".join(sorted(path.stem for path in lists)[:8]) or "none"
            raise MissingData(
                f"{absent(listing, 'image list')} (there: {known}): check the root, the split and the year"
            )
        folder, annotations = inside(home, "JPEGImages"), inside(home, "Annotations")
        there = file_names(annotations)
        lines = [line.strip() for line in read_text(listing).splitlines() if line.strip()]
        if any(len(line) > MAX_NAME for line in lines):
            raise InputError(f"{listing}: a line has more than {MAX_NAME} characters: list one image's name a line")
        listed = [listed_image(line, there) for line in lines]
        if twice := [id for id, count in Counter(id for id, _ in listed).items() if count > 1]:
            raise InputError(f"{listing}: {show(twice[0])} is listed twice: list each image once")
        self._annotations = {id: read_voc_xml(inside(annotations, f"{id}.xml")) for id, _ in listed}
        called = {id: re.split(r"[/\\]", one.image)[-1] for id, one in self._annotations.items()}
        files = image_files(folder, dict(listed), called)
        require_images(folder, files.values())
        classes = vocabulary(self._annotated())
        sizes = {id: one.size for id, one in self._annotations.items()}
        super().__init__(folder, classes, files, self._labelled(classes), sizes)

    def for_classes(self, classes: Sequence[str]) -> "VocDetection":
        """A view whose labels index a network's classes, or, where it knows some of VOC's 20 alone, all of those.

        Raises InputError for an object of any other class, naming its file.
        """
        view = copy.copy(self)
        view.classes = vocabulary(self._annotated(), classes)
        view._targets = self._labelled(view.classes)
        return view

    def _labelled(self, classes: list[str]) -> dict[str, Target]:
        return {id: annotation.target(classes) for id, annotation in self._annotations.items()}

    def _annotated(self) -> set[str]:
        return {found.name for annotation in self._annotations.values() for found in annotation.objects}


def file_names(folder: Path) -> set[str]:
    """What a folder holds; nothing where it is missing. Raises InputError where it can't be listed."""
    try:
        return set(os.listdir(folder))  # noqa: PTH208 (iterdir takes ten times as long)
    except FileNotFoundError:
        return set()
    except OSError as error:
        raise InputError(f"can't list the folder {folder} ({error.strerror}): check the root") from error


def listed_image(line: str, annotations: set[str]) -> tuple[str, str]:
    """The image's id and name in a line of a list: a suffix may end the name, and VOC's flag -1, 0 or 1 may follow it.

    Both may as well be part of the name, which may have spaces: the first reading of which the folder of annotations
    holds a file is taken, or else the last one.
    """
    words = line.rsplit(maxsplit=1)
    names = [line, words[0]] if words[-1] in FLAGS else [line]
    readings = [(id, name) for name in names for id in (name, without_suffix(name))]
    return next((reading for reading in readings if f"{reading[0]}.xml" in annotations), readings[-1])


def without_suffix(name: str) -> str:
    """A name without the suffix of an image or an annotation."""
    stem, suffix = os.path.splitext(name)  # noqa: PTH122
    return stem if suffix.lower() in (*IMAGE_SUFFIXES, ".xml") else name


def image_files(folder: Path, listed: dict[str, str], called: dict[str, str]) -> dict[str, str]:
    """Id → its image's path within ``folder``, of any suffix in any case, .jpg where there is none.

    listed, called: id → the image's name in the list and in the annotation. They choose among images of the same stem;
    what the annotation alone calls so is taken where no image has the id for a stem and no other id has a claim to it.
    """
    stems: dict[str, list[str]] = {}
    for name in image_names(folder) if folder.is_dir() else []:
        stems.setdefault(without_suffix(name), []).append(name)
    claims = Counter(map(without_suffix, called.values()))
    files = {}
    for id in listed:
        stem = without_suffix(called[id])
        free = stem not in listed and claims[stem] == 1
        own = stems.get(id) or (stems.get(stem) if free else None) or [f"{id}.jpg"]
        files[id] = next((name for name in (listed[id], called[id], f"{id}.jpg") if name in own), own[0])
    return files
