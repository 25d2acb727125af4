"""Small runs for tests: the embedded YOLO on a few embedded images, in this process or in one that may be killed."""

import contextlib
import io
import itertools
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest import mock

from torch.distributed import TCPStore

from msat_det.base.config import Config
from msat_det.base.settings import PROJECT
from msat_det.measure.rows import CurveRow
from msat_det.run import cli, resume
from msat_det.run.arguments import load_config
from msat_det.run.experiment import run

WORDS = (
    "--data.limit 10 --calib.limit 4 --sim.record 1,4 --methods signed,staged-4 --batch 3 --threads 1 --draw.images 0"
)
DRAWN = ("--draw.images", "1", "--draw.method", "staged-4")  # at one t; that takes nearly as long as all the rest
CHANGES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}


def command(out: Path, *words: str) -> list[str]:
    """The words of ``msat-det run`` for four batches of ten images."""
    return ["--cfg", str(PROJECT / "configs/yolo_voc.yaml"), "--out", str(out), *WORDS.split(), *words]


def tiny(out: Path, *words: str) -> Config:
    return load_config(command(out, *words))


def run_quietly(config: Config) -> list[CurveRow]:
    """Without bars and table; under one commit, whatever happens to the checkout meanwhile."""
    quiet = contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO())
    with quiet[0], quiet[1], mock.patch.object(resume, "commit_id", return_value="0123abc"):
        return run(config)


def before_changes(config: Config, do: Callable[[int], None]) -> None:
    """Run, and ``do`` something just before each change of the run directory's files, given how many there were."""
    step = itertools.count()

    def watch(event: str, arguments: tuple) -> None:
        if event not in CHANGES or not str(arguments[0]).startswith(config.out):
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
        do(next(step))

    sys.addaudithook(watch)
    run_quietly(config)


def die_at(step: int, config: Config) -> None:
    """Run, but die of SIGKILL just before the file system of the run directory is changed for the ``step``-th time."""
    before_changes(config, lambda now: os.kill(os.getpid(), signal.SIGKILL) if now == step else None)


def keep_states(folder: Path, config: Config) -> None:
    """Run, and copy what a SIGKILL before each change would leave of the run directory to ``folder``/NUMBER, but for
    those that find it as the one before: what is opened to be written, say, is not there yet."""
    last = None

    def keep(now: int) -> None:
        nonlocal last
        state = {path: path.is_file() and path.read_bytes() for path in Path(config.out).rglob("*")}
        if state != last and os.path.isdir(config.out):  # noqa: PTH112 (the first change makes it)
            shutil.copytree(config.out, folder / str(now))
            last = state

    before_changes(config, keep)


def start(target: object, *arguments: object) -> BaseProcess:
    """A process that begins at once: it is forked from a server that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["msat_det.run.experiment", "msat_det.report.curves", "torch.utils.tensorboard"])
    process = context.Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


def as_ranks(count: int, *words: str) -> tuple[list[int | None], str]:
    """``msat-det`` with these words in ``count`` processes as torchrun starts them, but that no other is ended with one
    of them: their exit statuses, and all that they print."""
    meeting = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # as the one of torchrun's agent
    told = {"TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_USE_AGENT_STORE": "True", "WORLD_SIZE": str(count)}
    told |= {"GIT_DIR": "/nowhere"}  # without a repository every run is of the same commit: None
    told |= {"LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(meeting.port)}
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, str(rank)) for rank in range(count)]
        own = [told | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
        processes = [start(_be, environment, file, words) for environment, file in zip(own, files, strict=True)]
        for process in processes:
            process.join()
        return [process.exitcode for process in processes], "".join(file.read_text() for file in files)


def _be(environment: dict[str, str], file: Path, words: tuple[str, ...]) -> None:
    os.environ.update(environment)
    with file.open("w") as stream, contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
        status = cli.main([*words])
    sys.exit(status)


def contents(out: Path) -> dict[str, bytes]:
    """Everything in a run directory by its path; the lock and TensorBoard's events, which hold times, left out."""
    files = (path for path in out.rglob("*") if path.is_file())
    names = {str(path.relative_to(out)): path for path in files}
    return {
        name: path.read_bytes().replace(str(out).encode(), b"OUT")
        for name, path in sorted(names.items())
        if name != ".lock" and "events." not in name
    }
