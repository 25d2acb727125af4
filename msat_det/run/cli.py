"""The command line: what the console script ``msat-det`` and its shims in tools/ call."""

import argparse
import functools
import importlib
import re
import sys
from contextlib import suppress
from pathlib import Path

from msat_det.base import __version__, ranks
from msat_det.base.config import MOST_TIMESTEPS
from msat_det.base.errors import InputError, enough_memory
from msat_det.base.names import hint
from msat_det.base.settings import SHARE, keys_of, known_configs
from msat_det.run.arguments import Parser, load_config, whole
from msat_det.run.terminal import guarded, once

REGISTRIES = {
    "methods": ("msat_det.methods", "METHODS"),
    "detectors": ("msat_det.models", "DETECTORS"),
    "classifiers": ("msat_det.models.classifiers", "CLASSIFIERS"),
}

ABOUT_RUN = """\
Converts the detector or classifier of a configuration into spiking networks, one for each of its
methods, runs them on the evaluated images for T timesteps and writes what they still detect or
recognise at every recorded timestep, next to the float network. The run directory (--out) then
holds report.html, a page that shows everything, curve.csv, summary.json, coverage.json, coverage.svg,
curve.png, TensorBoard events, and pictures of a detector's boxes.

CONFIG is a YAML file, or the name of an included configuration (msat-det list configs). Any key of
it can be set here as --key value. Relative paths count from the working directory here, and in a
file from the folder of that file; $MSAT_DET_DATA is ~/data unless set.

A finished run is never overwritten: without --overwrite the next one goes to
runs/NAME-2."""

EXAMPLES_RUN = """\
examples:
  msat-det run yolo_voc
  msat-det run yolo_voc --methods signed-b3,staged-4 --sim.T 16 --data.limit 32
  msat-det run vgg_demo --sim.record 8,16,32 --out runs/vgg
  msat-det run ssd_coco --data.root ~/coco --out runs/coco
  tensorboard --logdir runs"""

ABOUT_COMPARE = """\
Runs all methods of a configuration file (with --methods all: every method of the registry under
its own name) on one network and one set of images, and compares them. In addition to the usual
files, the run directory (--out) then holds compare.md and compare.csv: accuracy or mAP at every
recorded timestep, spikes per neuron, synaptic operations and energy of every method, and the
paper's own figures, marked as such; and pareto.png: accuracy against operations and energy."""

EXAMPLES_COMPARE = """\
examples:
  msat-det compare vgg_demo --methods all
  msat-det compare yolo_voc --sim.record 8,16,32 --out runs/side-by-side"""

ABOUT_INSPECT = """\
Shows what every node of a configuration's network becomes, without simulating it: traces it,
observes the calibration images, converts it by the file's methods and prints a table: source line,
kind, neuron, range of thresholds θ (of the first method: --methods picks), channels without
any activation, multiply-adds and the share of them that is paid in full at every timestep. The run
directory (--out) then holds the table of all methods as coverage.txt and coverage.json, and the
graph, coloured by kind, as coverage.svg."""

EXAMPLES_INSPECT = """\
examples:
  msat-det inspect yolo_voc
  msat-det inspect vgg_demo --methods signed --calib.limit 8 --out runs/look"""

ABOUT_DOCTOR = """\
Shows where the error of every method of a configuration comes from. Runs them on a few calibration
images (--images N, 8 by default), splits the error of every layer's neurons by cause (inherited from
earlier layers, clipping, neurons that should be silent, quantisation) and prints for each method
the three call sites that harm the outputs most, each with its cause and a remedy that was tried on
the same images. The run directory (--out) then holds ledger.json and doctor.json, and doctor/ the
pictures and TensorBoard events. The configuration key ledger.images makes a run do this at its end."""

EXAMPLES_DOCTOR = """\
examples:
  msat-det doctor vgg_demo --methods msat,signed --sim.T 16
  msat-det doctor yolo_voc --images 4 --out runs/look"""

ABOUT_REPORT = """\
For one run directory: makes its report.html again from its other files. For several: shows them in
one page, all methods in one table and all curves in one plot; they must have measured the same
accuracy on the same images. A page needs no other files and no network."""

EXAMPLES_REPORT = """\
examples:
  msat-det report runs/yolo_voc
  msat-det report runs/45nm runs/7nm runs/longer --out all.html"""

ABOUT_EXPORT = """\
Converts one method of a configuration on its calibration images and writes it into one file, which
Python's msat_det.load(FILE) runs with the same results to the bit. With --onnx the file is one
timestep as an ONNX graph: image, timestep and neuron states in, outputs and states out; before it
is written, onnxruntime runs it beside msat-det for eight steps. Evaluated images are not touched.
Any key of the configuration that has to do with this can be set as --key value, as for run."""

