"""The command line: what the tools/ shims and the console script ``msat-det`` call."""

import argparse
import functools
import importlib
import re
import sys
from pathlib import Path

from msat_det.base.config import MOST_TIMESTEPS
from msat_det.base.errors import InputError
from msat_det.run.arguments import Parser, load_config, whole
from msat_det.run.terminal import guarded, once

REGISTRIES = {
    "methods": ("msat_det.methods", "METHODS"),
    "detectors": ("msat_det.models", "DETECTORS"),
    "classifiers": ("msat_det.models.classifiers", "CLASSIFIERS"),
}

ABOUT_RUN = """\
Converts the {network} of a configuration file into spiking networks, one for each of the
file's methods, runs them on the evaluated images for T timesteps and writes what they still
{verb} at every recorded timestep, beside the float network. The run directory (--out) then
holds report.html, a page that shows it all, curve.csv, summary.json, coverage.json, coverage.svg,
curve.png, TensorBoard events{pictures}.

Any key of the file can be set here as --key value. Relative paths are relative to the working
directory here and to the project root in the file; $MSAT_SHARED_DATA stands for
../shared/data beside the project."""

EXAMPLES_DETECTION = """\
examples:
  python tools/convert_det.py --cfg configs/yolo_voc.yaml
  python tools/convert_det.py --cfg configs/yolo_voc.yaml --methods signed-b3,staged-4 --sim.T 16 --data.limit 32
  python tools/convert_det.py --cfg configs/ssd_coco.yaml --data.root ~/coco --out runs/coco
  tensorboard --logdir runs"""

EXAMPLES_CLASSIFICATION = """\
examples:
  python tools/eval_cls.py --cfg configs/vgg_demo.yaml
  python tools/eval_cls.py --cfg configs/vgg_demo.yaml --sim.record 8,16,32 --out runs/vgg
  tensorboard --logdir runs"""

ABOUT_COMPARE = """\
Runs all methods of a configuration file (with --methods all: every method of the registry under
its own name) on one network and one set of images, and sets them side by side. Beside the usual
files, the run directory (--out) then holds compare.md and compare.csv: accuracy or mAP at every
recorded timestep, spikes per neuron, synaptic operations and energy of every method, and the
paper's own figures, marked as such; and pareto.png: accuracy against operations and energy."""

EXAMPLES_COMPARE = """\
examples:
  msat-det compare --cfg configs/vgg_demo.yaml --methods all
  msat-det compare --cfg configs/yolo_voc.yaml --sim.record 8,16,32 --data.limit 32 --out runs/side-by-side"""

ABOUT_INSPECT = """\
Says of every node of a configuration's network what it becomes, without running it in time: traces
it, observes the calibration images, converts it by the file's methods and prints a table: source
line, kind, neuron, range of thresholds θ (of the first method: --methods picks), channels without
any activation, multiply-adds and the share of them that is paid in full at every timestep. The run
directory (--out) then holds the table of all methods as coverage.txt and coverage.json, and the
graph, coloured by kind, as coverage.svg."""

EXAMPLES_INSPECT = """\
examples:
  msat-det inspect --cfg configs/yolo_voc.yaml
  msat-det inspect --cfg configs/vgg_demo.yaml --methods signed --calib.limit 8 --out runs/look"""

ABOUT_DOCTOR = """\
Says where the error of every method of a configuration comes from. Runs them on a few calibration
images (--images N, 8 by default), takes the error of every layer's neurons apart (what the layers
before handed on, clipping, neurons that should be silent, quantisation) and prints of each method
the three call sites that harm the outputs most, each with its cause and a mend that was tried on
the same images. The run directory (--out) then holds ledger.json and doctor.json, and doctor/ the
pictures and TensorBoard events. The configuration key ledger.images makes a run do this at its end."""

EXAMPLES_DOCTOR = """\
examples:
  msat-det doctor --cfg configs/vgg_demo.yaml --methods msat,signed --sim.T 16
  msat-det doctor --cfg configs/yolo_voc.yaml --images 4 --out runs/look"""

ABOUT_REPORT = """\
Of one run directory: makes its report.html anew from its other files. Of several: lays them side by
side in one page, all methods in one table and the curves over one another; they must have measured
the same accuracy on the same images. A page needs nothing but itself, no network either."""

EXAMPLES_REPORT = """\
examples:
  msat-det report runs/yolo_voc
  msat-det report runs/45nm runs/7nm runs/longer --out all.html"""

ABOUT_EXPORT = """\
Converts one method of a configuration on its calibration images and writes it into one file, which
Python's msat_det.load(FILE) runs with the same results to the bit. With --onnx the file is one
timestep as an ONNX graph: image, timestep and neuron states in, outputs and states out; before it
is written, onnxruntime runs it beside msat-det for eight steps. Evaluated images are not touched.
Any key of the configuration can be set as --key value, as for convert-det."""

EXAMPLES_EXPORT = """\
examples:
  msat-det export --cfg configs/yolo_voc.yaml --method signed --out yolo.safetensors
  msat-det export --cfg configs/yolo_voc.yaml --method signed --out yolo.onnx --onnx"""

USAGE = """\
usage: msat-det COMMAND …

Turns float object detectors and classifiers into spiking networks and measures what they still know after T timesteps.

commands:
  convert-det --cfg FILE [--key value …]        convert a detector: mAP over time
  eval-cls --cfg FILE [--key value …]           convert a classifier: accuracy over time
  compare --cfg FILE [--key value …]            all methods of a file, or of the registry, in one table
  inspect --cfg FILE [--key value …]            what every node of the network becomes: table and picture
  doctor --cfg FILE [--images N] [--key value …] the worst layers of every method, with cause and mend
  report DIR … [--out FILE]                     the page of a run, or several runs side by side in one
  export --cfg FILE --method LABEL --out FILE   one method as a file to be run elsewhere; --onnx for other runtimes
  fetch NAME … [--root DIR]                     data sets and weights by name; --list shows them
  list methods|detectors|classifiers            the names that a configuration may use, one a line

Each command explains itself: msat-det convert-det --help"""


