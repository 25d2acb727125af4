"""The library: a network or a detector in, a spiking network out."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from msat_det.base.errors import InputError
from msat_det.graph.graph import Batch
from msat_det.methods import observe as core
from msat_det.methods.convert import spiking_network
from msat_det.methods.observe import Observation
from msat_det.models.detector import Detector
from msat_det.models.importers.torchvision import as_detector
from msat_det.spiking.network import SpikingNetwork


def convert(
    network: nn.Module | Detector | Observation,
    calibration: Iterable[Batch | Sequence[Tensor]] = (),
    method: str = "msat",
    T: int = 32,
    seed: int = 0,
    **options: Any,
) -> SpikingNetwork:
    """Convert a float network to a spiking one, without training.

    network, calibration: see ``observe``; or what ``observe`` gave, so that several methods share one pass over the
        calibration images.
    method: a name of ``METHODS``; options: of that method. T: for the methods that are made for one timestep.
    Raises InputError for what cannot be converted, naming node, source line and mend.
    """
    observation = network if isinstance(network, Observation) else observe(network, calibration)
    return spiking_network(method, options, observation, T, seed)


def observe(network: nn.Module | Detector, calibration: Iterable[Batch | Sequence[Tensor]]) -> Observation:
    """Trace a network and take its activations' statistics on calibration images.

    network: any module whose dense part traces; a ``Detector``, whose ``net`` is converted, or torchvision's SSD,
        RetinaNet or FCOS, which becomes one.
    calibration: batches of inputs, a batch being a tensor (B, …), or a tuple or dict of tensors for several inputs. For
        a detector also lists of uint8 RGB images (3, H, W), which its ``preprocess`` makes ready.
    Raises InputError for what cannot be converted, naming node, source line and mend.
    """
    network = as_detector(network)
    if isinstance(network, Detector):
        observation = core.observe(network.net, [_ready(network, batch) for batch in calibration])
        observation.detector = network
        return observation
    if not isinstance(network, nn.Module):
        raise InputError(
            f"a {type(network).__name__} is neither an nn.Module nor a Detector: a detector has net, classes, "
            "preprocess and decode"
        )
    return core.observe(network, list(calibration))


def _ready(detector: Detector, batch: Tensor | Sequence[Tensor]) -> Tensor:
    if isinstance(batch, Tensor):
        return batch
    return torch.stack([detector.preprocess(image)[0] for image in batch])