EXAMPLES_EXPORT = """\
examples:
  msat-det export yolo_voc --method signed --out yolo.safetensors
  msat-det export yolo_voc --method signed --out yolo.onnx --onnx"""

COMPLETION = """\
# bash: eval "$(msat-det completion)" in ~/.bashrc; zsh: autoload -U +X bashcompinit && bashcompinit before it
_msat_det() {
    local word=${COMP_WORDS[COMP_CWORD]} words
    case $COMP_CWORD:${COMP_WORDS[1]}:$word in
        1:*) words="COMMANDS" ;;
        2:list:*) words="LISTS" ;;
        *:*:-*) words="KEYS" ;;
        2:*) words="CONFIGS" ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}
complete -o default -F _msat_det msat-det"""

ABOUT_DETECT = """\
Detects on pictures of your own with a spiking network: pictures, all of a folder, those that match a
pattern in quotes ('photos/**/*.jpg'), or a video (pip install 'msat-det[video]'). Writes each
of them with its boxes and a detections.json in COCO's form (with scores) into --out, and prints a
line for each. With --cfg keys of the configuration's network, calibration and methods can be set as
--key value."""

EXAMPLES_DETECT = """\
examples:
  msat-det detect photo.jpg --cfg yolo_voc
  msat-det detect holiday/ --cfg yolo_voc --method staged-4 --t 4 --compare
  msat-det detect street.mp4 --model yolo.safetensors --classes person,car"""

ABOUT_LIST = """\
Prints the names of one kind that may be used, one a line: the included configurations, the conversion methods with what
each does and from where it is, the detectors or the classifiers."""

ABOUT_COMPLETION = """\
Prints what makes bash complete the commands, configurations and keys: put the line of the example into ~/.bashrc. In
zsh, put `autoload -U +X bashcompinit && bashcompinit` before it."""

EXAMPLES_COMPLETION = """\
example:
  eval "$(msat-det completion)\""""

USAGE = """\
usage: msat-det COMMAND …

Turns float object detectors and classifiers into spiking networks and measures
what they still know after T timesteps.

commands:
  run CONFIG      convert a network: mAP, or accuracy, over time
  compare CONFIG  all methods of a file, or of the registry, in one table
  inspect CONFIG  what every node of the network becomes: table and picture
  doctor CONFIG   the worst layers of every method, with cause and remedy
  export CONFIG   one method as a file to run elsewhere, or as ONNX
  detect SOURCE   boxes on pictures, folders or videos of your own
  report DIR …    the page of a run, or several runs side by side in one
  fetch NAME …    data sets and weights by name; --list shows them
  train           a float classifier from scratch, to be converted
  list KIND       names of configs, methods, detectors or classifiers
  completion      prints the shell completion of these commands

CONFIG is a YAML file, or the name of an included configuration:
msat-det run yolo_voc
Each command has its own help: msat-det run --help
--quiet turns progress bars off, --version prints the version."""


# Keys and sections of a configuration that only run and compare have a use for, and other commands none.
EVALUATION = "data.split data.annotations data.images data.limit data.held_out data.corrupt draw exit bootstrap".split()
EVALUATION += ["resume", "strict"]
IDLE = {"inspect": [*EVALUATION, "ledger"], "doctor": EVALUATION}
IDLE["export"] = IDLE["detect"] = [*EVALUATION, "ledger", "overwrite"]

ELSEWHERE = "give --device cpu"
configured = functools.partial(enough_memory, "give a smaller --batch, --sim.chunk or --model.size", ELSEWHERE)


@guarded
@configured()
def run(argv: list[str]) -> None:
    """``msat-det run``: accuracy over time of a network's conversions."""
    config = load_config(argv, "msat-det run", ABOUT_RUN, EXAMPLES_RUN)
    # only now: PyTorch takes seconds to import, a wrong option is told at once
    from msat_det.run.experiment import run
    from msat_det.run.prepare import task_of

    run(config, task=task_of(config))


@guarded
@configured()
def compare(argv: list[str]) -> None:
    """``msat-det compare``: the methods of a configuration side by side."""
    config = load_config(argv, "msat-det compare", ABOUT_COMPARE, EXAMPLES_COMPARE)
    from msat_det.run.compare import compare

    compare(config)


@once
@configured()
def inspect(argv: list[str]) -> None:
    """``msat-det inspect``: what every node of a configuration's network becomes."""
    config = load_config(argv, "msat-det inspect", ABOUT_INSPECT, EXAMPLES_INSPECT, IDLE["inspect"])
    from msat_det.run.inspect import inspect_network

    inspect_network(config)


