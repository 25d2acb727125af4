"""Nothing is lost: killed anywhere, a run that goes on ends in the same files; a directory has one owner."""

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.small_runs import DRAWN, command, contents, die_at, keep_states, run_quietly, start, tiny
from torch import OutOfMemoryError

from msat_det.base import ranks
from msat_det.base.config import Config
from msat_det.base.errors import InputError
from msat_det.base.provenance import versions
from msat_det.base.settings import PROJECT
from msat_det.measure.batch_files import Part, Parts
from msat_det.report.directory import RunDirectory
from msat_det.run import batches, experiment, resume
from msat_det.run.batches import simulate
from msat_det.run.digests import named_files, require_same
from msat_det.run.doctor import doctor
from msat_det.run.experiment import run
from msat_det.run.inspect import inspect_network
from msat_det.run.ownership import owned
from msat_det.run.resume import Begun


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of an undisturbed run."""
    out = tmp_path_factory.mktemp("whole") / "run"
    complete(out)
    return out


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with pictures."""
    out = tmp_path_factory.mktemp("drawn") / "run"
    complete(out, *DRAWN)
    return out


def complete(out: Path, *words: str) -> None:
    """Go on, or begin, to the end."""
    run_quietly(tiny(out, "--resume", *words))


def assert_finished_like(out: Path, whole: Path) -> None:
    assert contents(out) == contents(whole)
    assert len(list(out.glob("events.out.tfevents.*"))) == 1


