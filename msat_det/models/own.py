"""A network of your own by the name of what builds it: ``my_package.my_module:function``."""

import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from msat_det.base.config import Model
from msat_det.base.errors import InputError
from msat_det.base.files import show
from msat_det.models.detector import Detector
from msat_det.models.headed import HEAD_KEYS, HeadDetector, head_of, head_options
from msat_det.models.weights import fill


def is_own(name: str) -> bool:
    return ":" in name


def file_of(name: str) -> str | None:
    """The file of the module in a network's name, which need not be imported; None where there is none."""
    try:
        with _working_directory():
            spec = importlib.util.find_spec(name.partition(":")[0]) if is_own(name) else None
    except (ImportError, ValueError):  # no such package, or a module that was made without a file
        return None
    return spec.origin if spec else None


def build_own(model: Model, *keys: str) -> Any:
    """What the function, or class, at ``model.name`` gives: called with ``model`` if it takes that, else with nothing.

    keys: those of ``model`` that have a meaning beside it; all, where it takes them. Raises InputError where there is
    no such function, and for a key that has none.
    """
    build = _function(model)
    if _takes_model(build):
        return build(model)
    model.refuse_others(*keys)
    return build()


def _function(model: Model) -> Callable:
    place, _, name = model.name.partition(":")
    try:
        with _working_directory():
            build = getattr(importlib.import_module(place), name, None)
    except ImportError as error:
        raise InputError(f"model.name is {show(model.name)}: {error}; give package.module:function") from error
    if not callable(build):
        raise InputError(f"model.name is {show(model.name)}: {place} has no function or class {show(name)}")
    return build


@contextmanager
def _working_directory() -> Iterator[None]:
    """Within it Python looks for modules in the working directory, too."""
    path = str(Path.cwd())
    sys.path.insert(0, path)
    try:
        yield
    finally:
        sys.path.remove(path)


def _takes_model(build: Callable) -> bool:
    try:
        return "model" in inspect.signature(build).parameters
    except ValueError:  # some of what is written in C
        return False


def own_detector(model: Model) -> Detector:
    """The detector that one's own function builds; or a network, to which ``model.weights`` and ``model.head`` belong.

    The weights are a state dict, read without running anything of the file. Raises InputError.
    """
    built = build_own(model, "weights", *HEAD_KEYS)
    if not isinstance(built, nn.Module):
        if not isinstance(built, Detector):
            raise InputError(
                f"{model.name} gives a {type(built).__name__}: neither an nn.Module, nor a detector with net, classes, "
                "preprocess and decode"
            )
        return built
    if model.weights is not None:
        fill(built, model.weights)
    head = head_of(model)
    options = head_options(model, head)
    if model.size is None:
        raise InputError(f"model.size is not set: {model.name} needs the side of its input, in pixels")
    return HeadDetector(built, head, size=model.size, **options).check()
