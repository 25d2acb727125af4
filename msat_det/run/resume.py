"""Whether a run starts anew or goes on with what it has computed before.

While a run is unfinished its directory holds config.yaml and parts/; summary.json and the page made of it are written
last and then parts/ goes, begun.safetensors first. So this file means that there is something to go on with, and
summary.json without it that nothing is left to do.
"""

import json
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor

from msat_det.base.config import Config
from msat_det.base.errors import InputError
from msat_det.base.files import remove, show, write_whole, yaml_of
from msat_det.base.provenance import commit_id, versions
from msat_det.base.settings import dotted, keys_of, read_config
from msat_det.measure.batch_files import Parts
from msat_det.measure.rows import read_summary
from msat_det.methods.observe import Observation
from msat_det.report.directory import CONFIG, RunDirectory
from msat_det.run.digests import CONTENTS, named_files
from msat_det.run.ownership import refuse_finished

FREE = ("out", "resume", "overwrite")  # keys that decide nothing of what is computed


def is_finished(directory: RunDirectory, config: Config) -> bool:
    """Whether the directory already holds the whole result of this run.

    Raises InputError where --resume would go on with another configuration (naming the key), and where a run without
    it would throw away what a finished one has left or an unfinished one has computed.
    """
    begun = directory.begun.is_file()
    finished = not begun and directory.summary.is_file()
    if not config.resume:
        (_refuse_unfinished if begun else refuse_finished)(directory, config)
        return False
    if begun or finished:
        _refuse_other_configuration(directory.path / CONFIG, config)
    if finished:
        then = read_summary(directory.path)[1].get("files", {})
        for key, content in named_files(config).items():
            if then.get(key, content) != content:
                raise _other_input(CONTENTS + key, directory.path)
    return finished


def earlier_batch(directory: RunDirectory, config: Config) -> int | None:
    """The batch of the run that this one goes on with, if any: free memory may be another now."""
    goes_on = config.free_batch and config.resume and directory.begun.is_file()
    return read_config(directory.path / CONFIG).batch if goes_on else None


@dataclass(frozen=True)
class Begun:
    """A run that may compute. todo: the numbers of the batches still missing. made_by: commit and versions of the code,
    first to last. digests: see ``digests.digests_of``."""

    todo: list[int]
    made_by: dict[str, str | None]
    digests: dict[str, str]

    @property
    def files(self) -> dict[str, str]:
        """See ``digests.named_files``."""
        return {key.removeprefix(CONTENTS): found for key, found in self.digests.items() if key.startswith(CONTENTS)}


def begin(
    directory: RunDirectory, config: Config, observation: Observation, digests: dict[str, str], batches: int
) -> Begun:
    """Start the run anew, everything of an earlier one removed, or go on with its parts alone.

    digests: of ``digests_of``. Raises InputError where they are no longer those of the parts.
    """
    made_by = {"commit": commit_id()} | versions()
    maxima = torch.cat([torch.zeros(0), *(site.maximum for site in observation.sites.values())])
    goes_on = config.resume and directory.begun.is_file()
    if goes_on:
        made_by = _refuse_other_input(directory.begun, digests, maxima, made_by)
    try:
        directory.clear()
        if not goes_on:
            directory.begun.unlink(missing_ok=True)
            remove(directory.parts)
            directory.write(CONFIG, replace(config, resume=False, overwrite=False).to_yaml())
            directory.parts.mkdir()
    except OSError as error:
        raise InputError(f"cannot write {error.filename} ({error.strerror}): give another --out DIR") from error
    content = safetensors.torch.save({"maxima": maxima}, digests | {"made by": json.dumps(made_by)})
    write_whole(directory.begun, lambda file: file.write_bytes(content))
    return Begun(sorted(set(range(batches)) - Parts(directory.parts).done()), made_by, digests)


def finish(directory: RunDirectory) -> None:
    """Remove the parts: they are in the results now, and a classifier's logits on ImageNet take gigabytes."""
    directory.begun.unlink(missing_ok=True)  # first: half of the parts would look like an unfinished run
    shutil.rmtree(directory.parts, ignore_errors=True)


def _refuse_unfinished(directory: RunDirectory, config: Config) -> None:
    done = len(Parts(directory.parts).done())
    if done and not config.overwrite:
        raise InputError(
            f"{directory.path} holds {done} batches of an unfinished run: add --resume to go on with it, give "
            "another folder with --out DIR, or add --overwrite to start anew"
        )


def _refuse_other_configuration(path: Path, config: Config) -> None:
    now = dotted(config.values())
    then = {key: known.default for key, known in keys_of().items() if key in now}  # an older version's lacks some
    try:
        then |= dotted(yaml_of(path))
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"{path} is damaged ({type(error).__name__}): start anew with another --out DIR") from error
    for key in now | then:
        if key not in FREE and then.get(key) != now.get(key) and not (key == "batch" and config.free_batch):
            raise InputError(
                f"{key} is {show(now.get(key))} and was {show(then.get(key))} when the run in {path.parent} began: "
                "give the same, or start anew with another --out DIR"
            )


def _refuse_other_input(
    path: Path, digests: dict[str, str], maxima: Tensor, now: dict[str, str | None]
) -> dict[str, str | None]:
    """Returns the commits and versions by which the parts were and will be computed."""
    try:
        with safe_open(path, "pt") as file:
            then, old = file.metadata(), file.get_tensor("maxima")
        began = json.loads(then["made by"])
        made_by = {name: _then(name, began[name], version) for name, version in now.items()}
        changed = [name for name, found in digests.items() if then[name] != found]
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
