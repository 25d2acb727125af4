"""TensorBoard's events, read back."""

import io
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.networks import images, observed
from support.rows import ROWS, picture
from support.small_runs import run_quietly, tiny
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard import SummaryWriter

from msat_det.base.colours import COLOURS
from msat_det.base.errors import InputError
from msat_det.data import Sample, make_target
from msat_det.graph.facts import facts
from msat_det.measure.effects import residuals
from msat_det.methods.convert import spiking_network
from msat_det.report.tensorboard import (
    add_boxes,
    add_curves,
    add_histograms,
    add_methods,
    add_precision_recall,
    add_truth,
    events,
)


def read(folder: Path) -> EventAccumulator:
    everything = {"scalars": 0, "images": 0, "histograms": 0, "tensors": 0}
    return EventAccumulator(str(folder), size_guidance=everything).Reload()


def test_curves(tmp_path: Path) -> None:
    with events(tmp_path) as writer:
        add_curves(writer, ROWS[:2])
    with events(tmp_path) as writer:
        add_curves(writer, ROWS)
    assert len(list(tmp_path.iterdir())) == 1  # the older events have gone
    board = read(tmp_path)
    curves = {
        "mAP/float": [(4, 23.3), (8, 23.3)],
        "mAP50/float": [(4, 39.1), (8, 39.1)],
        "mAP/if": [(4, 1 / 3), (8, 20.0)],
        "mAP50/if": [(4, 2.0), (8, 35.0)],
        "mAP/staged-4": [(4, 21.5)],
        "spikes_per_neuron/if": [(4, 1.5), (8, 3.0)],
        "sops_per_mac/if": [(4, 0.25), (8, 0.5)],
    }
    for tag, points in curves.items():
        scalars = board.Scalars(tag)
        assert [scalar.step for scalar in scalars] == [t for t, _ in points]
        assert [scalar.value for scalar in scalars] == pytest.approx([value for _, value in points])
    assert "mAP50_11point/if" not in board.Tags()["scalars"]


def curve(board: EventAccumulator, label: str) -> np.ndarray:
    """(2, levels): precision and recall."""
    values = board.Tensors(f"precision over recall/{label}")[0].tensor_proto.float_val
    return np.array(values).reshape(6, -1)[-2:]


def test_precision_over_recall(tmp_path: Path) -> None:
    """Three of four objects are found, by the first, second and fourth of five detections."""
    scores, right = np.array([0.9, 0.8, 0.6, 0.4, 0.2]), np.array([True, True, False, True, False])
    with SummaryWriter(str(tmp_path)) as writer:
        add_precision_recall(writer, "if", scores, right, 4, 8)
        add_precision_recall(writer, "silent", np.zeros(0), np.zeros(0, dtype=bool), 4, 8)
    board = read(tmp_path)
    assert board.Tensors("precision over recall/if")[0].step == 8
    precision, recall = curve(board, "if")
    at = {level: round(level * 126) for level in (0, 0.3, 0.5, 0.7, 1)}
    assert precision[list(at.values())] == pytest.approx([3 / 5, 3 / 4, 2 / 3, 1, 1])
    assert recall[list(at.values())] == pytest.approx([3 / 4, 3 / 4, 2 / 4, 2 / 4, 0])
    *_, precision, recall = np.array(board.Tensors("precision over recall/silent")[0].tensor_proto.float_val).reshape(
        6, -1
    )
    assert set(precision) == {1}
    assert set(recall) == {0}


def test_histograms_have_a_step_for_each_call_site(tmp_path: Path) -> None:
    observation = observed("residual")
    options = {"scale": "channel", "signed": True, "initial": "half"}
    snn = spiking_network("constant", options, observation, 64)
    with SummaryWriter(str(tmp_path)) as writer:
        thresholds = {site: neuron.theta for site, neuron in snn.neurons.items()}
        add_histograms(writer, "if", thresholds, residuals(snn, images(1), 64))
    board, sites = read(tmp_path), observation.graph.sites
    told, left = (board.Histograms(f"{name}/if") for name in ("threshold", "residual"))
    assert [event.step for event in told] == [event.step for event in left] == list(range(len(sites)))
    for event, site in zip(told, sites, strict=True):
        assert event.histogram_value.num == facts(site).shape[0]
        assert event.histogram_value.max == pytest.approx(snn.neurons[site.name].theta.max().item())
    for event, site in zip(left, sites, strict=True):
        assert event.histogram_value.num == torch.Size(facts(site).shape).numel()
        assert -0.2 < event.histogram_value.min < event.histogram_value.max < 0.2


def test_boxes(tmp_path: Path) -> None:
    sample, classes, found, names = picture()
    with SummaryWriter(str(tmp_path)) as writer:
        add_truth(writer, sample, classes)
        add_boxes(writer, "if", sample, found["float"], names, 4)
        add_boxes(writer, "if", sample, found["t = 4"], names, 8)
    board = read(tmp_path)
    truth, found = (board.Images(f"boxes {sample.id}/{tag}") for tag in ("truth", "if"))
    assert [(event.step, event.width, event.height) for event in found] == [(4, 640, 480), (8, 640, 480)]
    assert len({event.encoded_image_string for event in [*truth, *found]}) == 3


