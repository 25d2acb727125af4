"""msat-det: run a detector as a spiking neural network.

``msat_det.convert(net, calibration_batches)`` gives a ``SpikingNetwork``; its ``run(images, T, record)`` gives {t: the
network's outputs after t timesteps}, its ``detect(photographs, T)`` the boxes. ``msat_det.METHODS`` holds the methods,
``msat_det.describe(name)`` says what one does.
"""

import importlib
from typing import TYPE_CHECKING

from msat_det.base import __version__ as __version__

if TYPE_CHECKING:
    from msat_det.base.errors import CalibrationWarning, InputError
    from msat_det.measure.anytime import fit_rule
    from msat_det.methods import METHODS
    from msat_det.methods.api import convert, describe, observe
    from msat_det.models.detector import Detections, Detector
    from msat_det.models.headed import HeadDetector
    from msat_det.models.importers.onnx.detector import load_detector
    from msat_det.models.importers.onnx.network import load_onnx
    from msat_det.models.importers.torchvision.detector import TorchvisionDetector
    from msat_det.models.importers.ultralytics import ultralytics_detector
    from msat_det.spiking.network import SpikingNetwork, load, save

# Public name → module; imported at first use, for PyTorch takes seconds and `msat-det --help` should not.
_MODULES = {
    **dict.fromkeys(("CalibrationWarning", "InputError"), "msat_det.base.errors"),
    **dict.fromkeys(("SpikingNetwork", "load", "save"), "msat_det.spiking.network"),
    **dict.fromkeys(("convert", "describe", "observe"), "msat_det.methods.api"),
    **dict.fromkeys(("Detections", "Detector"), "msat_det.models.detector"),
    "METHODS": "msat_det.methods",
    "TorchvisionDetector": "msat_det.models.importers.torchvision.detector",
    "fit_rule": "msat_det.measure.anytime",
    "HeadDetector": "msat_det.models.headed",
    "load_detector": "msat_det.models.importers.onnx.detector",
    "load_onnx": "msat_det.models.importers.onnx.network",
    "ultralytics_detector": "msat_det.models.importers.ultralytics",
}
__all__ = [
    "METHODS",
    "CalibrationWarning",
    "Detections",
    "Detector",
    "HeadDetector",
    "InputError",
    "SpikingNetwork",
    "TorchvisionDetector",
    "convert",
    "describe",
    "fit_rule",
    "load",
    "load_detector",
    "load_onnx",
    "observe",
    "save",
    "ultralytics_detector",
]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'msat_det' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
