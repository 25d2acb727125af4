"""How far mAP moves when only the last bits of the convolutions do: the same run with oneDNN's and PyTorch's own.

A spike whose potential stands within a last bit of its threshold tips over, and others after it: no two machines, nor a
GPU and a CPU, give the same spikes everywhere. What a single machine's two ways of summing up differ by is what a
comparison between machines can't do better than.

    MSAT_DET_DATA=DIR python benchmarks/last_bits.py
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch

from msat_det.measure.rows import CurveRow
from msat_det.run.arguments import Parser, load_config
from msat_det.run.experiment import run
from msat_det.run.terminal import once

WORDS = "--methods if-signed-b3,staged-4,msat-signed-b3,delta-2,delta-3 --sim.record 1,2,4,8 --calib.limit 24"


def rows(cfg: str, words: str, onednn: bool) -> list[CurveRow]:
    """The curve of one run, with oneDNN's convolutions or PyTorch's own."""
    with torch.backends.mkldnn.flags(enabled=onednn), tempfile.TemporaryDirectory() as folder:
        return run(
            load_config(["--cfg", cfg, "--out", folder, "--device", "cpu", "--draw.images", "0", *words.split()])
        )


@once
def main(argv: list[str]) -> None:
    parser = Parser(description=__doc__)
    text = "configuration of a detector (default: real/ssd_mobilenet_coco)"
    parser.add_argument("--cfg", default="real/ssd_mobilenet_coco", help=text)
    parser.add_argument("--words", default=WORDS, help="what the runs set beside it (default: %(default)s)")
    given = parser.parse_args(argv)
    print(f"{'method':16} {'t':>3} {'oneDNN':>8} {'PyTorch':>8} {'apart':>6}  spikes/neuron")
    for one, other in zip(*(rows(given.cfg, given.words, onednn) for onednn in (True, False)), strict=True):
        a, b = one.metrics["map"], other.metrics["map"]
        spikes = "" if one.t is None else f"{one.spikes_per_neuron:.5f} {other.spikes_per_neuron:.5f}"
        print(f"{one.method:16} {one.t or '':>3} {a:8.3f} {b:8.3f} {b - a:6.3f}  {spikes}")


if __name__ == "__main__":
    sys.exit(main())
