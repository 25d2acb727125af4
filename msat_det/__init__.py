"""msat-det: run a detector as a spiking neural network.

    import msat_det
    snn = msat_det.convert(net, calibration_batches, method="msat", variant="normalised", signed=True, gamma=3)
    outputs = snn.run(images, T=16, record=(4, 8, 16))  # {t: the network's outputs, as running means}
"""

from msat_det.api import convert
from msat_det.convert.methods import METHODS
from msat_det.convert.observe import observe
from msat_det.detectors.base import Detections, Detector
from msat_det.errors import InputError
from msat_det.simulate import SpikingNetwork

__all__ = ["METHODS", "Detections", "Detector", "InputError", "SpikingNetwork", "convert", "observe"]
