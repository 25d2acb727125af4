"""Detectors and classifiers, a network between a preprocessing and a decoding step, by their names.

May import: base, data, graph.
"""

from collections.abc import Callable

from msat_det.base.config import Model
from msat_det.base.names import Names
from msat_det.models.demo import ssd_demo, yolo_demo
from msat_det.models.detector import Detections, Detector
from msat_det.models.importers.darknet.network import darknet
from msat_det.models.importers.onnx.detector import onnx_detector
from msat_det.models.importers.torchvision.building import SINGLE_STAGE, TWO_STAGE, torchvision_detector
from msat_det.models.importers.torchvision.detector import TorchvisionDetector
from msat_det.models.importers.ultralytics import ultralytics
from msat_det.models.own import is_own, own_detector
from msat_det.models.ssd import ssd_mobilenet_v1

# Name → builder. A builder takes a model configuration (config.Model) whose fields are None where the detector's own
# default is to hold.
DETECTORS: Names[Callable[[Model], Detector]] = Names(
    "detector",
    {
        "darknet": darknet,
        "onnx": onnx_detector,
        "ultralytics": ultralytics,
        "ssd_mobilenet_v1": ssd_mobilenet_v1,
        "yolo_demo": yolo_demo,
        "ssd_demo": ssd_demo,
        **dict.fromkeys(SINGLE_STAGE + TWO_STAGE, torchvision_detector),
    },
)


def build_detector(model: Model) -> Detector:
    """The detector that ``model.name`` names, built from the rest of ``model``; one's own, see ``own``, too."""
    if is_own(model.name):
        return own_detector(model)
    return DETECTORS.find(model.name)(model)


__all__ = ["DETECTORS", "Detections", "Detector", "TorchvisionDetector", "build_detector"]
