"""The library: a network or a detector in, a spiking network out."""

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from msat_det.base.errors import InputError
from msat_det.base.names import PRECISIONS
from msat_det.graph.inputs import Batch, calibration_batches, kind, whole
from msat_det.graph.prepare import refuse_fixed, unwrap
from msat_det.methods import DEFAULT, METHODS
from msat_det.methods import observe as core
from msat_det.methods.convert import spiking_network
from msat_det.methods.notes import notes
from msat_det.methods.observe import Observation
from msat_det.models.calibration import detector_batches
from msat_det.models.detector import Detector
from msat_det.models.headed import HeadDetector
from msat_det.models.importers.torchvision.building import as_detector
from msat_det.models.importers.ultralytics import is_ultralytics, ultralytics_detector
from msat_det.spiking.network import SpikingNetwork


def convert(
    network: nn.Module | Detector | Observation,
    calibration: Batch | Iterable[Batch | Sequence[Tensor]] | str | Path = (),
    method: str = DEFAULT,
    T: int = 32,
    seed: int = 0,
    precision: str = "float32",
    **options: Any,
) -> SpikingNetwork:
    """Convert a float network to a spiking one, without training.

    network, calibration: see ``observe``; or what ``observe`` gave, so that several methods share one pass over the
        calibration images.
    method: a name of ``METHODS``, each explained in a line by ``describe``; the default needs no fit and keeps the
        float network's boxes at t = 1 (docs/delta.md), ``msat`` is the paper's. T: for the methods that are made for
        one timestep.
    precision: of the spiking network's convolutions, float32, tf32x3, tf32, bf16 or fp16; it can be set later,
        too (``snn.precision``), and is not saved.
    options: of that method, by name. Those that any method takes, with what most of them start from:
        coding="rate" (the value is the mean of what is sent) or "delta" (the sum: only corrections are sent);
        levels="unary" (bursts of up to gamma=1 spikes) or "binary" (up to terms=3 of bits=7 powers of two);
        scale="layer" or "channel", percentile=100.0, values="all" or "nonzero": the statistic of the activations that
        is the threshold; factor=1.0: on it; stages=None: factors on it in each timestep, the last one held;
        signed=False: True lets a neuron take back what it has sent, margin=0.5 thresholds of error later;
        initial="zero" or "half" a threshold, rounding=None, "fixed" once or "track" in every timestep; zone=0.5: of the
        smallest level, what delta coding leaves alone; weights="float" or "int8"; analog=[]: names of call sites that
        stay analog; spiking_linear=False: True for neurons on linear outputs, too; confidence="none", "estimate" or a
        share, drop="keep" or "lossy": the paper's eq. 18. correct="none" or "bias-t": a bias of each channel and
        timestep on top, under rate coding.
    Raises InputError for what cannot be converted, naming node, source line and mend. Warns (CalibrationWarning) of
    channels that no calibration image has activated, and of activations that are compared for equality.
    """
    T, seed, precision = whole("T", T, 1), whole("seed", seed), PRECISIONS.find(precision)
    observation = network if isinstance(network, Observation) else observe(network, calibration)
    for note in notes(observation):
        warnings.warn(note, stacklevel=2)
    snn = spiking_network(method, options, observation, T, seed)
    snn.precision = precision
    return snn


def describe(method: str) -> str:
    """What a method does and who published it, in a line; of a preset also the options that it stands for.

    Raises InputError for an unknown name, with the nearest one.
    """
    return f"{method}: {METHODS.find(method)}"


def observe(
    network: nn.Module | Detector, calibration: Batch | Iterable[Batch | Sequence[Tensor]] | str | Path
) -> Observation:
    """Trace a network and take its activations' statistics on calibration images.

    network: any module whose dense part traces, of any precision (the conversion calculates in float32), bare or in
        ``DataParallel``, ``torch.compile`` or the like; a ``Detector``, whose ``net`` is converted, or torchvision's
        SSD, RetinaNet or FCOS, or one of Ultralytics' detectors, which becomes one.
    calibration: a batch of inputs or an iterable of batches, such as a ``DataLoader``, read once. A batch is a
        float tensor (B, …), or a tuple or dict of tensors for several inputs; labels after the inputs, or under names
        that the network does not take, are ignored. For a detector also a folder of images, or images one by one or in
        lists, each uint8 RGB (3, H, W), a path or a PIL image, which its ``preprocess`` makes ready.
    Raises InputError for what cannot be converted, naming node, source line and mend.
    """
    if isinstance(network, SpikingNetwork):
        raise InputError("this network is a spiking one already: give the float network that it was made of")
    network = as_detector(unwrap(network))
    if is_ultralytics(network):
        network = ultralytics_detector(network)
    if isinstance(network, HeadDetector):
        network.check()
    if isinstance(network, Detector) and not isinstance(network, type):
        observation = core.observe(network.net, detector_batches(network, calibration))
        observation.detector = network
        return observation
    refuse_fixed(network)
    if not isinstance(network, nn.Module):
        raise InputError(f"{kind(network)} is neither an nn.Module nor a Detector: {_instead_of(network)}")
    return core.observe(network, calibration_batches(calibration, network))


def _instead_of(network: object) -> str:
    """The mend of what is no network, by what people take for one."""
    if isinstance(network, str | Path):
        maker = "msat_det.load_detector" if str(network).endswith(".onnx") else "ultralytics.YOLO"
        return f"make the network first, {maker}({str(network)!r})"
    if isinstance(network, dict):
        return "load a state dict into its network first, network.load_state_dict(…)"
    if isinstance(network, type):
        return f"give an instance, {network.__name__}(…)"
    if path := _module_in(network):
        return f"give the network in it, its attribute {path}"
    return "the network comes first, convert(network, images); a detector has net, classes, preprocess and decode"


def _module_in(thing: object, deeper: int = 1) -> str:
    """Where in an object, or in one that it holds, an ``nn.Module`` is; "" where there is none."""
    held = {} if isinstance(thing, type | ModuleType) else getattr(thing, "__dict__", {})
    public = {name: value for name, value in held.items() if not name.startswith("_")}
    found = [name for name, value in public.items() if isinstance(value, nn.Module)]
    if deeper and not found:
        inner = ((name, _module_in(value, deeper - 1)) for name, value in public.items())
        found = [f"{name}.{path}" for name, path in inner if path]
    return found[0] if found else ""
