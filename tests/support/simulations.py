"""What tests of simulations share: gathered spikes, comparisons that allow for ties, a meter of memory."""

import contextlib
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


@contextlib.contextmanager
def plain_convolutions() -> Iterator[None]:
    """Convolutions image by image, so that a layer's input hardly depends on the batch."""
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
    """The same spikes but for ties: a neuron within rounding of its boundary may differ, and what follows
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


class LinearNetwork(nn.Module):
    """Convolution, average pooling, and heads: nothing spikes."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = F.avg_pool2d(self.conv(x), 2) - 0.5
        return {"map": F.max_pool2d(y, 2), "class": self.head(y.mean((2, 3)))}


POOLS = [
    dict(kernel_size=2),
    dict(kernel_size=3, stride=2, padding=1),
    dict(kernel_size=3, stride=1, padding=1),
    dict(kernel_size=5, stride=1, padding=2),
    dict(kernel_size=3, stride=2, ceil_mode=True),
    dict(kernel_size=2, stride=2, ceil_mode=True, padding=1),
    dict(kernel_size=(1, 3), stride=(2, 1), padding=(0, 1)),
    dict(kernel_size=2, stride=1, dilation=2),
    dict(kernel_size=2, stride=3, dilation=3, ceil_mode=True),
]
FUNCTIONS = {
    f"max pooling {' '.join(f'{k}={v}' for k, v in p.items())}": lambda x, p=p: F.max_pool2d(x, **p) for p in POOLS
}
FUNCTIONS |= {
    "padded max pooling": lambda x: F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-float("inf")), 2, 1),
    "adaptive max pooling": lambda x: F.adaptive_max_pool2d(x, 3),
    "amax": lambda x: x.amax(1, keepdim=True),
    "pool of a pool": lambda x: F.max_pool2d(F.max_pool2d(x - 1, 3, 1, 1), 2),
    "pool of negative values": lambda x: F.max_pool2d(-x, 2),
    "softmax": lambda x: F.softmax(x, 1),
    "group norm": lambda x: F.group_norm(x, 2),
    "layer norm": lambda x: F.layer_norm(x, (4, 9, 9)),
    "L2 norm": lambda x: F.normalize(x + 0.1),
    "local response norm": lambda x: F.local_response_norm(x, 2, alpha=0.5),
    "excitation": lambda x: x * x.mean((2, 3), keepdim=True),
    "product": lambda x: (x + 1) * x.flip(1),
    "quotient": lambda x: (1 + x) / (2 + x.flip(1)),
    "powers": lambda x: (x + 0.5) ** 2 + (x + 1).sqrt() + torch.exp(-x),
    "larger of two": lambda x: torch.maximum(x, 1 - x),
    "matrix product": lambda x: x @ x.transpose(2, 3),
    "offsets": lambda x: 2 * x - 1 + (0.5 - x.flip(1)),
    "padding with a value": lambda x: F.pad(x, (1, 0, 2, 1), value=0.7),
    "pooling": lambda x: F.avg_pool2d(x, 3, 2, 1) + F.adaptive_avg_pool2d(x, 5),
    "bilinear": lambda x: F.interpolate(x, (7, 5), mode="bilinear"),
    "halves": lambda x: torch.cat((x.chunk(2, 1)[1] + 1, x[:, :2]), 1),
}


class Follow(nn.Module):
    """Spikes → function → a neuron fine enough to show the sum of what reaches it."""

    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.conv, self.function = nn.Conv2d(3, 4, 4), function

    def forward(self, x: Tensor) -> Tensor:
        return F.hardtanh(self.function(F.relu(self.conv(x))), -1e6, 1e6)
