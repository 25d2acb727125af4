"""torchvision's detectors as ``Detector``s: their own transform, anchors and post-processing."""

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.fcos import FCOS
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.retinanet import RetinaNet
from torchvision.models.detection.ssd import SSD

from msat_det.base.device import brought
from msat_det.base.errors import InputError
from msat_det.data.base import class_names
from msat_det.models.class_names import COCO_COLUMNS, NO_CLASS
from msat_det.models.detector import Detections
from msat_det.models.importers.torchvision.boxes import Size
from msat_det.models.importers.torchvision.single_stage import Dense, SingleStage
from msat_det.models.importers.torchvision.two_stage import Regions, TwoStage
from msat_det.models.suppression import have_area, packed

SIDE = 640  # of the input of all but SSD; torchvision's own varies with the image, up to 1333 pixels
BACKGROUND = "__background__"

Meta = tuple[Size, Size]


class TorchvisionDetector:
    """A torchvision ``SSD``, ``RetinaNet``, ``FCOS`` or ``FasterRCNN`` (``MaskRCNN`` and ``KeypointRCNN``, of which the
    boxes are found) as a ``Detector``. ``model`` is put into evaluation mode.

    columns: a name for each of the head's columns, background included; a box in a column named ``__background__``,
        ``N/A`` or ``???`` is no detection. Default: COCO's 91, or for another number of columns their numbers.
    size: side of the square that images of any shape are brought to, so that they make one batch. SSD
        stretches to its own fixed size; another is an InputError. The others shrink or enlarge an image, its aspect
        ratio kept, until its longer side is ``size`` (default 640), and pad it with zeros at the right and bottom to
        the next multiple of 32; torchvision's published figures are for a shorter side of 800.
    name: of the model in ``torchvision.models``, where it is built as that name says.
    Scores, suppression and the number of boxes kept are the model's ``score_thresh``, ``nms_thresh`` and
    ``detections_per_img``, of two stages its ``roi_heads``'s. The regions that the first of these hands to the second
    are the model's ``rpn.post_nms_top_n()``.
    """

    def __init__(
        self,
        model: SSD | RetinaNet | FCOS | GeneralizedRCNN,
        columns: Sequence[str] | None = None,
        size: int | None = None,
        name: str | None = None,
    ):
        self.model, self.name = model.eval(), name
        self.transform = copy.deepcopy(model.transform)
        self.size = self._fix_size(size)
        self.net: nn.Module
        self.stages: SingleStage | TwoStage
        if isinstance(model, GeneralizedRCNN):
            self.net = net = Regions(model, self.size).eval()
            self.stages = TwoStage(model, net)
        else:
            self.net = dense = Dense(model).eval()
            self.stages = SingleStage(model, dense, self.size)
        count = self.stages.columns
        if columns is None:
            columns = COCO_COLUMNS if count == len(COCO_COLUMNS) else [BACKGROUND, *map(str, range(1, count))]
        if len(columns) != count:
            raise InputError(f"{len(columns)} class names for {count} columns: give one for each, background included")
        self.columns = class_names(columns, "the detector", NO_CLASS)
        known = [i for i, name in enumerate(columns) if name not in NO_CLASS]
        self.classes = [columns[i] for i in known]
        self.index = torch.full((count,), -1).index_put((torch.tensor(known),), torch.arange(len(known)))

    def preprocess(self, image: Tensor) -> tuple[Tensor, Meta]:
        """uint8 RGB (3, H, W) → (3, *size) float, of two stages (4, *size), see ``Regions``; the resized (h, w) and the
        original (H, W)."""
        resized, _ = self.transform.resize(self.transform.normalize(image.float() / 255))
        height, width = resized.shape[1:]
        if self.stages.marks_images:
            resized = torch.cat((resized, torch.ones(1, height, width)))
        padded = F.pad(resized, (0, self.size[1] - width, 0, self.size[0] - height))
        return padded, ((height, width), (image.shape[1], image.shape[2]))

    def decode(self, outputs: dict[str, Tensor], metas: list[Meta]) -> list[Detections]:
        """The head's outputs for a batch → boxes in original pixels, best first."""
        resized, originals = map(list, zip(*metas, strict=True))
        if outputs["cls_logits"].device.type != "cpu":
            return self._at_once(outputs, resized, originals)
        found = self.stages.one_by_one(outputs, resized)
        return [self._named(one) for one in self.transform.postprocess(found, resized, originals)]

    def _at_once(self, outputs: dict[str, Tensor], resized: list[Size], originals: list[Size]) -> list[Detections]:
        """As torchvision's code and ``_named`` give them, for the whole batch."""
        boxes, scores, labels, kept = self.stages.at_once(outputs, resized)
        height, width = brought(torch.tensor(originals) / torch.tensor(resized), boxes.device).unbind(1)
        boxes, labels = boxes * torch.stack((width, height) * 2, 1)[:, None], brought(self.index, boxes.device)[labels]
        kept &= (labels >= 0) & have_area(boxes)
        return packed(boxes, scores, labels, kept, kept.shape[1])

    def _named(self, found: dict[str, Tensor]) -> Detections:
        """Without boxes of no class, and those in the padding, of which clipping to the image has left a line."""
        boxes, labels = found["boxes"], self.index[found["labels"]]
        good = (labels >= 0) & have_area(boxes)
        return Detections(boxes[good], found["scores"][good], labels[good])

    def _fix_size(self, size: int | None) -> tuple[int, int]:
        transform = self.transform
        if transform.fixed_size is not None:
            width, height = transform.fixed_size
            if size is not None and (size, size) != (width, height):
                raise InputError(f"model.size is {size}: this SSD's anchors are for {width}x{height}; leave it out")
            return height, width
        size = SIDE if size is None else size
        transform.min_size, transform.max_size = (size,), size
        side = -(-size // transform.size_divisible) * transform.size_divisible
        return side, side
