"""SSD, RetinaNet and FCOS: a backbone, and a head that scores the anchors of every cell."""

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torchvision.models.detection.fcos import FCOS
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNet
from torchvision.models.detection.ssd import SSD

from msat_det.base.device import brought
from msat_det.models.importers.torchvision.boxes import Best, Boxes, Size, best_boxes


class Dense(nn.Module):
    """Backbone and head: (B, 3, h, w) → the head's dict of (B, anchors, …) tensors."""

    def __init__(self, model: SSD | RetinaNet | FCOS):
        super().__init__()
        self.backbone, self.head = model.backbone, model.head

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.head(list(self.backbone(images).values()))


class SingleStage:
    """What a detector of one stage gives, read as boxes.

    net: the model's ``Dense``. size: (h, w) of its input. columns: the number of the head's. limits: what has the
    model's ``score_thresh``, ``nms_thresh`` and ``detections_per_img``.
    """

    marks_images = False

    def __init__(self, model: SSD | RetinaNet | FCOS, net: Dense, size: Size):
        self.model = self.limits = model
        levels, self.columns = _shapes(net, size)
        maps = [torch.zeros(()).expand(1, 1, *shape) for shape in levels]
        blank = torch.zeros(()).expand(1, 3, *size)
        (self.anchors,) = model.anchor_generator(ImageList(blank, [size]), maps)
        per_cell = model.anchor_generator.num_anchors_per_location()
        self.counts = [h * w * number for (h, w), number in zip(levels, per_cell, strict=True)]

    def strip(self) -> None:
        """Let go of the weights: another network stands in place of ``net``."""
        self.model.backbone, self.model.head = nn.Identity(), nn.Identity()

    def one_by_one(self, outputs: dict[str, Tensor], sizes: list[Size]) -> list[dict[str, Tensor]]:
        """The boxes by torchvision's own code. sizes: (h, w) of each image."""
        if isinstance(self.model, SSD):
            return self.model.postprocess_detections(outputs, [self.anchors] * len(sizes), sizes)
        levels = {name: list(value.split(self.counts, 1)) for name, value in outputs.items()}
        anchors = list(self.anchors.split(self.counts))
        return self.model.postprocess_detections(levels, [anchors] * len(sizes), sizes)

    def at_once(self, outputs: dict[str, Tensor], sizes: list[Size]) -> Boxes:
        """The same for the whole batch, see ``best_boxes``."""
        best = self._best_of_classes(outputs) if isinstance(self.model, SSD) else self._best_of_levels(outputs)
        return best_boxes(self.limits, best, lambda places: self._decoded(outputs["bbox_regression"], places), sizes)

    def _decoded(self, offsets: Tensor, places: Tensor) -> Tensor:
        """The boxes of the anchors ``places`` (B, G, n) → (B, G, n, 4)."""
        anchors, flat = brought(self.anchors, offsets), places.flatten(1)
        offsets = offsets.take_along_dim(flat[:, :, None], 1)
        coder = self.model.box_coder
        decode = coder.decode if isinstance(self.model, FCOS) else coder.decode_single
        return decode(offsets.flatten(0, 1), anchors[flat].flatten(0, 1)).view(*places.shape, 4)

    def _best_of_classes(self, outputs: dict[str, Tensor]) -> Best:
        """Of every class but the background."""
        scores = outputs["cls_logits"].softmax(-1)[..., 1:].movedim(-1, 1)
        best, places = scores.topk(min(self.model.topk_candidates, scores.shape[-1]))
        labels = torch.arange(1, scores.shape[1] + 1, device=scores.device)[:, None]
        return best, places, labels.expand_as(places)

    def _best_of_levels(self, outputs: dict[str, Tensor]) -> Best:
        """Of every level, all in one group."""
        scores = outputs["cls_logits"].sigmoid()
        if isinstance(self.model, FCOS):
            scores = (scores * outputs["bbox_ctrness"].sigmoid()).sqrt()
        found, first, classes = [], 0, scores.shape[-1]
        for level in scores.split(self.counts, 1):
            best, pairs = level.flatten(1).topk(min(self.model.topk_candidates, level[0].numel()))
            found.append((best, first + pairs // classes, pairs % classes))
            first += level.shape[1]
        scores, places, labels = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        return scores[:, None], places.gather(1, order)[:, None], labels.gather(1, order)[:, None]


def _shapes(net: nn.Module, size: Size) -> tuple[list[Size], int]:
    """(h, w) of each level that the head sees, and its number of columns; only shapes are computed."""
    levels: list[Tensor] = []
    hook = net.get_submodule("head").register_forward_pre_hook(lambda head, args: levels.extend(args[0]))
    shapes_only = {name: value.float().to("meta") for name, value in net.state_dict().items()}
    outputs = functional_call(net, shapes_only, torch.empty(1, 3, *size, device="meta"))
    hook.remove()
    return [(level.shape[2], level.shape[3]) for level in levels], outputs["cls_logits"].shape[-1]
