"""What people hand in at first: each form gives what the plain one gives, or one line that says the mend."""

import copy
import io
import pickle
import re
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.modules import Fused, inputs
from support.networks import build, images, randomise
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import msat_det
from msat_det.base.errors import InputError
from msat_det.methods import parse_options
from msat_det.methods.observe import Observation

BATCH = images(4)
LABELS = torch.arange(4)


class Optional(nn.Module):
    """One input, and parameters that people leave out."""

    def __init__(self):
        super().__init__()
        self.net = build("plain")

    def forward(self, image: Tensor, mask: Tensor | None = None, twice: bool = False) -> Tensor:
        return self.net(image if mask is None else image * mask)


def assert_observed_alike(got: Observation, expected: Observation) -> None:
    for name, site in expected.sites.items():
        assert torch.equal(got.sites[name].histogram, site.histogram)
        assert torch.equal(got.sites[name].maximum, site.maximum)


def generated() -> Iterator[Tensor]:
    yield from BATCH.split(2)


CALIBRATIONS: dict[str, Callable[[], Any]] = {
    "a tensor": lambda: BATCH,
    "a tuple of tensors": lambda: tuple(BATCH.split(2)),
    "a generator": generated,
    "a loader": lambda: DataLoader(BATCH, batch_size=2),
    "a loader with labels": lambda: DataLoader(TensorDataset(BATCH, LABELS), batch_size=2),
    "a loader with names": lambda: DataLoader([{"image": x, "label": 1.0} for x in BATCH.double()], batch_size=2),
    "one dict": lambda: {"pixels": BATCH, "boxes": torch.zeros(4, 3)},
    "lists with labels": lambda: [[BATCH[:2], ["a", "b"]], [BATCH[2:], ["c", "d"]]],
    "double": lambda: [BATCH.double()],
    "in need of gradients": lambda: [BATCH.clone().requires_grad_()],
    "another layout": lambda: [BATCH.contiguous(memory_format=torch.channels_last)],
}


@pytest.mark.parametrize("net", [build("plain"), Optional()], ids=["plain", "optional"])
@pytest.mark.parametrize("given", CALIBRATIONS.values(), ids=CALIBRATIONS)
def test_every_form_of_calibration_is_the_same_images(given: Callable[[], Any], net: nn.Module) -> None:
    observation = msat_det.observe(net, given())
    assert_observed_alike(observation, msat_det.observe(net, [BATCH]))
    first = observation.first(9)
    assert torch.equal(first["image"] if isinstance(first, dict) else first, BATCH)


def test_optional_inputs_are_taken_when_they_are_given() -> None:
    mask = (images(4, channels=1) > 0).float()
    by_position = msat_det.observe(Optional(), [(BATCH, mask, LABELS)])
    by_name = msat_det.observe(Optional(), [{"mask": mask, "image": BATCH, "label": LABELS}])
    assert by_position.graph.inputs == by_name.graph.inputs == ["image", "mask"]
    assert_observed_alike(by_position, by_name)
    without = msat_det.observe(Optional(), BATCH)
    assert not torch.equal(by_name.sites["net_features_0_2"].maximum, without.sites["net_features_0_2"].maximum)


def test_float_targets_of_another_rank_are_labels() -> None:
    observation = msat_det.observe(build("plain"), [(BATCH, torch.zeros(4, 5), [{}] * 4)])
    assert_observed_alike(observation, msat_det.observe(build("plain"), BATCH))


def test_several_inputs_alone_are_one_batch() -> None:
    given = inputs(4)
    expected = msat_det.observe(randomise(Fused()), [given])
    assert_observed_alike(msat_det.observe(randomise(Fused()), tuple(given.values())), expected)
    assert_observed_alike(msat_det.observe(randomise(Fused()), given), expected)


