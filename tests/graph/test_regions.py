"""The regions of two-stage detectors: those of torchvision's own code, each in a row of its own over time."""

from collections import OrderedDict

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead, concat_box_prediction_layers
from torchvision.ops import MultiScaleRoIAlign

from msat_det.graph.regions import pooled_regions, region_proposals

SIZES = [(64, 64), (40, 56)]  # h, w of the images in a batch of 64 × 64
LEVELS = ((16, 16), (8, 8), (4, 4))


def network(**changes: float) -> RegionProposalNetwork:
    top = {"pre_nms_top_n": 60, "post_nms_top_n": 40} | {k: v for k, v in changes.items() if k.endswith("top_n")}
    limits = {"nms_thresh": 0.5, "score_thresh": 0.0} | {k: v for k, v in changes.items() if k.endswith("thresh")}
    anchors = AnchorGenerator(((8,), (16,), (32,)), ((0.5, 1.0, 2.0),) * 3)
    each = {key: {"training": value, "testing": value} for key, value in top.items()}
    made = RegionProposalNetwork(anchors, RPNHead(4, 3), 0.7, 0.3, 1, 0.5, **each, **limits).eval()
    made.min_size = changes.get("min_size", 1e-3)
    return made


def maps(seed: int) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    draw = [(torch.randn(2, n, *level, generator=generator)) for n in (3, 12) for level in LEVELS]
    return [3 * level for level in draw[:3]], [level / 2 for level in draw[3:]]


@pytest.mark.parametrize(
    "changes",
    [{}, {"post_nms_top_n": 500}, {"pre_nms_top_n": 7}, {"score_thresh": 0.9}, {"min_size": 12.0, "nms_thresh": 0.2}],
    ids=str,
)
def test_proposals_are_torchvisions(changes: dict[str, float]) -> None:
    own, (objectness, offsets) = network(**changes), maps(1)
    features = [torch.zeros(2, 4, *level) for level in LEVELS]
    anchors = own.anchor_generator(ImageList(torch.zeros(2, 3, 64, 64), SIZES), features)
    counts = [level[0].numel() for level in objectness]
    logits, moves = concat_box_prediction_layers(list(objectness), list(offsets))
    boxes = own.box_coder.decode(moves, anchors).view(2, -1, 4)
    expected, _ = own.filter_proposals(boxes, logits, SIZES, counts)
    edges = torch.tensor([(w, h, w, h) for h, w in SIZES])
    limits = own.pre_nms_top_n(), own.post_nms_top_n(), own.nms_thresh, own.score_thresh, own.min_size
    found = region_proposals(objectness, offsets, anchors[0], edges, *limits)
    assert found.shape == (2, min(own.post_nms_top_n(), sum(min(n, own.pre_nms_top_n()) for n in counts)), 4)
    for mine, theirs in zip(found, expected, strict=True):
        there = mine[(mine[:, 2:] > mine[:, :2]).all(1)]
        assert len(there) == len(theirs) > 3
        assert (mine != 0).any(1).sum() == len(there)
        assert (theirs[:, None] - there).abs().amax(-1).amin(1).max() < 1e-4


@pytest.mark.parametrize("canonical", [(224, 4), (16, 2)])
@pytest.mark.parametrize("levels", [LEVELS, LEVELS[:1]])
def test_what_is_pooled_is_torchvisions(levels: tuple, canonical: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(2)
    features = [torch.randn(2, 5, *level, generator=generator) for level in levels]
    corner, sides = 40 * torch.rand(2, 9, 2, generator=generator), 2 + 30 * torch.rand(2, 9, 2, generator=generator)
    boxes = torch.cat((corner, corner + sides), -1)
    pool = MultiScaleRoIAlign([*"012"], 7, 2, canonical_scale=canonical[0], canonical_level=canonical[1])
    named = OrderedDict(zip("012", features, strict=False))
    expected = pool(named, list(boxes), [(64, 64)] * 2)
    found = pooled_regions(features, boxes, [level[0] / 64 for level in levels], (7, 7), 2, canonical)
    torch.testing.assert_close(found, expected, atol=0, rtol=0)
