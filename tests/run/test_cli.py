"""The commands as a shell meets them: exit status, one line on stderr, plain help."""

import contextlib
import importlib
import re
import runpy
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import get_args

import pytest

import msat_det
from msat_det.base import ranks
from msat_det.base.config import Config
from msat_det.base.errors import InputError
from msat_det.base.files import yaml_of
from msat_det.base.settings import PROJECT, keys_of, sections_of
from msat_det.run import cli
from msat_det.spiking.energy import TABLES


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list:
    """What the commands hand to msat_det.run.experiment.run, which is replaced."""
    calls: list[tuple[Config, str]] = []
    module = ModuleType("msat_det.run.experiment")
    module.run = lambda config, task: calls.append((config, task))
    monkeypatch.setitem(sys.modules, "msat_det.run.experiment", module)
    return calls


@pytest.mark.parametrize("tool", ["convert_det", "eval_cls"])
def test_tools_refuse_bad_input_without_a_traceback(tool: str, tmp_path: Path) -> None:
    script = PROJECT / "tools" / f"{tool}.py"
    command = [sys.executable, str(script)]
    done = subprocess.run([*command, "--cfg", "nope.yaml"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: no configuration nope.yaml")
    assert done.stderr.count("\n") == 1


def test_tools_hand_over_the_configuration(seen: list) -> None:
    words = ["--cfg", str(PROJECT / "configs/yolo_voc.yaml"), "--sim.T", "4"]
    assert cli.main(["run", *words]) == 0
    assert cli.main(["convert-det", *words]) == 0  # its former name
    assert cli.main(["eval-cls", "vgg_demo"]) == 0
    assert [task for _, task in seen] == ["detection", "detection", "classification"]
    assert seen[0][0].sim.T == 4


@pytest.mark.parametrize("tool", sorted(file.name for file in (PROJECT / "tools").glob("*.py")))
def test_every_tool_explains_itself(tool: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", [tool, "--help"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(PROJECT / "tools" / tool), run_name="__main__")
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith("usage: ")


def test_a_configuration_comes_first_or_by_name(seen: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", "yolo_voc", "--methods", "signed", "--methods.signed.gamma", "3"]) == 0
    assert cli.main(["run", "--cfg", "yolo_voc.yaml"]) == 0
    assert cli.main(["run", "real/yolo_nano_coco"]) == 0
    (tmp_path / "vgg_demo").write_text((PROJECT / "configs/yolo_voc.yaml").read_text().replace("../", f"{PROJECT}/"))
    assert cli.main(["run", "vgg_demo"]) == 0  # a file goes before what comes along
    roots = [config.data.root for config, _ in seen]
    assert [roots[0], roots[1], roots[3]] == [str(PROJECT / "data/voc")] * 3
    assert [config.out for config, _ in seen[:2]] == [str(tmp_path / "runs/yolo_voc")] * 2
    assert seen[0][0].methods[0]["gamma"] == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rnu"], "no command rnu: did you mean run?"),
        (["run", "yolo_vo"], "no configuration yolo_vo: did you mean yolo_voc?"),
        (["run", "configs/yolo_voc.yml"], "no configuration configs/yolo_voc.yml: did you mean yolo_voc?"),
        (["run"], "no configuration: give a file or a name of `msat-det list configs`"),
        (
            ["run", "yolo_voc", "--cfg", "ssd_voc"],
            "two configurations: give a file or a name of ",
        ),
        (["run", "yolo_voc", "ssd_voc"], "'ssd_voc' on the command line belongs to no option: write --key value"),
        (["run", "yolo_voc", "--method", "signed"], "unknown key method on the command line: did you mean methods?"),
        (["completion", "fish"], "completion takes no words"),
        (["list", "method"], "did you mean methods?"),
        (["report", "nowhere"], "no nowhere/summary.json: give the directory of a run, runs/NAME"),
    ],
)
def test_what_is_near_is_suggested(words: list[str], said: str, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(words) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {said}")
    assert told.count("\n") == 1


def test_version(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"msat-det {msat_det.__version__}\n"


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["list", "configs"]], ids=" ".join)
def test_whoever_reads_the_beginning_alone_gets_no_traceback(words: list[str]) -> None:
    command = " ".join([sys.executable, "-m", "msat_det", *words])
    done = subprocess.run(["bash", "-c", f"{command} | head -n 1"], cwd=PROJECT, capture_output=True, text=True)
    assert (done.stdout.count("\n"), done.stderr) == (1, "")


def test_bash_completes_commands_configurations_and_keys() -> None:
    script = """
        eval "$("$0" -m msat_det completion)"
        for line in 'comp' 'list me' 'run yolo_' 'run yolo_voc --sim.r'; do
            COMP_WORDS=(msat-det $line) COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _msat_det; echo "${COMPREPLY[@]}"
        done
    """
    done = subprocess.run(["bash", "-c", script, sys.executable], cwd=PROJECT, capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["compare completion", "methods", "yolo_coco yolo_voc", "--sim.record"]


def test_quiet_takes_the_bars_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("TQDM_DISABLE", "")  # and forgotten afterwards
    words = "run vgg_demo --data.limit 2 --calib.limit 2 --sim.record 2 --methods signed --threads 1".split()
    words += ["--out", str(tmp_path / "run")]
    assert cli.main(words) == 0
    loud = capsys.readouterr()
    assert cli.main([*words, "--overwrite", "--quiet"]) == 0
    quiet = capsys.readouterr()
    bars = [line.partition(":")[0] for line in loud.err.splitlines() if "%|" in line]
    assert "simulating" in bars
    assert max(map(bars.count, bars)) <= 2  # no terminal: the first and the last state of each
    assert "\r" not in loud.err
    assert "%|" not in quiet.err
    assert quiet.out == loud.out  # results stay


@pytest.mark.parametrize("command", ["run", "convert-det", "compare", "inspect", "doctor"])
def test_help_names_every_key_and_starts_fast(command: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(key in text for key in ("--cfg", "--data.root", "--sim.record", "--methods", "examples:"))
    for key in keys_of():
        idle = any(f"{key}.".startswith(f"{name}.") for name in cli.IDLE.get(command, ()))
        assert (f"--{key} " in text) is not idle, key
    assert ("Anytime exit" in text) is (command not in cli.IDLE)
    loaded = "import sys; from msat_det.run import cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", loaded], cwd=PROJECT).returncode == 0


def test_help_is_whole_without_docstrings() -> None:
    """Under -OO there are none; a text that takes two lines of the source is not cut."""
    command = [sys.executable, "-OO", "-m", "msat_det", "convert-det", "--help"]
    shown = " ".join(subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True).stdout.split())
    for key, (_, _, text) in keys_of().items():
        assert " ".join(text.split()) in shown or key == "methods", key
    for section, text in sections_of().items():
        assert f"{section}: {text}" in shown


def test_command_names(capsys: pytest.CaptureFixture) -> None:
    assert cli.main([]) == 0
    usage = capsys.readouterr().out
    assert all(command in usage for command in cli.COMMANDS)
    assert cli.main(["nope"]) == 2
    assert capsys.readouterr().err == f"error: no command nope: give one of {', '.join(cli.COMMANDS)}\n"


@pytest.mark.parametrize("command", ["doctor", "inspect", "export", "detect"])
def test_what_is_not_shared_is_refused_under_torchrun(command: str, monkeypatch, capsys) -> None:
    monkeypatch.setattr(ranks, "count", lambda: 2)
    monkeypatch.setattr(ranks, "is_first_to_tell", lambda: True)
    monkeypatch.setenv("RANK", "0")
    assert cli.main([command, "yolo_voc"]) == 2
    assert capsys.readouterr().err == f"error: {command} is done by one process: start it without torchrun\n"


@pytest.mark.parametrize("kind", cli.REGISTRIES)
def test_list_prints_a_registry(kind: str, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["list", kind]) == 0
    module, registry = cli.REGISTRIES[kind]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(getattr(importlib.import_module(module), registry))
    assert kind == "methods" or all(" " not in line for line in lines)


def test_list_says_what_a_method_does_and_who_published_it(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["list", "methods"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    norm = "θ = 99.9th percentile of the non-zero activations of a layer, soft reset [Rueckauer et al. 2017]"
    assert lines["p-norm"] == norm
    assert lines["delta-3"].endswith("[ours] = delta with bits: 7, terms: [3]")


def test_list_of_nothing(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["list", "x"]) == 2
    assert capsys.readouterr().err == "error: list takes one of configs, methods, detectors, classifiers\n"


def test_list_of_configurations(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["list", "configs"]) == 0
    names = capsys.readouterr().out.splitlines()
    assert {"yolo_voc", "vgg_demo", "real/ssd_mobilenet_coco"} <= set(names)
    assert all((PROJECT / f"configs/{name}.yaml").is_file() for name in names)


def test_errors_become_one_line_and_a_status(capsys: pytest.CaptureFixture) -> None:
    def bad(_: list[str]) -> None:
        raise InputError("two\nlines")

    def stopped(_: list[str]) -> None:
        raise KeyboardInterrupt

    assert cli.guarded(bad)([]) == 2
    assert capsys.readouterr().err == "error: two lines\n"
    assert cli.guarded(stopped)([]) == 130
    assert capsys.readouterr().err == "\ninterrupted: the same command with --resume goes on from here\n"


def test_ci_runs_the_readme_command() -> None:
    readme = [line.strip() for line in (PROJECT / "README.md").read_text().splitlines() if "-m pytest" in line]
    install, tests = readme[0].rsplit(" && ", 1)
    ci = (PROJECT / ".ci/run").read_text().splitlines()
    assert len(readme) == 1
    assert ci.index(install) < [line.split(" || ")[0] for line in ci].index(tests)


NUMBERS = [  # words of a command line, what is said of them
    ("--sim.T 0", "sim.T is 0: give a whole number above 0"),
    ("--sim.T -3", "sim.T is -3: give a whole number above 0"),
    ("--sim.T nan", "sim.T is 'nan' on the command line: give a whole number"),
    ("--sim.T 1e9", "sim.T is '1e9' on the command line: give a whole number"),
    ("--sim.T 16777217", "sim.T is 16777217: give at most 16777216"),
    ("--sim.record 0,4", "sim.record holds 0: timesteps count from 1"),
    ("--sim.record 4,,8", "sim.record is '4,,8' on the command line: give whole numbers such as 4,8,16"),
    ("--sim.record 1,99999999", "sim.record is 99999999: give at most 16777216"),
    ("--sim.chunk 0", "sim.chunk is 0: give a whole number above 0"),
    ("--batch -1", "batch is -1: give a whole number above 0"),
    ("--batch 2.5", "batch is '2.5' on the command line: give a whole number"),
    ("--seed 99999999999999999999", "seed is '99999999999999999999' on the command line: give a whole number"),
    ("--seed x", "seed is 'x' on the command line: give a whole number"),
    ("--threads 0", "threads is 0: give a whole number above 0"),
    ("--threads 100000", "threads is 100000: give at most 1024"),
    ("--data.limit x", "data.limit is 'x' on the command line: give a whole number"),
    ("--data.limit 0", "data.limit is 0: give a whole number above 0"),
    ("--calib.skip -1", "calib.skip is -1: give 0 or more"),
    ("--calib.limit 0", "calib.limit is 0: give a whole number above 0"),
    ("--model.score nan", "model.score is 'nan' on the command line: give a number"),
    ("--model.score 2", "model.score is 2.0: give a number from 0 to 1"),
    ("--model.nms_iou -.1", "model.nms_iou is -0.1: give a number from 0 to 1"),
    ("--model.size 0", "model.size is 0: give a whole number above 0"),
    ("--model.top_k 0", "model.top_k is 0: give a whole number above 0"),
    ("--model.num_classes -1", "model.num_classes is -1: give a whole number above 0"),
    ("--draw.images -1", "draw.images is -1: give 0 or more"),
    ("--draw.t 3", "draw.t holds 3, which is not recorded"),
    ("--ledger.images -1", "ledger.images is -1: give 0 or more"),
    ("--exit.images 0", "exit.images is 0: give a whole number above 0"),
    ("--exit.allowance inf", "exit.allowance is 'inf' on the command line: give a number"),
    ("--bootstrap.draws 0", "bootstrap.draws is 0: give a whole number above 0"),
    ("--bootstrap.draws 1000001", "bootstrap.draws is 1000001: give at most 1000000"),
    ("--bootstrap.confidence 1", "bootstrap.confidence is 1.0: give a share between 0 and 1"),
    ("--methods.signed.record 0", "record of method signed is 0: give a list of timesteps such as [4, 8]"),
    ("--methods.signed.record [99999999]", "record of method signed is [99999999]: give a list of timesteps"),
    ("--methods.signed.factor", "--methods.signed.factor has no value: write --methods.signed.factor VALUE"),
    ("--out=", "out is '' on the command line: give a text"),
]


@pytest.mark.parametrize(("words", "said"), NUMBERS, ids=[words for words, _ in NUMBERS])
def test_every_number_is_checked_where_it_enters(words: str, said: str, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["eval-cls", "--cfg", str(PROJECT / "configs/vgg_demo.yaml"), *words.split()]) == 2
    told = capsys.readouterr()
    assert told.err.startswith(f"error: {said}")
    assert (told.out, told.err.count("\n")) == ("", 1)


@pytest.mark.parametrize("t", ["0", "-1", "x", "99999999"])
def test_a_timestep_of_an_export_is_checked(t: str, capsys: pytest.CaptureFixture) -> None:
    words = ["--cfg", str(PROJECT / "configs/vgg_demo.yaml"), "--method", "signed", "--out", "x", "--t", t]
    assert cli.main(["export", *words]) == 2
    assert capsys.readouterr().err.startswith(f"error: argument --t: '{t}' is no whole number from 1 to 16777216")


@pytest.mark.parametrize("out", ["/", ".", ".."])
def test_an_export_into_a_folder_is_refused_before_it_begins(out: str, capsys: pytest.CaptureFixture) -> None:
    words = ["--cfg", str(PROJECT / "configs/vgg_demo.yaml"), "--method", "signed", "--out", out]
    assert cli.main(["export", *words]) == 2
    assert capsys.readouterr().err == f"error: cannot write {out}: it is a folder; name a file in it\n"


@pytest.mark.parametrize("command", ["run", "compare"])
def test_calibration_images_are_not_evaluated(command: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["--calib.split", "test", "--calib.skip", "4", "--data.limit", "5", "--out", str(tmp_path / "run")]
    assert cli.main([command, str(PROJECT / "configs/yolo_voc.yaml"), *words]) == 2
    assert capsys.readouterr().err == (
        "error: data.limit is 5 and calib.skip 4: calibration images would be evaluated; give a data.limit of at most "
        "calib.skip\n"
    )


def test_a_year_is_of_voc(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["inspect", str(PROJECT / "configs/yolo_coco.yaml"), "--data.year", "2012"]) == 2
    assert capsys.readouterr().err == "error: data.year is 2012, which is for kind voc, not coco: leave it out\n"


@pytest.mark.parametrize(
    ("command", "words", "said"),
    [
        ("detect x.jpg", "--sim.T 8", "--sim.T has no effect here: give --t"),
        ("detect x.jpg", "--sim.record=1,8", "--sim.record has no effect here: give --t"),
        ("detect x.jpg", "--methods signed", "--methods has no effect here: give --method"),
        ("export --method signed --out x", "--precision bf16", "--precision has no effect here: a file holds none, .*"),
        ("export --method signed --out x", "--overwrite", "--overwrite has no effect on msat-det export: leave it out"),
        ("detect x.jpg", "--data.limit=3", "--data.limit has no effect on msat-det detect: leave it out"),
        ("doctor", "--draw.images 0", "--draw.images has no effect on msat-det doctor: leave it out"),
        ("inspect", "--ledger.images 2", "--ledger.images has no effect on msat-det inspect: leave it out"),
        ("inspect", "--strict", "--strict has no effect on msat-det inspect: leave it out"),
    ],
)
def test_a_key_that_a_command_has_no_use_for_is_told(
    command: str, words: str, said: str, capsys: pytest.CaptureFixture
) -> None:
    config = str(PROJECT / "configs/yolo_voc.yaml")
    assert cli.main([*command.split(), "--cfg", config, *words.split()]) == 2
    assert re.fullmatch(rf"error: {said}\n", capsys.readouterr().err)


@pytest.mark.parametrize("command", ["run", *cli.IDLE])
def test_a_command_reads_the_keys_that_it_takes(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them, and no others: what is read while the command runs is noted, apart from the checks of a section."""
    read: set[str] = set()

    def note(cls: type, prefix: str) -> None:
        def get(self: object, name: str) -> object:
            code = sys._getframe(1).f_code
            if (
                code.co_name not in ("__post_init__", "_as_hinted", "_refuse_idle")
                and Path(code.co_filename).name != "dataclasses.py"
            ):
                read.add(f"{prefix}{name}")
            return object.__getattribute__(self, name)

        monkeypatch.setattr(cls, "__getattribute__", get, raising=False)
        for item in fields(cls):
            hint = get_args(item.type)[0]
            if is_dataclass(hint):
                note(hint, f"{prefix}{item.name}.")

    note(Config, "")
    picture = str(PROJECT / "data/voc/VOCdevkit/VOC2007/JPEGImages/000001.jpg")
    words = {
        "run": "--data.limit 2 --methods signed --sim.record 1,2 --exit.methods signed --bootstrap.against signed",
        "inspect": "--methods signed",
        "doctor": "--methods signed --sim.T 1 --images 1",
        "export": "--method signed",
        "detect": f"{picture} --method signed --t 1",
    }[command]
    words += f" --calib.limit 2 --threads 1 --out {tmp_path / 'out'}"
    assert cli.main([command, *words.split(), "--cfg", str(PROJECT / "configs/yolo_voc.yaml")]) == 0
    idle = {key for key in keys_of() if any(f"{key}.".startswith(f"{name}.") for name in cli.IDLE.get(command, ()))}
    assert read & idle <= {"data.corrupt", "exit.methods"}  # which every command checks
    unread = {key for key in keys_of().keys() - idle - read if not key.startswith("model.")}
    instead = {"export": {"out"}, "detect": {"out", "sim.record"}}.get(command, set())  # options of its own
    assert unread <= {"sim.T", "data.root", "overwrite", "calib.augment.copies"} | instead  # within others, or at times


REFUSED = {
    "--energy nope": "energy is nope, no table .*",
    "--device cuda:99": "device is cuda:99, .*",
    "--data.kind vox": r"no data kind 'vox': did you mean voc\?",
    "--calib.kind image": r"no data kind 'image': did you mean images\?",
    "--data.corrupt noise:9": "data.corrupt is 'noise:9': give one of noise, .*",
    "--methods.signed.gama 3": r"method signed has no option 'gama': did you mean gamma\?",
    "--methods.signed.gamma x": "option gamma of method signed is 'x': give a whole number",
    "--methods.signed.method nope": "no method 'nope': .*",
    "--exit.methods signed --exit.images 0": "exit.images is 0: .*",
}


@pytest.mark.parametrize("words", REFUSED)
@pytest.mark.parametrize("command", ["convert-det", "compare", "inspect", "doctor", "export"])
def test_every_command_refuses_the_same_alike(
    command: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    exporting = command == "export"
    given = ["--cfg", str(PROJECT / "configs/yolo_voc.yaml"), *words.split()]
    given += ["--out", str(tmp_path / "out"), "--method" if exporting else "--methods", "signed"]
    assert cli.main([command, *given]) == 2
    idle = words.split()[0].removeprefix("--").startswith(("data.corrupt", "exit.")) and command in cli.IDLE
    said = rf"{words.split()[0]} has no effect on msat-det {command}: leave it out" if idle else REFUSED[words]
    assert re.fullmatch(rf"error: {said}\n", capsys.readouterr().err)
    assert not list(tmp_path.rglob("*.*"))


@pytest.mark.parametrize("command", [*cli.COMMANDS, ""])
def test_every_command_has_help_that_fits_the_terminal(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "path", list(sys.path))
    with contextlib.suppress(SystemExit):
        assert cli.main([command, "--help"] if command else ["--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: msat-det {command}".rstrip())
    assert "``" not in text
    assert [line for line in text.splitlines() if len(line) > 80] == []
    with contextlib.suppress(SystemExit):
        assert cli.main(["help", command] if command else ["help"]) == 0
    assert capsys.readouterr().out == text


@pytest.mark.parametrize("words", [["--quiet"], ["--quiet", "--version"], ["-V"], ["--quiet", "list", "configs"]])
def test_quiet_may_come_first(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setenv("TQDM_DISABLE", "")
    assert cli.main(words) == 0
    told = capsys.readouterr()
    assert told.out.startswith({"--quiet": "usage: ", "configs": "real/"}.get(words[-1], "msat-det "))
    assert told.err == ""


def test_the_configuration_may_come_last(seen: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", "--methods.signed.gamma", "3", "--methods", "signed", "yolo_voc"]) == 0
    assert (seen[0][0].out, seen[0][0].methods[0]["gamma"]) == (str(tmp_path / "runs/yolo_voc"), 3)


def test_a_label_that_the_file_lacks_is_told_with_the_mend(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["run", "yolo_voc", "--methods", "singed"]) == 2
    assert capsys.readouterr().err == "error: unknown method label singed: did you mean signed?\n"
    assert cli.main(["run", "yolo_voc", "--methods", "signed, burst"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: unknown method label burst: ")
    assert told.endswith("staged-4; {label: burst, method: …} in its methods adds one\n")


def test_the_energy_tables_are_named_by_the_help() -> None:
    assert ", ".join(yaml_of(TABLES)) in keys_of()["energy"].text


def test_a_data_set_s_file_is_no_configuration(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "data.yaml"
    file.write_text("path: .\ntrain: images/train\nval: images/val\nnames: [cat]\n")
    assert cli.main(["run", str(file)]) == 2
    told = capsys.readouterr().err
    assert (
        told == f"error: {file} describes a data set: name it as data.root, with data.kind yolo, in a configuration\n"
    )
