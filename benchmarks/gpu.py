"""Everything on a GPU in under five minutes: python benchmarks/gpu.py [--seconds S] [--json FILE] [--part NAME …].

Correctness first: kernels against the reference step, the device against the CPU. Then the scan's bandwidth beside a
copy of the same bytes, and for each network a float forward by layout and precision, the cost of a timestep beside
it, SpikingJelly on the same folded network in turns, and images a second from JPEG files to boxes. Weights are random
but for SSD-MobileNet's where MSAT_DET_DATA holds them. A part that fails prints its traceback and the others go on.
"""

import argparse
import itertools
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch

from benchmarks import gpu_networks
from benchmarks.gpu_correctness import accuracy_rows, delta_rows, device_rows, kernel_rows
from benchmarks.gpu_images import IMAGES, image_rows
from benchmarks.gpu_parts import chunk_rows, convolution_rows, part_rows, replay_rows
from benchmarks.gpu_scan import corrections_rows, scan_rows
from benchmarks.gpu_steps import CASES, layout_rows, rival_rows, step_rows
from benchmarks.timing import Clock


def parts(clock: Clock) -> dict[str, Callable[[], Iterator[dict]]]:
    """Everything by its name, the most important first."""

    def of(name: str, rows: Callable[..., Iterator[dict]], *rest: Any) -> Callable[[], Iterator[dict]]:
        return lambda: rows(clock, name, gpu_networks.load(name, clock.device), *rest)

    gpu = clock.device.type == "cuda"
    batches = [(16, 8), (1, 8)] if gpu else [(1, 2)]
    found: dict[str, Callable[[], Iterator[dict]]] = {
        "kernels": lambda: itertools.chain(kernel_rows(clock), delta_rows(clock)),
        "scan": lambda: scan_rows(clock),
        "corrections": lambda: corrections_rows(clock),
        "convolutions ssd300-vgg16": of("ssd300-vgg16", convolution_rows, (16, 64) if gpu else (1,)),
    }
    for name in CASES:
        cases = [(*case, neuron) for case in batches for neuron in ("if", "msat")]
        found[f"parts {name}"] = of(name, part_rows, cases)
        found[f"chunks {name}"] = of(name, chunk_rows, [(batch, 16) for batch, _ in batches] if gpu else [(1, 2)])
        found[f"layout {name}"] = of(name, layout_rows)
        found[f"step {name}"] = of(name, step_rows, 0.5 if name == "ssd300-vgg16" else 0.4)
        if name in IMAGES:
            found[f"images {name}"] = of(name, image_rows)
        if name in ("ssd300-vgg16", "resnet20"):
            found[f"spikingjelly {name}"] = of(name, rival_rows)
        if name == "ssd300-vgg16":
            found["device"] = lambda: device_rows(clock)
            found["accuracy"] = lambda: accuracy_rows(clock)
    # last, for a capture that fails spoils the process; the batch of 1 first
    cases = [(batch, T, neuron) for batch, T in reversed(batches) for neuron in ("if", "msat")]
    return found | {f"replay {name}": of(name, replay_rows, cases) for name in CASES if gpu}


def shown(row: dict) -> str:
    def cell(value: Any) -> str:
        if not isinstance(value, float):
            return str(value)
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"

    return "  ".join(f"{key} {cell(value)}" for key, value in row.items() if value is not None)


def machine(device: torch.device) -> dict:
    facts: dict[str, Any] = {"PyTorch": torch.__version__, "device": str(device)}
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        facts |= {"card": card.name, "gb": card.total_memory / 1e9, "cudnn": torch.backends.cudnn.version()}
    return facts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the program; %(default)s")
    parser.add_argument("--seconds", type=float, default=280.0, help="after which no part is begun; %(default)s")
    parser.add_argument("--json", type=Path, help="results; $OUT/gpu.json where OUT is set")
    parser.add_argument("--part", nargs="+", help="parts whose names begin so; all")
    args = parser.parse_args()
    device = torch.device(args.device)
    if device.type == "cuda":
        device = torch.device("cuda", torch.cuda.current_device())
    file = args.json or (Path(os.environ["OUT"]) / "gpu.json" if os.environ.get("OUT") else None)
    clock, failed = Clock(device, args.seconds), 0
    results: dict[str, Any] = {"machine": machine(device)}
    print(shown(results["machine"]), flush=True)
    for name, rows in parts(clock).items():
        if args.part and not any(name.startswith(part) for part in args.part):
            continue
        if clock.left < 0:
            print(f"== {name}: no time left", flush=True)
            continue
        print(f"== {name} ({clock.left:.0f} s left)", flush=True)
        results[name] = []
        try:
            for row in rows():
                results[name].append(row)
                print(shown(row), flush=True)
        except Exception:  # noqa: BLE001 (the other parts are wanted)
            failed += 1
            traceback.print_exc()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        if file:
            file.write_text(json.dumps(results, indent=1) + "\n")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
