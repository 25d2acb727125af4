"""What a timestep costs against a float forward pass, measured side by side in one process.

    python benchmarks/bench.py --quick --json bench.json

The float forward is batch-norm-folded, eager, with the same layout, batch and threads. Repeats of both alternate, and
medians are compared, for the machine may be noisy. Weights are random: only the activity of neurons depends on them.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from msat_det.convert.conversion import spiking_network
from msat_det.convert.observe import Observation, observe

NEURONS: dict[str, tuple[str, dict]] = {
    "if": ("constant", {"percentile": 99.9, "initial": "half"}),
    "if-signed-burst": ("constant", {"scale": "channel", "initial": "half", "signed": True, "gamma": 3}),
    "msat": ("msat", {}),
    "msat-signed": ("msat", {"variant": "normalised", "scale": "channel", "signed": True, "gamma": 3}),
}


def ssd_mobilenet() -> tuple[nn.Module, Tensor]:
    from msat_det.detectors.ssd import SsdMobileNetV1

    return SsdMobileNetV1(), torch.rand(16, 3, 300, 300) * 2 - 1


def yolo_nano() -> tuple[nn.Module, Tensor]:
    from msat_det.detectors import build_detector
    from msat_det.options import shared_data

    files = shared_data() / "weights" / "MobileNetV2-YOLOv3-Nano-coco"
    model = SimpleNamespace(
        name="darknet", cfg=f"{files}.cfg", weights=f"{files}.weights", names=None, resize=None, size=None,
        num_classes=None, score=None, nms_iou=None, top_k=None,
    )  # fmt: skip
    return build_detector(model).net, torch.rand(16, 3, 320, 320)


def resnet20() -> tuple[nn.Module, Tensor]:
    from msat_det.classifiers import CifarResNet

    return CifarResNet(20, 100), torch.randn(16, 3, 32, 32)


def ssd300_vgg16() -> tuple[nn.Module, Tensor]:
    from torchvision.models import vgg16

    return vgg16(weights=None).features, torch.randn(16, 3, 300, 300)


NETWORKS = {"ssd-mobilenet": ssd_mobilenet, "yolo-nano": yolo_nano, "resnet20": resnet20, "ssd300-vgg16": ssd300_vgg16}


def measure(observation: Observation, neuron: str, x: Tensor, T: int, repeats: int) -> float:
    """Seconds of a timestep over seconds of a float forward: the median over alternating repeats."""
    name, options = NEURONS[neuron]
    snn = spiking_network(name, options, observation, T)
    floats = x.contiguous(memory_format=torch.channels_last)
    ratios = []
    with torch.inference_mode():
        snn.run(x, min(T, 2))
        observation.graph(floats)
        for _ in range(repeats):
            start = time.perf_counter()
            observation.graph(floats)
            observation.graph(floats)
            middle = time.perf_counter()
            snn.run(x, T)
            ratios.append((time.perf_counter() - middle) / T / ((middle - start) / 2))
    return statistics.median(ratios)


def peak_mb(network: str, neuron: str, batch: int, T: int) -> float:
    """Peak resident memory of a process that does nothing else."""
    command = [sys.executable, __file__, "--peak", network, neuron, str(batch), str(T)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def load(network: str, batch: int) -> tuple[Observation, Tensor]:
    torch.manual_seed(0)
    net, images = NETWORKS[network]()
    return observe(net.eval(), [images[:2]]), images[:batch]


def report_peak(network: str, neuron: str, batch: str, T: str) -> None:
    observation, x = load(network, int(batch))
    name, options = NEURONS[neuron]
    spiking_network(name, options, observation, int(T)).run(x, int(T))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="ssd-mobilenet alone, batch 4, T = 8, under a minute")
    parser.add_argument("--json", metavar="FILE", help="write {rows: [{network, neuron, batch, T, …}]} there")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--peak", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak:
        report_peak(*args.peak)
        return
    networks = ["ssd-mobilenet"] if args.quick else args.networks
    cases = [(4, 8)] if args.quick else [(1, 8), (1, 64), (16, 8), (16, 64)]
    rows = []
    print(f"{args.threads} threads, PyTorch {torch.__version__}\n")
    print("| network | neuron | batch | T | timestep / float forward | peak MB |\n|---|---|---|---|---|---|")
    for network in networks:
        for batch, T in cases:
            observation, x = load(network, batch)
            for neuron in NEURONS:
                cost = measure(observation, neuron, x, T, 3 if args.quick else 5)
                peak = peak_mb(network, neuron, batch, T)
                row = {"network": network, "neuron": neuron, "batch": batch, "T": T}
                row |= {"cost_per_step_over_float": cost, "peak_mb": peak}
                rows.append(row)
                print(f"| {network} | {neuron} | {batch} | {T} | {cost:.2f} | {peak:.0f} |", flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps({"rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
