"""Where COCO, and the tools that write its format, put annotations and images below a root."""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from msat_det.base.files import MissingData, absent, astray, inside, is_file, is_folder, show
from msat_det.data.listing import IMAGE_SUFFIXES, image_finder

COCO_SPLIT = "val2017"
# The file of a split: COCO's, CVAT's and Ultralytics' place for it, Roboflow's, and two that are used by hand.
PLACES = (
    "annotations/instances_{}.json",
    "{}/_annotations.coco.json",
    "annotations/{}.json",
    "{}.json",
)
SAMPLE = 100  # images by which their folder is found
LIKELY = re.compile(r"instances|coco|annotations|labels|result")  # names of files that hold boxes; Label Studio's last
COCO_OWN = re.compile(r"(train|val|test)20\d\d\.json$")  # to be asked for by its split


def annotation_file(root: Path, split: str, own: str) -> Path:
    """The annotation file of a split; without one COCO's val2017, or the only annotation file that there is.

    own: the file, where a user names it, relative to the root. Raises InputError, which names the files there are.
    """
    if own:
        return root / own
    places = [inside(root, place.format(split or COCO_SPLIT)) for place in (PLACES if split else PLACES[:1])]
    if path := next(filter(is_file, places), None):
        return path
    found = [path for path in sorted([*root.glob("*.json"), *root.glob("*/*.json")]) if is_file(path)]
    found = [path for path in found if LIKELY.search(path.name)] or found
    if not split and len(found) == 1 and not COCO_OWN.search(found[0].name):
        return found[0]
    mend = "check the root and the split"
    if found:
        there = ", ".join(show(path.relative_to(root).as_posix()) for path in found[:8])
        mend = f"name one of those there by the key annotations, beside root: {there}"
    raise MissingData(f"{absent(places[0])}: {mend}")


def image_folder(root: Path, split: str, path: Path, names: list[str], own: str) -> Path:
    """The first of the folders that belong to the annotation file ``path`` in which most of the named images are.

    own: the folder, where a user names it, relative to the root. Raises InputError, which names the folders.
    """
    if split:
        inside(root, split)
    subset = split or path.stem.removeprefix("instances_")
    usual = [root / subset, root / "images" / subset, root / "images", path.parent, path.parent / "images"]
    folders = [root / own] if own else [*usual, root / "data", root]
    folders = list(dict.fromkeys(folder for folder in folders if is_folder(folder))) or folders[:1]
    some = names[:: max(1, len(names) // SAMPLE)]  # of another's images some may have the same names
    for asked in (some, names):
        counts = [sum(present(folder, asked)) for folder in folders]
        if most := max(counts, default=0):
            return folders[counts.index(most)]
    why = next(filter(None, (astray(folder / names[0]) for folder in folders)), "")
    raise MissingData(
        f"none of the listed images, such as {show(names[0])}, is in {', '.join(map(str, folders))}"
        f"{f' ({why})' if why else ''}: put them there, "
        "check the root and the split, or name their folder by the key images, beside root"
    )


def present(folder: Path, names: Iterable[str]) -> Iterator[bool]:
    """Which of the images are in the folder."""
    within = Within(folder)
    return (is_file(folder / within(name)) for name in names)


class Within:
    """A function of an image's name in an annotation file → its path relative to ``folder``.

    The name may begin with the last folders of that path itself (val2017/1.jpg for what is in …/val2017), and its
    suffix may be missing.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._above = Path(os.path.abspath(folder)).parts  # noqa: PTH100 (a link keeps its name)
        self._parents: dict[str, str] = {"": ""}
        self._find = image_finder(folder)

    def __call__(self, name: str) -> str:
        parent, last = os.path.split(name)
        if parent not in self._parents:
            self._parents[parent] = parent if is_folder(self.folder / parent) else self._stripped(parent)
        path = os.path.join(self._parents[parent], last)  # noqa: PTH118
        known = os.path.splitext(last)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122
        return path if known or is_file(self.folder / path) else self._find(path)

    def _stripped(self, parent: str) -> str:
        parts = Path(parent).parts
        for count in range(len(parts), 0, -1):
            if parts[:count] == self._above[-count:]:
                return os.path.join("", *parts[count:])  # noqa: PTH118
        return parent