def test_boxes_are_drawn_on_their_own_pixels(tmp_path: Path) -> None:
    """Of an image of 16 pixels, 40 times as large: those from 4 to 11 are in the box, and nothing beside them."""
    dogs = make_target([[4, 4, 12, 12], [7, 7, 7, 7]], [0, 0], [False, False])
    with SummaryWriter(str(tmp_path)) as writer:
        add_truth(writer, Sample("a", torch.zeros(3, 16, 16, dtype=torch.uint8), dogs), [""])
    picture = Image.open(io.BytesIO(read(tmp_path).Images("boxes a/truth")[0].encoded_image_string))
    drawn = np.asarray(picture).any(-1).nonzero()
    assert [(axis.min(), axis.max()) for axis in drawn] == [(160, 479), (160, 479)]


def test_a_run_shows_everything(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run_quietly(tiny(out, "--draw.images", "1"))
    board = read(out)
    names = {"signed": [1, 4], "staged-4": [4]}
    tags = board.Tags()
    truth, level, boxes = tags["images"]
    assert [tag.rpartition("/")[2] for tag in (truth, level)] == ["truth", "float"]
    assert [event.step for event in board.Images(boxes)] == names[boxes.rpartition("/")[2]]
    assert {tag for tag in tags["tensors"] if tag.startswith("precision")} == {
        f"precision over recall/{name}" for name in ("float", *names)
    }
    assert set(tags["histograms"]) == {f"{kind}/{name}" for kind in ("threshold", "residual") for name in names}
    for name, times in names.items():
        session = read(out / "hparams" / name)
        data = HParamsPluginData.FromString(session.SummaryMetadata("_hparams_/session_start_info").plugin_data.content)
        given = data.session_start_info.hparams
        assert given["label"].string_value == name
        assert given["t"].number_value == times[-1]
        assert given["signed"].number_value == 1
        assert session.Scalars("last/mAP")[0].value == pytest.approx(board.Scalars(f"mAP/{name}")[-1].value)


def test_each_method_is_a_run(tmp_path: Path) -> None:
    """With the tags of all others, so that a chart holds them all; the float network's is a level line."""
    agreeing = [replace(row, metrics=row.metrics | {"agreement": 50.0 + row.t}) for row in ROWS[1:]]
    config = tiny(tmp_path)
    config.methods = [{"label": "if", "method": "constant", "signed": True}]
    with events(tmp_path) as writer:
        add_methods(writer, config, [ROWS[0], *agreeing])
    runs = {folder.name: read(folder) for folder in (tmp_path / "hparams").iterdir()}
    curves = {
        "float": {"mAP": [(4, 23.3), (8, 23.3)], "mAP50": [(4, 39.1), (8, 39.1)]},
        "if": {"mAP": [(4, 1 / 3), (8, 20.0)], "energy_ratio": [(4, 0.0625), (8, 0.125)]},
        "staged-4": {"mAP": [(4, 21.5)], "energy_ratio": [(4, 0.125)], "agreement": [(4, 54.0)]},
        "silent": {"mAP": [(4, 0.0)], "agreement": [(4, 54.0)]},
    }
    curves["if"] |= {"agreement": [(4, 54.0), (8, 58.0)], "last/agreement": [(0, 58.0)], "last/mAP": [(0, 20.0)]}
    assert runs.keys() == curves.keys()
    for label, tags in curves.items():
        for tag, points in tags.items():
            found = [(scalar.step, scalar.value) for scalar in runs[label].Scalars(tag)]
            assert found == [(t, pytest.approx(value)) for t, value in points]
    assert set(runs["float"].Tags()["scalars"]) == {"mAP", "mAP50"}
    assert len(list((tmp_path / "hparams/if").iterdir())) == 1


def test_captions_stand_on_their_boxes_colour(tmp_path: Path) -> None:
    """So that they can be read on any photograph: above a box of class 1 a field of its colour, dark letters in it."""
    sample = Sample(
        "a", torch.full((3, 320, 320), 90, dtype=torch.uint8), make_target([[40, 60, 200, 200]], [1], [False])
    )
    with SummaryWriter(str(tmp_path)) as writer:
        add_truth(writer, sample, ["dog", "cat"], ["dog", "cat"])
    data = read(tmp_path).Images("boxes a/truth")[0].encoded_image_string
    field = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))[101:119, 81:100].reshape(-1, 3)
    colour = tuple(bytes.fromhex(COLOURS[1][1:]))
    assert (field == colour).all(1).mean() > 0.4
    assert (field.max(1) < 60).any()


def test_a_disk_that_takes_no_events_is_told_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    def write() -> None:
        with events(tmp_path) as board:
            shutil.rmtree(tmp_path / ".events.part")
            board.add_scalar("a", 1.0)
            board.flush()

    with pytest.raises(InputError, match=f"cannot write TensorBoard's events into {tmp_path}: .*; free space or give"):
        write()
    assert capfd.readouterr().err == ""
