"""What a spike costs, against brute force: every neuron set alone and its products counted."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from support.networks import NETWORKS, BruteForce, build, images, observed, randomise
from torch import Tensor, nn

from msat_det.graph.fanout import FanOut, fan_out
from msat_det.graph.trace import trace


class Joined(nn.Module):
    """Two populations of neurons, ``join``ed by what is under test, and a layer behind them that pays."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor], layer: nn.Module):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.join, self.layer = join, layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.join(F.relu(self.first(x)), F.relu(self.second(x))))


def counted(net: nn.Module, x: Tensor) -> FanOut:
    return fan_out(trace(net, x))


def assert_counts(net: nn.Module, x: Tensor) -> FanOut:
    """fan_out says what brute force says, source by source and layer by layer."""
    got, expected = counted(net, x), BruteForce(net, x)
    assert {node.name: macs for node, macs in got.macs.items()} == expected.macs
    assert {node.name: macs for node, macs in got.analog.items()} == expected.analog
    assert got.once == expected.once
    spikes = {node.name: reach for node, reach in got.spikes.items()}
    for name, reach in expected.reach.items():
        assert torch.equal(spikes.get(name, torch.zeros_like(reach)).double(), reach), name
    return got


LAYERS = {
    "plain": nn.Conv2d(4, 5, 3),
    "padding": nn.Conv2d(4, 5, 3, padding=1),
    "stride": nn.Conv2d(4, 5, 3, stride=2, padding=1),
    "stride beyond the kernel": nn.Conv2d(4, 5, 1, stride=3),
    "dilation": nn.Conv2d(4, 5, 3, dilation=2, padding=2),
    "stride and dilation": nn.Conv2d(4, 5, 3, stride=2, dilation=3, padding=3),
    "groups": nn.Conv2d(4, 6, 3, groups=2, padding=1),
    "depthwise": nn.Conv2d(4, 8, 5, groups=4, stride=2, padding=2),
    "same": nn.Conv2d(4, 5, 4, padding="same"),
    "same, dilated": nn.Conv2d(4, 5, (2, 3), padding="same", dilation=3),
    "valid": nn.Conv2d(4, 5, 2, padding="valid"),
    "oblong": nn.Conv2d(4, 5, (1, 5), stride=(2, 1), padding=(0, 3)),
    "reflected border": nn.Conv2d(4, 5, 3, padding=1, padding_mode="reflect"),
    "transposed": nn.ConvTranspose2d(4, 5, 3, stride=2, padding=1),
    "transposed, output padding, groups": nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, groups=2, dilation=2),
    "linear": nn.Sequential(nn.Flatten(), nn.Linear(4 * 7 * 5, 3)),
    "linear on channels": nn.Linear(5, 3),
    "one-dimensional": nn.Sequential(nn.Flatten(2), nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2)),
}


@pytest.mark.filterwarnings("ignore:Using padding=.same.")
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_every_layer(layer: nn.Module) -> None:
    x = images(2)[:, :, :7, :5]
    assert_counts(randomise(Joined(lambda a, b: a + b, layer)), x)


