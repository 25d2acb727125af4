"""Who may use a run directory, and whether a run in it starts anew or goes on.

While a run is unfinished its directory holds config.yaml and parts/; summary.json and the page made of it are written
last and then parts/ goes. So parts/ means that there is something to go on with, and summary.json without it that
nothing is left to do.
"""

import json
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor

from msat_det.base import ranks
from msat_det.base.config import Config
from msat_det.base.errors import InputError
from msat_det.base.files import digest, show, write_whole, yaml_of
from msat_det.data import Dataset
from msat_det.measure.batch_files import Parts
from msat_det.methods.observe import Observation
from msat_det.report.directory import RunDirectory, commit_id
from msat_det.run.locks import lock

FREE = ("out", "resume", "overwrite")  # keys that decide nothing of what is computed


@contextmanager
def owned(directory: RunDirectory) -> Iterator[None]:
    """Keep every other run out of the directory for as long as a rank of this one lives, however it ends.

    Raises InputError, naming the owner, where another run holds it.
    """
    path = directory.lock
    with path.open("a+", encoding="utf-8") as file:

        def take(shared: bool) -> None:
            try:
                lock(file, shared)
            except BlockingIOError:
                owner = path.read_text("utf-8").strip()
                raise InputError(
                    f"{directory.path} belongs to a run that is still going ({owner}): wait for its end, stop it, or "
                    "give another folder with --out DIR"
                ) from None
            except OSError as error:
                raise InputError(f"cannot lock {path} ({error.strerror}): give --out on another disk") from None

        def own() -> None:
            take(shared=False)
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
            take(shared=True)

        ranks.from_first(own)
        take(shared=True)  # every rank holds it: one that has outlived rank 0 keeps others out, too
        yield


def is_finished(directory: RunDirectory, config: Config) -> bool:
    """Whether the directory already holds the whole result of this run.

    Raises InputError where --resume would go on with another configuration (naming the key), and where a run without
    it would throw away what a finished one has left or an unfinished one has computed.
    """
    begun = _begun(directory).is_file()
    if not config.resume:
        done = len(Parts(directory.parts).done())
        if begun and done and not config.overwrite:
            raise InputError(
                f"{directory.path} holds {done} batches of an unfinished run: add --resume to go on with it, give "
                "another folder with --out DIR, or add --overwrite to start anew"
            )
        if not begun:
            refuse_finished(directory, config)
        return False
    if not begun and not (directory.path / "summary.json").is_file():
        return False
    _refuse_other_configuration(directory.path / "config.yaml", config)
    return not begun


def earlier_batch(directory: RunDirectory, config: Config) -> int | None:
    """The batch of the run that this one goes on with, if any: free memory may be another now."""
    goes_on = config.free_batch and config.resume and _begun(directory).is_file()
    return yaml_of(directory.path / "config.yaml")["batch"] if goes_on else None


def refuse_finished(directory: RunDirectory, config: Config) -> None:
    """Raise InputError where the directory holds a finished run, unless that is to be overwritten."""
    if (directory.path / "summary.json").exists() and not config.overwrite:
        raise InputError(
            f"{directory.path} holds a finished run: give another folder with --out DIR, or --overwrite to replace it"
        )


@dataclass(frozen=True)
class Begun:
    """A run that may compute. todo: the numbers of the batches still missing. commit: of the code, first to last."""

    todo: list[int]
    commit: str | None


def begin(directory: RunDirectory, config: Config, observation: Observation, dataset: Dataset, batches: int) -> Begun:
    """Start the run anew, old results removed, or go on with what is there.

    Raises InputError where the weights, the calibration images or the list of images are no longer those of the parts.
    """
    path, commit = _begun(directory), commit_id()
    weights = observation.graph.module.state_dict().values()
    facts = {
        "evaluated images": digest(json.dumps(dataset.ids).encode()),
        "weights": digest(*(tensor.cpu().numpy().tobytes() for tensor in weights)),
    }
    maxima = torch.cat([torch.zeros(0), *(site.maximum for site in observation.sites.values())])
    if config.resume and path.is_file():
        commit = _refuse_other_input(path, facts, maxima, commit)
    else:
        try:
            path.unlink(missing_ok=True)
            directory.clear()
            directory.write("config.yaml", replace(config, resume=False, overwrite=False).to_yaml())
            directory.parts.mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write {error.filename} ({error.strerror}): give another --out DIR") from error
    content = safetensors.torch.save({"maxima": maxima}, facts | {"commit": json.dumps(commit)})
    write_whole(path, lambda file: file.write_bytes(content))
    return Begun(sorted(set(range(batches)) - Parts(directory.parts).done()), commit)


def finish(directory: RunDirectory) -> None:
    """Remove the parts: they are in the results now, and a classifier's logits on ImageNet take gigabytes."""
    gone = directory.path / ".parts.done"  # in one step: half of the parts would look like an unfinished run
    shutil.rmtree(gone, ignore_errors=True)
    directory.parts.replace(gone)
    shutil.rmtree(gone, ignore_errors=True)


def _begun(directory: RunDirectory) -> Path:
    return directory.parts / "begun.safetensors"


def _refuse_other_configuration(path: Path, config: Config) -> None:
    try:
        then = _flat(yaml_of(path))
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"{path} is damaged ({type(error).__name__}): start anew with another --out DIR") from error
    now = _flat(config.values())
    for key in now | then:
        if key not in FREE and then.get(key) != now.get(key) and not (key == "batch" and config.free_batch):
            raise InputError(
                f"{key} is {show(now.get(key))} and was {show(then.get(key))} when the run in {path.parent} began: "
                "give the same, or start anew with another --out DIR"
            )


def _flat(tree: dict, prefix: str = "") -> dict[str, Any]:
    """A configuration as {dotted key: value}, a method's options under methods.LABEL."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if key == "methods" and not prefix:
            flat[key] = [entry["label"] for entry in value]
            value = {entry["label"]: entry for entry in value}
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _refuse_other_input(path: Path, facts: dict[str, str], maxima: Tensor, commit: str | None) -> str | None:
    """Returns the commits by which the parts were and will be computed."""
    try:
        with safe_open(path, "pt") as file:
            then, old = file.metadata(), file.get_tensor("maxima")
        began = json.loads(then["commit"])
        changed = [name for name, fact in facts.items() if then[name] != fact]
        if old.dtype != maxima.dtype or not isinstance(began, str | None):
            raise ValueError("it has other values than a run writes")
    except (SafetensorError, OSError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error}): start anew with another --out DIR") from error
    if maxima.shape != old.shape or not torch.allclose(maxima, old, rtol=1e-3):  # another processor rounds otherwise
        changed.append("calibration images")
    if changed:
        raise InputError(
            f"the {changed[0]} are not those with which the run in {path.parent.parent} began: put them back, or start "
            "anew with another --out DIR"
        )
    if commit in (began or "").split(" then ") or commit == began:
        return began
    print(f"the run began with the code of commit {began} and goes on with {commit}", file=sys.stderr)
    return f"{began} then {commit}"
