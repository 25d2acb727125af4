"""One simulation in a process of its own, and the most memory that it held.

    python benchmarks/one_simulation.py ssd-mobilenet msat 4 64 2

The process loads and observes the network, gives freed memory back, starts the kernel's high-water mark (VmHWM) anew
and runs the simulation once. So a peak holds Python, PyTorch, weights and the simulation, and not the observation.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch

from benchmarks import networks, rival
from benchmarks.memory import forget_peak, resident


def main(network: str, neuron: str, batch: str, T: str, threads: str) -> None:
    torch.set_num_threads(int(threads))
    bench = networks.load(network)
    make = rival.simulation if neuron.startswith(rival.NAME) else networks.Bench.simulation
    simulate = make(bench, neuron, int(batch), int(T))
    forget_peak()
    before = resident("VmRSS")
    simulate()
    print(json.dumps({"peak_mb": resident("VmHWM"), "before_mb": before}))


if __name__ == "__main__":
    main(*sys.argv[1:])
