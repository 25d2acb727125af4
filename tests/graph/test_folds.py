"""Images folded into other dimensions and unfolded again: no mixing, the same neurons, the same counts."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.networks import images, randomise
from torch import Tensor, nn

import msat_det
from msat_det.base.errors import InputError
from msat_det.graph.facts import facts, is_site
from msat_det.graph.trace import trace

OPTIONS = {"scale": "channel", "initial": "half", "signed": True, "gamma": 7}


class Folding(nn.Module):
    """Two convolutions with activations, the second of them on what ``fold`` makes of the images; undone behind."""

    def __init__(self, fold: Callable[[Tensor], Tensor], undo: Callable[[Tensor, Tensor], Tensor], act: str = "relu"):
        super().__init__()
        self.stem, self.inner, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)
        self.fold, self.undo, self.act = fold, undo, getattr(torch, act)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        y = self.fold(x)
        return self.head(self.undo(self.act(self.inner(y)) + y, x))


def windows(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.reshape(b, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 1, 3, 5).reshape(-1, c, 4, 4)


def whole(windows: Tensor, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return (
        windows.reshape(windows.shape[0] // (h * w // 16), h // 4, w // 4, c, 4, 4)
        .permute(0, 3, 1, 4, 2, 5)
        .reshape(b, c, h, w)
    )


def rows(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(0, 1).unsqueeze(2)


def from_rows(y: Tensor, x: Tensor) -> Tensor:
    return y.reshape(len(x), x.shape[2], *x.shape[1::2]).transpose(1, 2)


FOLDS = {
    "windows": (windows, whole),
    "rows": (rows, from_rows),
    "not folded": (lambda x: x, lambda y, x: y),
}


@pytest.mark.parametrize("act", ["relu", "tanh"])
@pytest.mark.parametrize("name", ["windows", "rows"])
def test_the_same_neurons_and_counts_as_without_the_fold(name: str, act: str) -> None:
    nets = [randomise(Folding(*FOLDS[which], act)) for which in (name, "not folded")]
    snns = [msat_det.convert(net, images(4), "constant", **OPTIONS) for net in nets]
    x = images(3, seed=8)
    outputs = [snn.run(x, 40, (5, 40)) for snn in snns]
    for t in (5, 40):
        assert torch.allclose(outputs[0][t], outputs[1][t], atol=1e-4)
        counts = [snn.counts[t] for snn in snns]
        assert counts[0].macs == counts[1].macs
        assert counts[0].neurons == counts[1].neurons
        assert torch.allclose(counts[0].sops, counts[1].sops, rtol=1e-3)
        assert torch.allclose(counts[0].energy, counts[1].energy, rtol=1e-3)
    assert [entry["channels"] for entry in snns[0].coverage if "channels" in entry] == [4, 4]


@pytest.mark.parametrize("name", ["windows", "rows"])
@pytest.mark.parametrize(
    "options", [OPTIONS, {"coding": "delta", "levels": "binary", "bits": 7}], ids=["rate", "delta"]
)
def test_folded_networks_are_saved_and_take_other_numbers_and_sizes(name: str, options: dict, tmp_path: Path) -> None:
    net = randomise(Folding(*FOLDS[name]))
    snn = msat_det.convert(net, images(4), "constant", spiking_linear=True, **options)
    snn.save(tmp_path / "a")
    loaded = msat_det.load(tmp_path / "a")
    for x in (images(1, seed=3), images(5, seed=4), images(2, seed=5, size=16)):
        got = snn.run(x, 64)[64]
        assert torch.equal(loaded.run(x, 64)[64], got)
        assert (got - net(x)).norm() < 0.05 * net(x).norm()


class Halves(nn.Module):
    """The channel shuffle of ShuffleNet detectors: images lie along dimension 1 in between."""

    def __init__(self):
        super().__init__()
        self.stem, self.one, self.two = (nn.Conv2d(n, 4, 3, padding=1) for n in (3, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        b, c, h, w = x.data.size()
        x = x.reshape(b * c // 2, 2, h * w).permute(1, 0, 2).reshape(2, -1, c // 2, h, w)
        return torch.cat((self.one(x[0]).relu(), self.two(x[1])), 1)


class Attention(nn.Module):
    """Area attention as YOLO12 has it; queries, keys and values by one projection, apart along dimension 0."""

    def __init__(self):
        super().__init__()
        self.stem, self.qkv, self.out = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, 24), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        b, c, h, w = x.shape
        y = self.qkv(x.flatten(2).transpose(1, 2)).reshape(b * 3, h * w // 3, 3, 2, 4)
        q, k, v = (y.permute(2, 0, 3, 1, 4) * 1.5).unbind(0)
        y = ((q @ k.transpose(-2, -1) / 4).softmax(-1) @ v).transpose(1, 2)
        return self.out(y.reshape(b, h, w, c).permute(0, 3, 1, 2).relu())


@pytest.mark.parametrize("make", [Halves, Attention])
@pytest.mark.parametrize(
    "options", [OPTIONS, {"coding": "delta", "levels": "binary", "bits": 7}], ids=["rate", "delta"]
)
def test_images_elsewhere_than_in_front(make: type[nn.Module], options: dict, tmp_path: Path) -> None:
    net = randomise(make())
    snn = msat_det.convert(net, images(4), "constant", spiking_linear=True, **options)
    x = torch.cat((images(2, seed=3), images(1, seed=4) / 2, images(2, seed=5)))
    got = snn.run(x, 128)[128]
    assert (got - net(x)).norm() < 0.05 * net(x).norm()
    alone = torch.cat([snn.run(each[None], 128)[128] for each in x])
    assert (got - alone).norm() < 0.02 * got.norm()  # but for ties at a firing boundary, the same
    snn.save(tmp_path / "a")
    assert torch.equal(msat_det.load(tmp_path / "a").run(x, 8)[8], snn.run(x, 8)[8])


class Mixing(Folding):
    def __init__(self, mix: Callable[[Tensor], Tensor]):
        super().__init__(mix, lambda y, x: y)


MIXED = {
    "pairs as channels": lambda x: x.flatten(0, 1)[None].reshape(x.shape),
    "neighbours": lambda x: x.roll(1, 0),
    "across windows": lambda x: x.reshape(-1, 2, *x.shape[1:]).flip(1).flatten(0, 1),
    "in other rows": lambda x: x.transpose(0, 1).reshape(x.shape),
}


@pytest.mark.parametrize("mix", MIXED.values(), ids=MIXED)
def test_images_side_by_side_decide(mix: Callable[[Tensor], Tensor]) -> None:
    net = Mixing(mix)
    if mix is MIXED["pairs as channels"]:  # there and back: nothing is mixed
        assert [facts(node).rows for node in trace(net, images(2)).sites] == [1, 1]
        return
    with pytest.raises(InputError, match=r"test_folds.py:\d+.*(mixes the images of a batch|fails on this batch)"):
        trace(net, images(2))


def test_a_folded_call_site_has_images_alone_in_front() -> None:
    graph = trace(randomise(Folding(windows, whole)), images(2))
    folded = graph.sites[1]
    assert (facts(folded).shape, facts(folded).rows, facts(folded).axis) == ((9, 4, 4, 4), 1, 2)
    source, user = folded.args[0], next(iter(folded.users))
    assert [facts(n).op for n in (source, user)] == ["unflatten", "flatten"]
    assert (facts(user).shape, facts(user).rows) == ((4, 4, 4), 9)
    assert not [node for node in graph.nodes if is_site(node) and facts(node).rows != 1]


def one_by_one(x: Tensor) -> Tensor:
    """As detectors' suppression and their padding to a common size go through a batch."""
    return torch.stack([image.roll(1, -1) for image in x])


def for_each(x: Tensor) -> Tensor:
    """As anchors are often laid out: once for each image of a batch, in one row."""
    scale = torch.cat([torch.full((x[0].numel(),), 2.0) for _ in range(len(x))])
    return (x.flatten() * scale).reshape(x.shape)


@pytest.mark.parametrize("mix", [one_by_one, for_each])
def test_images_one_by_one_are_told_so(mix: Callable[[Tensor], Tensor]) -> None:
    """It was asked for batches as the network takes them, and they were."""
    with pytest.raises(
        InputError, match=r"of one image where 2 were recorded: let the network take all images at once"
    ):
        trace(Mixing(mix), images(2))