@once
@configured()
def doctor(argv: list[str]) -> None:
    """``msat-det doctor``: where the error of a configuration's methods comes from."""
    words = [re.sub(r"^--images(?==|$)", "--ledger.images", word) for word in argv]
    config = load_config(words, "msat-det doctor", ABOUT_DOCTOR, EXAMPLES_DOCTOR, IDLE["doctor"])
    from msat_det.run.doctor import doctor

    doctor(config)


@once
def report(argv: list[str]) -> None:
    """``msat-det report``: the page of a run directory, or of several side by side."""
    parser = Parser("msat-det report", "DIR … [--out FILE]", ABOUT_REPORT, EXAMPLES_REPORT)
    parser.add_argument("runs", nargs="+", metavar="DIR", type=Path, help="run directories")
    text = "the page (default: report.html in the one directory, comparison.html here for several)"
    parser.add_argument("--out", metavar="FILE", type=Path, help=text)
    given = parser.parse_args(argv)
    from msat_det.report.page.page import write_report

    print(write_report(given.runs, given.out))


@once
@configured()
def export(argv: list[str]) -> None:
    """``msat-det export``: one method of a configuration as a file."""
    usage = "CONFIG --method LABEL --out FILE [option …]"
    parser = Parser("msat-det export", usage, ABOUT_EXPORT, EXAMPLES_EXPORT, allow_abbrev=False)
    parser.add_argument("--method", metavar="LABEL", required=True, help="label of one of the file's methods")
    parser.add_argument("--out", metavar="FILE", type=Path, required=True, help="the file to write")
    text = "timestep that the method is made for, where it is made for one (default: its last recorded one)"
    parser.add_argument("--t", metavar="T", type=whole(1, MOST_TIMESTEPS), help=text)
    parser.add_argument("--onnx", action="store_true", help="write one timestep as ONNX")
    given, words = parser.parse_known_args(argv)
    if "," in given.method:
        raise InputError(f"--method is {given.method}: give one label")
    refuse_unused(words, {"precision": "a file holds none, set that of the network that is loaded"})
    words += ["--methods", given.method, "--out", str(given.out)]
    config = load_config(words, "msat-det export", idle=IDLE["export"])
    from msat_det.run.export import export

    export(config, given.t, given.out, given.onnx)


@once
def detect(argv: list[str]) -> None:
    """``msat-det detect``: a detector on pictures of your own."""
    usage = "SOURCE … --cfg FILE | --model FILE [option …]"
    parser = Parser("msat-det detect", usage, ABOUT_DETECT, EXAMPLES_DETECT, allow_abbrev=False)
    text = "pictures, folders, patterns in quotes, or one video"
    parser.add_argument("sources", metavar="SOURCE", nargs="+", help=text)
    parser.add_argument("--cfg", metavar="FILE", help="configuration whose detector is converted, on its calibration")
    parser.add_argument("--model", metavar="FILE", type=Path, help="a network that msat-det export or Python saved")
    text = "a label of the configuration, or a name that `msat-det list methods` shows (default: delta-3)"
    parser.add_argument("--method", metavar="NAME", help=text)
    parser.add_argument(
        "--t",
        metavar="T",
        type=whole(1, MOST_TIMESTEPS),
        help="timesteps (default: 32, under delta coding 4; of a saved network its own, under delta coding at most 4)",
    )
    parser.add_argument("--classes", metavar="NAME,NAME", default="", help="only these classes")
    text = "lowest score of a box (default: 0.3; 0.65 for FastestDet, whose scores run high)"
    parser.add_argument("--score", metavar="X", type=share, help=text)
    text = "auto, cpu, cuda, cuda:N or mps (default: auto, or the configuration's)"
    parser.add_argument("--device", metavar="NAME", help=text)
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("runs/detect"), help="default: %(default)s")
    parser.add_argument("--compare", action="store_true", help="the float network's boxes and those over t, in a row")
    given, words = parser.parse_known_args(argv)
    if (given.cfg is None) == (given.model is None):
        raise InputError("give the network, either by --cfg FILE or by --model FILE")
    if given.model and (words or given.method):
        raise InputError(
            f"{(words or ['--method'])[0]} does not go with --model, a network that is converted: leave it out"
        )
    network = given.model
    if given.cfg is not None:
        refuse_unused(words, {"sim.T": "give --t", "sim.record": "give --t", "methods": "give --method"})
        words += ["--device", given.device] if given.device else []
        # a T of sim, which a file may lack: --t is what counts
        words = ["--cfg", given.cfg, *words, "--out", str(given.out), "--sim.T", str(given.t or 1)]
        network = load_config(words, "msat-det detect", idle=IDLE["detect"])
    from msat_det.run.detect import Wanted, detect

    classes = tuple(name.strip() for name in given.classes.split(",") if name.strip())
    wanted = Wanted(given.out, given.t, classes, given.score, given.compare, given.device or "auto")
    with configured() if given.cfg else enough_memory(ELSEWHERE):
        folder = detect(given.sources, network, given.method, wanted)
    print(f"pictures and detections.json are in {folder}")


