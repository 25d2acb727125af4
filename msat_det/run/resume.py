"""Who may use a run directory, and whether a run in it starts anew or goes on.

While a run is unfinished its directory holds config.yaml and parts/; summary.json and the page made of it are written
last and then parts/ goes, begun.safetensors first. So this file means that there is something to go on with, and
summary.json without it that nothing is left to do.
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
from msat_det.base.files import digest, file_digest, is_file, remove, show, write_whole, yaml_of
from msat_det.base.settings import PATH_KEYS, keys_of
from msat_det.data import Dataset
from msat_det.measure.batch_files import Parts
from msat_det.measure.rows import read_summary
from msat_det.methods.observe import Observation
from msat_det.report.directory import CONFIG, RunDirectory, commit_id, versions
from msat_det.run.locks import lock

CONTENTS = "contents of "  # a file that the configuration names, by its key
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


@contextmanager
def taken(config: Config) -> Iterator[RunDirectory]:
    """The directory of a command, which alone may write into it meanwhile. Raises InputError where another one does,
    and where files would be replaced that are no run's, unless ``config.overwrite`` allows it."""
    for part in (config.data, config.calib):
        if part.kind == "images" and Path(part.root or "", part.split or "").resolve() == Path(config.folder).resolve():
            raise InputError(f"--out is {config.folder}, whose images are read: the run's pictures would be among them")
    directory = RunDirectory(config.folder)
    ranks.from_first(lambda: _refuse_foreign(directory, config))
    with owned(directory), directory:
        yield directory


def _refuse_foreign(directory: RunDirectory, config: Config) -> None:
    marks = directory.lock, _begun(directory), directory.path / "summary.json"
    there = directory.found(directory.names)
    if there and not config.overwrite and not any(mark.exists() for mark in marks):
        raise InputError(
            f"{there[0]} would be replaced, and {directory.path} is no run's directory: give another folder with --out "
            "DIR, or add --overwrite"
        )


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
    _refuse_other_configuration(directory.path / CONFIG, config)
    if not begun:
        then = read_summary(directory.path)[1].get("files", {})
        for key, content in named_files(config).items():
            if then.get(key, content) != content:
                raise _other_input(CONTENTS + key, directory.path)
    return not begun


def earlier_batch(directory: RunDirectory, config: Config) -> int | None:
    """The batch of the run that this one goes on with, if any: free memory may be another now."""
    goes_on = config.free_batch and config.resume and _begun(directory).is_file()
    return yaml_of(directory.path / CONFIG)["batch"] if goes_on else None


def refuse_finished(directory: RunDirectory, config: Config) -> None:
    """Raise InputError where the directory holds a finished run, unless that is to be overwritten."""
    if (directory.path / "summary.json").exists() and not config.overwrite:
        raise InputError(
            f"{directory.path} holds a finished run: give another folder with --out DIR, or --overwrite to replace it"
        )


def drop_finished(directory: RunDirectory) -> None:
    """Remove a finished run that may be overwritten, before results of another command are written."""
    if (directory.path / "summary.json").exists():
        directory.clear()
        remove(directory.path / CONFIG)


@dataclass(frozen=True)
class Begun:
    """A run that may compute. todo: the numbers of the batches still missing. made_by: commit and versions of the code,
    first to last. facts: see ``facts_of``."""

    todo: list[int]
    made_by: dict[str, str | None]
    facts: dict[str, str]

    @property
    def files(self) -> dict[str, str]:
        """See ``named_files``."""
        names = {fact: fact.removeprefix(CONTENTS) for fact in self.facts if fact.startswith(CONTENTS)}
        return {name: self.facts[fact] for fact, name in names.items()}


def facts_of(config: Config, observation: Observation, dataset: Dataset, calibration: Dataset) -> dict[str, str]:
    """What a run is computed from, as digests by names in plural."""
    weights = observation.graph.module.state_dict().values()
    return {
        "evaluated images": images_digest(dataset),
        "weights": digest(*(tensor.cpu().numpy().tobytes() for tensor in weights)),
        "calibration images": images_digest(calibration),
        **{CONTENTS + key: content for key, content in named_files(config).items()},
    }


def require_same(facts: dict[str, str], begun: Begun) -> None:
    """Raise InputError where a rank computes from something else than the first one."""
    for name in facts | begun.facts:
        if facts.get(name) != begun.facts.get(name):
            raise InputError(
                f"the {name} of rank {ranks.rank()} are not those of rank 0: every machine needs the same files"
            )


