"""What tests of simulations share: gathered spikes, comparisons that allow for ties, a meter of memory."""

import contextlib
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


@contextlib.contextmanager
def plain_convolutions() -> Iterator[None]:
    """Convolutions image by image, so that a layer's input hardly depends on the batch (DESIGN §7)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of mkldnn.flags, about other devices
        with torch.backends.mkldnn.flags(enabled=False), torch.backends.nnpack.flags(enabled=False):
            yield


class Spikes(dict):
    """A tap that gathers {call site: outputs (T, B, C, …)}."""

    def __call__(self, site: str, y: Tensor) -> None:
        self[site] = torch.cat((self[site], y)) if site in self else y.clone()


def assert_same(got: Any, expected: Any, tolerance: float = 0.0) -> None:
    assert pytree.tree_structure(got) == pytree.tree_structure(expected)
    for a, b in zip(pytree.tree_leaves(got), pytree.tree_leaves(expected), strict=True):
        assert torch.equal(a, b) if tolerance == 0 else (a - b).abs().max() <= tolerance * b.abs().max()


def assert_alike(got: Spikes, expected: Spikes, order: list[int] | None = None) -> bool:
    """The same spikes but for ties (DESIGN §7): a neuron within rounding of its boundary may differ, and what follows
    it. ``order``: images of ``expected``. Returns whether all of them are the same.
    """
    assert list(got) == list(expected)
    same = True
    for site, y in expected.items():
        y = y if order is None else y[:, order]
        differ = (got[site] - y).abs() > 1e-4 * y.abs().max()
        assert differ.float().mean() < 0.02
        same = same and not differ.any()
    return same


class LiveBytes(TorchDispatchMode):
    """The most bytes of tensors alive at once."""

    def __init__(self):
        super().__init__()
        self.holders: dict[int, int] = {}
        self.live = self.peak = 0

    def __torch_dispatch__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in pytree.tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                self.live += size if not self.holders.get(key) else 0
                self.holders[key] = self.holders.get(key, 0) + 1
                weakref.finalize(tensor, self.drop, key, size)
        self.peak = max(self.peak, self.live)
        return out

    def drop(self, key: int, size: int) -> None:
        self.holders[key] -= 1
        self.live -= size if not self.holders[key] else 0
