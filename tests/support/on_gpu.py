"""Small networks on a GPU, and the mark of tests that need one."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

import msat_det
from msat_det.methods.observe import observe
from msat_det.spiking.network import SpikingNetwork

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
METHODS = {
    "signed bursts": ("constant", {"signed": True, "gamma": 3, "scale": "channel", "initial": "half"}),
    "msat": ("msat", {}),
    "msat normalised": ("msat", {"variant": "normalised", "signed": True, "gamma": 3}),
    "calibration": ("calibration", {}),
    "spike-norm": ("spike-norm", {}),
    "confidence": ("constant", {"confidence": "estimate"}),
    "binary levels": ("constant", {"levels": "binary", "bits": 3}),
    "delta": ("delta", {"bits": 7, "terms": (3, 1)}),
    "delta, bursts": ("constant", {"coding": "delta", "gamma": 3}),
    "delta, msat": ("msat", {"coding": "delta"}),
}
UNREPEATED = ("confidence",)  # spikes are drawn by image


def plain() -> nn.Module:
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.SiLU(), nn.Conv2d(8, 2, 1)]
    return nn.Sequential(*layers)


def wide() -> nn.Module:
    """Its second convolution is one that tensor cores take."""
    return nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.Conv2d(32, 2, 1))


def converted(method: str, make: Callable = plain) -> tuple[SpikingNetwork, list[torch.Tensor]]:
    """A network on the GPU, the same each time, and three batches."""
    torch.manual_seed(0)
    net, batches = make().eval().cuda(), [torch.randn(2, 3, 32, 32).cuda() for _ in range(3)]
    name, options = METHODS[method]
    return msat_det.convert(observe(net, [batches[0]]), method=name, T=8, **options), batches


def assert_the_same_bits(method: str, make: Callable) -> SpikingNetwork:
    """Batch after batch, the first one once more, a network gives what one that was made for each gives. Returns it."""
    snn, batches = converted(method, make)
    for batch in [*batches, batches[0]]:
        other, _ = converted(method, make)
        found, expected = snn.run(batch, 8, record=[3, 8]), other.run(batch, 8, record=[3, 8])
        leaves = [torch.utils._pytree.tree_leaves(each) for each in (found, expected)]
        assert all(map(torch.equal, *leaves))
        assert all(torch.equal(snn.counts[t].figures, other.counts[t].figures) for t in (3, 8))
    return snn
