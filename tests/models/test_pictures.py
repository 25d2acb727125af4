"""Images as people hand them to a detector: each form is the same pixels, or one line that says the mend."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from support.networks import randomise
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.models.detection import ssdlite320_mobilenet_v3_large

import msat_det
from msat_det.base.errors import InputError


class Corners:
    """The smallest detector: its net's means say how wide and how high the one box is; it decodes in place."""

    classes = ("thing",)

    def __init__(self):
        self.net = randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)))

    def preprocess(self, image: Tensor) -> tuple[Tensor, Any]:
        return F.interpolate(image[None].float() / 255, (12, 12))[0], tuple(image.shape[1:])

    def decode(self, outputs: Tensor, metas: list[Any]) -> list[msat_det.Detections]:
        sizes = outputs.relu_().mean((2, 3))
        boxes = torch.cat((torch.zeros_like(sizes), sizes), 1)
        return [msat_det.Detections(box[None], torch.ones(1), torch.zeros(1, dtype=torch.long)) for box in boxes]


def photographs() -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(0, 256, (3, 20 + i, 30), generator=generator, dtype=torch.uint8) for i in range(4)]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The photographs as files."""
    folder = tmp_path_factory.mktemp("photographs")
    for i, image in enumerate(photographs()):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
    return sorted(folder.iterdir())


def joined(batch: list) -> tuple:
    """What detection loaders collate with: images of several sizes stay a tuple."""
    return tuple(zip(*batch, strict=True))


TARGETS = [{"boxes": torch.zeros(i, 4), "labels": torch.zeros(i)} for i in range(4)]
CALIBRATIONS: dict[str, Callable[[list[Path]], Any]] = {
    "lists": lambda paths: [photographs()[:2], photographs()[2:]],
    "one by one": lambda paths: photographs(),
    "a generator": lambda paths: iter(photographs()),
    "paths": lambda paths: paths,
    "a folder": lambda paths: paths[0].parent,
    "a folder's name": lambda paths: str(paths[0].parent),
    "names of files": lambda paths: [[str(path) for path in paths]],
    "PIL": lambda paths: [Image.open(path) for path in paths],
    "with labels": lambda paths: list(zip(photographs(), TARGETS, strict=True)),
    "a loader": lambda paths: DataLoader([*zip(photographs(), TARGETS, strict=True)], 2, collate_fn=joined),
    "with names": lambda paths: [(photographs()[:2], ["cat", "dog"]), (photographs()[2:], ["cat", "cat"])],
    "dicts": lambda paths: [{"name": "cat", "image": image, "image_id": 7} for image in photographs()],
    "ready": lambda paths: torch.stack([Corners().preprocess(image)[0] for image in photographs()]),
    "ready, half, with labels": lambda paths: [
        (torch.stack([Corners().preprocess(image)[0] for image in photographs()]).double(), torch.zeros(4))
    ],
}


@pytest.mark.parametrize("given", CALIBRATIONS.values(), ids=CALIBRATIONS)
def test_every_form_of_calibration_is_the_same_images(given: Callable, paths: list[Path]) -> None:
    got = msat_det.convert(Corners(), given(paths), "constant", scale="channel")
    expected = msat_det.convert(Corners(), [photographs()], "constant", scale="channel")
    for name, neuron in expected.neurons.items():
        assert torch.equal(got.neurons[name].theta, neuron.theta)


def test_a_tensor_of_images_is_images() -> None:
    same = torch.stack([photographs()[0], photographs()[0].flip(2)])
    got = msat_det.convert(Corners(), same, "constant")
    expected = msat_det.convert(Corners(), [list(same)], "constant")
    assert got.neurons["_1"].theta == expected.neurons["_1"].theta


def test_every_form_of_images_is_detected_alike(paths: list[Path]) -> None:
    snn = msat_det.convert(Corners(), [photographs()], "constant")
    expected = [found.boxes for found in snn.detect(photographs(), 8)[8]]
    forms = (
        paths,
        list(map(str, paths)),
        [Image.open(path) for path in paths],
        (photographs(), TARGETS),
        paths[0].parent,
    )
    for form in (*forms, tuple(photographs())):
        assert all(map(torch.equal, (found.boxes for found in snn.detect(form, 8.0, record=8)[8]), expected))
    for one in (photographs()[1], paths[1], str(paths[1]), Image.open(paths[1]), photographs()[1][None]):
        (found,) = snn.detect(one, 8)[8]
        assert torch.allclose(found.boxes, expected[1])


def test_grey_and_transparent_pil_images_become_rgb() -> None:
    snn = msat_det.convert(Corners(), [photographs()], "constant")
    grey = Image.fromarray(photographs()[0][0].numpy())
    (found,) = snn.detect([grey], 8)[8]
    (expected,) = snn.detect([photographs()[0][:1].expand(3, -1, -1)], 8)[8]
    assert torch.equal(found.boxes, expected.boxes)
    assert len(snn.detect([grey.convert("RGBA"), grey.convert("P")], 8)[8]) == 2


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "floats": (lambda: [photographs()[0] / 255], r"tensor \(3, 20, 30\) of float32: give uint8 RGB \(3, H, W\)"),
    "NumPy's": (lambda: [photographs()[0].permute(1, 2, 0).numpy()], r"ndarray: .*permute\(2, 0, 1\)"),
    "NumPy's among others": (lambda: [[photographs()[0], np.zeros((9, 9, 3), "uint8")]], "an image is a ndarray"),
    "grey": (lambda: [photographs()[0][:1]], r"tensor \(1, 20, 30\) of uint8: give uint8 RGB \(3, H, W\)"),
    "16 bits": (lambda: [Image.fromarray(np.zeros((9, 9), "uint16"))], "an Image of mode I;16: give uint8"),
    "a missing file": (lambda: ["nowhere.jpg"], "no image file nowhere.jpg"),
    "an empty list": (lambda: [[]], "a list.* holds no image: give at least one"),
    "numbers": (lambda: [3], "an image is an int: give uint8"),
    "dicts without images": (lambda: [{"id": 3}], "an image is a dict: give uint8"),
}


@pytest.mark.parametrize(("given", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_image_says_how_to_give_one(given: Callable[[], Any], message: str) -> None:
    snn = msat_det.convert(Corners(), [photographs()], "constant")
    for call in (lambda: msat_det.convert(Corners(), given()), lambda: snn.detect(given(), 4)):
        with pytest.raises(InputError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


class Scaled(Corners):
    """A detector whose network takes pixels as they are, less the mean."""

    def preprocess(self, image: Tensor) -> tuple[Tensor, Any]:
        return image - torch.tensor([103.0, 116.0, 123.0])[:, None, None], None


class OnItsOwn(Corners):
    """One that brings each photograph to mean 0 and deviation 1: black and white alike come to NaN."""

    def preprocess(self, image: Tensor) -> tuple[Tensor, Any]:
        return (image.float() - image.float().mean()) / image.float().std(), None


class Choosy(Corners):
    def preprocess(self, image: Tensor) -> tuple[Tensor, Any]:
        assert image.shape[1:] == (20, 30)
        return super().preprocess(image)


PIXELS = torch.linspace(0, 255, 2 * 3 * 12 * 12).reshape(2, 3, 12, 12)
NORMALISED = (PIXELS / 255 - 0.45) / 0.225
RANGES = {
    "pixels for 0..1": (Corners, PIXELS, "batch 0 holds values from 0 to 255, and .* preprocess gives 0 to 1: give"),
    "normalised for 0..1": (Corners, NORMALISED, "values from -2 to 2.444, and the detector's preprocess gives 0 to 1"),
    "0..1": (Corners, PIXELS / 255, None),
    "0..1, sharpened": (Corners, 1.6 * PIXELS / 255 - 0.3, None),
    "0..1, of one value": (Corners, torch.ones(2, 3, 12, 12), None),
    "pixels as they are": (Scaled, PIXELS - 103, None),
    "twice the pixels": (Scaled, 2 * PIXELS, "values from 0 to 510, and the detector's preprocess gives -123 to 152"),
    "each by itself": (OnItsOwn, 40 * NORMALISED, None),
    "an own preprocess that wants its size": (Choosy, PIXELS, None),
}


@pytest.mark.parametrize(("detector", "batch", "message"), RANGES.values(), ids=RANGES)
def test_ready_batches_are_what_preprocess_makes(detector: type, batch: Tensor, message: str | None) -> None:
    with pytest.raises(InputError, match=message) if message else nullcontext():
        msat_det.convert(detector(), batch, "constant")


def test_no_images_and_images_of_several_sizes_are_told() -> None:
    snn = msat_det.convert(Corners(), [photographs()], "constant")
    with pytest.raises(InputError, match="a list holds no image: give at least one"):
        snn.detect([], 4)
    with pytest.raises(InputError, match="an image is a list of Tensor"):
        snn.detect([photographs()[:1], photographs()[1:]], 4)  # two batches
    with pytest.raises(InputError, match="calibration is a str: give a tensor"):
        msat_det.convert(Corners(), "photographs/")

    class AsTheyAre(Corners):
        def preprocess(self, image: Tensor) -> tuple[Tensor, Any]:
            return image / 255, None

    with pytest.raises(InputError, match=r"different sizes, \(3, 20, 30\), \(3, 21, 30\).*bring all to one"):
        msat_det.convert(AsTheyAre(), [photographs()])


def test_torchvisions_detectors_as_they_leave_training() -> None:
    torch.manual_seed(0)
    model = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3)
    expected = msat_det.observe(model.half(), photographs()[:1])
    assert isinstance(expected.detector, msat_det.TorchvisionDetector)
    wrapped = msat_det.observe(nn.DataParallel(model.train()), photographs()[:1])
    assert isinstance(wrapped.detector, msat_det.TorchvisionDetector)
    for name, site in expected.sites.items():
        assert torch.equal(site.maximum, wrapped.sites[name].maximum)
    found = msat_det.convert(expected, method="constant").detect(photographs()[:1], 1)[1]
    assert found[0].boxes.dtype is torch.float32