def refuse_unused(words: list[str], mends: dict[str, str]) -> None:
    """Raise InputError for a key on the command line that a command has no use for. mends: what to do instead."""
    for word in words:
        key = word.partition("=")[0].removeprefix("--")
        if key in mends and word.startswith("--"):
            raise InputError(f"--{key} has no effect here: {mends[key]}")


@once
def list_names(argv: list[str]) -> None:
    """``msat-det list KIND``: the names in one registry, one a line, and what each method does."""
    kinds = ["configs", *REGISTRIES]
    parser = Parser("msat-det list", "KIND", ABOUT_LIST)
    parser.add_argument("kind", metavar="KIND", nargs="*", help=", ".join(kinds))
    match parser.parse_args(argv).kind:
        case ["configs"]:
            print("\n".join(known_configs()))
        case [kind] if kind in REGISTRIES:
            module, registry = REGISTRIES[kind]
            things = getattr(importlib.import_module(module), registry)
            print("\n".join(f"{name:18} {thing}" if kind == "methods" else name for name, thing in things.items()))
        case words:
            raise InputError(hint(" ".join(words), kinds, f"list takes one of {', '.join(kinds)}"))


@functools.partial(guarded, again="the same command goes on from here")
def fetch(argv: list[str]) -> None:
    """``msat-det fetch``: data sets and weights by name."""
    from msat_det.run.fetch import fetch

    fetch(argv)


@functools.partial(guarded, again="the same command with --resume goes on after the last finished epoch")
@enough_memory("give a smaller --batch")
def train(argv: list[str]) -> None:
    """``msat-det train``: a float classifier from scratch, by tools/training/, which comes along."""
    sys.path.append(str(SHARE / "tools"))
    from training.classifiers import main

    main(argv)


@once
def completion(argv: list[str]) -> None:
    """``msat-det completion``: what a shell evaluates to complete commands, configurations and keys."""
    parser = Parser("msat-det completion", None, ABOUT_COMPLETION, EXAMPLES_COMPLETION)
    if parser.parse_known_args(argv)[1]:
        raise InputError("completion takes no words")
    words = {
        "COMMANDS": [*COMMANDS, "--help", "--version"],
        "LISTS": ["configs", *REGISTRIES],
        "KEYS": ["--help", "--quiet", *(f"--{key}" for key in keys_of())],
        "CONFIGS": known_configs(),
    }
    print(re.sub("|".join(words), lambda match: " ".join(words[match[0]]), COMPLETION))


def share(word: str) -> float:
    """A number from 0 to 1, for argparse."""
    with suppress(ValueError):
        if 0 <= (value := float(word)) <= 1:
            return value
    raise argparse.ArgumentTypeError(f"{word!r} is no number from 0 to 1")


COMMANDS = {
    "run": run,
    "compare": compare,
    "inspect": inspect,
    "doctor": doctor,
    "export": export,
    "detect": detect,
    "report": report,
    "fetch": fetch,
    "train": train,
    "list": list_names,
    "completion": completion,
}
FORMER = {"convert-det": run, "eval-cls": run}  # names that run had once
SHARED = ("run", "compare", *FORMER)  # what ranks do together


def main(argv: list[str] | None = None) -> int:
    """``msat-det COMMAND …``. Returns the exit status. ``--quiet`` may stand before the command, too."""
    given = sys.argv[1:] if argv is None else argv
    command, *words = [word for word in given if word != "--quiet"] or ["--help"]
    if command == "help":
        command, words = (words or ["--help"])[0], ["--help"]
    if command in ("-h", "--help", "-V", "--version"):
        return tell([command])
    commands = COMMANDS | FORMER
    quiet = ["--quiet"] if "--quiet" in given else []
    if command not in commands:
        known = f"give one of {', '.join(COMMANDS)}"
        return refuse([f"no command {command}: {hint(command, COMMANDS, known)}"])
    if ranks.count() > 1 and command not in SHARED:
        return refuse([f"{command} is done by one process: start it without torchrun"])
    return commands[command]([*words, *quiet])


@once
def tell(argv: list[str]) -> None:
    """``msat-det --help`` and ``msat-det --version``."""
    print(f"msat-det {__version__}" if argv[0] in ("-V", "--version") else USAGE)


@once
def refuse(argv: list[str]) -> None:
    """``msat-det`` with a command that it does not have, or does not share among ranks."""
    raise InputError(argv[0])
