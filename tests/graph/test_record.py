"""The network runs as it is: sizes decide, wrappers, decorators and state go along, values of tensors do not."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.networks import images, randomise
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import msat_det
from msat_det.base.errors import InputError
from msat_det.graph.facts import facts
from msat_det.graph.graph import Graph
from msat_det.graph.trace import trace


class Net(nn.Module):
    """A convolution, then what is under test, then another convolution."""

    def __init__(self, body: Callable[["Net", Tensor], Tensor]):
        super().__init__()
        self.conv, self.after, self.body, self.seen = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1), body, None

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.body(self, self.conv(x)))


def agrees(net: nn.Module, *batches: Tensor) -> Graph:
    """The trace, which gives what the network does for batches of other numbers and sizes."""
    graph = trace(randomise(net), images(4))
    for x in (images(1, seed=5), images(5, seed=6), *batches):
        at = graph if x.shape[2:] == images().shape[2:] else graph.at_size(x)
        assert torch.allclose(at(x), net(x), atol=1e-5)
    return graph


def remember_the_shape(net: Net, x: Tensor) -> Tensor:
    """As YOLO's heads keep their anchors; they are no part of what comes out."""
    if net.seen != x.shape:
        net.seen, net.grid = x.shape, x.new_ones(x.shape[2:])
    return x.relu()


def mask_of_regions(net: Net, x: Tensor) -> Tensor:
    """As shifted windows number their regions, in place."""
    mask = x.new_zeros(x.shape[-2:])
    for number, rows in enumerate((slice(0, -4), slice(-4, None))):
        mask[rows] = number
    return x.relu() * mask


@functools.lru_cache
def table(height: int, width: int) -> Tensor:
    return torch.linspace(0, 1, height * width).reshape(height, width)


def counted(net: Net, x: Tensor) -> Tensor:
    """Numbers of a size, in a tensor whose own shape does not tell it."""
    scale = torch.full((2,), x.shape[2])
    scale[1] += 1
    return x.relu() / scale[1]


def rows_in_turn(x: Tensor) -> Tensor:
    """As DETR's relatives find each level's rows in those of all: a tensor that is written into between its uses."""
    first, parts = 0, []
    for count in torch.tensor([2, 3, 4]):
        parts.append(x[:, :, first : first + count])
        first += count
    return torch.cat(parts[::-1], 2)


SIZES: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "branch": lambda net, x: x.relu() if x.shape[2] > 8 else x,
    "branch on channels": lambda net, x: x if x.shape[1] != 4 else x.relu(),
    "branch on the number of images": lambda net, x: x.relu() if len(x) else x,
    "equal sizes": lambda net, x: x.relu() if x.shape == x.flip(1).shape and x.shape[0] == x.size(0) else x,
    "dimensions": lambda net, x: x.relu() if x.dim() == 4 and x.ndim == 4 else x,
    "type and place": lambda net, x: x.relu() if x.dtype is torch.float32 and x.device.type == "cpu" else x,
    "loop over rows": lambda net, x: torch.stack([x[:, :, i].relu() for i in range(x.size(2))], 2),
    "parts": lambda net, x: torch.cat([part.relu() for part in list(x.chunk(2, 1))], 1),
    "sizes as a tensor": lambda net, x: x.relu() / torch._shape_as_tensor(x)[2:].prod(),
    "a place counted up in place": lambda net, x: rows_in_turn(x.relu()),
    "length of parts": lambda net, x: torch.cat(x.split(2, 1)[: len(x.split(2, 1))], 1).relu(),
    "unpacked": lambda net, x: (lambda a, b: torch.cat((b.relu(), a), 1))(*x.chunk(2, 1)),
    "padded to a multiple": lambda net, x: F.pad(x.relu(), (0, (5 - x.shape[3] % 5) % 5)),
    "mean by hand": lambda net, x: x.relu().flatten(2).sum(2)[..., None, None] / (x.shape[2] * x.shape[3]),
    "scaled by the root": lambda net, x: x.relu() * x.shape[2] ** -0.5,
    "zeros of a size": lambda net, x: x.relu() + torch.zeros(x.shape[0], 1, 1, 1),
    "parameter for each image": lambda net, x: x.relu() + net.after.weight[:1].expand(x.shape[0], -1, -1, -1),
    "positions": lambda net, x: x.relu() + torch.arange(x.shape[3], device=x.device, dtype=x.dtype),
    "tensor of a size": lambda net, x: x.relu() / torch.tensor(x.shape[1]),
    "number of elements": lambda net, x: x.relu() / (x.numel() // x.shape[0]),
    "kept for the next time": remember_the_shape,
    "cached": lambda net, x: x.relu() * table(*x.shape[2:]),
    "numbered in place": mask_of_regions,
    "counted in place": counted,
    "branch on a mask of sizes": lambda net, x: x.relu() if torch.ones(len(x), *x.shape[2:]).all() else x,
    "branch on positions": lambda net, x: x.relu() if torch.arange(x.shape[2]).sum() > 50 else x,
    "same type in place": lambda net, x: x.float().relu_() + x,
    "compiled by decorator": lambda net, x: torch.compile(F.relu)(x),
}


