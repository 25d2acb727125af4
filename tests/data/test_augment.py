"""Augmented calibration images and corrupted evaluation images: seeded, of the same size, the originals untouched."""

from pathlib import Path

import pytest
import torch
from support.roots import write_image
from support.small_runs import run_quietly, tiny

from msat_det.base.config import Augment
from msat_det.base.errors import InputError
from msat_det.data import ImageFiles, subset
from msat_det.data.augment import augmented
from msat_det.data.corrupt import STRENGTHS, corrupted


@pytest.fixture
def images(tmp_path: Path) -> ImageFiles:
    for seed in range(3):
        write_image(tmp_path / f"{seed}.png", seed)
    return ImageFiles(tmp_path)


def test_no_change_is_the_dataset_itself(images: ImageFiles) -> None:
    assert augmented(images, Augment(), 0) is images
    assert corrupted(images, None, 0) is images


@pytest.mark.parametrize("name", ["flip", "photometric", "crop"])
def test_copies_stand_behind_the_originals(images: ImageFiles, name: str) -> None:
    how = Augment(**{name: True}, copies=2)
    more = augmented(images, how, 5)
    assert more.ids == ["0.png", "1.png", "2.png"] + [(f"{i}.png", k) for k in (0, 1) for i in range(3)]
    for id in more.ids[:3]:
        assert torch.equal(more.image(id), images.image(id))
        copy = more.image((id, 0))
        assert (copy.shape, copy.dtype) == (images.image(id).shape, torch.uint8)
        assert not torch.equal(copy, images.image(id))
        assert torch.equal(copy, augmented(images, how, 5).image((id, 0)))
    if name != "flip":
        assert not torch.equal(more.image(("0.png", 0)), more.image(("0.png", 1)))
        assert not torch.equal(more.image(("0.png", 0)), augmented(images, how, 6).image(("0.png", 0)))


def test_a_flip_is_a_mirror_image(images: ImageFiles) -> None:
    more = augmented(images, Augment(flip=True), 0)
    assert torch.equal(more.image(("1.png", 0)), images.image("1.png").flip(2))


@pytest.mark.parametrize("name", STRENGTHS)
def test_corruption_grows_with_severity_and_is_seeded(images: ImageFiles, name: str) -> None:
    original = images.image("0.png").float()
    off = [(corrupted(images, f"{name}:{level}", 0).image("0.png").float() - original).abs().mean() for level in (1, 5)]
    assert 0 < off[0] < off[1]
    spoilt = [corrupted(images, f"{name}:3", 0).image("0.png") for _ in range(2)]
    assert torch.equal(*spoilt)
    assert (spoilt[0].shape, spoilt[0].dtype) == ((3, 48, 64), torch.uint8)
    part = subset(corrupted(images, f"{name}:3", 0), 2, 0)  # a subset stays corrupted
    assert torch.equal(part.image("0.png"), spoilt[0])


def test_noise_has_the_published_strength(images: ImageFiles) -> None:
    grey = torch.full((3, 200, 200), 128, dtype=torch.uint8)
    images.image = lambda id: grey
    noise = corrupted(images, "noise:1", 0).image("0.png").float() - grey
    assert noise.std() == pytest.approx(0.08 * 255, rel=0.03)


@pytest.mark.parametrize("how", ["snow:1", "noise", "noise:0", "noise:6", "noise:1.5", ""])
def test_unknown_corruptions_are_told(images: ImageFiles, how: str) -> None:
    with pytest.raises(InputError, match=r"data.corrupt is .*: give one of noise, blur"):
        corrupted(images, how, 0)


def test_a_run_takes_both(tmp_path: Path) -> None:
    plain = run_quietly(tiny(tmp_path / "a"))
    spoilt = run_quietly(tiny(tmp_path / "b", "--data.corrupt", "noise:5"))
    more = run_quietly(tiny(tmp_path / "c", "--calib.augment.flip", "--calib.augment.photometric"))
    assert spoilt[0].metrics["map"] < plain[0].metrics["map"]  # the float network suffers, too
    assert more[0].metrics == plain[0].metrics
    assert more[-1].spikes_per_neuron != plain[-1].spikes_per_neuron  # other thresholds
