"""Regions that somebody's own network pools by torchvision's operators, as many for each image."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.networks import images
from torch import Tensor, nn
from torchvision.ops import MultiScaleRoIAlign, ps_roi_align, roi_align, roi_pool

import msat_det
from msat_det.base.errors import InputError
from msat_det.graph.facts import facts
from msat_det.graph.trace import trace
from msat_det.spiking.formats.onnx_check import check
from msat_det.spiking.formats.onnx_step import Step, export_step

FIXED = torch.tensor([[2.0, 2, 10, 10], [5, 1, 15, 14], [0, 0, 15.5, 15.5]])


class Looking(nn.Module):
    """Somebody's own second stage, which ``look`` gives its regions: (network, images, map) → (B·K, 18, 3, 3)."""

    def __init__(self, look: Callable[..., Tensor], channels: int = 18):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.where = nn.Sequential(nn.Conv2d(3, 18, 3, 2, 1), nn.ReLU()), nn.Conv2d(18, 4, 8, 8)
        self.last = nn.Sequential(nn.Flatten(), nn.Linear(9 * channels, 16), nn.ReLU(), nn.Linear(16, 5))
        self.look, self.pool = look, MultiScaleRoIAlign(["map"], 3, 2)
        self.register_buffer("fixed", FIXED)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.look(self, x, self.first(x)))


def numbered(x: Tensor, boxes: Tensor) -> Tensor:
    """(B, K, 4) → (B·K, 5), the image's number first."""
    number = torch.arange(x.shape[0], dtype=x.dtype)[:, None, None].expand(-1, boxes.shape[1], 1)
    return torch.cat((number, boxes), -1).flatten(0, 1)


def of_its_own(net: Looking, x: Tensor, y: Tensor) -> Tensor:
    places = net.where(y).sigmoid().flatten(2).transpose(1, 2)
    boxes = torch.cat((7 * places[..., :2], 7 * places[..., :2] + 2 + 7 * places[..., 2:]), -1)
    return roi_align(y, numbered(x, boxes), 3, 1.0, 2)


LOOKS = {
    "a list": lambda net, x, y: roi_align(y, [net.fixed] * len(x), 3, 0.5, 2, aligned=True),
    "numbered": lambda net, x, y: roi_align(y, numbered(x, net.fixed.expand(x.shape[0], -1, -1)), (3, 3), 0.5),
    "its own": of_its_own,
    "pooled": lambda net, x, y: roi_pool(y, [net.fixed for _ in x], 3, 0.5),
    "by places": lambda net, x, y: ps_roi_align(y, [net.fixed] * len(x), 3, 0.5, 2),
    "of levels": lambda net, x, y: net.pool({"map": y}, [net.fixed] * len(x), [(32, 32)] * len(x)),
}


@pytest.mark.parametrize("case", LOOKS)
@torch.no_grad()
def test_regions_of_somebodys_own(case: str, tmp_path: Path) -> None:
    """As many for each image; that several timesteps are run at a time counts for nothing."""
    net = Looking(LOOKS[case], 2 if case == "by places" else 18).eval()
    x, fresh = images(4, size=32), images(3, size=32, seed=5)
    graph = trace(net, x)
    (node,) = (node for node in graph.nodes if facts(node).op == "pooledboxes")
    assert facts(node).axis == 1
    for batch in (fresh, fresh[:1]):
        torch.testing.assert_close(graph(batch), net(batch))
    for method, T in (("delta-3", 8), ("signed-b3", 64), ("msat", 1024)):
        snn = msat_det.convert(net, [x], method)
        found, wanted = snn.run(fresh, T)[T], net(fresh)
        assert (found - wanted).norm() / wanted.norm() < 0.02
        msat_det.save(snn, tmp_path / "snn.safetensors")
        assert torch.equal(msat_det.load(tmp_path / "snn.safetensors").run(fresh, T)[T], found)


@pytest.mark.parametrize("case", ["a list", "its own"])
def test_onnxruntime_looks_at_the_same_regions(case: str) -> None:
    pytest.importorskip("onnxruntime")
    x = images(2, size=32)
    snn = msat_det.convert(Looking(LOOKS[case]).eval(), [x], "signed-b3")
    found = check(export_step(Step(snn)), snn, (x[:1],), steps=4)
    assert found.holds, str(found)


OTHERS = {
    "more for one": lambda net, x, y: roi_align(y, [net.fixed[: 1 + i] for i in range(len(x))], 3, 0.5),
    "of the first alone": lambda net, x, y: roi_align(y, [net.fixed, *[net.fixed[:0]] * (len(x) - 1)], 3, 0.5),
    "in another order": lambda net, x, y: roi_align(y, numbered(x, net.fixed.expand(len(x), -1, -1)).flip(0), 3, 0.5),
}


@pytest.mark.parametrize("look", OTHERS.values(), ids=OTHERS)
def test_regions_that_are_not_as_many_for_each_image_are_refused(look: Callable) -> None:
    with pytest.raises(InputError, match="every image has to have as many regions, those of the first image first"):
        trace(Looking(look).eval(), images(2, size=32))
