"""msat-det: run a detector as a spiking neural network.

``msat_det.convert(net, calibration_batches, method="msat", …)`` gives a ``SpikingNetwork``; its ``run(images, T,
record)`` gives {t: the network's outputs, as running means}.
"""

import importlib
import sys
from types import ModuleType

__version__ = "0.1.0"

# Public name → module; imported at first use, for PyTorch takes seconds and `msat-det --help` should not.
_PUBLIC = {
    "METHODS": "msat_det.methods",
    "Detections": "msat_det.models.detector",
    "Detector": "msat_det.models.detector",
    "InputError": "msat_det.base.errors",
    "SpikingNetwork": "msat_det.spiking.network",
    "TorchvisionDetector": "msat_det.models.importers.torchvision",
    "convert": "msat_det.methods.api",
    "fit_rule": "msat_det.measure.anytime",
    "load": "msat_det.spiking.formats.native",
    "observe": "msat_det.methods.api",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'msat_det' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


class _Package(ModuleType):
    """``convert`` stays the function: importing the sub-package of that name would put itself in its place."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _PUBLIC and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
