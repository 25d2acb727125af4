"""``msat-det detect``: pictures, folders, patterns and videos in, pictures, detections.json and a line each out."""

import itertools
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.devices import CUDA, StandIn
from torch import Tensor

import msat_det
from msat_det.base.config import Model
from msat_det.base.settings import PROJECT
from msat_det.data import CocoDetection, images
from msat_det.data.images import ORIENTATION, read_image
from msat_det.data.sources import images_of
from msat_det.data.video import VideoFile, frames_of
from msat_det.models import build_detector
from msat_det.run import cli
from msat_det.spiking import kernels

PHOTOGRAPHS = sorted((PROJECT / "data/voc").rglob("*.jpg"))[:3]
CFG = str(PROJECT / "configs/yolo_voc.yaml")


@cache
def network() -> msat_det.SpikingNetwork:
    weights = str(PROJECT / "data/weights/yolo_demo.safetensors")
    detector = build_detector(Model(name="yolo_demo", weights=weights, names="voc"))
    return msat_det.convert(detector, PHOTOGRAPHS, T=2)


@pytest.fixture
def saved(tmp_path: Path) -> str:
    network().save(tmp_path / "yolo.safetensors")
    return str(tmp_path / "yolo.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in/more").mkdir(parents=True)
    (tmp_path / "in/a.jpg").write_bytes(PHOTOGRAPHS[0].read_bytes())
    Image.open(PHOTOGRAPHS[1]).save(tmp_path / "in/a.png")
    (tmp_path / "in/more/b.jpg").write_bytes(PHOTOGRAPHS[2].read_bytes())
    (tmp_path / "in/broken.jpg").write_bytes(b"no image")
    return tmp_path / "in"


def run(*words: object) -> int:
    return cli.main(["detect", *map(str, words)])


def test_a_picture_by_a_configuration_is_what_the_library_finds(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["--cfg", CFG, "--calib.limit", "4", "--method", "signed-b3", "--t", "4", "--score", "0.5"]
    assert run(PHOTOGRAPHS[0], *words, "--out", tmp_path / "out") == 0
    printed = capsys.readouterr().out.splitlines()
    content = json.loads((tmp_path / "out/detections.json").read_text())
    image = read_image(PHOTOGRAPHS[0])
    name, (_, height, width) = PHOTOGRAPHS[0].name, image.shape
    assert content["images"] == [{"id": 1, "file_name": name, "width": width, "height": height}]
    assert len(content["categories"]) == 20
    assert all(entry["score"] >= 0.5 for entry in content["annotations"])
    assert printed[0].startswith(f"{name}: ")
    assert "; t = 4, 0." in printed[0]
    assert printed[-1] == f"pictures and detections.json are in {tmp_path / 'out'}"
    assert Image.open(tmp_path / "out" / name).size == (width, height)


def test_scores_are_shown_from_what_the_head_says(tmp_path: Path) -> None:
    """FastestDet's run high: its authors look at those above .65. Here all are .5^.6 · .5^.4 = .5."""
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 16, 16), torch.nn.ReLU(), torch.nn.Conv2d(4, 7, 1))
    torch.nn.init.zeros_(net[2].weight)
    torch.nn.init.zeros_(net[2].bias)
    detector = msat_det.HeadDetector(net, "fastestdet", ["cat", "dog"], 64)
    msat_det.convert(detector, PHOTOGRAPHS, T=1).save(tmp_path / "net.msat")
    found = []
    for number, words in enumerate(([], ["--score", 0.3])):
        out = tmp_path / str(number)
        assert run(PHOTOGRAPHS[0], "--model", tmp_path / "net.msat", *words, "--out", out) == 0
        found.append(len(json.loads((out / "detections.json").read_text())["annotations"]))
    assert found[0] == 0 < found[1]


