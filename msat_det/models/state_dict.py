"""From what a file holds to a network's tensors: where a checkpoint keeps them, their names, what doesn't fit."""

import sys
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from msat_det.base.errors import InputError
from msat_det.base.files import show
from msat_det.models.checkpoint import Foreign, Stored

# Keys under which training programs put weights; averaged ones first: they are what such programs evaluate.
WRAPPERS = (
    *("ema_state_dict", "state_dict_ema", "model_ema", "ema_model", "params_ema", "ema"),
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "params", "module"),
)
# Last parts of names that training and profilers leave beside the weights, and that no inference needs.
COUNTERS = {"num_batches_tracked", "n_averaged", "total_ops", "total_params"}
DEEPEST = 6  # parts of a prefix
MOST = 1000  # mappings and lists that are looked at
# What a wrapper of a part (torch.compile, DataParallel, checkpointing) puts into the names of what is in it.
INNER = {"module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}
SHOWN = 3
SAVE = "save a state dict: torch.save(model.state_dict(), FILE)"


def find_weights(content: Any, path: str | Path) -> dict[str, Any]:
    """The mapping with tensors in a checkpoint: under one of ``WRAPPERS``, itself, or the only one that it holds at
    any depth, in a list or tuple, too.

    Of several the first in the order of ``WRAPPERS`` is taken, and told; one with less than half of another's tensors
    is no rival. Raises InputError.
    """
    search = _Search()
    wrapped = search.rivals(search.wrapped(content))
    if wrapped:
        (key, weights), *others = wrapped.items()
        if others:
            names = ", ".join(show(other) for other, _ in others)
            print(f"{path}: weights are taken from {show(key)}, not from {names}", file=sys.stderr)
        return weights
    several = search.rivals({"": content} | _mappings(content))
    if "" in several or len(several) == 1:
        return next(iter(several.values()))
    raise InputError(f"{path}: not readable as weights: it {_what_it_is(content, several)}; {SAVE}")


def _mappings(content: Any) -> dict[str, dict]:
    """The mappings inside of a checkpoint by their names (model.backbone), but for those of optimisers."""
    found: dict[str, dict] = {}
    queue, seen = [("", content)], {id(content)}
    for prefix, outer in queue:
        items = (
            outer.items() if isinstance(outer, dict) else enumerate(outer) if isinstance(outer, list | tuple) else ()
        )
        for key, value in items:
            inner = isinstance(value, dict | list | tuple) and id(value) not in seen and len(queue) < MOST
            if inner and "optim" not in str(key):
                seen.add(id(value))
                queue.append((f"{prefix}{key}.", value))
                if isinstance(value, dict):
                    found[f"{prefix}{key}"] = value
    return found


class _Search:
    """Looks at every mapping of a checkpoint once, however often it is referred to."""

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        self.inside: dict[int, dict[str, dict]] = {}

    def wrapped(self, content: Any) -> dict[str, dict]:
        """{key of ``WRAPPERS``: the mapping with tensors under it}; such mappings may be nested."""
        if id(content) in self.inside or not isinstance(content, dict):
            return self.inside.get(id(content), {})
        found = self.inside[id(content)] = {}
        for key in (key for key in WRAPPERS if key in content):
            deeper = self.wrapped(content[key])
            if deeper:
                found[key] = next(iter(deeper.values()))
            elif self.tensors(content[key]):
                found[key] = content[key]
        return found

    def rivals(self, found: dict[str, Any]) -> dict[str, dict]:
        """Those of the values that are mappings with at least half as many tensors as the largest."""
        most = max(map(self.tensors, found.values()), default=0)
        return {key: value for key, value in found.items() if most and 2 * self.tensors(value) >= most}

    def tensors(self, value: Any) -> int:
        """The number of tensors in a mapping."""
        if id(value) not in self.counts:
            items = value.values() if isinstance(value, dict) else ()
            self.counts[id(value)] = sum(isinstance(x, Stored) or (isinstance(x, Foreign) and x.tensor) for x in items)
        return self.counts[id(value)]


def _what_it_is(content: Any, several: Collection[str]) -> str:
    if isinstance(content, Foreign):
        return f"is a whole {_name(content)} and holds no state dict, and msat-det runs nothing of a pickle"
    if not isinstance(content, dict):
        kind = "tensor" if isinstance(content, Stored) else type(content).__name__
        return f"holds no state dict (names with tensors) but a {kind}"
    if several:
        return f"holds several: {_some(several)}"
    whole = [
        f"{show(key)} is a whole {_name(content[key])}" for key in WRAPPERS if isinstance(content.get(key), Foreign)
    ]
    if whole:
        return f"holds no state dict: {whole[0]}, and msat-det runs nothing of a pickle"
    return f"holds no state dict (names with tensors) but {_some(content) or 'nothing'}"


def _is_counter(name: str) -> bool:
    return name.rpartition(".")[2] in COUNTERS


def _name(value: Foreign) -> str:
    return show(value.kind)[1:-1]


def _some(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(show, names[:SHOWN])) + more


def without_prefix(tensors: dict[str, Tensor], wanted: Collection[str], path: str | Path) -> dict[str, Tensor]:
    """The tensors without what wrappers of a network (``module.``, ``_orig_mod.``, ``model.``) put before their names.

    Of all beginnings the one is taken off that leaves the most names as ``wanted``; tensors without it are left out,
    and told. What wrappers of parts have put inside of names goes too, where more of them are wanted then.
    """
    bare = {".".join(part for part in name.split(".") if part not in INNER): tensor for name, tensor in tensors.items()}
    (best, fits), (bare_best, bare_fits) = _beginning(tensors, wanted), _beginning(bare, wanted)
    if bare_fits > fits and len(bare) == len(tensors):
        tensors, best = bare, bare_best
    others = [name for name in tensors if not name.startswith(best) and not _is_counter(name)]
    if others:
        print(f"{path}: the network's names begin with {show(best)}; left out: {_some(others)}", file=sys.stderr)
    return {name[len(best) :]: tensor for name, tensor in tensors.items() if name.startswith(best)}


def _beginning(names: Iterable[str], wanted: Collection[str]) -> tuple[str, int]:
    """The shortest beginning of names without which most of them are wanted, and how many that are."""
    votes: Counter[str] = Counter({"": 0})
    for name in names:
        prefix, rest = "", name
        for _ in range(DEEPEST):
            votes[prefix] += rest in wanted
            head, dot, rest = rest.partition(".")
            prefix += head + dot
            if not rest:
                break
    best = max(votes, key=lambda prefix: (votes[prefix], -len(prefix)))
    return best, votes[best]


def load_tensors(net: nn.Module, tensors: dict[str, Tensor], path: str | Path) -> None:
    """``load_state_dict`` that says in one line which tensors of the file at ``path`` don't fit ``net``.

    ``COUNTERS`` may be missing (files older than PyTorch 0.4.1 have none) and may be too many.
    """
    wanted = net.state_dict()
    kept = {n: value for n, value in tensors.items() if n in wanted or not _is_counter(n)}
    kept = {n: value for n, value in wanted.items() if _is_counter(n)} | kept
    wrong = [n for n in sorted(wanted.keys() | kept.keys()) if _shape(wanted, n) != _shape(kept, n)]
    if wrong:
        raise InputError(f"{path}: {_misfit(wanted, kept, wrong)}")
    wanted.update(kept)  # unlike a plain dict it tells the layout's version, which MNASNet asks for
    net.load_state_dict(wanted)


def _shape(tensors: dict[str, Tensor], name: str) -> str:
    return f"shape {tuple(tensors[name].shape)}" if name in tensors else "no such tensor"


def _misfit(wanted: dict[str, Tensor], tensors: dict[str, Tensor], wrong: list[str]) -> str:
    """The first of the names that do not fit, how many there are of each kind, and the likely mend."""
    pairs = [f"{show(n)}: the network has {_shape(wanted, n)}, the file {_shape(tensors, n)}" for n in wrong[:SHOWN]]
    missing, unknown = ([n for n in wrong if n not in group] for group in (tensors, wanted))
    shapes = [n for n in wrong if n in tensors and n in wanted]
    counts = (missing, "missing in the file"), (unknown, "unknown to the network"), (shapes, "of another shape")
    total = ", ".join(f"{len(names)} {what}" for names, what in counts if names)
    mend, own = "give weights of this network", [n for n in tensors if not _is_counter(n)]
    if not any(n in tensors for n in wanted if not _is_counter(n)):
        mend = f"the file's names are {_some(own) or 'none'}, the network's {_some(wanted)}: {mend}"
    elif not missing and not unknown and all(wanted[n].shape[1:] == tensors[n].shape[1:] for n in shapes):
        mend += ", or set model.num_classes to the number of classes that it was trained for"
    return f"{'; '.join(pairs)} ({total}; of {len(wanted)} tensors); {mend}"