@guarded
def convert_det(argv: list[str]) -> None:
    """``tools/convert_det.py``: mAP over time of a detector's conversions."""
    about = ABOUT_RUN.format(network="detector", verb="detect", pictures=", pictures of boxes")
    _run("detection", argv, "convert_det.py", about, EXAMPLES_DETECTION)


@guarded
def eval_cls(argv: list[str]) -> None:
    """``tools/eval_cls.py``: accuracy over time of a classifier's conversions."""
    about = ABOUT_RUN.format(network="classifier", verb="recognise", pictures="")
    _run("classification", argv, "eval_cls.py", about, EXAMPLES_CLASSIFICATION)


@guarded
def compare(argv: list[str]) -> None:
    """``msat-det compare``: the methods of a configuration side by side."""
    config = load_config(argv, "msat-det compare", ABOUT_COMPARE, EXAMPLES_COMPARE)
    from msat_det.run.compare import compare

    compare(config)


@once
def inspect(argv: list[str]) -> None:
    """``msat-det inspect``: what every node of a configuration's network becomes."""
    config = load_config(argv, "msat-det inspect", ABOUT_INSPECT, EXAMPLES_INSPECT)
    from msat_det.run.inspect import inspect_network

    inspect_network(config)


@once
def doctor(argv: list[str]) -> None:
    """``msat-det doctor``: where the error of a configuration's methods comes from."""
    words = [re.sub(r"^--images(?==|$)", "--ledger.images", word) for word in argv]
    config = load_config(words, "msat-det doctor", ABOUT_DOCTOR, EXAMPLES_DOCTOR)
    from msat_det.run.doctor import doctor

    doctor(config)


@once
def report(argv: list[str]) -> None:
    """``msat-det report``: the page of a run directory, or of several side by side."""
    parser = Parser(
        "msat-det report",
        usage="msat-det report DIR … [--out FILE]",
        description=ABOUT_REPORT,
        epilog=EXAMPLES_REPORT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="DIR", type=Path, help="run directories")
    text = "the page (default: report.html in the one directory, comparison.html here for several)"
    parser.add_argument("--out", metavar="FILE", type=Path, help=text)
    given = parser.parse_args(argv)
    from msat_det.report.page.page import write_report

    print(write_report(given.runs, given.out))


@once
def export(argv: list[str]) -> None:
    """``msat-det export``: one method of a configuration as a file."""
    parser = Parser(
        "msat-det export",
        usage="msat-det export --cfg FILE --method LABEL --out FILE [--t T] [--onnx] [--key value …]",
        description=ABOUT_EXPORT,
        epilog=EXAMPLES_EXPORT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--method", metavar="LABEL", required=True, help="label of one of the file's methods")
    parser.add_argument("--out", metavar="FILE", type=Path, required=True, help="the file to write")
    text = "timestep that the method is made for, where it is made for one (default: its last recorded one)"
    parser.add_argument("--t", metavar="T", type=whole(1, MOST_TIMESTEPS), help=text)
    parser.add_argument("--onnx", action="store_true", help="write one timestep as ONNX")
    given, words = parser.parse_known_args(argv)
    if "," in given.method:
        raise InputError(f"--method is {given.method}: give one label")
    config = load_config([*words, "--methods", given.method], "msat-det export")
    from msat_det.run.export import export

    export(config, given.t, given.out, given.onnx)


@once
def list_names(argv: list[str]) -> None:
    """``msat-det list KIND``: the names in one registry, one a line, and what each method does."""
    if len(argv) != 1 or argv[0] not in REGISTRIES:
        raise InputError(f"list takes one of {', '.join(REGISTRIES)}")
    module, registry = REGISTRIES[argv[0]]
    things = getattr(importlib.import_module(module), registry)
    print("\n".join(f"{name:18} {thing}" if argv[0] == "methods" else name for name, thing in things.items()))


@functools.partial(guarded, again="the same command goes on from here")
def fetch(argv: list[str]) -> None:
    """``tools/fetch.py``: data sets and weights by name."""
    from msat_det.run.fetch import fetch

    fetch(argv)


COMMANDS = {
    "convert-det": convert_det,
    "eval-cls": eval_cls,
    "compare": compare,
    "inspect": inspect,
    "doctor": doctor,
    "report": report,
    "export": export,
    "fetch": fetch,
    "list": list_names,
}


def main(argv: list[str] | None = None) -> int:
    """``msat-det COMMAND …``. Returns the exit status."""
    command, *words = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if command in ("-h", "--help"):
        return usage(words)
    return COMMANDS[command](words) if command in COMMANDS else unknown([command])


@once
def usage(_: list[str]) -> None:
    """``msat-det --help``."""
    print(USAGE)


@once
def unknown(argv: list[str]) -> None:
    """``msat-det`` with a command that it does not have."""
    raise InputError(f"no command {argv[0]}: give one of {', '.join(COMMANDS)}")


def _run(task: str, argv: list[str], prog: str, about: str, examples: str) -> None:
    config = load_config(argv, prog, about, examples)
    # only now: PyTorch takes seconds to import, a wrong option is told at once
    from msat_det.run.experiment import run

    run(config, task=task)