def test_labels_behind_several_inputs_are_left_out() -> None:
    given = inputs(1)
    with_labels = msat_det.observe(randomise(Fused()), [(*given.values(), LABELS[:3])])
    named = msat_det.observe(randomise(Fused()), [given | {"label": LABELS[:3]}])
    expected = msat_det.observe(randomise(Fused()), [given])
    assert_observed_alike(with_labels, expected)
    assert_observed_alike(named, expected)


NO_CALIBRATION: dict[str, tuple[Callable[[], Any], str]] = {
    "nothing": (lambda: [], "no calibration images"),
    "none": (lambda: None, "calibration is a NoneType: give a tensor"),
    "a word": (lambda: "images/", "calibration is a str: give a tensor"),
    "paths": (lambda: ["a.jpg"], r"batch 0 is a str: give a float tensor \(B, …\)"),
    "NumPy's": (lambda: BATCH.numpy(), "calibration is a ndarray: give a tensor"),
    "batches of NumPy's": (lambda: [BATCH.numpy()], "batch 0 is a ndarray.*torch.from_numpy"),
    "an empty batch": (lambda: [BATCH, BATCH[:0]], r"batch 1 is a tensor \(0, 3, 12, 12\).*holds no image"),
    "an empty list": (lambda: [[]], "batch 0 is a list: give a float tensor"),
    "single images": (lambda: list(BATCH), r"images of \(12, 12\) float32 .*torch.stack\(images\)"),
    "lists of single images": (lambda: [list(BATCH)], r"list of Tensor, 4 of them, .*takes 1.*torch.stack\(images\)"),
    "one single image": (lambda: BATCH[0], r"images of \(12, 12\) float32 .*image\[None\]"),
    "a dataset": (lambda: TensorDataset(BATCH, LABELS), "calibration is a TensorDataset: give a DataLoader"),
    "images as they were read": (lambda: [BATCH.byte()], r"images of \(3, 12, 12\) uint8 .*give float batches"),
    "whole numbers": (lambda: [BATCH.long()], r"images of \(3, 12, 12\) int64 .*give float batches"),
    "true and false": (lambda: [BATCH > 0], r"images of \(3, 12, 12\) bool .*give float batches"),
    "complex numbers": (lambda: [BATCH.cfloat()], "batch 0 is a tensor .* of complex64: give .*real numbers"),
    "sparse": (lambda: [BATCH.to_sparse()], "batch 0 is a tensor .* in a sparse layout: give a dense"),
    "no values": (lambda: [BATCH.to("meta")], "batch 0 is a tensor .* without values"),
    "one channel": (lambda: [BATCH[:, :1]], r"images of \(1, 12, 12\) float32 .*3 channels.*as the network takes them"),
    "other channels later": (lambda: [BATCH, BATCH[:, :1]], "'features_0_0'.*fails on this batch .*3 channels"),
    "labels as a batch": (
        lambda: (BATCH, LABELS),
        r"'x' is a tensor \(4,\) of int64, where the first images were \(3, 12",
    ),
    "unknown names": (lambda: [{"a": BATCH, "b": BATCH}], r"batch 0 has \['a', 'b'\], the network takes \['x'\]"),
}


