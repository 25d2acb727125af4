"""Resizing: where boxes and pixels go, and that boxes come back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from msat_det.base.errors import InputError
from msat_det.models.preprocessing import RESIZES, as_size, letterbox, stretch, to_originals

sides = st.integers(1, 300)


@pytest.mark.parametrize("name", RESIZES)
@given(height=sides, width=sides, size=st.tuples(st.integers(8, 200), st.integers(8, 200)))
@settings(max_examples=60, deadline=None)
def test_boxes_come_back(name: str, height: int, width: int, size: tuple[int, int]) -> None:
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    resized, geometry = RESIZES[name](image, size)
    assert resized.shape == (3, *size)
    boxes = torch.rand(20, 2, 2).sort(1).values.flatten(1) * torch.tensor((width, height) * 2)
    inside = geometry.to_input(boxes)
    assert (inside >= 0).all()
    assert (inside <= torch.tensor((size[1], size[0]) * 2) + 1e-3).all()
    torch.testing.assert_close(to_originals(inside[None], [geometry])[0], boxes, atol=1e-3, rtol=1e-4)
    assert to_originals(torch.tensor([[[-1e9, -1e9, 1e9, 1e9]]]), [geometry]).tolist() == [[[0, 0, width, height]]]


def test_stretch_keeps_the_range_and_smooths() -> None:
    image = torch.zeros(3, 40, 40, dtype=torch.uint8)
    image[:, ::2] = 255  # stripes finer than the output: without antialiasing they would survive
    resized, _ = stretch(image, (10, 10))
    assert resized.dtype == torch.float32
    assert ((resized[:, 1:-1] > 100) & (resized[:, 1:-1] < 155)).all()


def test_letterbox_centres_and_fills() -> None:
    resized, geometry = letterbox(torch.full((3, 20, 40), 255, dtype=torch.uint8), (80, 80))
    assert geometry.offset == (0, 20)
    assert (resized[:, 20:60] == 255).all()
    assert (resized[:, :20] == 127).all()
    assert (resized[:, 60:] == 127).all()


def test_as_size() -> None:
    assert as_size(300) == (300, 300)
    assert as_size([224, 320]) == (224, 320)
    for bad in (0, (1, 2, 3), (5, -1)):
        with pytest.raises(InputError, match=r"model\.size is"):
            as_size(bad)
