"""The commands as a shell meets them: exit status, one line on stderr, plain help."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from msat_det.base.config import Config
from msat_det.base.errors import InputError
from msat_det.run import cli
from msat_det.run.arguments import PROJECT


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
    assert cli.convert_det(words) == 0
    assert cli.eval_cls(words) == 0
    assert cli.main(["convert-det", *words]) == 0
    assert [task for _, task in seen] == ["detection", "classification", "detection"]
    assert seen[0][0].sim.T == 4


@pytest.mark.parametrize("command", ["convert-det", "eval-cls", "compare", "inspect"])
def test_help_names_every_key_and_starts_fast(command: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(key in text for key in ("--cfg", "--data.root", "--sim.record", "--methods", "--resume", "examples:"))
    loaded = "import sys; from msat_det.run import cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", loaded], cwd=PROJECT).returncode == 0


def test_command_names(capsys: pytest.CaptureFixture) -> None:
    assert cli.main([]) == 0
    usage = capsys.readouterr().out
    assert all(command in usage for command in cli.COMMANDS)
    assert cli.main(["nope"]) == 2
    assert capsys.readouterr().err == f"error: no command nope: give one of {', '.join(cli.COMMANDS)}\n"


@pytest.mark.parametrize("kind", cli.REGISTRIES)
def test_list_prints_a_registry(kind: str, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["list", kind]) == 0
    names = capsys.readouterr().out.splitlines()
    assert names
    assert all(name and " " not in name for name in names)


def test_list_of_nothing(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["list", "x"]) == 2
    assert capsys.readouterr().err == "error: list takes one of methods, detectors, classifiers\n"


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
    readme = (PROJECT / "README.md").read_text().splitlines()
    ci = (PROJECT / ".ci/run").read_text().splitlines()
    assert [line.strip() for line in readme if "-m pytest" in line] == [ci[-1]]