@pytest.mark.parametrize(("given", "message"), NO_CALIBRATION.values(), ids=NO_CALIBRATION)
def test_what_is_no_calibration_says_how_to_give_one(given: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        msat_det.convert(build("plain"), given())
    assert "\n" not in str(caught.value)


NUMBERS = [2, 2.0, np.int64(2), np.float32(2), torch.tensor(2)]


@pytest.mark.parametrize("two", NUMBERS, ids=[type(n).__name__ for n in NUMBERS])
def test_whole_numbers_of_every_kind_are_timesteps(two: Any) -> None:
    net = build("plain")
    snn = msat_det.convert(net, BATCH, "calibration", T=two, seed=two)
    expected = msat_det.convert(net, BATCH, "calibration", T=2, seed=2)
    for outputs in (snn.run(BATCH, two), snn.run(BATCH, 4, record=two), snn.run(BATCH, 4, record=[two])):
        assert list(outputs) == [2]
        assert type(next(iter(outputs))) is int
        assert torch.equal(outputs[2], expected.run(BATCH, 2)[2])


def test_records_of_every_kind() -> None:
    snn = msat_det.convert(build("plain"), BATCH, "constant")
    for record in (
        (1, 3),
        [3.0, 1.0],
        {1, 3},
        range(1, 4, 2),
        iter([3, 1]),
        np.array([1, 3]),
        torch.tensor([1.0, 3.0]),
    ):
        assert list(snn.run(BATCH, 4, record)) == [1, 3]


@pytest.mark.parametrize("wrong", [0, -3, 2.5, True, "4", None, float("nan"), float("inf"), [4], np.array([4, 5])])
def test_what_is_no_number_of_timesteps(wrong: Any) -> None:
    net = build("plain")
    snn = msat_det.convert(net, BATCH, "constant")
    with pytest.raises(InputError, match=r"T is .*: give a whole number of at least 1"):
        msat_det.convert(net, BATCH, T=wrong)
    with pytest.raises(InputError, match=r"T is .*: give a whole number|recorded timesteps .* must lie in 1..T"):
        snn.run(BATCH, wrong)
    if wrong is not None and not isinstance(wrong, list | np.ndarray):
        with pytest.raises(InputError, match="recorded timesteps"):
            snn.run(BATCH, 4, record=wrong)


def test_other_arguments_of_convert() -> None:
    net = build("plain")
    for method, message in (
        ("Constant", "did you mean constant"),
        ("brust", "did you mean burst"),
        (None, "None"),
        (3, "3"),
    ):
        with pytest.raises(InputError, match=f"no method .*{message}"):
            msat_det.convert(net, BATCH, method)
    with pytest.raises(InputError, match="no option 'gama': did you mean gamma"):
        msat_det.convert(net, BATCH, "constant", gama=3)
    with pytest.raises(InputError, match=r"seed is 1\.5: give a whole number"):
        msat_det.convert(net, BATCH, seed=1.5)
    with pytest.raises(InputError, match=r"a type is neither an nn\.Module nor a Detector"):
        msat_det.convert(nn.Linear, BATCH)


NO_NETWORK: dict[str, tuple[Any, str]] = {
    "a file": ("yolov8n.pt", "a str is neither .*: make the network first, ultralytics.YOLO('yolov8n.pt')"),
    "an ONNX file": ("net.onnx", "a str is neither .*: make the network first, msat_det.load_detector('net.onnx')"),
    "a state dict": (build("plain").state_dict(), "an OrderedDict is neither .*: load a state dict into its network"),
    "a class": (nn.ReLU, "a type is neither .*: give an instance, ReLU(…)"),
    "a wrapper": (
        SimpleNamespace(name="x", model=SimpleNamespace(side=64, net=nn.ReLU())),
        "a SimpleNamespace is neither .*: give the network in it, its attribute model.net$",
    ),
    "images": (list(BATCH), "a list of Tensor is neither .*: the network comes first, convert(network, images)"),
}


@pytest.mark.parametrize("case", NO_NETWORK)
def test_what_people_take_for_a_network(case: str) -> None:
    given, told = NO_NETWORK[case]
    with pytest.raises(InputError, match=told.replace("(", r"\(").replace(")", r"\)")):
        msat_det.convert(given, BATCH)


LAYERS = {"ReLU": nn.ReLU(), "Conv2d": nn.Conv2d(3, 4, 3), "MaxPool2d": nn.MaxPool2d(2), "SiLU": nn.SiLU()}


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_a_layer_by_itself_is_a_network(layer: nn.Module) -> None:
    expected = msat_det.convert(nn.Sequential(layer), BATCH, "signed")(BATCH)
    assert torch.equal(msat_det.convert(layer, BATCH, "signed")(BATCH), expected)


def test_a_module_of_pytorch_that_decides_by_values_is_named() -> None:
    net = nn.AdaptiveLogSoftmaxWithLoss(8, 10, [4])
    with pytest.raises(InputError, match=r"does not trace at AdaptiveLogSoftmaxWithLoss .*belongs outside"):
        msat_det.convert(net, [(torch.rand(2, 8), torch.tensor([1, 5]))])


def test_a_call_with_timesteps_names_what_takes_them() -> None:
    snn = msat_det.convert(build("plain"), BATCH, "constant", T=8)
    with pytest.raises(InputError, match=r"runs to T = 8: snn\.run\(x, T\) runs to another timestep"):
        snn(BATCH, 4)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("method", ["constant", "msat-fit"])
def test_modes_of_the_caller_make_no_difference(mode: Callable, method: str) -> None:
    expected = msat_det.convert(build("yolo"), images(4), method, T=4).run(images(2), 4)[4]
    with mode():
        snn = msat_det.convert(build("yolo"), images(4), method, T=4)  # weights and images of that mode too
        inside = snn.run(images(2), 4)[4]
    for outputs in (inside, snn.run(images(2), 4)[4]):
        assert all(torch.equal(outputs[key], value) for key, value in expected.items())


def test_training_mode_and_gradients_stay_with_the_network() -> None:
    net = build("residual").train().requires_grad_(True)
    expected = msat_det.convert(build("residual"), BATCH, "constant").run(BATCH, 4)[4]
    got = msat_det.convert(net, BATCH, "constant").run(BATCH, 4)[4]
    assert torch.equal(got, expected)
    assert not got.requires_grad
    assert net.training
    assert all(parameter.requires_grad for parameter in net.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("batches", ["the network's", "float32"])
def test_networks_of_every_precision_calculate_in_float32(dtype: torch.dtype, batches: str) -> None:
    net = build("residual").to(dtype)
    batch = BATCH.to(dtype)
    snn = msat_det.convert(net, batch if batches == "the network's" else batch.float(), "constant")
    expected = msat_det.convert(copy.deepcopy(net).float(), batch.float(), "constant")
    got = snn.run(batch, 8)[8]
    assert got.dtype is torch.float32
    assert torch.equal(got, expected.run(batch.float(), 8)[8])
    assert {neuron.theta.dtype for neuron in snn.neurons.values()} == {torch.float32}


def test_autocast_and_another_default_type_are_told() -> None:
    net = build("plain")
    snn = msat_det.convert(net, BATCH, "constant")
    expected = snn.run(BATCH, 2)[2]
    calls = [lambda: msat_det.convert(net, BATCH), lambda: snn.run(BATCH, 2)]
    for call in calls:
        with torch.autocast("cpu"), pytest.raises(InputError, match="autocast is on"):
            call()
        torch.set_default_dtype(torch.float64)
        try:
            with pytest.raises(InputError, match="default dtype is not float32"):
                call()
        finally:
            torch.set_default_dtype(torch.float32)
    assert torch.equal(snn.run(BATCH, 2)[2], expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("layer", ["features.0.0.weight", "head.weight", "head.bias"])
def test_broken_weights_are_told(value: float, layer: str) -> None:
    net = build("plain")
    net.get_parameter(layer).data.view(-1)[0] = value
    node = "head" if layer.startswith("head") else "features_0_0"
    with pytest.raises(InputError, match=f"node '{node}'.*NaN or infinite.*check the weights"):
        msat_det.convert(net, BATCH)


def test_infinite_masks_are_no_broken_weights() -> None:
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.conv(x)).flatten(2)
            return x.masked_fill(torch.arange(144) > 100, float("-inf")).softmax(2)

    net = randomise(Masked())
    got, expected = msat_det.convert(net, BATCH, "constant", signed=True, gamma=7).run(BATCH, 256)[256], net(BATCH)
    assert (got - expected).norm() < 0.03 * expected.norm()


def test_a_copy_is_the_same_network_and_one_of_its_own() -> None:
    snn = msat_det.convert(build("yolo"), BATCH, "constant", signed=True, confidence=0.5, seed=3)
    expected = snn.run(BATCH, 6)[6]
    for other in (copy.deepcopy(snn), copy.copy(snn)):
        got = other.run(BATCH, 6)[6]
        assert all(torch.equal(got[key], value) for key, value in expected.items())
        assert torch.equal(other.counts[6].sops, snn.counts[6].sops)
        assert other.coverage == snn.coverage
        other.neurons.clear()
    deep = copy.deepcopy(snn)
    for neuron in deep.neurons.values():
        neuron.theta.mul_(2)
    assert all(torch.equal(snn.run(BATCH, 6)[6][key], value) for key, value in expected.items())
    assert not {*deep.graph.nodes} & {*snn.graph.nodes}


def test_pickles_are_refused_at_once() -> None:
    observation = msat_det.observe(build("plain"), BATCH)
    snn = msat_det.convert(observation, method="constant")
    writes = [
        lambda: pickle.dumps(snn),
        lambda: torch.save(snn, io.BytesIO()),
        lambda: pickle.dumps(observation),
        lambda: copy.deepcopy(observation),
    ]
    for write in writes:
        with pytest.raises(InputError, match=re.escape("snn.save(path)")):
            write()


OPTIONS = {
    "percentile": (np.float64(99.5), torch.tensor(99.5), np.float32(99.5)),
    "gamma": (np.int32(3), np.array(3), torch.tensor(3)),
    "signed": (np.bool_(True), torch.tensor(True)),
    "stages": (np.array([2, 1]), torch.tensor([2.0, 1.0]), [np.float32(2), 1], (np.int64(2), torch.tensor(1))),
    "factor": (np.float16(0.5), torch.tensor(0.5, dtype=torch.bfloat16)),
    "scale": (np.str_("channel"),),
}
PLAIN = {"percentile": 99.5, "gamma": 3, "signed": True, "stages": (2.0, 1.0), "factor": 0.5, "scale": "channel"}


@pytest.mark.parametrize(("key", "given"), [(key, value) for key, values in OPTIONS.items() for value in values])
def test_options_of_numpy_and_pytorch_are_pythons(key: str, given: Any) -> None:
    found = getattr(parse_options("constant", {key: given}), key)
    assert found == PLAIN[key]
    assert type(found) is type(PLAIN[key])


@pytest.mark.parametrize("given", [np.float32(np.nan), np.array([[1.0]]), torch.tensor([2, 3]), np.array(["a"])])
def test_arrays_that_are_no_option_are_told(given: Any) -> None:
    with pytest.raises(InputError, match=r"option percentile of method constant is .*: give a number$"):
        parse_options("constant", {"percentile": given})


@pytest.mark.parametrize("device", ["gpu", "cuda:99", 99, torch.device("cuda:99"), torch.float16, 0.5, ""])
def test_what_is_no_device_here(device: Any) -> None:
    snn = msat_det.convert(build("plain"), BATCH, "constant")
    before = snn.run(BATCH, 2)[2]
    with pytest.raises(InputError, match=r"can't be moved there .*: give a|float32: leave its dtype") as caught:
        snn.to(device)
    assert "\n" not in str(caught.value)
    assert torch.equal(snn.to("cpu").run(BATCH, 2)[2], before)


@pytest.mark.parametrize("forwards", [1, 2, 3])
def test_too_little_memory_is_not_told_as_input_that_does_not_fit(
    forwards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it lacks in the first forward pass or later, PyTorch's own error comes out."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    calls, convolve = iter(range(1, 100)), nn.Conv2d._conv_forward

    def lacking(layer: nn.Conv2d, *args: Any) -> torch.Tensor:
        if layer.out_channels == 2 and next(calls) >= forwards:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
        return convolve(layer, *args)

    monkeypatch.setattr(nn.Conv2d, "_conv_forward", lacking)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        msat_det.convert(net, [torch.rand(2, 3, 8, 8)])