def begin(
    directory: RunDirectory, config: Config, observation: Observation, facts: dict[str, str], batches: int
) -> Begun:
    """Start the run anew, everything of an earlier one removed, or go on with its parts alone.

    facts: of ``facts_of``. Raises InputError where they are no longer those of the parts.
    """
    path, made_by = _begun(directory), {"commit": commit_id()} | versions()
    maxima = torch.cat([torch.zeros(0), *(site.maximum for site in observation.sites.values())])
    goes_on = config.resume and path.is_file()
    if goes_on:
        made_by = _refuse_other_input(path, facts, maxima, made_by)
    try:
        directory.clear()
        if not goes_on:
            path.unlink(missing_ok=True)
            remove(directory.parts)
            directory.write(CONFIG, replace(config, resume=False, overwrite=False).to_yaml())
            directory.parts.mkdir()
    except OSError as error:
        raise InputError(f"cannot write {error.filename} ({error.strerror}): give another --out DIR") from error
    content = safetensors.torch.save({"maxima": maxima}, facts | {"made by": json.dumps(made_by)})
    write_whole(path, lambda file: file.write_bytes(content))
    return Begun(sorted(set(range(batches)) - Parts(directory.parts).done()), made_by, facts)


def finish(directory: RunDirectory) -> None:
    """Remove the parts: they are in the results now, and a classifier's logits on ImageNet take gigabytes."""
    _begun(directory).unlink(missing_ok=True)  # first: half of the parts would look like an unfinished run
    shutil.rmtree(directory.parts, ignore_errors=True)


def images_digest(dataset: Dataset) -> str:
    """Of the images' names, order and lengths: to digest their bytes would take as long as reading them all."""
    return digest(json.dumps([(id, dataset.length(id)) for id in dataset.ids]).encode())


def named_files(config: Config) -> dict[str, str]:
    """The SHA-256 of every file that the configuration names (weights, prices, a fit's plan …), by its key; under
    model.name of the one that builds a network of one's own, once it is imported."""
    names = {key: name for key, name in dotted(config.values()).items() if key in PATH_KEYS or key.endswith(".plan")}
    names["model.name"] = getattr(sys.modules.get(config.model.name.partition(":")[0]), "__file__", None)
    return {key: file_digest(name) for key, name in names.items() if isinstance(name, str) and is_file(name)}


def _begun(directory: RunDirectory) -> Path:
    return directory.parts / "begun.safetensors"


def _refuse_other_configuration(path: Path, config: Config) -> None:
    try:
        then = dotted(yaml_of(path))
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"{path} is damaged ({type(error).__name__}): start anew with another --out DIR") from error
    now = dotted(config.values())
    then = {
        key: known.default for key, known in keys_of().items() if key in now
    } | then  # an older version's lacks some
    for key in now | then:
        if key not in FREE and then.get(key) != now.get(key) and not (key == "batch" and config.free_batch):
            raise InputError(
                f"{key} is {show(now.get(key))} and was {show(then.get(key))} when the run in {path.parent} began: "
                "give the same, or start anew with another --out DIR"
            )


def dotted(tree: dict, prefix: str = "") -> dict[str, Any]:
    """A configuration as {dotted key: value}, a method's options under methods.LABEL."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if key == "methods" and not prefix:
            flat[key] = [entry["label"] for entry in value]
            value = {entry["label"]: entry for entry in value}
        flat |= dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _refuse_other_input(
    path: Path, facts: dict[str, str], maxima: Tensor, now: dict[str, str | None]
) -> dict[str, str | None]:
    """Returns the commits and versions by which the parts were and will be computed."""
    try:
        with safe_open(path, "pt") as file:
            then, old = file.metadata(), file.get_tensor("maxima")
        began = json.loads(then["made by"])
        made_by = {name: _then(name, began[name], version) for name, version in now.items()}
        changed = [name for name, fact in facts.items() if then[name] != fact]
        if old.dtype != maxima.dtype:
            raise ValueError("it has other values than a run writes")
    except (SafetensorError, OSError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error}): start anew with another --out DIR") from error
    if maxima.shape != old.shape or not torch.allclose(maxima, old, rtol=1e-3):  # another processor rounds otherwise
        changed.append("calibration images")
    if changed:
        raise _other_input(changed[0], path.parent.parent)
    for name in made_by:
        if made_by[name] != began[name]:
            print(f"the run began with {name} {began[name]} and goes on with {now[name]}", file=sys.stderr)
    return made_by


def _then(name: str, began: Any, now: str | None) -> str | None:
    """``began``, and behind it ``now`` where it is not among those."""
    if not isinstance(began, str | None):
        raise ValueError(f"its {name} is no text")
    return began if now == began or now in (began or "").split(" then ") else f"{began} then {now}"


def _other_input(what: str, folder: Path) -> InputError:
    return InputError(
        f"the {what} are not those with which the run in {folder} began: put them back, or start anew with another "
        "--out DIR"
    )
