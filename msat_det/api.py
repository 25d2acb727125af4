"""The library: a network or a detector in, a spiking network out."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from msat_det.convert.conversion import spiking_network
from msat_det.convert.graph import Batch
from msat_det.convert.observe import Observation, observe
from msat_det.detectors.base import Detector
from msat_det.simulate import SpikingNetwork


def convert(
    network: nn.Module | Detector | Observation,
    calibration: Iterable[Batch] = (),
    method: str = "msat",
    T: int = 32,
    seed: int = 0,
    **options: Any,
) -> SpikingNetwork:
    """Convert a float network to a spiking one, without training.

    network: any module whose dense part traces; a ``Detector``, whose ``net`` is converted; or what ``observe`` gave
        for one, so that several methods share one pass over the calibration images.
    calibration: batches of inputs, a batch being a tensor (B, …), or a tuple or dict of tensors for several inputs.
    method: a name of ``METHODS``; options: of that method. T: for the methods that are made for one timestep.
    Raises InputError for what cannot be converted, naming node, source line and mend.
    """
    if not isinstance(network, Observation):
        net = network if isinstance(network, nn.Module) else network.net
        network = observe(net, list(calibration))
    return spiking_network(method, options, network, T, seed)
