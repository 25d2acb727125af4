"""CIFAR-100 in its official form."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.datasets import CIFAR100

from msat_det.base.errors import InputError
from msat_det.base.files import show
from msat_det.data.base import Dataset
from msat_det.data.catalogue import fetch_command


class Cifar100(Dataset):
    """CIFAR-100 in its official form, ``root/cifar-100-python/{train,test,meta}`` (Krizhevsky 2009). Ids are 0, 1, ….

    These files are pickles: torchvision compares them with the official MD5 sums before it opens them.
    """

    name = "cifar100"

    def __init__(self, root: Path | str, split: str = "test"):
        if split not in ("train", "test"):
            raise InputError(f"CIFAR-100 has no split {show(split)}: give train or test")
        try:
            source = CIFAR100(root, train=split == "train")
        except (RuntimeError, OSError) as error:
            where = Path(root, CIFAR100.base_folder)
            raise InputError(
                f"{where}: missing files or MD5 sums that aren't CIFAR-100's: move it away, then "
                f"{fetch_command('cifar100', root)}"
            ) from error
        targets = dict(enumerate(source.targets))
        super().__init__(Path(root), list(source.classes), dict.fromkeys(targets, CIFAR100.base_folder), targets)
        self._pixels = torch.from_numpy(source.data).permute(0, 3, 1, 2)

    def image(self, id: Any) -> Tensor:
        return self._pixels[id].contiguous()

    def content(self, id: Any) -> bytes:
        return self._pixels[id].numpy().tobytes()

    def length(self, id: Any) -> int:
        return self._pixels[id].numel()
