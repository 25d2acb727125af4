"""Whether a GPU calculates what the CPU does: the kernels, whole networks, and mAP by precision."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import gpu_networks
from benchmarks.timing import Clock
from msat_det.base.checks import present
from msat_det.base.names import PRECISIONS
from msat_det.graph.ops import Activation
from msat_det.spiking.delta import delta_step, new_delta_state
from msat_det.spiking.kernels import Scan
from msat_det.spiking.kernels.delta import Corrections
from msat_det.spiking.neurons import Chances, Msat, Neuron, new_state, step

RELU = Activation("relu", torch.relu, rectified=True)
RELU6 = Activation("relu6", F.relu6, rectified=True, upper=1.4)
SILU = Activation("silu", F.silu, curved=True)
LEAKY = Activation("leakyrelu", lambda x: F.leaky_relu(x, 0.1), slope=0.1)


def families() -> dict[str, Neuron]:
    theta = torch.rand(32, generator=torch.Generator().manual_seed(0)) + 0.3
    theta[3] = 0.0
    return {
        "if": Neuron(torch.tensor(0.7), RELU, initial=0.5),
        "signed burst": Neuron(theta, RELU, signed=True, gamma=3, margin=0.7, initial=0.5),
        "rounding, stages": Neuron(theta, RELU, signed=True, gamma=15, rounding="track", stages=(2.0, 1.0, 0.5, 0.25)),
        "bounded": Neuron(theta, RELU6, signed=True, gamma=3),
        "reset to zero, bias": Neuron(theta, RELU, reset="zero", bias=theta / 10),
        "imbalanced": Neuron(theta, LEAKY, imbalanced=True, gamma=2),
        "tracking leaky": Neuron(theta, LEAKY, gamma=3),
        "tracking silu": Neuron(theta, SILU, gamma=3),
        "confidence": Neuron(theta, RELU, confidence=0.4, drop="lossy"),
        "msat": Neuron(torch.tensor(0.7), RELU, adaptive=Msat()),
        "msat paper": Neuron(theta, RELU, adaptive=Msat(drive="depolarisation", twice=True, tau_mp=0.5, tau_rd=0.5)),
        "msat-signed": Neuron(theta, RELU, adaptive=Msat(normalised=True), signed=True, gamma=3),
    }


def kernel_rows(clock: Clock) -> Iterator[dict]:
    """Each family on the device against ``step`` on the CPU, from the same currents."""
    generator = torch.Generator().manual_seed(0)
    x = 0.3 + torch.randn(16, 2, 32, 20, 20, generator=generator)
    x = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (16, 2))
    reach, chances = torch.arange(12800.0).reshape(32, 20, 20), Chances(3, [5, 6], 1)
    for name, neuron in families().items():
        state = new_state(neuron, x[0], True)
        expected = torch.stack([step(neuron, state, x[t], t, chances)[1] for t in range(len(x))])
        scan = Scan(neuron, x[0].to(clock.device), reach, True, chances)
        got = torch.cat([scan.run(x[t : t + 5].to(clock.device), t, len(x[t : t + 5])) for t in range(0, 16, 5)]).cpu()
        # θ(t) differs in its last bits at most, so a spike more or less shows as a whole threshold
        apart = ((got != 0) != (expected != 0)) | ((got - expected).abs() > 0.1 * expected.abs())
        kept = ~apart.any(0)
        error = ((got - expected).abs() / expected.abs().clamp(min=1))[:, kept].max().item()
        yield {
            "family": name,
            "backend": scan.backend,
            "max_error": error,
            "other_spikes_share": apart.any(0).float().mean().item(),
        }


def corrected() -> dict[str, Neuron]:
    """Of delta coding."""
    theta = families()["signed burst"].theta / 8
    return {
        "terms": Neuron(theta, RELU, coding="delta", bits=7, terms=(3, 2)),
        "bursts": Neuron(theta, LEAKY, coding="delta", gamma=3),
        "silu": Neuron(theta, SILU, coding="delta", bits=7, terms=(3,)),
        "msat": Neuron(theta, RELU, coding="delta", adaptive=Msat(normalised=True), bits=7),
    }


def delta_rows(clock: Clock) -> Iterator[dict]:
    """Each neuron of delta coding on the device against ``delta_step`` on the CPU, from the same sums."""
    generator = torch.Generator().manual_seed(0)
    sums = (0.3 + torch.randn(6, 2, 32, 20, 20, generator=generator)).flatten(0, 1)
    sums = sums.contiguous(memory_format=torch.channels_last).unflatten(0, (6, 2))
    for name, neuron in corrected().items():
        state, scan = new_delta_state(neuron, sums[0]), None
        other = torch.zeros(sums[0].shape, dtype=torch.bool)
        for t, x in enumerate(sums):
            there = x.to(clock.device)
            scan = scan or Corrections(neuron, there, torch.ones(x.shape[1:]))
            got, (_, _, expected) = present(scan.step(there, t, wanted=True)).cpu(), delta_step(neuron, state, x, t)
            other |= (got - expected).abs() > 1e-5 * expected.abs().clamp(min=1)
        error = (present(scan).output.cpu() - state.o).abs()[~other].max().item()
        yield {"delta": name, "max_error": error, "other_spikes_share": other.float().mean().item()}


def device_rows(clock: Clock) -> Iterator[dict]:
    """A network on the device against the CPU, on the same images, thresholds and weights."""
    for name in ("resnet20", "ssd-mobilenet"):
        for neuron in gpu_networks.NEURONS:
            bench = gpu_networks.load(name, torch.device("cpu"))
            x, snn = bench.images(2), bench.network(neuron, 8)
            level, spiking = bench.observation.graph(x), snn.run(x, 8)[8]
            spikes = snn.counts[8].spikes_per_neuron
            snn.to(clock.device)
            level_there, spiking_there = bench.observation.graph(x), snn.run(x, 8)[8]
            snn.to("cpu")
            yield {
                "network": name,
                "neuron": neuron,
                "float_error": apart(level, level_there).max().item(),
                "spiking_median_error": apart(spiking, spiking_there).median().item(),
                "spiking_mean_error": apart(spiking, spiking_there).mean().item(),
                "spikes_cpu": spikes,
                "spikes_device": snn.counts[8].spikes_per_neuron,
            }


def apart(ours: Any, theirs: Any) -> Tensor:
    """Differences of all outputs in units of the largest of each."""
    pairs = zip(*(torch.utils._pytree.tree_leaves(each) for each in (ours, theirs)), strict=True)
    return torch.cat([((a - b.cpu()).abs() / a.abs().max().clamp(min=1e-12)).flatten() for a, b in pairs])


def accuracy_rows(clock: Clock) -> Iterator[dict]:
    """mAP of trained SSD-MobileNet by precision, from the command's own run; the first row is the float network's."""
    from msat_det.run.arguments import load_config
    from msat_det.run.experiment import run

    file = Path(__file__).resolve().parents[1] / "configs/real/ssd_mobilenet_coco.yaml"
    words = "--methods if-signed-b3,staged-4,msat-signed-b3 --sim.record 4,8 --calib.limit 24 --draw.images 1"
    for kind in PRECISIONS:
        with tempfile.TemporaryDirectory() as folder:
            given = ["--cfg", str(file), "--out", folder, "--device", str(clock.device), "--precision", kind]
            start = time.perf_counter()
            rows = run(load_config([*given, *words.split()]))
            seconds = time.perf_counter() - start
        for row in rows:
            found = {"precision": kind, "method": row.method, "t": row.t, "spikes": row.spikes_per_neuron}
            yield found | row.accuracies | {"seconds_of_run": seconds}
