"""torchrun: any number of ranks leaves the files of one process; an error is told once; a dead rank ends the run."""

import atexit
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from support.small_runs import DRAWN, as_ranks, command, contents

from msat_det.base import ranks
from msat_det.base.errors import InputError
from msat_det.base.settings import PROJECT
from msat_det.run import batches, cli

# Without a repository every run is of the same commit: None.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "GIT_DIR": "/nowhere"}


def torchrun(count: int, *words: str) -> subprocess.Popen:
    """The comparison in ``count`` processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    arguments = [*launcher, "-m", "msat_det", "compare", *words]
    return subprocess.Popen(arguments, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen) -> tuple[int, str]:
    _, told = process.communicate()
    return process.returncode, told


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of one process."""
    out = tmp_path_factory.mktemp("alone") / "run"
    with mock.patch.dict(os.environ, ENVIRONMENT):
        assert cli.main(["compare", *command(out, *DRAWN)]) == 0
    return contents(out)


def bars(told: str) -> int:
    """How many there are; another rank may have finished a batch before one was drawn."""
    return len(re.findall(r"\d/10 \[[\d:]+<\?, \?image/s\]", told))


@pytest.mark.slow
def test_two_ranks_leave_the_files_of_one_process(tmp_path: Path, alone: dict[str, bytes]) -> None:
    status, told = finished(torchrun(2, *command(tmp_path / "run", *DRAWN)))
    assert status == 0, told
    assert contents(tmp_path / "run") == alone
    assert bars(told) == 1


@pytest.mark.parametrize("count", [3, 5])  # four batches of ten images: one rank has two of them, or nothing to do
def test_any_number_of_ranks_does(count: int, tmp_path: Path, alone: dict[str, bytes]) -> None:
    statuses, told = as_ranks(count, "compare", *command(tmp_path / "run", *DRAWN))
    assert statuses == [0] * count, told
    assert contents(tmp_path / "run") == alone
    assert bars(told) == 1


@pytest.mark.slow
def test_a_dead_rank_ends_the_run_and_any_number_goes_on(tmp_path: Path, alone: dict[str, bytes]) -> None:
    out = tmp_path / "run"
    process = torchrun(2, *command(out, *DRAWN))
    while process.poll() is None and not (out / "parts/00000001.safetensors").exists():
        time.sleep(0.01)
    os.kill(worker(process.pid, 1), signal.SIGKILL)
    status, told = finished(process)
    assert status == 1
    assert "SIGKILL" in told
    assert not (out / "summary.json").exists()
    status, told = finished(torchrun(1, *command(out, *DRAWN, "--resume")))
    assert status == 0, told
    assert contents(out) == alone


def worker(launcher: int, rank: int) -> int:
    """The process of a rank."""
    for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        if f"RANK={rank}" in Path(f"/proc/{child}/environ").read_text().split("\0"):
            return int(child)
    raise AssertionError(f"no rank {rank}")


@pytest.mark.parametrize(
    ("gpus", "expected"), [("abcd", 32), ("acdc", 32), ("aaaa", 16), ("aaac", 16), ("ac-d", 8)], ids=str
)
def test_ranks_on_one_gpu_share_its_memory(gpus: str, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of what is free on each of the cards a, c and d is 64 images of 52,000 bytes, and 32 on b. A rank without a
    card has batches of 8. All take the least."""
    monkeypatch.setattr(batches, "elements", lambda node: 1000)
    monkeypatch.setattr(batches, "images_at_once", lambda graph: 64)
    monkeypatch.setattr(ranks, "count", lambda: len(gpus))
    memory = dict.fromkeys("acd", 2 * 64 * 52_000) | {"b": 64 * 52_000}
    handed_in: list[int] = []

    def from_all(mine: str | int) -> list:
        if isinstance(mine, str):
            return [gpu.strip("-") for gpu in gpus]
        handed_in.append(mine)
        return handed_in

    monkeypatch.setattr(ranks, "from_all", from_all)
    for gpu in gpus:
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, gpu=gpu: SimpleNamespace(uuid=gpu))
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, gpu=gpu: (memory[gpu], 1 << 40))
        config = SimpleNamespace(batch=8, device="cpu" if gpu == "-" else "cuda:0", free_batch=gpu != "-")
        least = batches.batch_size(cast(Any, config), cast(Any, SimpleNamespace(sites=[0])))
    assert least == expected  # what the last one is told, when all have handed theirs in
    assert len(handed_in) == len(gpus)


def test_one_process_alone_hands_in_its_own() -> None:
    assert ranks.from_all("mine") == ["mine"]


@pytest.mark.parametrize("met", [None, RuntimeError("peer closed"), KeyboardInterrupt()], ids=repr)
def test_a_rank_leaves_the_others_before_it_ends_unless_they_owe_it_an_answer(
    met: BaseException | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_exit: list[Callable[[], None]] = []
    group: list[str] = []
    monkeypatch.setattr(ranks, "count", lambda: 2)
    monkeypatch.setattr(atexit, "register", at_exit.append)
    monkeypatch.setattr(atexit, "unregister", at_exit.remove)
    monkeypatch.setattr(dist, "is_initialized", lambda: bool(group))
    monkeypatch.setattr(dist, "init_process_group", lambda *_, **__: group.append("gloo"))
    monkeypatch.setattr(dist, "destroy_process_group", group.clear)
    monkeypatch.setattr(dist, "all_gather_object", mock.Mock(side_effect=met))
    ranks.join()
    ranks.join()  # another run of the same process
    assert len(at_exit) == 1
    with pytest.raises((InputError, KeyboardInterrupt)) if met else contextlib.nullcontext():
        ranks.from_all("mine")
    assert len(at_exit) == (0 if met else 1)
    for leave in at_exit * 2:  # somebody may have left already
        leave()
    assert len(group) == (1 if met else 0)


def test_an_error_of_all_ranks_is_told_once(tmp_path: Path) -> None:
    status, told = finished(torchrun(2, *command(tmp_path, "--data.rot", "x")))
    assert status == 1
    assert [line for line in told.splitlines() if line.startswith("error:")] == [
        "error: unknown key data.rot on the command line: did you mean data.root?"
    ]


def test_an_error_of_one_rank_is_told_by_it(voc_root: Path, tmp_path: Path) -> None:
    (voc_root / "VOCdevkit/VOC2007/JPEGImages/000003.jpg").write_bytes(b"no JPEG")  # of the second batch
    words = ["--data.root", str(voc_root), "--calib.root", str(PROJECT / "data/voc"), "--data.limit", "none"]
    statuses, told = as_ranks(2, "compare", *command(tmp_path / "run", *words, "--batch", "2", "--strict"))
    assert statuses[1] == 2
    assert statuses[0] != 0
    lines = [line for line in told.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert "000003.jpg" in lines[0]


def test_one_process_has_everything_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")  # some clusters set it for every job
    monkeypatch.setenv("RANK", "3")
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert (ranks.rank(), ranks.count(), ranks.share([1, 2, 3])) == (0, 1, [1, 2, 3])
    assert ranks.from_first(lambda: "mine") == "mine"
    assert ranks.is_first_to_tell()
    ranks.join()
    ranks.wait()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert (ranks.rank(), ranks.count(), ranks.share(range(9))) == (3, 4, range(3, 9, 4))