@pytest.mark.parametrize("body", SIZES.values(), ids=SIZES)
def test_sizes_are_plain_numbers(body: Callable[[Net, Tensor], Tensor]) -> None:
    graph = agrees(Net(body))
    assert all(facts(site).activation.name == "relu" for site in graph.sites)
    assert graph.sites


FREE = ["unpacked", "padded to a multiple", "mean by hand", "positions", "branch on channels", "branch", "parts"]


@pytest.mark.parametrize("name", FREE)
def test_other_sizes_go_through_where_the_network_goes_the_same_way(name: str) -> None:
    agrees(Net(SIZES[name]), images(2, size=17))


@pytest.mark.parametrize(
    "name", ["branch", "scaled by the root", "numbered in place", "cached", "counted in place", "branch on positions"]
)
def test_another_way_at_another_size_is_refused(name: str) -> None:
    graph = agrees(Net(SIZES[name]))
    with pytest.raises(InputError, match=r"test_record.py:\d+.*takes another way"):
        graph.at_size(images(size=7))


def by_anything(forward: Callable) -> Callable:
    def wrapped(*args: Any, **kwargs: Any) -> Tensor:
        return forward(*args, **kwargs)

    return wrapped


class Decorated(Net):
    forward = by_anything(Net.forward)


class Variable(Net):
    def forward(self, x: Tensor, *more: Any, **options: Any) -> Tensor:
        return super().forward(x) if not more and not options else super().forward(more[0] + options["bias"])


class Average(nn.Module):
    """Of its author's own kind: it holds the network and calls it."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.shadow = net

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.shadow(*args, **kwargs)


class Bent(torch.autograd.Function):
    """An activation with a gradient of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.relu()


def relu(net: Net, x: Tensor) -> Tensor:
    return x.relu()


FORWARDS = {
    "decorated": lambda: Decorated(relu),
    "variable arguments": lambda: Variable(relu),
    "wrapped": lambda: Average(nn.DataParallel(Average(Net(relu)))),
    "compiled in place": lambda: compiled(Net(relu)),
    "own gradient": lambda: Net(lambda net, x: Bent.apply(x)),
    "scripted function": lambda: Net(lambda net, x: torch.jit.script(scripted)(x)),
}


def scripted(x: Tensor) -> Tensor:
    return x.relu()


def compiled(net: nn.Module) -> nn.Module:
    net.compile()
    return net


@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated")
@pytest.mark.parametrize("make", FORWARDS.values(), ids=FORWARDS)
def test_forwards_of_every_kind(make: Callable[[], nn.Module]) -> None:
    net = make()
    graph = trace(randomise(net), images())
    plain = Net(relu)
    plain.load_state_dict(dict(zip(plain.state_dict(), net.state_dict().values(), strict=True)))
    assert torch.allclose(graph(images(5, seed=2)), plain(images(5, seed=2)), atol=1e-5)
    assert [facts(node).op for node in graph.nodes] == ["placeholder", "conv2d", "relu", "conv2d", "output"]


@pytest.mark.parametrize("before", [1, 2, 4, 5])
def test_what_a_network_has_kept_of_an_earlier_run_does_not_matter(before: int) -> None:
    net = randomise(Net(remember_the_shape))
    net(images(before))
    graph = trace(net, images(2))
    for number in (1, 4, 5):
        assert torch.allclose(graph(images(number)), net(images(number)), atol=1e-5)