JOINS = {
    "add": lambda a, b: a + b,
    "difference, scaled": lambda a, b: 2 * a - b / 3 + 1,
    "concat": lambda a, b: torch.cat((a, b), 1)[:, 2:6],
    "both halves of one": lambda a, b: torch.cat((a, a), 1)[:, 2:6] + b,
    "concat along height": lambda a, b: torch.cat((a, b), 2),
    "nearest": lambda a, b: F.interpolate(a, scale_factor=2) + F.interpolate(b, scale_factor=2),
    "nearest to odd size": lambda a, b: F.interpolate(a, size=(9, 10)) + F.interpolate(b, size=(9, 10)),
    "bilinear": lambda a, b: F.interpolate(a + b, scale_factor=2, mode="bilinear"),
    "bilinear, aligned": lambda a, b: F.interpolate(a + b, size=(13, 9), mode="bilinear", align_corners=True),
    "average pooling": lambda a, b: F.avg_pool2d(a, 3, 2, 1) + F.avg_pool2d(b, 3, 2, 1, count_include_pad=False),
    "average pooling, ceiling": lambda a, b: F.avg_pool2d(a + b, 2, ceil_mode=True),
    "adaptive pooling": lambda a, b: F.adaptive_avg_pool2d(a + b, (3, 2)),
    "mean": lambda a, b: a + b.mean((2, 3), keepdim=True),
    "mean over channels": lambda a, b: a + b.mean(1, keepdim=True),
    "pad": lambda a, b: F.pad(a, (1, 0, 2, 1)) + F.pad(b, (0, 1, 1, 2), value=0.5),
    "chunk": lambda a, b: torch.cat((a.chunk(2, 1)[1], b.chunk(2, 1)[0]), 1),
    "split": lambda a, b: torch.cat((torch.split(a, [1, 3], 1)[1], b.split([1, 3], 1)[0]), 1),
    "shuffle": lambda a, b: (a + b).view(-1, 2, 2, 7, 5).transpose(1, 2).flatten(1, 2),
    "strided slice": lambda a, b: a[:, :, ::2, 1:] + b[:, :, 1::2, 1:].mean((2, 3), keepdim=True),
    "max pooling": lambda a, b: F.max_pool2d(a, 3, 2, 1) + F.max_pool2d(b, 2, 2, ceil_mode=True),
    "doubled": lambda a, b: a + a + b,
    "added with a factor": lambda a, b: torch.add(a, b, alpha=2),
    "rolled": lambda a, b: torch.roll(a, (1, -2), (2, 3)) + b.roll(1, 1),
    "rotated": lambda a, b: torch.rot90(a, 1, (2, 3)) + torch.rot90(b, -1, (2, 3)),
    "pixels to channels": lambda a, b: F.pixel_unshuffle(a[:, :, :6, :4], 2)[:, 3:7] + b[:, :, ::3, ::3][:, :, :, :2],
    "channels shuffled": lambda a, b: F.channel_shuffle(a + b, 2),
    "reflected": lambda a, b: F.pad(a, (2, 1, 1, 2), mode="reflect") + F.pad(b, (2, 1, 1, 2)),
    "replicated": lambda a, b: F.pad(a, (2, 1, 1, 2), mode="replicate") + F.pad(b, (2, 1, 1, 2)),
    "all around": lambda a, b: F.pad(a, (2, 1, 1, 2), mode="circular") + F.pad(b, (2, 1, 1, 2)),
    "bicubic": lambda a, b: F.interpolate(a + b, size=(13, 9), mode="bicubic"),
    "area": lambda a, b: F.interpolate(a + b, size=(3, 4), mode="area"),
    "antialiased": lambda a, b: F.interpolate(a + b, size=(3, 4), mode="bilinear", antialias=True),
    "windows": lambda a, b: a.unfold(2, 3, 2)[..., 1] + b.unfold(2, 3, 2)[..., 0],
    "repeated": lambda a, b: a.repeat_interleave(2, 2) + b.repeat_interleave(2, 2),
    "chosen by position": lambda a, b: torch.where(torch.arange(5) > 2, a, b.masked_fill(torch.arange(5) < 1, 0.3)),
    "shape of another": lambda a, b: torch.hstack((a, torch.zeros_like(b)))[:, 2:6] + b.mean(1, True).expand_as(a),
}


@pytest.mark.parametrize("join", JOINS.values(), ids=JOINS)
def test_every_join(join: Callable) -> None:
    x = images(2)[:, :, :7, :5]
    net = randomise(Joined(join, nn.Conv2d(4, 5, 3, padding=1)))
    got = assert_counts(net, x)
    assert not got.analog


class Product(nn.Module):
    """A convolution as a product: of a weight with all windows, or with all pixels."""

    def __init__(self, stem: nn.Module, kernel: int):
        super().__init__()
        self.stem, self.kernel, self.weight = stem, kernel, nn.Parameter(torch.ones(6, 4 * kernel**2))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        if self.kernel == 1:
            return torch.einsum("oc,bc...->bo...", self.weight, x)
        return torch.einsum("oc,bcp->bop", self.weight, F.unfold(x, self.kernel))


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_product_with_windows_counts_as_the_convolution_that_it_is(kernel: int) -> None:
    x, net = images(size=7), randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, kernel)))
    got, expected = counted(Product(net[0], kernel), x), counted(net, x)
    assert list(got.macs.values()) == list(expected.macs.values())
    (reach,), (wanted,) = got.spikes.values(), expected.spikes.values()
    assert torch.equal(reach, wanted)


def test_a_product_of_two_branches_by_einsum_counts_every_multiplication() -> None:
    class Gram(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.stem(x)).flatten(2)
            return torch.einsum("bcp,bdp->bcd", x, x)

    got = counted(randomise(Gram()), images(size=6))
    assert list(got.macs.values()) == [36 * 3 * 4, 4 * 4 * 36]
    assert list(got.analog.values()) == [4 * 4 * 36]


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str) -> None:
    assert_counts(build(name), images())


def test_batch_norm_that_cannot_be_folded_passes_spikes_through() -> None:
    class Normed(nn.Module):
        def __init__(self, norm: nn.Module):
            super().__init__()
            self.stem, self.norm, self.layer = nn.Conv2d(3, 4, 3), norm, nn.Conv2d(4, 5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.norm(F.relu(self.stem(x))))

    x = images(size=6)
    (reach,) = counted(randomise(Normed(nn.BatchNorm2d(4))), x).spikes.values()
    assert torch.equal(reach.double(), BruteForce(randomise(Normed(nn.Identity())), x).reach["relu"])


