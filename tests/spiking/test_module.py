"""A spiking network as an ``nn.Module``, and how results print."""

import copy
import re
from pathlib import Path

import pytest
import torch
from support.networks import build, images
from torch import Tensor, nn

import msat_det
from msat_det.base.colours import COLOURS
from msat_det.base.errors import InputError

BATCH = images(4)


def converted(method: str = "signed-b3", network: str = "residual", **options: object) -> msat_det.SpikingNetwork:
    return msat_det.convert(build(network), BATCH, method, T=6, **options)


def test_a_call_gives_the_outputs_at_its_t() -> None:
    snn = converted()
    assert isinstance(snn, nn.Module)
    assert torch.equal(snn(BATCH), snn.run(BATCH, 6)[6])
    assert torch.equal(nn.Sequential(snn, nn.Identity())(BATCH), snn.run(BATCH, 6)[6])
    assert copy.deepcopy(snn).T == copy.copy(snn).T == 6
    assert not snn(BATCH).requires_grad


def test_its_parameters_are_the_weights_and_it_stays_in_evaluation_mode() -> None:
    snn = converted()
    assert {p.data_ptr() for p in snn.parameters()} == {p.data_ptr() for p in snn.graph.module.parameters()}
    assert snn.train() is snn
    assert not any(module.training for module in snn.modules())
    assert snn.to("cpu") is snn.eval()


@pytest.mark.parametrize("move", ["half", "double", "bfloat16"])
def test_another_dtype_is_refused(move: str) -> None:
    snn = converted()
    expected = snn(BATCH)
    with pytest.raises(InputError, match="calculates in float32"):
        getattr(snn, move)()
    assert torch.equal(snn(BATCH), expected)


@pytest.mark.parametrize(("method", "options"), [("signed-b3", {}), ("calibration", {}), ("delta-3", {})])
def test_a_state_dict_carries_weights_and_neurons(method: str, options: dict) -> None:
    snn, other = converted(method, **options), converted(method, factor=0.5)
    expected, before = snn(BATCH), other(BATCH)
    assert not torch.equal(before, expected)
    state = {name: value.clone() for name, value in snn.state_dict().items()}
    sites = [node.name for node in snn.graph.sites]
    assert {f"neurons.{site}.theta" for site in sites} <= set(state)
    assert {f"neurons.{site}.bias" for site in sites} <= set(state) or method != "calibration"
    assert all(isinstance(value, Tensor) for value in state.values())
    other.load_state_dict(state)
    assert torch.equal(other(BATCH), expected)

    theta = f"neurons.{sites[0]}.theta"
    with pytest.raises(RuntimeError, match=re.escape(f'Missing key(s) in state_dict: "{theta}"')):
        other.load_state_dict({name: value for name, value in state.items() if name != theta})
    with pytest.raises(RuntimeError, match=re.escape(f"{theta} is (99,), the network's")):
        other.load_state_dict(state | {theta: torch.ones(99)})
    with pytest.raises(RuntimeError, match="Unexpected"):
        other.load_state_dict(state | {"neurons.nobody.theta": torch.ones(1)})


def test_a_module_that_is_the_detector_is_no_part_of_it() -> None:
    class Seeing(nn.Module):
        classes = ("thing",)

        def __init__(self) -> None:
            super().__init__()
            self.net = build("plain")

        def preprocess(self, image: Tensor) -> tuple[Tensor, None]:
            return image.float() / 255, None

        def decode(self, outputs: Tensor, metas: list) -> list[msat_det.Detections]:
            return [msat_det.Detections(torch.rand(1, 4), torch.ones(1), torch.zeros(1).long()) for _ in metas]

    detector = Seeing()
    photographs = [torch.randint(0, 256, BATCH.shape[1:], dtype=torch.uint8) for _ in range(3)]
    snn = msat_det.convert(detector, photographs, T=2)
    assert snn.detector is detector
    assert not any(name.startswith("detector") for name in snn.state_dict())
    assert snn.detect(photographs)[2][0].names == ["thing"]
    assert snn.detect(photographs[0], 1)[1][0].classes == ("thing",)


def test_convert_takes_no_spiking_network() -> None:
    with pytest.raises(InputError, match="is a spiking one already: give the float network"):
        msat_det.convert(converted(), BATCH)


def test_its_repr_says_what_it_is_and_what_the_last_run_took() -> None:
    snn = converted()
    assert repr(snn).splitlines()[0] == "SpikingNetwork(signed-b3, rate coding, T = 6)"
    assert "last run" not in repr(snn)
    snn.run(BATCH, 4, record=(2, 4))
    lines = repr(snn).splitlines()
    ratio = snn.counts[4].energy_ratio
    assert lines[-1].strip().startswith("last run, t = 4: ")
    assert lines[-1].endswith(f"energy {ratio:.2f} of the float network's")
    assert f"{len(snn.graph.sites)} call sites, {snn.counts[4].neurons:,} neurons: " in lines[1]
    assert f"{snn.fanout.total:,} multiply-adds an image" in lines[2]
    assert len(lines) <= 5


