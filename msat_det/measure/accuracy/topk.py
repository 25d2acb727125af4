"""Top-1 and top-5 accuracy."""

import torch
from torch import Tensor

from msat_det.base.errors import InputError
from msat_det.data import Dataset
from msat_det.measure.accuracy.resampling import Difference, Resampling


class TopKEvaluator:
    """Accuracy over the dataset's ids. Labels and logits share their index, so both must have as many classes, unless
    both have the same names: then these tell which logit is which label's."""

    def __init__(self, dataset: Dataset, classes: list[str]):
        if len(classes) != len(dataset.classes):
            raise InputError(
                f"the network has {len(classes)} classes and {dataset.folder} has {len(dataset.classes)}: "
                "their indices must mean the same, so use the network's own dataset"
            )
        self.dataset, self.count = dataset, len(classes)
        numbers = [str(index) for index in range(len(classes))]  # what a classifier without names has
        named = classes != numbers and sorted(classes) == sorted(dataset.classes)
        self.columns = [classes.index(name) for name in dataset.classes] if named else list(range(self.count))

    def __call__(self, logits: dict[int | str, Tensor]) -> dict[str, float]:
        """Image id → logits (K,); gives ``top1`` and ``top5`` in percent. Raises InputError."""
        return topk(*self._rows(logits))

    def difference(self, ours: dict, theirs: dict, resampling: Resampling) -> Difference:
        """By how much ``top1`` of our logits exceeds that of theirs."""
        right = [ranks(*self._rows(logits)) < 1 for logits in (ours, theirs)]
        each = 100 * (right[0].double() - right[1].double())
        drawn = resampling.counts(len(each)).double() @ each / len(each)
        return Difference(each.mean().item(), *resampling.interval(drawn))

    def _rows(self, logits: dict[int | str, Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (N, K) and labels (N,) in the dataset's order."""
        missing = [id for id in self.dataset.ids if id not in logits]
        if missing or len(logits) > len(self.dataset):
            raise InputError(f"logits for {len(logits)} images of {len(self.dataset)}: give them for the dataset's ids")
        labels = torch.tensor([self.dataset.target(id) for id in self.dataset.ids])
        rows = torch.stack([logits[id] for id in self.dataset.ids])
        if rows.shape[1:] != (self.count,):
            raise InputError(f"logits of shape {tuple(rows.shape[1:])}: give ({self.count},), one a class")
        return rows[:, self.columns], labels


def topk(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """logits (N, K), labels (N,) int64 → percent of the images whose class is the best, or among the best five.

    A class that ties with the label is ahead of it, so logits that are all equal earn nothing. Fewer than five classes
    are fine. Raises InputError for no images and for logits that are NaN.
    """
    rank = ranks(logits, labels)
    return {f"top{k}": float((rank < k).double().mean() * 100) for k in (1, 5)}


def ranks(logits: Tensor, labels: Tensor) -> Tensor:
    """(N,) int64: how many classes are ahead of each image's own; see ``topk``."""
    if not len(logits):
        raise InputError("no logits to evaluate: give at least one image")
    if logits.isnan().any():
        raise InputError("logits are NaN: check the network's weights")
    labels = labels.to(logits.device)
    own = logits.gather(1, labels[:, None])
    return (logits >= own).sum(1) - 1