def test_boxes_are_coco_objects_with_scores(saved: str, tmp_path: Path) -> None:
    assert run(PHOTOGRAPHS[0], "--model", saved, "--out", tmp_path) == 0
    (expected,) = network().detect(PHOTOGRAPHS[0], 2)[2]
    expected = expected.above(0.3)
    content = json.loads((tmp_path / "detections.json").read_text())
    assert len(expected) > 2
    names = {entry["id"]: entry["name"] for entry in content["categories"]}
    assert [names[entry["category_id"]] for entry in content["annotations"]] == expected.names
    boxes = torch.tensor([entry["bbox"] for entry in content["annotations"]])
    boxes[:, 2:] += boxes[:, :2]
    assert torch.allclose(boxes, expected.boxes, atol=0.02)
    scores = [entry["score"] for entry in content["annotations"]]
    assert scores == pytest.approx(expected.scores.tolist(), abs=1e-4)


def test_a_folder_goes_on_after_what_cannot_be_read(
    saved: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (folder / "phone.HEIC").write_bytes(b"\0\0\0\x20ftypheic")
    assert run(folder, "--model", saved, "--t", 1, "--out", tmp_path / "out") == 0
    printed = capsys.readouterr()
    assert [line.partition(":")[0] for line in printed.out.splitlines()[:-1]] == ["a.jpg", "a.png", "more/b.jpg"]
    assert printed.err.startswith(f"warning: can't read image {folder / 'broken.jpg'}")
    assert f"warning: can't read image {folder / 'phone.HEIC'} (it is none of JPEG" in printed.err
    written = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*"))
    assert written == ["a.jpg", "a.png.jpg", "detections.json", "more/b.jpg"]
    assert [i["file_name"] for i in json.loads((tmp_path / "out/detections.json").read_text())["images"]] == [
        *("a.jpg", "a.png", "more/b.jpg")
    ]


def test_a_pattern_names_pictures_below_its_fixed_part(folder: Path) -> None:
    assert list(images_of(f"{folder}/**/*.jpg")) == ["a.jpg", "broken.jpg", "more/b.jpg"]
    assert list(images_of(f"{folder}/a.*")) == ["a.jpg", "a.png"]
    assert images_of(str(folder / "a.png")) == {"a.png": folder / "a.png"}


def test_pictures_of_one_name_are_all_kept(saved: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    sources = {"a/x.jpg": 0, "b/x.jpg": 1, "c/d/x.jpg": 2, "b/d/x.jpg": 0, "a/y.jpeg": 1, "a/y.png": 2, "a/Y.JPG": 0}
    for name, number in sources.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.open(PHOTOGRAPHS[number]).save(tmp_path / name)
    given = [tmp_path / name for name in sources]
    assert run(*given, tmp_path / "a", "--model", saved, "--t", 1, "--out", tmp_path / "out") == 0  # some come twice
    named = ["a/x.jpg", "b/x.jpg", "c/d/x.jpg", "b/d/x.jpg", "y.jpeg", "y.png", "Y.JPG"]
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines[:-1]] == named
    content = json.loads((tmp_path / "out/detections.json").read_text())
    assert {image["file_name"]: image["id"] for image in content["images"]} == dict(
        zip(named, range(1, 8), strict=True)
    )
    places = [*named[:4], "y.jpg", "y.png.jpg", "Y.JPG.jpg"]
    written = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.jpg"))
    assert written == sorted(places)
    for place, number in zip(places, sources.values(), strict=True):
        images = (Image.open(path).resize((60, 60)) for path in (tmp_path / "out" / place, *PHOTOGRAPHS))
        drawn, *known = (np.array(image, int) for image in images)
        assert np.argmin([np.abs(drawn - one).mean() for one in known]) == number


@pytest.mark.parametrize("source", ["", "a.jpg"])
def test_no_source_is_overwritten(source: str, saved: str, folder: Path, capsys: pytest.CaptureFixture) -> None:
    before = (folder / "a.jpg").read_bytes()
    assert run(folder / source, "--model", saved, "--out", folder) == 2
    assert "a.jpg is one of the sources, which would be overwritten: give another --out" in capsys.readouterr().err
    assert (folder / "a.jpg").read_bytes() == before


def read_back(out: Path, images: Path) -> dict[str, torch.Tensor]:
    """detections.json as a data set: the name of each picture's file → its boxes, in pixels of the picture as it is
    read."""
    dataset = CocoDetection(out, annotations="detections.json", images=str(images))
    assert not any(dataset.misfit(id, dataset.image(id)) for id in dataset.ids)
    return {dataset._files[id]: dataset.target(id).boxes for id in dataset.ids}


def test_boxes_of_turned_photographs_are_those_of_upright_ones(saved: str, tmp_path: Path) -> None:
    """As a telephone stores them; a photograph on its head has no other sizes to tell it by."""
    (tmp_path / "in").mkdir()
    with Image.open(PHOTOGRAPHS[0]) as photograph:
        photograph.save(tmp_path / "in/upright.png")
        for orientation, turn in ((6, Image.Transpose.ROTATE_90), (3, Image.Transpose.ROTATE_180)):
            exif = Image.Exif()
            exif[ORIENTATION] = orientation
            photograph.transpose(turn).save(tmp_path / f"in/turned{orientation}.png", exif=exif)
    assert run(tmp_path / "in", "--model", saved, "--out", tmp_path / "out") == 0
    found = read_back(tmp_path / "out", tmp_path / "in")
    assert len(found["upright.png"]) > 2
    for name in ("turned3.png", "turned6.png"):
        assert torch.equal(found[name], found["upright.png"])
    boxes = [network().detect(tmp_path / f"in/{name}.png", 2)[2][0].boxes for name in ("turned6", "upright")]
    assert torch.equal(*boxes)


def test_boxes_of_large_photographs_are_in_their_own_pixels(
    saved: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read at half its size, told in whole pixels, and read back as a data set in those that it is read in."""
    with Image.open(PHOTOGRAPHS[0]) as photograph:
        size = photograph.width, photograph.height
    monkeypatch.setattr(images, "WHOLE", size[0] * size[1] - 1)
    (expected,) = network().detect([read_image(PHOTOGRAPHS[0])], 2)[2]
    expected = expected.above(0.3).boxes
    assert len(expected) > 1
    assert run(PHOTOGRAPHS[0], "--model", saved, "--out", tmp_path) == 0
    content = json.loads((tmp_path / "detections.json").read_text())
    assert (content["images"][0]["width"], content["images"][0]["height"]) == size
    corners = torch.tensor([entry["bbox"][:2] for entry in content["annotations"]])
    assert torch.allclose(corners, 2 * expected[:, :2], atol=0.01)
    (boxes,) = read_back(tmp_path, PHOTOGRAPHS[0].parent).values()
    assert torch.allclose(boxes, expected, atol=0.02)


def test_only_the_classes_that_are_asked_for(saved: str, tmp_path: Path) -> None:
    (all_of_them,) = network().detect(PHOTOGRAPHS[0], 2)[2]
    wanted = all_of_them.above(0.3).names[:2]
    assert run(PHOTOGRAPHS[0], "--model", saved, "--classes", ",".join(wanted), "--out", tmp_path) == 0
    content = json.loads((tmp_path / "detections.json").read_text())
    names = {entry["id"]: entry["name"] for entry in content["categories"]}
    assert {names[entry["category_id"]] for entry in content["annotations"]} == set(wanted)


def test_compare_puts_float_beside_spiking_over_t(saved: str, tmp_path: Path) -> None:
    assert run(PHOTOGRAPHS[0], "--model", saved, "--t", 5, "--compare", "--out", tmp_path) == 0
    picture = Image.open(tmp_path / PHOTOGRAPHS[0].name)
    panels = 1 + len([1, 2, 4, 5])
    width, height = Image.open(PHOTOGRAPHS[0]).size
    longer = max(width, height)
    assert picture.width == panels * (round(480 * width / longer) + 10) + 10
    row = np.asarray(picture.convert("L"))
    assert (row[:30, :] < 120).any()  # headings


def test_a_video_becomes_a_video(saved: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("av")
    image = read_image(PHOTOGRAPHS[0])
    with VideoFile(tmp_path / "clip.mp4", 10) as video:
        for _ in range(11):
            video.write(image.permute(1, 2, 0).numpy())
    assert run(tmp_path / "clip.mp4", "--model", saved, "--t", 1, "--out", tmp_path / "out") == 0
    content = json.loads((tmp_path / "out/detections.json").read_text())
    assert [entry["frame"] for entry in content["images"]] == list(range(11))
    assert [entry["seconds"] for entry in content["images"]] == pytest.approx([i / 10 for i in range(11)], abs=0.01)
    frames = list(frames_of(tmp_path / "out/clip.mp4"))
    assert len(frames) == 11
    assert frames[1][0] == pytest.approx(0.1, abs=0.01)
    assert frames[0][1].shape == (3, image.shape[1] // 2 * 2, image.shape[2] // 2 * 2)
    assert (frames[5][1].float() - image[:, : frames[5][1].shape[1], : frames[5][1].shape[2]]).abs().mean() < 25
    assert capsys.readouterr().out.count("clip.mp4, ") == 11


def test_pictures_of_an_earlier_call_are_no_sources(saved: str, folder: Path, capsys: pytest.CaptureFixture) -> None:
    out = folder / "out"
    found = []
    for source in (folder, folder, f"{folder}/**/*.jpg"):
        assert run(source, "--model", saved, "--t", 1, "--out", out) == 0
        images = json.loads((out / "detections.json").read_text())["images"]
        found.append([image["file_name"] for image in images])
    assert found == [["a.jpg", "a.png", "more/b.jpg"]] * 2 + [["a.jpg", "more/b.jpg"]]
    assert f"3 pictures are in {out}, where they are written: left out" in capsys.readouterr().err
    assert run(out / "a.jpg", "--model", saved, "--t", 1, "--out", out) == 2  # one that is named is a source


def test_a_call_that_is_cut_short_leaves_no_results_of_another(
    saved: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("av")
    image = read_image(PHOTOGRAPHS[0])
    with VideoFile(tmp_path / "clip.mp4", 10) as video:
        for _ in range(3):
            video.write(image.permute(1, 2, 0).numpy())
    out = tmp_path / "out"
    assert run(tmp_path / "clip.mp4", "--model", saved, "--t", 1, "--out", out) == 0
    whole = (out / "clip.mp4").read_bytes()

    def cut(path: Path) -> Iterator[tuple[float, Tensor]]:
        yield from itertools.repeat((0.0, image), 9)  # one group of eight frames is written
        raise KeyboardInterrupt

    monkeypatch.setattr("msat_det.run.detect.frames_of", cut)
    assert run(tmp_path / "clip.mp4", "--model", saved, "--t", 1, "--out", out) == 130
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {"clip.mp4": whole}


BAD = {
    "nowhere.jpg --model MODEL": "no picture, folder or video nowhere.jpg: give one that is there",
    "PHOTO": "give the network, either by --cfg FILE or by --model FILE",
    "PHOTO --model MODEL --cfg x.yaml": "give the network, either by --cfg FILE or by --model FILE",
    "PHOTO --model nowhere.safetensors": "no file nowhere.safetensors: give the path of a saved network",
    "PHOTO --model MODEL --method msat": "--method does not go with --model",
    "PHOTO --model MODEL --data.limit 3": "--data.limit does not go with --model",
    "PHOTO --model MODEL --device gpu": "device is 'gpu': give auto, cpu, cuda, cuda:N or mps",
    "PHOTO --model MODEL --device mps": "device is mps, and there is none here: give --device auto or cpu",
    "PHOTO --model MODEL --classes persn": "the detector knows no 'persn': did you mean person?",
    "PHOTO --model MODEL --score 1.5": "argument --score: '1.5' is no number from 0 to 1",
    "PHOTO --model MODEL --t 0": "argument --t",
    "TEXT --model MODEL": "can't read image",
    "EMPTY --model MODEL": "names no picture: give one, or a folder with some",
    "CLIP --model MODEL": "can't be read as a video",
    "CLIP PHOTO --model MODEL": "is a video, and other sources stand beside it: give it alone",
    "PHOTO --cfg CLASSIFIER": "this configuration is a classifier's: give a detector's",
    "PHOTO --cfg DETECTOR --method signd-b3": "no method 'signd-b3': did you mean signed-b3?",
}


def test_a_configuration_needs_no_timesteps_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """It was refused for want of --sim.T, which the command refuses as well: --t is what counts."""
    start, sim = Path(CFG).read_text().split("\nsim:")
    assert sim.count("\n") < 4  # nothing else is left out
    (tmp_path / "own.yaml").write_text(start.replace("../data", str(PROJECT / "data")) + "\n")
    words = [PHOTOGRAPHS[0], "--method", "signed", "--t", "8", "--calib.limit", "2"]
    assert run(*words, "--cfg", tmp_path / "own.yaml", "--out", tmp_path / "own") == 0
    assert run(*words, "--cfg", CFG, "--out", tmp_path / "out") == 0
    own, whole = ((tmp_path / name / "detections.json").read_bytes() for name in ("own", "out"))
    assert own == whole


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_status_2(
    case: str, saved: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "clip.mp4").write_text("#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n")
    (tmp_path / "empty").mkdir()
    words = {
        "PHOTO": PHOTOGRAPHS[0],
        "MODEL": saved,
        "TEXT": tmp_path / "text.jpg",
        "EMPTY": tmp_path / "empty",
        "CLIP": tmp_path / "clip.mp4",
        "CLASSIFIER": PROJECT / "configs/vgg_demo.yaml",
        "DETECTOR": CFG,
    }
    if "CLIP" in case:
        pytest.importorskip("av")
    assert run(*(words.get(word, word) for word in case.split()), "--out", tmp_path / "out") == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert BAD[case] in told
    assert told.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_network_without_its_detector_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    bare = msat_det.convert(network().detector.net, torch.rand(2, 3, *network().detector.size), T=1)
    bare.save(tmp_path / "bare.safetensors")
    assert run(PHOTOGRAPHS[0], "--model", tmp_path / "bare.safetensors", "--out", tmp_path / "out") == 2
    assert "has no detector to read boxes" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--device", "cuda"], []], ids=["asked for", "auto"])
def test_a_saved_network_detects_on_a_gpu(
    words: list[str], saved: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the stand-in for one, with the CPU's boxes."""
    assert run(PHOTOGRAPHS[0], "--model", saved, "--t", 1, "--device", "cpu", "--out", tmp_path / "cpu") == 0
    asked: list[str] = []
    monkeypatch.setattr("msat_det.run.detect.find_device", lambda name: asked.append(name) or CUDA)
    for module in (kernels, kernels.delta):  # the interpreter takes minutes
        monkeypatch.setattr(module, "on_gpu", lambda: None)
    with StandIn() as there:
        assert run(PHOTOGRAPHS[0], "--model", saved, "--t", 1, *words, "--out", tmp_path / "there") == 0
    assert asked == [*words[1:], "auto"][:1]
    assert "cpu" in there.waits
    boxes = [json.loads((tmp_path / each / "detections.json").read_text())["annotations"] for each in ("cpu", "there")]
    assert [box["category_id"] for box in boxes[0]] == [box["category_id"] for box in boxes[1]]


@pytest.mark.parametrize(("method", "made", "T"), [("delta-3", 32, 4), ("delta-3", 2, 2), ("signed", 8, 8)])
def test_a_saved_network_runs_as_long_as_its_coding_needs(
    method: str, made: int, T: int, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """It may have any name, a float network's too."""
    msat_det.convert(network().detector, PHOTOGRAPHS, method, T=made).save(tmp_path / "net.pt")
    assert run(PHOTOGRAPHS[0], "--model", tmp_path / "net.pt", "--out", tmp_path / "out") == 0
    assert f"; t = {T}, " in capsys.readouterr().out


def test_without_labelled_data_the_model_says_that_it_is_a_detector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--cfg", CFG, "--data.kind", "images", "--data.root", PHOTOGRAPHS[0].parent, "--calib.kind", "images"]
    assert (
        run(
            PHOTOGRAPHS[0], *words, "--calib.root", PHOTOGRAPHS[0].parent, "--calib.limit", "2", "--calib.split", "null"
        )
        == 0
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "my best.pt"], "my best.pt holds no network that msat_det.save wrote: name a float one in a "),
        (["--cfg", "net.onnx"], "net.onnx holds a network: give a configuration that names it, {model: {weights: net."),
    ],
)
def test_a_float_network_is_no_saved_one_and_no_configuration(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(words[1]).write_bytes(b"\x80\x02")
    assert run(PHOTOGRAPHS[0], *words) == 2
    assert capsys.readouterr().err.startswith(f"error: {said}")