def test_functional_spellings_count_like_modules() -> None:
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.ParameterList(
                [nn.Parameter(torch.randn(s)) for s in ((4, 3, 3, 3), (6, 2, 3, 3), (7, 5), (3, 4))]
            )

        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(F.conv2d(x, self.w[0], None, 1, 1))
            z = torch.relu(F.conv2d(y, self.w[1], stride=(2, 1), padding=(1, 0), groups=2))  # (6, 4, 5)
            tail = F.linear(z, self.w[2]).relu().flatten(1, 2)  # (24, 7)
            return torch.matmul(self.w[3], tail[:, :4]), tail[:, 4:8, 4:] @ self.w[3]

    class Modules(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.conv = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, (2, 1), (1, 0), groups=2)
            self.linear = nn.Linear(5, 7)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.linear(F.relu(self.conv(F.relu(self.stem(x))))))

    x = images(size=7)
    got, expected = counted(Functional(), x), BruteForce(Modules(), x)
    assert list(got.macs.values()) == [*expected.macs.values(), 3 * 4 * 7, 3 * 4 * 4]
    first, second, third = got.spikes.values()
    assert torch.equal(first.double(), expected.reach["relu"])
    assert torch.equal(second.double(), expected.reach["relu_1"])
    rows = third.flatten(0, 1)
    assert rows[:4].eq(3).all()
    assert rows[4:8, 4:].eq(4).all()
    assert rows.sum() == 3 * 4 * 7 + 3 * 4 * 4


def test_several_layers_behind_one_neuron_add_up() -> None:
    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3)
            self.heads = nn.ModuleList([nn.Conv2d(4, 5, 3, stride=2), nn.Conv2d(4, 2, 1), nn.Linear(4, 7)])

        def forward(self, x: Tensor) -> list[Tensor]:
            y = F.relu(self.stem(x))
            return [self.heads[0](y), self.heads[1](y), self.heads[2](y.mean((2, 3)))]

    assert_counts(randomise(Fork()), images(size=6))


class Mixed(nn.Module):
    """Spikes and an analog signal (a linear bottleneck's, or a differential node's) meet before a layer."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor], width: int, analog: nn.Module):
        super().__init__()
        self.stem, self.analog, self.join = nn.Conv2d(3, 4, 3), analog, join
        self.layer, self.head = nn.Conv2d(width, 3, 3, padding=1), nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        spikes = F.relu(self.stem(x))
        return self.head(F.relu(self.layer(self.join(spikes, self.analog(spikes)))))


ANALOG = {"linear": nn.Conv2d(4, 4, 1), "differential": nn.Softmax(1), "group norm": nn.GroupNorm(2, 4)}
MIXES = {
    "concat": (lambda s, a: torch.cat((s, a), 1), 8),
    "add": (lambda s, a: s + a, 4),
    "add to half": (lambda s, a: torch.cat((s[:, :2] + a[:, 2:], s[:, 2:]), 1), 4),
    "padded": (lambda s, a: s + F.pad(a[:, :, 1:, 1:], (1, 0, 1, 0)), 4),
    "pooled": (lambda s, a: torch.cat((F.max_pool2d(s, 2), F.avg_pool2d(a, 2)), 1), 8),
    "cancelling": (lambda s, a: torch.cat((s, a[:, :2] - a[:, 2:]), 1), 6),
}


@pytest.mark.parametrize("analog", ANALOG.values(), ids=ANALOG)
@pytest.mark.parametrize(("join", "width"), MIXES.values(), ids=MIXES)
def test_what_is_analog_is_paid_in_full_and_spikes_beside_it_alone(
    join: Callable, width: int, analog: nn.Module
) -> None:
    got = assert_counts(randomise(Mixed(join, width, analog)), images(size=6))
    assert any(node.name == "layer" for node in got.analog)


def test_expansion_after_a_linear_bottleneck_is_analog() -> None:
    fanout = observed("bottleneck").fanout
    assert {node.name for node in fanout.analog} == {"second_0_0", "last_0"}
    assert all(fanout.analog[node] == fanout.macs[node] for node in fanout.analog)


def test_constants_are_counted_once() -> None:
    class Skip(nn.Module):
        """The image itself joins the spikes, by way of a layer of its own and as it is."""

        def __init__(self):
            super().__init__()
            self.stem, self.side = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)
            self.layer = nn.Conv2d(6, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(torch.cat((F.relu(self.stem(x)), self.side(x)), 1))

    got = assert_counts(randomise(Skip()), images(size=6))
    once = 36 * 9  # what the image meets: stem and side see 6 × 6 positions, the layer's second half 4 × 4
    assert got.once == (16 * 16) * 9 + once + 16 * 9 * 3 * 2
    assert not got.analog


def test_total_is_the_float_networks_multiply_adds() -> None:
    edges = {12: 34 * 34, 6: 16 * 16}  # taps of a 3 × 3 kernel with padding 1 over n × n positions: (3n − 2)²
    stride_2 = 17 * 17  # the first of its six output rows misses one tap
    assert observed("plain").fanout.total == 6 * 3 * edges[12] + 8 * 6 * stride_2 + 8 * 8 * edges[6] + 8 * 5
