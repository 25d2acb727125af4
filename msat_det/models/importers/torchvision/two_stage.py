"""Faster R-CNN, and Mask and Keypoint R-CNN as far as their boxes: regions, and a head that looks at each of them."""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import MultiScaleRoIAlign

from msat_det.base.errors import InputError
from msat_det.graph.regions import pooled_regions, region_proposals
from msat_det.models.importers.torchvision.boxes import Best, Boxes, Size, best_boxes
from msat_det.models.suppression import have_area

SMALLEST = 1e-2  # side of a box that counts, in pixels of the network's input, as in torchvision's RoIHeads


class Regions(nn.Module):
    """Both stages: (B, 4, h, w), the fourth channel 1 where the image is and 0 in the padding → a dict.

    cls_logits: (B, K, C) of K regions. bbox_regression: (B, K, 4·C). proposals: (B, K, 4), the regions; those without
    an area are none.
    """

    def __init__(self, model: GeneralizedRCNN, size: Size):
        super().__init__()
        rpn, heads = model.rpn, model.roi_heads
        known = isinstance(rpn, RegionProposalNetwork) and isinstance(heads, RoIHeads)
        if not known or not isinstance(heads.box_roi_pool, MultiScaleRoIAlign):
            raise InputError(
                f"{type(model).__name__} has stages of its own: give one with torchvision's RegionProposalNetwork, "
                "RoIHeads and MultiScaleRoIAlign"
            )
        self.backbone, self.rpn_head = model.backbone, rpn.head
        self.box_head, self.box_predictor = heads.box_head, heads.box_predictor
        maps = self._maps(size)
        (anchors,) = rpn.anchor_generator(ImageList(torch.zeros(()).expand(1, 3, *size), [size]), list(maps.values()))
        self.anchors = nn.Buffer(anchors, persistent=False)
        self.picks = {"before": rpn.pre_nms_top_n(), "after": rpn.post_nms_top_n(), "iou": rpn.nms_thresh}
        self.picks |= {"score": rpn.score_thresh, "smallest": rpn.min_size}
        pool = heads.box_roi_pool
        self.pooled = [name for name in maps if name in pool.featmap_names]
        scales = [2.0 ** round(float(torch.tensor(maps[name].shape[2] / size[0]).log2())) for name in self.pooled]
        self.pooling = {"scales": scales, "size": tuple(pool.output_size), "sampling": pool.sampling_ratio}
        self.pooling["canonical"] = (pool.canonical_scale, pool.canonical_level)

    def _maps(self, size: Size) -> dict[str, Tensor]:
        """What the backbone gives for one image, without values."""
        shapes_only = {name: value.float().to("meta") for name, value in self.backbone.state_dict().items()}
        maps = functional_call(self.backbone, shapes_only, torch.empty(1, 3, *size, device="meta"))
        return {name: torch.zeros(()).expand(value.shape) for name, value in _named(maps).items()}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        inside = images[:, 3]
        sides = torch.stack((inside[:, 0].sum(-1), inside[:, :, 0].sum(-1)), 1)
        maps = _named(self.backbone(images[:, :3]))
        objectness, offsets = self.rpn_head(list(maps.values()))
        regions = region_proposals(objectness, offsets, self.anchors, torch.cat((sides, sides), 1), **self.picks)
        pooled = pooled_regions([maps[name] for name in self.pooled], regions, **self.pooling)
        logits, offsets = self.box_predictor(self.box_head(pooled))
        each = (len(images), -1)
        return {
            "cls_logits": logits.unflatten(0, each),
            "bbox_regression": offsets.unflatten(0, each),
            "proposals": regions,
        }


def _named(maps: Tensor | dict[str, Tensor]) -> dict[str, Tensor]:
    return OrderedDict([("0", maps)]) if isinstance(maps, Tensor) else maps


class TwoStage:
    """What a detector of two stages, ``Regions``, gives, read as boxes; see ``SingleStage``."""

    marks_images = True

    def __init__(self, model: GeneralizedRCNN, net: Regions):
        self.model, self.limits = model, model.roi_heads
        with torch.inference_mode():
            side, (weight, *_) = model.roi_heads.box_roi_pool.output_size, net.parameters()
            pooled = torch.zeros(1, model.backbone.out_channels, *side, device=weight.device)
            self.columns = net.box_predictor(net.box_head(pooled))[0].shape[-1]

    def strip(self) -> None:
        """Let go of the weights: another network stands in place of ``net``."""
        del self.model.backbone, self.model.rpn
        heads = self.model.roi_heads
        for name, _ in list(heads.named_children()):
            setattr(heads, name, None)

    def one_by_one(self, outputs: dict[str, Tensor], sizes: list[Size]) -> list[dict[str, Tensor]]:
        """The boxes by torchvision's own code. sizes: (h, w) of each image."""
        valid = have_area(outputs["proposals"])
        given = outputs["cls_logits"][valid], outputs["bbox_regression"][valid]
        regions = [boxes[known] for boxes, known in zip(outputs["proposals"], valid, strict=True)]
        found = self.limits.postprocess_detections(*given, regions, sizes)
        return [dict(zip(("boxes", "scores", "labels"), image, strict=True)) for image in zip(*found, strict=True)]

    def at_once(self, outputs: dict[str, Tensor], sizes: list[Size]) -> Boxes:
        """The same for the whole batch, see ``best_boxes``."""
        regions, offsets = outputs["proposals"], outputs["bbox_regression"].unflatten(-1, (-1, 4))
        scores = outputs["cls_logits"].softmax(-1).where(have_area(regions)[..., None], -1.0)
        scores, places = scores[..., 1:].movedim(-1, 1).sort(descending=True, stable=True)
        labels = torch.arange(1, scores.shape[1] + 1, device=scores.device)[:, None]
        best: Best = scores, places, labels.expand_as(places)

        def decoded(places: Tensor) -> Tensor:
            moves = offsets[:, :, 1:].movedim(2, 1).take_along_dim(places[..., None], 2)
            boxes = regions[:, None].take_along_dim(places[..., None], 2)
            return self.limits.box_coder.decode_single(moves.flatten(0, 2), boxes.flatten(0, 2)).view_as(moves)

        return best_boxes(self.limits, best, decoded, sizes, SMALLEST)
