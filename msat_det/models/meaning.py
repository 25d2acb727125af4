"""Whether a network's outputs can mean what its head takes them for, by those for a black image."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from msat_det.base.errors import InputError
from msat_det.models.heads import Cells

_ALIKE = 0.95  # correlation of boxes with the places of their cells
_SIDES = 2.0  # of an image: more than half of all boxes are not that far away, or large


def check_meaning(
    parts: dict[str, Tensor], cells: Cells, rows: Sequence[int], each: Sequence[int], activated: bool
) -> None:
    """Raise InputError for boxes that are decoded already, and for scores that are no probabilities though they should
    be; warn of scores that may be some though they should not.

    parts: (B, P, n) each, see ``heads``. rows, each: as ``heads.parts_of`` has them; no rows for boxes of queries.
    """
    box = parts["box"][0]
    if rows and box.shape[1] == 4 and _follow(box, cells.centre, rows, each):
        raise InputError(
            "its boxes lie where their cells do, as decoded ones: give its raw outputs, or decoded boxes x1 y1 x2 y2 "
            "in pixels, and scores, under head raw"
        )
    if not rows and (size := box.abs().median().item()) > _SIDES:
        raise InputError(f"its boxes are not parts of the image's sides, from 0 to 1, but of {size:.4g} and more")
    scores = [x.aminmax() for name, x in parts.items() if name != "box"]
    low, high = min(x.min.item() for x in scores), max(x.max.item() for x in scores)
    if activated and not -1e-3 <= low <= high <= 1 + 1e-3:
        raise InputError(
            f"its scores reach from {low:.4g} to {high:.4g}, which are no probabilities: leave out activated"
        )
    if not activated and 0 <= low < high <= 1:
        warnings.warn(
            f"all scores that the network gives for a black image lie between {low:.4g} and {high:.4g}: if they are "
            "probabilities already, say activated",
            stacklevel=2,
        )


def _follow(box: Tensor, centre: Tensor, rows: Sequence[int], each: Sequence[int]) -> bool:
    """Whether x y of boxes, of their middle or a corner, grow with the place of their cells within the largest level,
    and what else they have does not shrink with it, as a distance to the right does.

    The anchors of a cell may lie side by side, or all cells of an anchor.
    """
    largest = max(range(len(rows)), key=rows.__getitem__)
    box, place = (x.split(list(rows))[largest].float() for x in (box, centre.to(box.device)))
    apart = place.unflatten(0, (-1, each[largest])).transpose(0, 1).flatten(0, 1)
    for places in (place, apart):
        pairs = [torch.stack((box[:, i], places[:, i % 2])) for i in range(4)]
        found = [torch.corrcoef(pair)[0, 1].item() for pair in pairs]  # NaN where all are the same
        if min(found[:2]) > _ALIKE and not min(found[2:]) < -_ALIKE / 2:
            return True
    return False