def killed_at_random_moments(moments: int, whole: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    start(run_quietly, tiny(tmp_path / "timed")).join()
    duration = time.monotonic() - began
    chance = random.Random(0)
    for moment in range(moments):
        out = tmp_path / str(moment)
        for _ in range(1 + moment % 2):  # every second run is killed again after it has gone on
            process = start(run_quietly, tiny(out, "--resume"))
            time.sleep(chance.uniform(0, duration))
            process.kill()
            process.join()
        complete(out)
        assert_finished_like(out, whole)


def test_killed_at_random_moments(whole: Path, tmp_path: Path) -> None:
    killed_at_random_moments(2, whole, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_at_twenty_random_moments(whole: Path, tmp_path: Path) -> None:
    killed_at_random_moments(20, whole, tmp_path)


def states_of(config: Config, folder: Path) -> list[Path]:
    """What a kill could leave of a run, in order; see ``keep_states``."""
    process = start(keep_states, folder, config)
    process.join()
    assert process.exitcode == 0
    return sorted(folder.iterdir(), key=lambda state: int(state.name))


def killed_at_a_change(step: int, drawn: Path, out: Path) -> int | None:
    process = start(die_at, step, tiny(out, "--resume", *DRAWN))
    process.join()
    complete(out, *DRAWN)
    assert_finished_like(out, drawn)
    return process.exitcode


# a part, summary.json, report.html lie beside their places; begun.safetensors has gone from parts/
@pytest.mark.parametrize("step", [33, 85, 89, 92])
def test_killed_at_a_change_of_the_directory(step: int, drawn: Path, tmp_path: Path) -> None:
    assert killed_at_a_change(step, drawn, tmp_path / "run") == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_at_every_change_of_the_directory(drawn: Path, tmp_path: Path) -> None:
    """One run leaves all states that a kill could; that a kill leaves these, the test above shows."""
    out = tmp_path / "run"
    states = states_of(tiny(out, *DRAWN), tmp_path / "states")
    assert len(states) > 40
    for state in states:
        shutil.rmtree(out)
        state.rename(out)
        complete(out, *DRAWN)
        assert_finished_like(out, drawn)


@pytest.mark.slow
def test_results_of_another_run_do_not_pass_for_this_one(drawn: Path, tmp_path: Path) -> None:
    """A new run in a finished one's directory, killed while it takes the directory over."""
    kept, out = 0, tmp_path / "run"
    shutil.copytree(drawn, out)
    file = out / "config.yaml"
    file.write_text(file.read_text().replace("seed: 0", "seed: 1"))
    for state in states_of(tiny(out, "--overwrite", *DRAWN), tmp_path / "states"):
        if int(state.name) >= 20:
            break
        shutil.rmtree(out)
        state.rename(out)
        if "seed: 1" in file.read_text() and (out / "summary.json").exists():
            assert contents(out)["curve.csv"] == contents(drawn)["curve.csv"]
            kept += 1
        else:
            complete(out, *DRAWN)
            assert_finished_like(out, drawn)
    assert 0 < kept < 10  # the first steps only take the lock


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 1 has"),
            " on GPU 1 (tried to allocate 2 GiB)",
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes. Error code 12"),
            " (tried to allocate 9 bytes)",
        ),
        (MemoryError(), ""),
    ],
)
def test_too_little_memory_leaves_what_is_done_and_says_how_to_go_on(
    error: Exception, told: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the third batch of four."""
    out, batch, third = tmp_path / "run", batches.simulate_batch, iter([None, None, error])

    def simulate_batch(*given: Any) -> None:
        if error := next(third):
            raise error
        batch(*given)

    monkeypatch.setattr(batches, "simulate_batch", simulate_batch)
    mend = "free some, and --resume goes on from here, or start anew with --batch 1"
    with pytest.raises(InputError, match=rf"^not enough memory{re.escape(told)} for a batch of 3: {mend}$"):
        run_quietly(tiny(out))
    assert Parts(out / "parts").done() == {0, 1}
    monkeypatch.undo()
    complete(out)
    assert_finished_like(out, whole)


def test_ctrl_c_leaves_what_is_done_and_says_how_to_go_on(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    script = str(PROJECT / "tools/convert_det.py")
    process = subprocess.Popen([sys.executable, script, *command(out, *DRAWN)], stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (out / "parts/00000000.safetensors").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate()
    assert process.returncode == 130
    assert told.endswith("\ninterrupted: the same command with --resume goes on from here\n")
    assert "Traceback" not in told
    assert not (out / "summary.json").exists()
    with pytest.raises(InputError, match=r"\d batches of an unfinished run: add --resume"):
        run_quietly(tiny(out, *DRAWN))
    complete(out, *DRAWN)
    assert contents(out)["curve.csv"] == contents(whole)["curve.csv"]


def test_a_finished_run_has_nothing_left_to_do(whole: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.name != ".lock"}
    own = resume.commit_id
    rows = run_quietly(tiny(whole, "--resume"))
    assert resume.commit_id is own  # what stood in its place for the run is put back
    after = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.name != ".lock"}
    assert {p: t for p, t in after.items() if p.is_file()} == {p: t for p, t in before.items() if p.is_file()}
    assert [(row.method, row.t) for row in rows] == [("float", None), ("signed", 1), ("signed", 4), ("staged-4", 4)]
    assert rows[0].spikes_per_neuron is None
    assert rows[0].metrics["map"] > 0
    assert rows[3].energy_ratio > 0


def test_a_finished_run_is_told_to_be_one(whole: Path, capsys: pytest.CaptureFixture) -> None:
    run(tiny(whole, "--resume"))
    assert f"the run in {whole} was finished: nothing of it is computed again\n" in capsys.readouterr().err


def test_only_the_first_rank_adds_to_a_finished_run(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    added: list[Path] = []
    monkeypatch.setattr(ranks, "from_first", lambda decide: decide())
    for rank in (1, 0):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        run(tiny(whole, "--resume"), then=lambda directory: added.append(directory.path))
        assert added == [whole][rank:]


@pytest.fixture
def unfinished(tmp_path: Path) -> Path:
    """A directory in which one batch is done."""
    return stopped(tmp_path / "run")


def stopped(out: Path, *words: str) -> Path:
    write = Parts.write

    def stop(parts: Parts, number: int, part: Part) -> None:
        if number == 1:
            raise KeyboardInterrupt
        write(parts, number, part)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Parts, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            run_quietly(tiny(out, *words))
    assert Parts(out / "parts").done() == {0}
    return out


@pytest.mark.parametrize("full", [1, 3])
def test_a_full_disk_ends_the_run_with_the_batches_before(full: int, tmp_path: Path, monkeypatch) -> None:
    """Batches are written while the next one runs; the last one's error is not lost either."""
    write = Parts.write

    def refuse(parts: Parts, number: int, part: Part) -> None:
        if number == full:
            raise InputError("no space left")
        write(parts, number, part)

    monkeypatch.setattr(Parts, "write", refuse)
    with pytest.raises(InputError, match="no space left"):
        run_quietly(tiny(tmp_path / "run"))
    assert Parts(tmp_path / "run/parts").done() == set(range(full))


def test_another_configuration_does_not_go_on(unfinished: Path) -> None:
    changes = {
        "batch": ("--batch", "2"),
        "seed": ("--seed", "1"),
        "threads": ("--threads", "2"),
        "data.limit": ("--data.limit", "11"),
        "methods.signed.gamma": ("--methods.signed.gamma", "3"),
        "methods": ("--methods", "signed"),
        "sim.record": ("--sim.record", "2,4"),
    }
    for key, words in changes.items():
        with pytest.raises(InputError, match=rf"^{key} is .* and was .* began: give the same, or start anew"):
            run_quietly(tiny(unfinished, "--resume", *words))


def test_other_weights_or_images_do_not_go_on(unfinished: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    shutil.copy(PROJECT / "data/weights/yolo_demo.safetensors", weights)
    config = yaml.safe_load((unfinished / "config.yaml").read_text())
    config["model"]["weights"] = str(weights)
    (unfinished / "config.yaml").write_text(yaml.safe_dump(config))
    words = ("--resume", "--model.weights", str(weights))
    content = bytearray(weights.read_bytes())
    content[-2] ^= 1  # a bit of the last weight
    weights.write_bytes(content)
    with pytest.raises(InputError, match=r"^the weights are not those with which the run in"):
        run_quietly(tiny(unfinished, *words))

    shutil.copy(PROJECT / "data/weights/yolo_demo.safetensors", weights)
    config["calib"]["skip"] = 1
    (unfinished / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(InputError, match=r"^the calibration images are not those"):
        run_quietly(tiny(unfinished, *words, "--calib.skip", "1"))


def test_other_contents_of_a_named_file_do_not_go_on(tmp_path: Path) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text("{mac: 4.6, ac: 0.9, source: mine}")
    words = ("--energy", str(prices), "--methods", "signed", "--methods.signed.plan", str(tmp_path / "kept"))
    out = stopped(tmp_path / "run", *words[:4])
    prices.write_text("{mac: 4.6, ac: 0.1, source: mine}")
    with pytest.raises(InputError, match=r"^the contents of energy are not those with which the run in"):
        run_quietly(tiny(out, "--resume", *words[:4]))
    (tmp_path / "kept").write_bytes(b"a plan")
    assert named_files(tiny(out, *words)) == {
        "model.weights": hashlib.sha256((PROJECT / "data/weights/yolo_demo.safetensors").read_bytes()).hexdigest(),
        "energy": hashlib.sha256(b"{mac: 4.6, ac: 0.1, source: mine}").hexdigest(),
        "methods.signed.plan": hashlib.sha256(b"a plan").hexdigest(),
    }


def test_another_image_of_the_same_name_does_not_go_on(voc_root: Path, tmp_path: Path) -> None:
    words = ("--data.root", str(voc_root), "--calib.root", str(PROJECT / "data/voc"), "--data.limit", "none")
    out = stopped(tmp_path / "run", *words)
    images = sorted((voc_root / "VOCdevkit/VOC2007/JPEGImages").iterdir())
    shutil.copy(images[1], images[0])
    with pytest.raises(InputError, match=r"^the evaluated images are not those"):
        run_quietly(tiny(out, "--resume", *words))


def test_a_finished_run_is_not_that_of_other_weights(tmp_path: Path) -> None:
    weights, out = tmp_path / "weights.safetensors", tmp_path / "run"
    shutil.copy(PROJECT / "data/weights/yolo_demo.safetensors", weights)
    words = ("--methods", "signed", "--data.limit", "2", "--model.weights", str(weights))
    run_quietly(tiny(out, *words))
    trained = bytearray(weights.read_bytes())
    trained[-2] ^= 1
    weights.write_bytes(trained)
    with pytest.raises(InputError, match=r"^the contents of model\.weights are not those"):
        run_quietly(tiny(out, "--resume", *words))
    summary = json.loads((out / "summary.json").read_text())
    del summary["files"]  # as older versions wrote it
    (out / "summary.json").write_text(json.dumps(summary))
    assert run_quietly(tiny(out, "--resume", *words))


def test_versions_that_change_are_all_told(unfinished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = versions() | {"torch": "3.0"}
    monkeypatch.setattr(resume, "versions", lambda: now)
    run_quietly(tiny(unfinished, "--resume"))
    kept = json.loads((unfinished / "report.json").read_text())["versions"]
    assert kept == versions() | {"torch": f"{versions()['torch']} then 3.0"}


def test_a_key_that_an_older_version_did_not_have_has_its_default(unfinished: Path, whole: Path) -> None:
    file = unfinished / "config.yaml"
    text = file.read_text()
    file.write_text(text.replace("precision: float32\n", "").replace("  held_out: false\n", ""))
    with pytest.raises(InputError, match=r"^precision is 'bf16' and was 'float32' when"):
        run_quietly(tiny(unfinished, "--resume", "--precision", "bf16"))
    run_quietly(tiny(unfinished, "--resume"))
    assert contents(unfinished)["curve.csv"] == contents(whole)["curve.csv"]


def test_a_batch_that_is_gone_is_no_smaller_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a rank whose machine has a disk of its own, or where a disk shows it late."""

    def lost(*arguments: Any) -> None:
        simulate(*arguments)
        (tmp_path / "run/parts/00000002.safetensors").unlink()

    monkeypatch.setattr(experiment, "simulate", lost)
    with pytest.raises(InputError, match=r"^1 of 4 batches are not in .*parts, the first: 2: every machine must"):
        run_quietly(tiny(tmp_path / "run"))
    monkeypatch.undo()
    run_quietly(tiny(tmp_path / "run", "--resume"))


def test_ranks_compute_from_the_same_files(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"evaluated images": "a", "weights": "b", "contents of energy": "c"}
    assert Begun([], {}, facts).files == {"energy": "c"}
    require_same(facts, facts)
    monkeypatch.setattr(ranks, "rank", lambda: 1)
    for name, own in (
        ("weights", facts | {"weights": "x"}),
        ("contents of energy", {**facts, "contents of energy": ""}),
    ):
        with pytest.raises(InputError, match=f"^the {name} of rank 1 are not those of rank 0"):
            require_same(own, facts)


def test_a_rank_with_weights_of_its_own_ends_the_run(unfinished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "begin", lambda *_: Begun([], {}, {"weights": "of rank 0"}))
    with pytest.raises(InputError, match="of rank 0 are not those of rank 0"):
        run_quietly(tiny(unfinished, "--resume"))


def test_an_overwritten_run_leaves_nothing_of_its_batches(whole: Path, tmp_path: Path) -> None:
    out = stopped(tmp_path / "run", "--methods.signed.gamma", "3")
    run_quietly(tiny(out, "--overwrite"))
    assert_finished_like(out, whole)


def test_what_others_leave_in_an_unfinished_run_does_not_come_into_it(unfinished: Path, whole: Path) -> None:
    for name in ("ledger.json", "doctor.json", ".compare.md.part", "detections/other.png"):
        (unfinished / name).parent.mkdir(exist_ok=True)
        (unfinished / name).write_text("[]")
    complete(unfinished)
    assert_finished_like(unfinished, whole)


def test_parts_that_a_kill_at_the_very_end_has_left_go(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    (out / "parts").mkdir()
    (out / "parts/00000002.safetensors").write_bytes(b"x")  # begun.safetensors has gone
    assert run_quietly(tiny(out, "--resume"))
    assert {path.name for path in out.iterdir()} == {path.name for path in whole.iterdir()}


MINE = ("config.yaml", "detections/a.png", "plans/b.txt", "events.out.tfevents.1.mine", "coverage.json")


@pytest.mark.parametrize("name", MINE)
def test_files_that_are_no_runs_stay(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    for begin, words in ((run_quietly, ()), (run_quietly, ("--resume",)), (inspect_network, ()), (doctor, ())):
        with pytest.raises(InputError, match=r"would be replaced, and .* is no run's directory: give another folder"):
            begin(tiny(tmp_path, *words))
    assert [(path, path.read_text()) for path in tmp_path.rglob("*") if path.is_file()] == [(tmp_path / name, "mine")]


@pytest.mark.parametrize(("begin", "name"), [(inspect_network, "coverage.json"), (doctor, "ledger.json")])
def test_what_overwrites_a_finished_run_leaves_none_of_its_figures(
    begin: Callable[[Config], object], name: str, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    with pytest.raises(InputError, match="holds a finished run"):
        begin(tiny(out))
    assert contents(out).keys() == contents(whole).keys()
    begin(tiny(out, "--overwrite", "--methods", "signed"))
    alone = tmp_path / "alone"
    begin(tiny(alone, "--methods", "signed"))
    assert contents(out) == contents(alone)
    assert name in contents(out)


def test_the_file_of_a_network_of_ones_own_is_one_of_those_that_decide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(tmp_path / "run", "--model.name", "mine_for_a_test:build", "--model.weights", "none")
    assert named_files(config) == {}
    (tmp_path / "mine_for_a_test.py").write_text("build = dict")
    monkeypatch.chdir(tmp_path)  # nothing is imported for that: a finished run need not be
    assert named_files(config) == {"model.name": hashlib.sha256(b"build = dict").hexdigest()}


def test_a_run_does_not_write_among_the_images_that_it_reads(tmp_path: Path) -> None:
    shutil.copytree(PROJECT / "data/voc/VOCdevkit/VOC2007/JPEGImages", tmp_path / "photos")
    words = ("--calib.kind", "images", "--calib.split", "none", "--methods", "signed", "--data.limit", "2")
    words += ("--calib.root", str(tmp_path / "photos"))
    with pytest.raises(InputError, match=r"^--out is .*photos, whose images are read"):
        run_quietly(tiny(tmp_path / "photos", *words))
    out = tmp_path / "photos/out"
    run_quietly(tiny(out, *words))
    first = contents(out)
    run_quietly(tiny(out, *words, "--overwrite"))
    assert contents(out) == first


def test_a_run_follows_what_inspect_has_left_and_a_copied_run_is_one(whole: Path, tmp_path: Path) -> None:
    inspect_network(tiny(tmp_path / "run"))
    run_quietly(tiny(tmp_path / "run"))
    shutil.copytree(whole, tmp_path / "copy", ignore=shutil.ignore_patterns(".lock"))
    assert_finished_like(tmp_path / "run", whole)
    assert run_quietly(tiny(tmp_path / "copy", "--resume"))
    run_quietly(tiny(tmp_path / "copy", "--overwrite"))
    assert_finished_like(tmp_path / "copy", whole)


def test_damage_is_named(unfinished: Path, whole: Path) -> None:
    (unfinished / "parts/00000000.safetensors").write_bytes(b"x")
    with pytest.raises(InputError, match=r"00000000\.safetensors is damaged .*: delete it, --resume computes it again"):
        run_quietly(tiny(unfinished, "--resume"))
    (unfinished / "parts/00000000.safetensors").unlink()
    complete(unfinished)
    assert_finished_like(unfinished, whole)
    for text in ("- x", "a: [", "data:\nmethods: 3"):
        (unfinished / "config.yaml").write_text(text)
        with pytest.raises(InputError, match=r"config\.yaml is damaged .*: start anew with another --out DIR"):
            run_quietly(tiny(unfinished, "--resume"))


def test_a_directory_has_one_owner(tmp_path: Path) -> None:
    out = tmp_path / "run"
    for begin in (run_quietly, inspect_network, doctor):
        with owned(RunDirectory(out)), pytest.raises(InputError, match=rf"still going \(process {os.getpid()} on "):
            begin(tiny(out))
    with owned(RunDirectory(out)):
        pass  # the lock goes with its owner
