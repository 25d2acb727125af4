"""Folders of images, without labels or with a folder a class."""

from pathlib import Path

from msat_det.base.errors import InputError
from msat_det.base.files import MissingData, absent, inside, is_folder, is_text, show
from msat_det.data.base import Dataset
from msat_det.data.listing import ALL_SUFFIXES, image_names


class ImageFiles(Dataset):
    """All images under ``root/<split>``, at any depth, without labels: enough for calibration. Ids are the paths."""

    name = "images"

    def __init__(self, root: Path | str, split: str = ""):
        folder = inside(Path(root), split)
        super().__init__(folder, [], {name: name for name in image_names(folder)}, {})


class ClassFolders(Dataset):
    """Classification: one folder a class under ``root/<split>``; the sorted folder names are the classes.

    An empty folder is a class without images. ImageNet's ``val/`` with its 1000 wnid folders has this form.
    """

    name = "folders"

    def __init__(self, root: Path | str, split: str = ""):
        folder = inside(Path(root), split)
        if not is_folder(folder):
            raise MissingData(f"{absent(folder, 'folder')}: check the root and the split")
        classes = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        if wrong := [name for name in classes if not is_text(name)]:
            raise InputError(f"{folder}: the class folder {show(wrong[0])} has no name in UTF-8: rename it")
        index = {name: label for label, name in enumerate(classes)}
        names = [name for name in image_names(folder, ALL_SUFFIXES) if name.split("/")[0] in index]
        super().__init__(folder, classes, {name: name for name in names}, {n: index[n.split("/")[0]] for n in names})
