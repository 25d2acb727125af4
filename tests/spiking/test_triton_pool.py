"""Triton's max pooling of running sums against PyTorch's: on a GPU, else by Triton's interpreter on the CPU."""

import pytest
import torch
import torch.nn.functional as F
from support.neurons import noise
from support.scans import FORMATS
from torch import nn

from msat_det.methods.convert import spiking_network
from msat_det.methods.observe import observe
from msat_det.spiking.kernels.window import Window

pytest.importorskip("triton")
from msat_det.spiking import engine
from msat_det.spiking.kernels.triton_pool import FusedPool

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
STEPS, IMAGES = 5, 2
WINDOWS = {
    "2x2": Window((2, 2), (2, 2), (0, 0), False),
    "2x2, ceil": Window((2, 2), (2, 2), (0, 0), True),
    "3x3 at 2, padded": Window((3, 3), (2, 2), (1, 1), False),
    "3x3 at 1, padded": Window((3, 3), (1, 1), (1, 1), False),
    "3x2 at 1x3": Window((3, 2), (1, 3), (1, 0), True),
    "5x5 at 1, padded": Window((5, 5), (1, 1), (2, 2), False),
}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
def test_differences_and_their_counts(window: Window, format: str) -> None:
    x = noise(STEPS, IMAGES, 3, 7, 8) * (noise(STEPS, IMAGES, 3, 7, 8, seed=1) > 0.5)
    pooled = F.max_pool2d(
        x.cumsum(0).flatten(0, 1), window.kernel, window.stride, window.padding, ceil_mode=window.ceil
    ).unflatten(0, (STEPS, IMAGES))
    sums = x[0].clone()  # cumsum may add in another order
    pooled[0] = F.max_pool2d(sums, window.kernel, window.stride, window.padding, ceil_mode=window.ceil)
    for t in range(1, STEPS):
        sums = sums + x[t]
        pooled[t] = F.max_pool2d(sums, window.kernel, window.stride, window.padding, ceil_mode=window.ceil)
    expected = torch.cat((pooled[:1], pooled[1:] - pooled[:-1]))
    reach = torch.arange(float(expected[0, 0].numel())).reshape(expected.shape[2:])
    events = (expected != 0).double()
    counts = torch.stack((events.sum((0, 2, 3, 4)), (events * reach).sum((0, 2, 3, 4))), 1)
    for chunk in (2, STEPS):
        flat = x.flatten(0, 1).contiguous(memory_format=FORMATS[format]).to(DEVICE)
        pool = FusedPool(window, flat[:IMAGES], reach.to(DEVICE))
        parts = flat.split(chunk * IMAGES)
        got = torch.cat([pool.run(part, n * chunk, len(part) // IMAGES) for n, part in enumerate(parts)])
        assert torch.equal(got.cpu().unflatten(0, (STEPS, IMAGES)), expected)
        assert torch.equal(pool.counts.cpu(), counts)


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1, ceil_mode=True)], ids=str)
def test_a_network_pools_the_same(pool: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), pool, nn.Conv2d(8, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    images = torch.randn(2, 3, 15, 15).to(DEVICE)
    snn = spiking_network("constant", {"signed": True, "gamma": 3}, observe(net.to(DEVICE), [images]), 6)
    plain = snn.run(images, 6, [3, 6])
    sops = snn.counts[6].sops
    monkeypatch.setattr(engine, "pool_in_triton", lambda x: True)
    fused = snn.run(images, 6, [3, 6])
    assert all(torch.equal(plain[t], fused[t]) for t in (3, 6))
    assert torch.equal(snn.counts[6].sops, sops)
