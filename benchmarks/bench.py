"""What a timestep costs against a float forward pass, and the rest of docs/performance.md.

    python benchmarks/bench.py --quick --json bench.json
    python benchmarks/bench.py --json bench.json
    python benchmarks/bench.py --part rows --network yolo-nano --neuron if msat --batch 1 --T 8 --json bench.json

Writes FILE and, as tables, the same name with .md; both after every row, so that a long run may be cut short. The float
forward is batch-norm-folded, eager, with the same layout, batch and threads, and runs in turns with the simulation in
one process. Peak memory is that of the whole process while it does so, its high-water mark started anew for each row.
"""

import argparse
import itertools
import json
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch

from benchmarks import conversion, corrections, end_to_end, evaluation, memory, networks, rival, scan, sparse
from benchmarks.networks import NETWORKS, NEURONS, Bench
from benchmarks.timing import ratio
from msat_det.base.errors import InputError
from msat_det.base.files import write_whole
from msat_det.run.arguments import Parser
from msat_det.run.terminal import once

FOUR = [name for name in NETWORKS if name != "vgg16-cifar"]
# Key in the JSON file, --part → heading in the Markdown file.
PARTS = {
    "rows": "A timestep over a float forward, and peak memory",
    "scan": "The neurons alone",
    "spikingjelly": "Against SpikingJelly's multi-step mode",
    "memory": "Peak memory over T",
    "decode": "Decoding at t = 1",
    "scoring": "COCO's mAP of one (method, t)",
    "sparse": "Event-driven convolutions",
    "corrections": "A timestep of delta coding, over its events",
    "conversion": "Converting",
    "end_to_end": "The whole command",
}


def parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="ssd-mobilenet at batch 4, T = 8: under a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="results, with FILE.md beside them")
    parser.add_argument("--part", nargs="+", choices=PARTS, metavar="PART", help=f"of {', '.join(PARTS)} (all)")
    parser.add_argument("--network", nargs="+", choices=NETWORKS, metavar="NAME", help=f"of {', '.join(NETWORKS)}")
    parser.add_argument("--neuron", nargs="+", choices=NEURONS, metavar="NAME", help=f"of {', '.join(NEURONS)} (all)")
    parser.add_argument("--batch", nargs="+", type=int, metavar="N", help="1 16")
    parser.add_argument("--T", nargs="+", type=int, metavar="N", help="8 64")
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), metavar="N", help="of PyTorch; %(default)s"
    )
    parser.add_argument("--seconds", type=float, metavar="S", help="for the repeats of one ratio; 60, --quick 4")
    args = parser.parse_args(argv)
    quick = {"part": ["rows"], "network": FOUR[:1], "batch": [4], "T": [8], "seconds": 4.0}
    full = {"part": list(PARTS), "batch": [1, 16], "T": [8, 64], "seconds": 60.0}
    for name, value in ((quick if args.quick else full) | {"neuron": list(NEURONS)}).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if min(args.batch + args.T + [args.threads]) < 1 or max(args.batch) > networks.MOST:
        parser.error(f"--batch takes 1 to {networks.MOST}, --T and --threads 1 and more")
    if not 0 < args.seconds < float("inf"):
        parser.error(f"--seconds is {args.seconds}: give a number above 0")
    return args


def loaded(names: list[str] | None) -> Iterator[tuple[str, Bench]]:
    """The networks asked for, or the four; of those, one that lacks a file is left out."""
    for name in names or FOUR:
        try:
            yield name, networks.load(name)
        except InputError as error:
            if names:
                raise
            print(f"left out: {error}", file=sys.stderr)