class Several(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, *images: Tensor, **more: Tensor) -> Tensor:
        return sum(self.conv(image).relu() for image in (*images, *more.values()))


def hooked(part: int, function: Callable[[Tensor], Tensor], before: bool = False) -> nn.Sequential:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    if before:
        net[part].register_forward_pre_hook(lambda module, given: (function(given[0]),))
    else:
        net[part].register_forward_hook(lambda module, given, found: function(found))
    return net


def replaced(part: int, forward: Callable[[Tensor], Tensor]) -> nn.Sequential:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    net[part].forward = forward
    return net


def masked(part: int, hook: bool) -> nn.Sequential:
    """A layer whose weight a hook makes anew before every forward, as pruning does, or has made for good."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    layer, weight = net[part], net[part].weight
    del layer.weight
    layer.original = weight

    def make(module: nn.Conv2d, given: Any = None) -> None:
        module.weight = module.original.detach() * (module.original > 0)

    make(layer)
    if hook:
        layer.register_forward_pre_hook(make)
    return net


class Attention(nn.Module):
    """Gives what its attention looks at beside what it makes of it; a hook, or a class of its own, changes that."""

    def __init__(self, heads: bool, attention: type[nn.MultiheadAttention] = nn.MultiheadAttention):
        super().__init__()
        self.conv, self.attention, self.heads = nn.Conv2d(3, 8, 4, 4), attention(8, 2, batch_first=True), heads
        self.attention.register_forward_hook(lambda module, given, found: (3 * found[0], found[1]))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.conv(x).relu().flatten(2).transpose(1, 2)
        return self.attention(x, x, x, average_attn_weights=not self.heads)


class Doubled(nn.MultiheadAttention):
    def forward(self, *args: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        y, weights = super().forward(*args, **kwargs)
        return 2 * y, weights


AROUND = {
    "behind an activation": lambda: hooked(2, lambda x: 2 * x + 1),
    "before an activation": lambda: hooked(2, lambda x: 2 * x - 0.2, before=True),
    "an activation behind a layer": lambda: hooked(3, torch.relu),
    "an activation before a layer": lambda: hooked(3, lambda x: torch.relu(x - 0.3), before=True),
    "between a layer and its norm": lambda: hooked(0, lambda x: 2 * x + 1),
    "before a norm": lambda: hooked(1, lambda x: 2 * x + 1, before=True),
    "in place of an activation": lambda: replaced(2, lambda x: 2 * torch.relu(x) + 0.1),
    "in place of a layer": lambda: replaced(3, torch.square),
    "a layer's weight made anew": lambda: masked(3, hook=True),
    "a weight that is folded made anew": lambda: masked(0, hook=True),
    "a weight that is no parameter": lambda: masked(0, hook=False),
    "around attention": lambda: Attention(heads=False),
    "in place of attention": lambda: Attention(heads=True, attention=Doubled),
}


@pytest.mark.parametrize("what", AROUND)
def test_what_stands_around_a_layer_or_in_its_place_converts_too(what: str, tmp_path: Path) -> None:
    """Hooks may do anything: a layer with one is not what its class says."""
    net = randomise(AROUND[what]())
    wanted = pytree.tree_leaves(net(images(4)))
    snn = msat_det.convert(net, images(4), "constant", scale="channel", initial="half", signed=True, gamma=7)
    found = snn.run(images(4), 128)[128]
    for a, b in zip(wanted, pytree.tree_leaves(found), strict=True):
        assert (a - b).norm() < 0.02 * a.norm()
    snn.save(tmp_path / "net")
    again = msat_det.load(tmp_path / "net").run(images(4), 128)[128]
    assert all(map(torch.equal, pytree.tree_leaves(again), pytree.tree_leaves(found)))


class Masked(nn.Module):
    """Attention as transformers write it, that leaves some keys out, and looks at earlier ones alone."""

    def __init__(self, number: bool, causal: bool):
        super().__init__()
        self.conv, self.attention = nn.Conv2d(3, 8, 4, 4), nn.MultiheadAttention(8, 2, batch_first=True)
        self.number, self.causal = number, causal

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu().flatten(2).transpose(1, 2)
        padding = (torch.arange(x.shape[1]) > 6).expand(x.shape[:2])
        padding = torch.zeros(x.shape[:2]).masked_fill(padding, -torch.inf) if self.number else padding
        earlier = torch.ones(x.shape[1], x.shape[1]).tril().log() if self.causal else None
        if earlier is not None and not self.number:
            earlier = earlier < 0
        return self.attention(x, x, x, padding, attn_mask=earlier)[0]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("number", [False, True])
def test_attention_leaves_out_what_is_padded(number: bool, causal: bool) -> None:
    agrees(Masked(number, causal).eval())


def test_variable_arguments_are_inputs() -> None:
    net, one, two = randomise(Several()), images(), images(seed=1)
    by_position, by_name = trace(net, (one, two)), trace(net, {"left": one, "right": two})
    assert (by_position.inputs, by_name.inputs) == (["images_0", "images_1"], ["left", "right"])
    assert torch.allclose(by_position((two, one)), net(two, one), atol=1e-5)
    assert torch.allclose(by_name({"left": one, "right": one}), net(one, one), atol=1e-5)


def test_what_is_made_of_parameters_alone_is_a_constant() -> None:
    def standardised(net: Net, x: Tensor) -> Tensor:
        weight = net.after.weight.repeat(2, 1, 1, 1)
        return F.conv2d(x.relu(), (weight - weight.mean()) / weight.std())

    graph = agrees(Net(standardised))
    assert [facts(n).op for n in graph.nodes] == ["placeholder", *("conv2d", "relu", "conv2d", "conv2d"), "output"]


REFUSED = {
    "branch": (lambda net, x: x.relu() if x.mean() > 0 else x, "'__bool__'"),
    "number": (lambda net, x: x * x.max().item(), "'item'"),
    "list": (lambda net, x: x * len(x.sum((1, 2, 3)).tolist()), "'tolist'"),
    "numpy": (lambda net, x: x * torch.from_numpy(x.numpy()), "'numpy'"),
    "comparison": (lambda net, x: x if torch.equal(x, x.relu()) else x.relu(), "'equal'"),
    "where it is": (lambda net, x: x * len(torch.nonzero(x)), "'nonzero'"),
}


@pytest.mark.parametrize(("body", "what"), REFUSED.values(), ids=REFUSED)
def test_values_of_tensors_may_not_decide(body: Callable, what: str) -> None:
    with pytest.raises(InputError, match=rf"test_record.py:\d+: `.*{what} of a tensor.*outside the dense part"):
        trace(Net(body), images())


def by_windows(net: Net, x: Tensor) -> Tensor:
    """Windows and back as Swin's first authors wrote it: the number of images by a division."""
    windows = x.reshape(len(x), 4, 3, 4, 3, 4).permute(0, 2, 4, 1, 3, 5).reshape(-1, 4, 4, 4)
    images = int(windows.shape[0] / (12 * 12 / 4 / 4))
    return windows.relu().reshape(images, 3, 3, 4, 4, 4).permute(0, 3, 1, 4, 2, 5).reshape(-1, 4, 12, 12)