def test_files_keep_t_and_method_and_those_of_before_load(tmp_path: Path) -> None:
    snn = converted()
    snn.save(tmp_path / "a.safetensors")
    again = msat_det.load(tmp_path / "a.safetensors")
    assert (again.T, again.method) == (6, "signed-b3")
    assert torch.equal(again(BATCH), snn(BATCH))
    content = (tmp_path / "a.safetensors").read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + size].replace(rb",\"T\":6,\"method\":\"signed-b3\"", b"")  # as older versions wrote it
    assert len(header) < size
    (tmp_path / "b.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + content[8 + size :])
    old = msat_det.load(tmp_path / "b.safetensors")
    assert (old.T, old.method) == (32, "")
    assert torch.equal(old.run(BATCH, 6)[6], snn(BATCH))


@pytest.mark.parametrize("method", ["signed-b3", "delta-3", "calibration", "msat-fit", "spike-norm"])
def test_what_inference_mode_made_works_outside_and_the_other_way_round(method: str) -> None:
    expected = msat_det.convert(build("residual"), images(4), method, T=4)(images(2))
    with torch.inference_mode():
        observation = msat_det.observe(build("residual"), images(4))
        inside = msat_det.convert(observation, method=method, T=4)
    outside = msat_det.convert(observation, method=method, T=4)
    plain = msat_det.observe(build("residual"), images(4))
    with torch.inference_mode():
        later = msat_det.convert(plain, method=method, T=4)
        assert torch.equal(later(images(2)), expected)
    for snn in (inside, outside, later, copy.deepcopy(inside).to("cpu")):
        assert torch.equal(snn(images(2)), expected)


MISTAKES = {
    "no batch axis": (lambda x: x[0], "it is one image without a batch axis: give image[None]"),
    "bytes": (lambda x: (255 * x).byte(), "give float batches (B, …): scale the bytes as the network"),
    "a list of images": (list, "the batch is a list of Tensor, 4 of them: give one, torch.stack(images)"),
    "another size": (lambda x: x[:, :1], "of another size they do not go through"),
    "NumPy": (lambda x: x.numpy(), "the batch is a ndarray: give a tensor (B, …)"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_an_input_mistake_is_one_line_of_ours(case: str) -> None:
    spoil, told = MISTAKES[case]
    with pytest.raises(InputError, match=re.escape(told)) as caught:
        converted()(spoil(BATCH))
    assert "\n" not in str(caught.value)


def test_calibration_of_bytes_says_how_to_scale_it() -> None:
    with pytest.raises(InputError, match="scale the bytes as the network was trained"):
        msat_det.convert(build("plain"), (255 * BATCH).byte())


def found(count: int = 2, **changes: object) -> msat_det.Detections:
    boxes = torch.tensor([[1.0, 2.0, 30.0, 40.0], [5.0, 6.0, 20.0, 24.0]] * count)[:count]
    scores, labels = torch.linspace(0.9, 0.25, count), torch.arange(count) % 3
    return msat_det.Detections(boxes, scores, labels, ("cat", "dog"), **changes)


def test_detections_print_as_a_table() -> None:
    assert repr(found()) == "Detections(cat 0.90, dog 0.25)"
    assert str(found()).splitlines() == [
        "2 boxes",
        "class  score   x1   y1    x2    y2",
        "cat     0.90  1.0  2.0  30.0  40.0",
        "dog     0.25  5.0  6.0  20.0  24.0",
    ]
    assert str(found(1)).startswith("1 box\n")
    assert str(found(12)).endswith("… 2 more")
    assert found(3).names == ["cat", "dog", "2"]  # a label beyond the names
    none = msat_det.Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long())
    assert (repr(none), str(none), len(none), none.names) == ("Detections(nothing)", "no boxes", 0, [])


def test_html_is_escaped() -> None:
    page = msat_det.Detections(torch.zeros(1, 4), torch.ones(1), torch.zeros(1).long(), ("<b>&",))._repr_html_()
    assert "<td>&lt;b&gt;&amp;</td>" in page
    assert page.count("<tr>") == 2
    snn = converted()
    snn(BATCH)
    assert snn.counts[6]._repr_html_().count("<tr>") == 1 + len(BATCH)
    assert msat_det.observe(build("plain"), BATCH)._repr_html_().startswith("<table><caption>Observation(")


def test_counts_print_each_image() -> None:
    snn = converted()
    snn(BATCH)
    counts = snn.counts[6]
    first, headings, *rows = str(counts).splitlines()
    assert first == repr(counts) == f"Counts(4 images: {counts.line})"
    assert headings.split() == "image spikes/neuron SOPs/MAC energy ratio events/neuron energy/int8".split()
    assert [float(row.split()[1]) for row in rows] == pytest.approx(counts.figures[:, 0].tolist(), abs=0.005)


def test_boxes_are_drawn_in_the_colour_of_their_class() -> None:
    image = torch.full((3, 60, 80), 200, dtype=torch.uint8)
    picture = found().draw(image)
    colour = bytes.fromhex(COLOURS[0][1:])
    assert picture.size == (80, 60)
    assert bytes(picture.getpixel((29, 39))) == colour  # the last pixel of the first box
    assert picture.getpixel((19, 23)) == (200, 200, 200)  # the second is below .3
    both = found().draw(image, score=0.2)
    assert bytes(both.getpixel((19, 23))) == bytes.fromhex(COLOURS[1][1:])
    assert (image == 200).all()
    with pytest.raises(InputError, match="an image is"):
        found().draw(image.float())


def test_detections_as_supervision_takes_them() -> None:
    plain = found().to_supervision()
    assert {key: getattr(value, "shape", None) for key, value in plain.items()} == {
        "xyxy": (2, 4),
        "confidence": (2,),
        "class_id": (2,),
        "data": None,
    }
    assert [str(plain[key].dtype) for key in ("xyxy", "confidence", "class_id")] == ["float32", "float32", "int64"]
    assert plain["data"]["class_name"].tolist() == ["cat", "dog"]