def step_rows(args: argparse.Namespace) -> Iterator[dict]:
    """One dict for each network, neuron, batch and T."""
    for name, bench in loaded(args.network):
        for batch in args.batch:
            float_forward = bench.float_forward(batch)
            float_forward()
            for T in args.T:
                for neuron in args.neuron:
                    bench.simulation(neuron, batch, min(T, 2))()  # what happens once: kernel, memory
                    simulate = bench.simulation(neuron, batch, T)
                    memory.forget_peak()
                    measured = ratio(simulate, float_forward, args.seconds)
                    yield {
                        "network": name,
                        "neuron": neuron,
                        "batch": batch,
                        "T": T,
                        "cost_per_step_over_float": measured.value / T,
                        "peak_mb": memory.resident("VmHWM"),
                        "low": measured.low / T,
                        "high": measured.high / T,
                        "repeats": measured.repeats,
                        "float_ms": measured.baseline * 1e3,
                        "weights": bench.weights,
                    }


def memory_rows(args: argparse.Namespace) -> Iterator[dict]:
    """Peak memory of SSD-MobileNet at T = 8, 64 and 256, each in a process of its own."""
    name = FOUR[0]
    for batch, neuron in itertools.product((4, 16), args.neuron):
        peaks = {T: memory.peak(name, neuron, batch, T, args.threads)["peak_mb"] for T in (8, 64, 256)}
        columns = {f"peak_mb_T{T}": peak for T, peak in peaks.items()}
        yield {"network": name, "neuron": neuron, "batch": batch, **columns, "T256_over_T8": peaks[256] / peaks[8]}


def part_rows(part: str, args: argparse.Namespace) -> Iterator[dict]:
    if part == "rows":
        return step_rows(args)
    if part == "scan":
        return scan.rows(args.threads)
    if part == "spikingjelly":
        return rival.rows(args.network or list(NETWORKS), args.threads, args.seconds)
    if part == "memory":
        return memory_rows(args)
    if part == "decode":
        return evaluation.decode_rows(args.network or FOUR)
    if part == "corrections":
        return corrections.rows(loaded(args.network), args.batch)
    if part == "conversion":
        return conversion.rows(args.threads)
    if part == "sparse":
        return sparse.rows(loaded(args.network), args.neuron)
    return evaluation.scoring_rows() if part == "scoring" else end_to_end.rows(args.threads)


def table(rows: list[dict]) -> str:
    """Rows with the same keys as a Markdown table."""

    def cell(value: object) -> str:
        if isinstance(value, float):
            return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
        return "" if value is None else str(value)

    lines = [list(rows[0]), ["---"] * len(rows[0]), *([cell(value) for value in row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write(path: Path, results: dict) -> None:
    """The JSON file, and its tables beside it."""
    machine = ", ".join(f"{key} {value}" for key, value in results["machine"].items())
    sections = [f"## {PARTS[part]}\n\n{table(results[part])}" for part in PARTS if results.get(part)]
    write_whole(path, lambda part: part.write_text(json.dumps(results, indent=2) + "\n"))
    text = "\n\n".join([f"`{results['command']}`: {machine}", *sections]) + "\n"
    write_whole(path.with_suffix(".md"), lambda part: part.write_text(text))


@once
def main(argv: list[str]) -> None:
    args = parse(argv)
    torch.set_num_threads(args.threads)
    results: dict[str, Any] = {
        "command": " ".join(["python benchmarks/bench.py", *argv]),
        "machine": {"processor": processor(), "threads": args.threads, "PyTorch": torch.__version__},
        "rows": [],
    }
    for part in args.part:
        rows = results[part] = []
        if part == "spikingjelly" and len(args.part) > 1 and (lacking := rival.missing()):
            print(f"left out: the comparison with SpikingJelly: {lacking}", file=sys.stderr)
            continue
        for row in part_rows(part, args):
            rows.append(row)
            print(table([row]) if len(rows) == 1 else table([row]).splitlines()[-1], flush=True)
            if args.json:
                write(args.json, results)
        print(flush=True)
    if args.json:
        write(args.json, results)


def processor() -> str:
    """The processor's name as Linux or the platform tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return name or platform.processor() or platform.machine()


if __name__ == "__main__":
    sys.exit(main())