NUMBERS: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "of rows": lambda net, x: x.relu().reshape(int(x.shape[0]), -1).reshape(-1, 4, 12, 12),
    "twice": lambda net, x: x.relu().reshape(2 * len(x), -1).reshape(-1, 4, 12, 12),
    "by windows": by_windows,
    "of channels": lambda net, x: x.relu().reshape(len(x), -1, len(x.flatten(2)[0, 0])).reshape(-1, 4, 12, 12),
}


@pytest.mark.parametrize("body", NUMBERS.values(), ids=NUMBERS)
def test_plain_numbers_of_images_stay_free(body: Callable) -> None:
    agrees(Net(body))


FROZEN = {
    "scaled by it": (lambda net, x: x.relu() * len(x), "'mul'"),
    "scaled by its root": (lambda net, x: x.relu() * len(x) ** 0.5, ""),
    "loop over images": (lambda net, x: torch.stack([x[i].relu() for i in range(len(x))]), "'getitem_1'"),
    "branch": (lambda net, x: x.relu() if x.shape[0] > 2 else x, ""),
}


@pytest.mark.parametrize(("body", "what"), FROZEN.values(), ids=FROZEN)
def test_the_number_of_images_may_not_decide(body: Callable, what: str) -> None:
    with pytest.raises(InputError, match=rf"node {what} .*test_record.py:\d+" if what else "another number of images"):
        trace(Net(body), images())


