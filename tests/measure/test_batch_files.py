"""Parts come back to the bit, in the order of the batches, whatever the order in which they were written."""

from pathlib import Path

import pytest
import torch

from msat_det.base.errors import InputError
from msat_det.measure.batch_files import Part, Parts
from msat_det.models.detector import Detections


def detections(count: int, seed: int) -> Detections:
    generator = torch.Generator().manual_seed(seed)
    boxes, scores = torch.rand(count, 4, generator=generator), torch.rand(count, generator=generator)
    return Detections(boxes, scores, torch.arange(count))


BATCHES = {
    0: Part(
        [7, 3],
        ["b.jpg is broken"],
        {("float", None): [detections(2, 0), detections(0, 1)], ("if", 4): [detections(1, 2), detections(3, 3)]},
        {("if", 4): torch.tensor([0.1, 0.2, 1e16, 0.5, 0.7], dtype=torch.float64)},
    ),
    1: Part([], ["d.jpg is broken", "e.jpg: ü"]),
    2: Part(
        ["a/1"],
        [],
        {("float", None): [detections(0, 4)], ("if", 4): [detections(2, 5)]},
        {("if", 4): torch.tensor([0.3, 0.4, 1.0, 0.6, 0.8], dtype=torch.float64)},
    ),
}


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    parts = Parts(tmp_path)
    for number in (2, 0, 1):
        parts.write(number, BATCHES[number])
    (tmp_path / ".00000003.safetensors.part").write_bytes(b"half")
    (tmp_path / "begun.safetensors").write_bytes(b"")
    return parts


def test_detections_come_back(parts: Parts) -> None:
    assert parts.done() == {0, 1, 2}
    assert parts.ids() == [7, 3, "a/1"]
    assert parts.corrupt() == ["b.jpg is broken", "d.jpg is broken", "e.jpg: ü"]
    for key in (("float", None), ("if", 4)):
        expected = [found for part in BATCHES.values() for found in part.found.get(key, [])]
        got = parts.found(*key)
        assert list(got) == parts.ids()
        for a, b in zip(got.values(), expected, strict=True):
            for name in ("boxes", "scores", "labels"):
                assert torch.equal(getattr(a, name), getattr(b, name))
                assert getattr(a, name).dtype == getattr(b, name).dtype


def test_no_more_batches_are_read_than_are_asked_for(parts: Parts) -> None:
    assert list(parts.found("if", 4, least=1)) == [7, 3]
    assert list(parts.found("if", 4, least=3)) == [7, 3, "a/1"]
    (parts.folder / "00000002.safetensors").write_bytes(b"no part")
    assert len(parts.found("float", None, least=2)) == 2


def test_costs_are_added_in_the_order_of_the_batches(parts: Parts) -> None:
    a, b = (BATCHES[number].costs["if", 4] for number in (0, 2))
    assert torch.equal(parts.costs("if", 4), a + b)


def test_logits_come_back(tmp_path: Path) -> None:
    logits, parts = torch.randn(3, 5), Parts(tmp_path)
    parts.write(0, Part([1, 2], [], {("float", None): list(logits[:2])}))
    parts.write(1, Part([0], [], {("float", None): list(logits[2:])}))
    found = parts.found("float", None)
    assert list(found) == [1, 2, 0]
    assert torch.equal(torch.stack(list(found.values())), logits)


def test_half_a_part_is_named(parts: Parts) -> None:
    path = parts.folder / "00000002.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"00000002\.safetensors is damaged"):
        parts.found("if", 4)
    with pytest.raises(InputError, match=r"00000000\.safetensors is damaged"):
        parts.found("if", 8)
