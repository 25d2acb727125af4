"""torchvision's deformable convolutions: what they sample, and where, are both running means of spikes."""

from pathlib import Path

import pytest
import torch
from support.networks import images
from torch import Tensor, nn
from torchvision.ops import DeformConv2d

import msat_det
from msat_det.graph.facts import facts
from msat_det.graph.fanout import fan_out
from msat_det.graph.trace import trace
from msat_det.spiking.formats.onnx_check import check
from msat_det.spiking.formats.onnx_step import Step, export_step


class Deformable(nn.Module):
    """A convolution whose taps go where another one says, modulated by a third as in version 2, or not."""

    def __init__(self, modulated: bool):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.offsets = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 18, 3, padding=1, stride=2)
        self.weighing = nn.Conv2d(8, 9, 3, padding=1, stride=2) if modulated else None
        self.deformed, self.last = DeformConv2d(8, 16, 3, padding=1, stride=2, groups=2), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        mask = None if self.weighing is None else self.weighing(x).sigmoid()
        return self.last(self.deformed(x, self.offsets(x), mask).relu())


@pytest.mark.parametrize("modulated", [True, False])
@pytest.mark.parametrize(("method", "T"), [("delta-3", 2), ("signed-b3", 64), ("msat", 512)])
@torch.no_grad()
def test_it_converges(modulated: bool, method: str, T: int, tmp_path: Path) -> None:
    net, x = Deformable(modulated).eval(), images(4)
    snn = msat_det.convert(net, [x], method)
    found, wanted = snn.run(x, T)[T], net(x)
    assert (found - wanted).norm() / wanted.norm() < 0.02
    msat_det.save(snn, tmp_path / "snn.safetensors")
    assert torch.equal(msat_det.load(tmp_path / "snn.safetensors").run(x, T)[T], found)


def test_its_multiply_adds_are_those_of_its_taps() -> None:
    graph = trace(Deformable(True).eval(), images(2))
    (node,) = (node for node in graph.nodes if facts(node).op == "deformconv2d")
    assert fan_out(graph).macs[node] == 16 * 6 * 6 * (8 // 2) * 9
    assert facts(node).axis == 1


@pytest.mark.parametrize("method", ["delta-3", "signed-b3"])
def test_onnxruntime_deforms_the_same(method: str) -> None:
    pytest.importorskip("onnxruntime")
    x = images(2)
    snn = msat_det.convert(Deformable(True).eval(), [x], method)
    found = check(export_step(Step(snn)), snn, (x[:1],), steps=4)
    assert found.holds, str(found)
