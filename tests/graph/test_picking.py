"""Networks that pick queries by their scores, as RT-DETR does: what is picked is found anew at every timestep."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import msat_det
from msat_det.graph.facts import facts, is_mask, is_site
from msat_det.graph.trace import trace
from msat_det.spiking.formats.onnx_check import check
from msat_det.spiking.formats.onnx_step import Step, export_step

PICKED = 6


class Picking(nn.Module):
    """Cells of a map, of which those of the highest scores are looked at more closely, with their anchors.

    way: how they are picked.
    """

    def __init__(self, way: str):
        super().__init__()
        torch.manual_seed(0)
        self.way = way
        self.cells, self.score = nn.Conv2d(3, 16, 3, 2, 1), nn.Linear(16, 5)
        self.closely = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
        self.anchors = nn.Buffer(torch.rand(1, 64, 4))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        cells = self.cells(x).relu().flatten(2).transpose(1, 2)
        scores = self.score(cells)
        best = torch.topk(3 * scores.max(-1).values, PICKED, dim=1)
        if self.way == "gather":
            queries = cells.gather(1, best.indices.unsqueeze(-1).repeat(1, 1, cells.shape[-1]))
            anchors = self.anchors.expand(x.shape[0], -1, -1).gather(1, best[1][..., None].expand(-1, -1, 4))
        elif self.way == "take":
            queries = cells.take_along_dim(best.indices[..., None], 1)
            anchors = self.anchors.expand(x.shape[0], -1, -1).take_along_dim(best.indices[..., None], 1)
        else:  # as Ultralytics' RT-DETR
            places = best.indices.view(-1)
            image = torch.arange(x.shape[0]).unsqueeze(-1).repeat(1, PICKED).view(-1)
            queries = cells[image, places].view(x.shape[0], PICKED, -1)
            anchors = self.anchors[:, places].view(x.shape[0], PICKED, -1)
        return {"boxes": self.closely(queries) + anchors, "scores": best.values, "anchors": anchors}


WAYS = ("gather", "take", "index")


def images(count: int = 4) -> Tensor:
    """Each with a bright spot at a place of its own and of its own strength, which orders the scores: all of those that
    are picked are 3.6 % apart at least."""
    x = 0.1 * torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(19))
    for image in range(count):
        for spot in range(PICKED):
            row, column = divmod((5 * spot + 3 * image) % 49, 7)
            x[image, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] += 3 * 0.6**spot
    return x


def far(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    return max(((got[key] - wanted[key]).norm() / wanted[key].norm()).item() for key in wanted)


@pytest.mark.parametrize("method", ["delta-3", "signed-b3", "msat"])
@pytest.mark.parametrize("way", WAYS)
def test_it_converges(way: str, method: str) -> None:
    net, x = Picking(way).eval(), images()
    snn = msat_det.convert(net, [x], method)
    with torch.no_grad():
        wanted = net(x)
    found = snn.run(x, 256, (4, 256))
    assert far(found[256], wanted) < 0.02
    alone = snn.run(x[2:3], 256, (256,))[256]
    torch.testing.assert_close(alone, {key: value[2:3] for key, value in found[256].items()}, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_thresholds_are_of_channels_behind_what_is_picked(way: str) -> None:
    graph = trace(Picking(way).eval(), images())
    site = next(node for node in graph.nodes if is_site(node) and facts(node).shape == (PICKED, 32))
    picked = [known for node in graph.nodes if (known := facts(node)).shape == (PICKED, 16) and not is_mask(known)]
    assert facts(site).axis == 2
    assert {known.axis for known in picked} == {2}


@pytest.mark.parametrize("way", WAYS)
def test_saved_and_loaded_it_gives_the_same(way: str, tmp_path: Path) -> None:
    x = images()
    snn = msat_det.convert(Picking(way).eval(), [x], "delta-3")
    msat_det.save(snn, tmp_path / "snn.safetensors")
    again = msat_det.load(tmp_path / "snn.safetensors")
    torch.testing.assert_close(again.run(x, 2)[2], snn.run(x, 2)[2], atol=0, rtol=0)


@pytest.mark.parametrize("chunk", [1, 3])
def test_what_is_picked_is_held_for_as_long_as_it_has_been_looked_for(chunk: int) -> None:
    """And the scores are those of what is picked. Otherwise the neurons behind it never settle."""
    net, x = Picking("gather").eval(), 0.2 * images()
    snn = msat_det.convert(net, [x], "signed-b3")
    snn.chunk = chunk
    found = snn.run(x, 10, range(1, 11))
    for first, last in ((1, 1), (2, 2), (3, 4), (5, 8), (9, 10)):
        assert all(torch.equal(found[t]["anchors"], found[first]["anchors"]) for t in range(first, last + 1))
        assert first == 1 or not torch.equal(found[first]["anchors"], found[first - 1]["anchors"])
    graph = trace(net, x)
    assert [facts(node).op for node in graph.nodes].count("topkplaces") == 1
    assert "topkvalues" not in {facts(node).op for node in graph.nodes}


@pytest.mark.parametrize("method", ["delta-3", "signed-b3"])
def test_onnxruntime_picks_and_holds_the_same(method: str) -> None:
    pytest.importorskip("onnxruntime")
    x = images()
    snn = msat_det.convert(Picking("gather").eval(), [x], method)
    found = check(export_step(Step(snn)), snn, (x[:1],), steps=8)
    assert found.holds, str(found)
