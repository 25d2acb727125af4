"""The library as its users call it: their own modules and detectors, every activation."""

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.modules import ACTIVATIONS, Activated, Fused, inputs
from support.networks import images, observed, randomise
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import msat_det
from msat_det.methods.observe import observe
from msat_det.models.detector import Detections

OPTIONS = {"method": "constant", "scale": "channel", "initial": "half", "signed": True, "gamma": 3}


def error(got: Any, expected: Any) -> float:
    """The worst output's distance from the float network's, relative to its size."""
    pairs = zip(pytree.tree_leaves(got), pytree.tree_leaves(expected), strict=True)
    return max(((a - b).norm() / b.norm()).item() for a, b in pairs)


class FusedIfBright(Fused):
    def forward(self, image: Tensor, depth: Tensor) -> dict[str, Any]:
        if image.mean() > 0:
            depth = depth * 2
        return super().forward(image, depth)


@pytest.mark.parametrize("form", [dict, tuple])
def test_a_users_module_converts(form: type) -> None:
    net = randomise(Fused())
    batches = [form(inputs(seed)) if form is dict else tuple(inputs(seed).values()) for seed in (1, 2, 3)]
    expected = net(**inputs(1))
    snn = msat_det.convert(net, batches, **OPTIONS)
    outputs = snn.run(batches[0], T=64, record=(16, 64))
    assert list(outputs) == [16, 64]
    for got in outputs.values():
        assert pytree.tree_structure(got) == pytree.tree_structure(expected)
    assert error(outputs[64], expected) < 0.1
    assert error(outputs[64], expected) < error(outputs[16], expected) / 2
    rows = {row["node"]: row for row in snn.coverage}
    assert [row["activation"] for row in rows.values() if "theta" in row] == [
        *("relu", "relu", "leakyrelu", "silu", "silu", "sigmoid", "clamp(0, 4)")
    ]
    assert [row["op"] for row in rows.values() if row["kind"] == "differential"] == ["maxpool2d", "mul"]
    assert all(re.search(r"(modules|container)\.py:\d+", row["source"]) for row in rows.values() if row["macs"])
    assert snn.counts[64].spikes.shape == (3,)
    assert snn.counts[64].energy_ratio > 0


def test_the_same_with_a_branch_on_data_is_refused_with_its_line() -> None:
    with pytest.raises(msat_det.InputError) as refusal:
        msat_det.convert(randomise(FusedIfBright()), [inputs(1)])
    assert re.search(r"test_api\.py:\d+: `if image\.mean\(\) > 0:`", str(refusal.value))
    assert "\n" not in str(refusal.value)


def test_methods_share_an_observation() -> None:
    observation = msat_det.observe(randomise(Fused()), (inputs(seed) for seed in (1, 2)))
    first, second = (msat_det.convert(observation, method=method) for method in ("p-norm", "burst"))
    assert first.graph is second.graph is observation.graph


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("gamma", [1, 3])
def test_every_activation_spikes_and_converges(name: str, gamma: int) -> None:
    net = randomise(Activated(ACTIVATIONS[name]))
    snn = msat_det.convert(net, [images(4)], **OPTIONS | {"gamma": gamma})
    assert len(snn.graph.sites) == 2
    assert not any(row["kind"] == "differential" for row in snn.coverage)
    outputs = snn.run(images(4), 64, (16, 64))
    assert error(outputs[64], net(images(4))) < min(0.06, error(outputs[16], net(images(4))) / 2)


@pytest.mark.parametrize("imbalanced", [True, False])
def test_leaky_relu_by_spiking_yolo(imbalanced: bool) -> None:
    """The signed neuron with imbalanced threshold, beside the tracking neuron."""
    net = randomise(Activated(nn.LeakyReLU(0.1)))
    snn = msat_det.convert(net, [images(4)], "channel-norm", imbalanced=imbalanced, initial="half")
    assert {neuron.tracking for neuron in snn.neurons.values()} == {not imbalanced}
    outputs = snn.run(images(4), 256, (64, 256))
    assert error(outputs[256], net(images(4))) < error(outputs[64], net(images(4))) / 1.5


class Corners:
    """The smallest detector: its net's mean over each half says how wide and how high the one box is."""

    classes = ("thing",)

    def __init__(self):
        self.net = randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)))
        self.seen: list[Any] = []

    def preprocess(self, image: Tensor) -> tuple[Tensor, Any]:
        return F.interpolate(image[None].float() / 255, (12, 12))[0], tuple(image.shape[1:])

    def decode(self, outputs: Tensor, metas: list[Any]) -> list[Detections]:
        self.seen.append(metas)
        sizes = outputs.mean((2, 3)).abs()
        boxes = torch.cat((torch.zeros_like(sizes), sizes), 1)
        return [Detections(box[None], torch.ones(1), torch.zeros(1, dtype=torch.long)) for box in boxes]


def photographs(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(0, 256, (3, 20 + i, 30), generator=generator, dtype=torch.uint8) for i in range(count)]


def test_a_detector_gives_boxes_at_every_recorded_t() -> None:
    detector = Corners()
    assert isinstance(detector, msat_det.Detector)
    snn = msat_det.convert(detector, [photographs(4)], **OPTIONS)
    found = snn.detect(photographs(3), T=8, record=(2, 8))
    assert list(found) == [2, 8]
    assert detector.seen == [[(20, 30), (21, 30), (22, 30)]] * 2
    pixels = torch.stack([detector.preprocess(image)[0] for image in photographs(3)])
    outputs = snn.run(pixels, 8, (2, 8))
    for t, boxes in found.items():
        assert torch.equal(
            torch.cat([one.boxes for one in boxes]), torch.cat([one.boxes for one in detector.decode(outputs[t], [])])
        )
    assert list(snn.detect(photographs(1), T=4)) == [4]


def test_calibration_on_photographs_is_calibration_on_inputs() -> None:
    detector = Corners()
    pixels = torch.stack([detector.preprocess(image)[0] for image in photographs(4)])
    first, second, third = (
        msat_det.convert(detector, batches, **OPTIONS)
        for batches in ([photographs(4)], [tuple(photographs(4))], iter([pixels]))
    )
    for name, neuron in first.neurons.items():
        assert torch.equal(neuron.theta, second.neurons[name].theta)
        assert torch.equal(neuron.theta, third.neurons[name].theta)


def test_boxes_need_a_detector() -> None:
    with pytest.raises(msat_det.InputError, match="no detector to read boxes: convert a Detector, not its net"):
        msat_det.convert(observed("yolo")).detect(photographs(1), 4)
    with pytest.raises(msat_det.InputError, match=r"a dict is neither an nn\.Module nor a Detector"):
        msat_det.convert({}, [images(1)])
    with pytest.raises(msat_det.InputError, match="no calibration images"):
        msat_det.convert(Corners())


def test_the_function_outlives_the_import_of_the_subpackage() -> None:
    import msat_det.graph.graph

    assert msat_det.convert.__name__ == "convert"
    assert callable(msat_det.convert)
    assert observe is not msat_det.observe