ALONE: dict[str, tuple[Callable[[Net, Tensor], Any], str]] = {
    "by a size": (lambda net, x: x if x.shape[0] == 1 else x.relu(), r"node 'guard.*test_record.py:\d+: "),
    "by its truth": (lambda net, x: x.relu() if x.size(0) - 1 else x, r"node 'guard.*test_record.py:\d+: "),
    "by len": (lambda net, x: x if len(x) < 2 else x.relu(), "Net"),
}


@pytest.mark.parametrize(("body", "place"), ALONE.values(), ids=ALONE)
def test_a_single_image_goes_no_way_of_its_own(body: Callable, place: str) -> None:
    """Batches of several images alone were compared: a single one was answered as one of them, in silence."""
    with pytest.raises(InputError, match=rf"^{place}.* the network does otherwise for one image than for several: let"):
        trace(Net(body), images())


OTHERWISE: dict[str, tuple[Callable[[Net, Tensor], Any], int]] = {
    "three": (lambda net, x: x if x.shape[0] == 3 else x.relu(), 3),
    "many": (lambda net, x: x if x.size(0) > 8 else x.relu(), 9),
    "not as many as cells": (lambda net, x: x if x.flatten(0, 1).shape[0] >= x.shape[2] * x.shape[1] else x.relu(), 12),
    "odd": (lambda net, x: x if x.shape[0] % 3 == 0 else x.relu(), 3),
    "by truth": (lambda net, x: x.relu() if x.shape[0] - 5 else x, 5),
    "by the least": (lambda net, x: x.relu()[: min(x.shape[0], 6)], 7),
    "none of some": (lambda net, x: x.relu() if x.shape[0] in (1, 2, 4, 8) else x, 3),
}


@pytest.mark.parametrize(("body", "number"), OTHERWISE.values(), ids=OTHERWISE)
@pytest.mark.parametrize("count", [1, 2])
def test_no_number_of_images_goes_a_way_of_its_own(body: Callable, number: int, count: int) -> None:
    """Two numbers of images were compared, and a single one: other numbers were answered as these, in silence."""
    told = rf"^node '.*test_record.py:\d+: .* does otherwise for {number} images than for {count}: let"
    with pytest.raises(InputError, match=told):
        trace(Net(body), images()[:count])


def test_what_a_network_asks_of_the_number_of_images_may_leave_its_outputs_alone() -> None:
    """The number in its way is no reason to refuse it, and neither is one that it does not take."""

    def by_parts(net: Net, x: Tensor) -> Tensor:
        assert x.shape[0] < 12
        return x.relu() if x.shape[0] < 3 else torch.cat((x[:2], x[2:])).relu()

    net = Net(by_parts)
    agrees(net)
    fresh = torch.cat([images(seed=seed) for seed in range(4)])
    torch.testing.assert_close(trace(net, images())(fresh), net.eval()(fresh))


@pytest.mark.parametrize("count", [1, 3])
def test_other_outputs_for_other_numbers_of_images_are_told(count: int) -> None:
    """It was a ValueError of zip's."""

    class Giving(nn.Module):
        def forward(self, x: Tensor) -> Any:
            y = x.relu()
            return y if len(x) > 1 else (y, y)

    with pytest.raises(InputError, match=r"for another number of images|for one image than for several"):
        trace(Giving(), images()[:count])


def test_a_network_that_takes_no_single_image_is_traced() -> None:
    def several(net: Net, x: Tensor) -> Tensor:
        assert x.shape[0] > 1
        return x.relu()

    net, fresh = Net(several).eval(), images(seed=4)
    torch.testing.assert_close(trace(net, images())(fresh), net(fresh))


def filled(net: Net, x: Tensor) -> Tensor:
    """A mask as Swin's first authors made it for the windows: parts of zeros filled in place."""
    mask = x.new_zeros((12, 12))
    mask[:5].fill_(1)
    mask[:, 7:].copy_(torch.ones(12, 5))
    mask[9].zero_()
    return (x * mask).relu()


def test_blank_tensors_may_be_filled_in_part() -> None:
    assert "relu" in [facts(node).op for node in agrees(Net(filled)).nodes]
