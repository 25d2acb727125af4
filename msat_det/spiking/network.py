"""The spiking network: a converted graph and its neurons, to be run, saved and looked at."""

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from msat_det.base.errors import InputError
from msat_det.base.names import PRECISIONS
from msat_det.graph.facts import facts
from msat_det.graph.fanout import FanOut, fan_out
from msat_det.graph.graph import Graph, elements
from msat_det.graph.inputs import Batch, first_images, reason
from msat_det.models.detector import Detections, Detector
from msat_det.models.pictures import batched, pictures
from msat_det.spiking.energy import Counts
from msat_det.spiking.formats.native import Saved, read_network, write_network
from msat_det.spiking.kernels import Scan
from msat_det.spiking.neurons import Neuron, check_fit
from msat_det.spiking.nodes import node_table
from msat_det.spiking.replay import Replays
from msat_det.spiking.schedule import Schedule, Setup
from msat_det.spiking.simulate import Result, Watchers, simulate


class SpikingNetwork(nn.Module):
    """A graph with one ``Neuron`` per call site, as an ``nn.Module``: ``snn(x)`` gives the outputs after T timesteps.

    graph: as ``graph.trace.trace`` gives it. neurons: {call site name: Neuron}, one for each of ``graph.sites``.
    fanout: as ``graph.fanout.fan_out`` gives it. seed: of the spike confidence's masks. chunk: timesteps that a layer
    runs at once; None: chosen by the size of the activations. detector: what the network is a part of, if anything.
    energy: what its operations cost, see ``spiking.energy.prices``. maxima: {call site name: (C,) the largest float
    activation of each channel on the calibration images}, where they are known. precision: of its convolutions,
    float32, tf32x3, tf32, bf16 or fp16, see ``graph.precision``; potentials are float32, and so is the float network.
    T: timesteps where none are given. method: the name of the one that made it. counts: of the last run, see ``run``.

    Its parameters are the weights, which are never trained: it stays in evaluation mode. Its state dict also holds the
    neurons' thresholds, biases and initial potentials as ``neurons.<call site>.<name>``.
    """

    detector: Detector | None

    def __init__(
        self,
        graph: Graph,
        neurons: dict[str, Neuron],
        fanout: FanOut,
        seed: int = 0,
        chunk: int | None = None,
        detector: Detector | None = None,
        energy: str = "45nm",
        maxima: Mapping[str, Tensor] | None = None,
        precision: str = "float32",
        T: int = 32,
        method: str = "",
    ):
        super().__init__()
        missing = [node.name for node in graph.sites if node.name not in neurons]
        if missing:
            raise InputError(f"no neuron for call site {missing[0]}: a method must give one for each of graph.sites")
        for node in graph.sites:
            check_fit(node.name, neurons[node.name], facts(node).shape or ())
        self.net, self.training = graph.module, False
        self.graph, self.neurons, self.fanout, self.seed, self.chunk = graph, neurons, fanout, seed, chunk
        self.__dict__["detector"] = detector  # one that is a module itself is no part of this one
        self.energy, self.maxima, self.precision = energy, dict(maxima or {}), precision
        self.T, self.method = T, method
        self.counts: dict[int, Counts] = {}
        self.schedule = Schedule(graph)
        self._replays = Replays()
        self._resized: tuple[Graph, Schedule, FanOut] | None = None  # for the images of another size that came last

    def forward(self, *batch: Tensor | dict[str, Tensor]) -> Any:
        """The outputs after T timesteps for a batch (B, …), or for as many tensors as the network has inputs."""
        if any(isinstance(value, int) for value in batch):
            raise InputError(f"a call takes tensors and runs to T = {self.T}: snn.run(x, T) runs to another timestep")
        return self.run(batch[0] if len(batch) == 1 else batch, self.T)[self.T]

    def run(
        self,
        batch: Batch,
        T: int,
        record: Iterable[int] | None = None,
        images: list | None = None,
        tap: Callable[[str, Tensor], None] | None = None,
        watch: Callable[[str, Scan, Tensor], None] | None = None,
        stop: Callable[[dict[int, Any]], bool] | None = None,
    ) -> dict[int, Any]:
        """Simulate T timesteps of one batch from rest.

        batch: tensor (B, …), or a tuple or dict of them, held constant in time. record: timesteps (1..T) whose outputs
        are returned, [T] by default. images: ids of the B images, by which spike confidence draws masks (0..B−1 if
        None).
        tap: called with (call site, output s·θ of a chunk (K, B, C, …)) as the network runs; must not keep the tensor.
        watch: called before that with (call site, its population, the chunk's input currents (K, B, C, …), or
        (1, B, C, …) where they are constant in time); must not keep the tensor.
        stop: called at each recorded t with what would be returned; true ends the simulation there.
        Returns {t: the outputs in the network's own structure, on the running means over the first t timesteps (under
        delta coding on the sums)}, and leaves the spikes and operations up to each recorded t in ``counts``.
        Raises InputError for timesteps that are not whole numbers in 1..T, and, naming the call site, when a neuron's
        potential is NaN.
        """
        result = self.simulate(batch, T, record, images, Watchers(tap, watch, stop))
        self.counts = result.counts
        return result.outputs

    def simulate(
        self,
        batch: Batch,
        T: int,
        record: Iterable[int] | None = None,
        images: list | None = None,
        watchers: Watchers | None = None,
    ) -> Result:
        """``run``, which returns outputs and counts together and leaves ``counts`` as they are."""
        inputs = self.graph.bind(batch)  # once: from here on it lies where the network does
        return simulate(self._setup_for(inputs), inputs, T, record, images, watchers, self._replays)

    def _setup_for(self, inputs: dict[str, Tensor]) -> Setup:
        """``setup``; for images of another size than the calibration's one with the same neurons, counted anew.

        inputs: as ``graph.bind`` gives them. Raises InputError where they do not fit the network.
        """
        setup = self.setup
        sizes = {name: tuple(value.shape[1:]) for name, value in inputs.items()}
        if sizes == self.graph.sizes:
            return setup
        if self._resized is None or self._resized[0].sizes != sizes:
            one = first_images(inputs, 1)
            graph = self.graph.at_size(one)
            self._resized = graph, Schedule(graph), fan_out(graph)
        graph, schedule, fanout = self._resized
        return replace(setup, graph=replace(graph, precision=setup.graph.precision), schedule=schedule, fanout=fanout)

    def detect(
        self,
        images: Any,
        T: int | None = None,
        record: Iterable[int] | None = None,
        stop: Callable[[dict[int, Any]], bool] | None = None,
    ) -> dict[int, list[Detections]]:
        """Simulate T timesteps (None: its own T) and read the boxes.

        images: a list of images of any sizes, or one: uint8 RGB tensors (3, H, W), paths or PIL images. record, stop:
        see ``run``. Returns {t: one ``Detections`` an image, which prints and draws itself}.
        Raises InputError when the network was not converted as a part of a ``Detector``.
        """
        if self.detector is None:
            raise InputError(
                "this network has no detector to read boxes: convert a Detector, not its net; hand a detector of your "
                "own in again with msat_det.load(path, detector=…)"
            )
        pixels, metas = zip(*map(self.detector.preprocess, pictures(images)), strict=True)
        batch = batched(pixels, "detect on those of one size at a time")
        outputs = self.run(batch, self.T if T is None else T, record, stop=stop)
        found = {t: self.detector.decode(output, list(metas)) for t, output in outputs.items()}
        classes = tuple(self.detector.classes)
        return {t: [replace(one, classes=classes) for one in each] for t, each in found.items()}

    def __copy__(self) -> "SpikingNetwork":
        return self._on(self.graph, dict(self.neurons), self.fanout)

    def __deepcopy__(self, memo: dict) -> "SpikingNetwork":
        graph = self.graph.copy()
        return self._on(graph, copy.deepcopy(self.neurons, memo), self.fanout.on(graph))

    def _on(self, graph: Graph, neurons: dict[str, Neuron], fanout: FanOut) -> "SpikingNetwork":
        """A network like this one."""
        about = self.energy, self.maxima, self.precision, self.T, self.method
        own = self.seed, self.chunk, self.detector, *about
        return SpikingNetwork(graph, neurons, fanout, *own)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        self.graph.__reduce_ex__(protocol)

    def train(self, mode: bool = True) -> "SpikingNetwork":
        """Nothing in it is trained: it stays in evaluation mode. Returns itself."""
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SpikingNetwork":
        """What ``to``, ``cuda``, ``cpu`` and the like do, to the neurons as well; all that was converted from the same
        observation moves with it, for the weights are shared."""
        try:
            moved = fn(torch.zeros(()))
        except (RuntimeError, AssertionError) as error:
            raise self._immovable(error) from error
        if moved.dtype is not torch.float32:
            raise InputError("a spiking network calculates in float32: leave its dtype as it is, .to(device) moves it")
        super()._apply(fn, recurse)
        if self.device.type == "cuda":  # weights as the activations lie: a convolution would copy them every time
            self.net.to(memory_format=torch.channels_last)
        self.neurons = {name: _mapped(neuron, fn) for name, neuron in self.neurons.items()}
        self._resized, self._replays = None, Replays()
        return self

    @staticmethod
    def _immovable(error: Exception) -> InputError:
        return InputError(f"the network can't be moved there ({reason(error)}): give a device that is here, as 'cpu'")

    def _values(self) -> Iterator[tuple[str, str, Tensor]]:
        """(call site, name, tensor) of everything that its neurons hold."""
        for site, neuron in self.neurons.items():
            yield from ((site, key, value) for key, value in _tensors(neuron).items())

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination |= {f"{prefix}neurons.{site}.{key}": value for site, key, value in self._values()}

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        lists = missing_keys, unexpected_keys, error_msgs
        own = {f"{prefix}neurons.{site}.{key}": (site, key, value) for site, key, value in list(self._values())}
        rest = {name: value for name, value in state_dict.items() if name not in own}
        super()._load_from_state_dict(rest, prefix, local_metadata, strict, *lists)
        missing_keys += [name for name in own if name not in state_dict]
        for name, (site, key, value) in own.items():
            given = state_dict.get(name, value)
            if given.shape != value.shape:
                error_msgs.append(f"{name} is {tuple(given.shape)}, the network's {tuple(value.shape)}")
            else:
                self.neurons[site] = replace(self.neurons[site], **{key: given.detach().to(value).clone()})
        self._replays = Replays()

    def __repr__(self) -> str:
        sites = self.graph.sites
        kinds = Counter(self.neurons[node.name].activation.name for node in sites)
        share, count = self.fanout.analog_share, f"{sum(map(elements, sites)):,} neurons"
        last = [f"last run, t = {t}: {counts.line}" for t, counts in list(self.counts.items())[-1:]]
        detector = self.detector
        boxes = [f"detector: {type(detector).__name__} of {len(detector.classes)} classes"] if detector else []
        lines = [
            f"{type(self).__name__}({self.method or 'no method’s'}, {self.coding} coding, T = {self.T})",
            f"{len(sites)} call sites, {count}: {', '.join(f'{n} {kind}' for kind, n in kinds.most_common())}",
            f"float network: {self.fanout.total:,} multiply-adds an image, {share:.1%} of them stay analog",
            *boxes,
            *last,
        ]
        return "\n  ".join(lines)

    @property
    def setup(self) -> Setup:
        """What a simulation of it needs, as plain values."""
        graph = replace(self.graph, precision=PRECISIONS.find(self.precision))
        return Setup(graph, self.schedule, self.neurons, self.fanout, self.seed, self.chunk, self.energy)

    @property
    def device(self) -> torch.device:
        """Where it is simulated: inputs are moved there, and outputs are there."""
        return self.graph.device or torch.device("cpu")

    def to(self, *args: Any, **kwargs: Any) -> "SpikingNetwork":
        """Move the network, and everything converted from the same observation. Returns itself.

        Raises InputError for an unknown or missing device, and for another dtype: neurons are always float32.
        """
        try:
            return super().to(*args, **kwargs)
        except (RuntimeError, TypeError) as error:
            raise self._immovable(error) from error

    def save(self, path: str | Path) -> None:
        """Write the network into one file, which ``load`` reads. Raises InputError for what can't be saved."""
        write_network(path, Saved(self.setup, self.detector, self.maxima, self.T, self.method))

    @property
    def coding(self) -> str:
        """``rate`` or ``delta``. Raises InputError where the neurons do not agree."""
        return self.setup.coding

    @property
    def coverage(self) -> list[dict]:
        """What every node became, one dict a node; see ``spiking.nodes.node_table``."""
        return node_table(self.graph, self.fanout, self.neurons, self.maxima)


def _tensors(neuron: Neuron) -> dict[str, Tensor]:
    values = {item.name: getattr(neuron, item.name) for item in fields(neuron)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def _mapped(neuron: Neuron, fn: Callable[[Tensor], Tensor]) -> Neuron:
    changed: dict[str, Any] = {name: fn(value) for name, value in _tensors(neuron).items()}
    return replace(neuron, **changed)


def save(snn: SpikingNetwork, path: str | Path) -> None:
    """Write a network into one file, which ``load`` reads. Raises InputError for what can't be saved."""
    snn.save(path)


def load(path: str | Path, detector: Detector | None = None) -> SpikingNetwork:
    """The network that ``save`` wrote.

    detector: in place of the saved one; needed for boxes if the network belongs to a detector of your own class.
    Raises InputError for anything but a whole, sound file.
    """
    saved = read_network(path, detector)
    setup = saved.setup
    made = setup.graph, dict(setup.neurons), setup.fanout, setup.seed, setup.chunk
    return SpikingNetwork(*made, saved.detector, setup.energy, saved.maxima, T=saved.T, method=saved.method)
