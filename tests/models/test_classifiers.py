"""Classifiers by name: networks, weights of any source, preprocessing, and the figures on real data."""

import os
import zipfile
from collections import OrderedDict
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import SqueezeNet1_0_Weights, WeightsEnum
from torchvision.transforms._presets import ImageClassification

from msat_det.base.config import Model
from msat_det.base.errors import InputError
from msat_det.data import ClassFolders
from msat_det.graph.trace import trace
from msat_det.measure.accuracy import make_evaluator
from msat_det.models.classifiers import CLASSIFIERS, PREPROCESS, Classifier, build_classifier, find_preprocess, head
from msat_det.models.weights import read_tensors

OWN = [name for name, network in CLASSIFIERS.items() if network.preprocess == "cifar"]
TORCHVISION = ["squeezenet1_0", "mobilenet_v2", "resnet18"]


def random_net(name: str, classes: int = 10) -> nn.Module:
    torch.manual_seed(0)
    return CLASSIFIERS[name].build(classes).eval()


def picture(height: int, width: int) -> Tensor:
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize("name", OWN[1:] + TORCHVISION)
def test_every_name_builds_a_classifier(name: str, capsys: pytest.CaptureFixture) -> None:
    classifier = build_classifier(Model(name, num_classes=7))
    assert capsys.readouterr().err == f"{name} has no weights: it runs with random ones\n"
    assert not classifier.net.training
    assert classifier.classes == list("0123456")
    image, meta = classifier.preprocess(picture(40, 50))
    assert image.dtype == torch.float32
    assert image.shape == (3, classifier.inputs.crop, classifier.inputs.crop)
    with torch.inference_mode():
        logits = classifier.decode(classifier.net(torch.stack([image, image])), [meta, meta])
    assert len(logits) == 2
    assert logits[0].shape == (7,)


def test_registry_holds_all_of_torchvision_and_our_own() -> None:
    assert {"vgg_demo", "vgg16_cifar", "resnet18_cifar", "resnet20", "resnet32", "resnet44", "resnet56"} <= set(OWN)
    assert {"vgg16", "resnet18", "squeezenet1_0", "densenet121", "efficientnet_b0"} <= set(CLASSIFIERS)


@pytest.mark.parametrize(
    ("name", "million"),
    [("resnet20", 0.28), ("resnet32", 0.47), ("resnet44", 0.67), ("resnet56", 0.86), ("resnet18_cifar", 11.22)],
)
def test_sizes_are_the_published_ones(name: str, million: float) -> None:
    count = sum(parameter.numel() for parameter in random_net(name, 100).parameters())
    assert round(count / 1e6, 2) == million


def test_vgg16_has_the_papers_layers() -> None:
    net = random_net("vgg16_cifar", 100)
    convolutions = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 13
    assert head(net) == ("classifier", 100)
    assert net.features(torch.zeros(1, 3, 32, 32)).shape == (1, 512, 1, 1)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("name", ["vgg_demo", "resnet20", "squeezenet1_0"])
def test_weights_round_trip_and_tell_the_number_of_classes(name: str, suffix: str, tmp_path: Path) -> None:
    net = random_net(name)
    path = tmp_path / f"w{suffix}"
    if suffix == ".pt":
        torch.save({"state_dict": net.state_dict()}, path)
    else:
        save_file(net.state_dict(), path)
    loaded = build_classifier(Model(name, str(path)))
    assert len(loaded.classes) == 10
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(loaded.net(images), net(images), rtol=0, atol=0)


def test_old_files_load(tmp_path: Path) -> None:
    """No counters in batch norm, DenseNet's first names, no layout version for MNASNet, no auxiliary classifiers."""
    for name, rename in {
        "densenet121": lambda key: key.replace("norm1", "norm.1").replace("conv2", "conv.2"),
        "mnasnet0_5": str,
        "googlenet": str,
    }.items():
        net = random_net(name, 1000)
        tensors = {rename(k): v for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}
        if name == "googlenet":
            tensors["aux1.fc2.bias"] = torch.zeros(1000)
        path = tmp_path / f"{name}.pth"
        torch.save(tensors, path)
        loaded = build_classifier(Model(name, str(path)))
        images = torch.randn(1, 3, 64, 64)
        with torch.inference_mode():
            torch.testing.assert_close(loaded.net(images), net(images), rtol=0, atol=0)


class Trap:
    """Unpickling this would make a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_weights_that_do_not_fit_are_told_in_one_line(tmp_path: Path) -> None:
    good = random_net("resnet20").state_dict()

    def message(tensors: object, suffix: str = ".safetensors", name: str = "resnet20", **model: object) -> str:
        path = tmp_path / f"w{suffix}"
        if isinstance(tensors, bytes):
            path.write_bytes(tensors)
        elif suffix == ".pt":
            torch.save(tensors, path)
        else:
            save_file(tensors, path)
        with pytest.raises(InputError) as caught:
            build_classifier(Model(name, str(path), **model))
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)
        return str(caught.value)

    assert "'fc.bias': the network has shape (10,), the file no such" in message(without(good, "fc.bias"))
    assert "'extra': the network has no such tensor" in message(good | {"extra": torch.zeros(3)})
    assert "'bn1.bias': the network has shape (16,), the file shape (4,)" in message(good | {"bn1.bias": torch.ones(4)})
    assert "'bn1.bias'" in message(good, name="vgg_demo")
    assert "'fc.bias': the network has shape (20,)" in message(good, num_classes=20)
    assert "'fc.bias'" in message(good | {"fc.weight": torch.zeros(10**9, 0)})
    assert "'bn1.bias' holds NaN" in message(good | {"bn1.bias": torch.full((16,), torch.nan)})
    assert "not readable as safetensors" in message(b"x" * 100)
    assert "not readable as weights" in message(b"x" * 100, ".pt")
    assert "not readable as weights" in message({"a": Trap(tmp_path / "sprung")}, ".pt")
    assert not (tmp_path / "sprung").exists()
    assert "holds no state dict" in message([1, 2], ".pt")
    assert "holds no state dict" in message({"fc.bias": 3}, ".pt")


def test_weights_that_are_more_than_their_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"

    def message() -> str:
        with pytest.raises(InputError) as caught:
            read_tensors(path)
        return str(caught.value)

    for tensor in (
        torch.zeros(2, 2).to_sparse(),
        torch.zeros(2, device="meta"),
        torch.zeros(2).to(torch.float8_e5m2),
        torch.zeros(2, dtype=torch.complex64),
    ):
        torch.save({"a": tensor}, path)
        assert "holds no state dict of plain tensors, 'a' is torch." in message()
    large = torch.zeros(1000)
    torch.save({str(i): large for i in range(100)}, path)
    assert "larger than its" in message()
    torch.save({"a": torch.zeros(1).expand(10**12)}, path)
    assert "larger than its" in message()
    torch.save({("a", "b"): large}, path)
    assert "holds no state dict" in message()

    torch.save({"a": large, "b": large}, path)
    assert set(read_tensors(path)) == {"a", "b"}
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content + bytes(10**6 * (name.endswith("data/0"))))
    assert "its members are compressed" in message()
    for suffix in (".pt", ".safetensors"):
        os.mkfifo(path := tmp_path / f"pipe{suffix}")
        assert "no such file" in message()


def without(tensors: dict[str, Tensor], key: str) -> dict[str, Tensor]:
    return {name: value for name, value in tensors.items() if name != key}


def test_bad_models_are_told(tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("a\nb\n")
    for model, expected in (
        (Model("resnet21"), "no classifier 'resnet21': did you mean resnet"),
        (Model("resnet20"), "resnet20 has no weights: give --model.weights FILE"),
        (Model("resnet20", str(tmp_path / "none.safetensors")), "not readable as safetensors"),
        (Model("resnet20", str(tmp_path / "none.pt")), "not readable as weights"),
        (Model("resnet20", "DEFAULT"), "no weights 'DEFAULT': resnet20 has no weights by name"),
        (Model("resnet18", "DEFAULTS"), "resnet18's names are IMAGENET1K_V1, DEFAULT"),
        (Model("resnet20", num_classes=3, names=str(names)), "names.txt has 2 names and resnet20 has 3 classes"),
        (Model("resnet20", num_classes=3, preprocess="vgg"), "give one of cifar, imagenet, caffe"),
    ):
        with pytest.raises(InputError, match=expected):
            build_classifier(model)
    assert build_classifier(Model("resnet20", num_classes=2, names=str(names))).classes == ["a", "b"]


def test_torchvision_weights_by_name_bring_their_transforms_and_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    net = random_net("squeezenet1_0", 1000)
    asked = {}

    def get_state_dict(enum: WeightsEnum, **options: bool) -> OrderedDict:
        asked[enum] = options
        return net.state_dict()

    monkeypatch.setattr(WeightsEnum, "get_state_dict", get_state_dict)
    classifier = build_classifier(Model("squeezenet1_0", "DEFAULT"))
    enum = SqueezeNet1_0_Weights.IMAGENET1K_V1
    assert asked[enum]["weights_only"]
    assert classifier.classes == enum.meta["categories"]
    image = picture(300, 400)
    torch.testing.assert_close(classifier.preprocess(image)[0], enum.transforms()(image))


def test_weights_that_can_not_be_fetched_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(enum: WeightsEnum, **options: bool) -> None:
        raise URLError("no network")

    monkeypatch.setattr(WeightsEnum, "get_state_dict", offline)
    with pytest.raises(InputError, match=r"resnet18-\w+\.pth can't be fetched .*no network.*--model.weights FILE"):
        build_classifier(Model("resnet18", "IMAGENET1K_V1"))


def test_preprocessing_is_what_it_says() -> None:
    image = picture(300, 400)
    own = ImageClassification(crop_size=224)
    torch.testing.assert_close(PREPROCESS["imagenet"].normalise(PREPROCESS["imagenet"].fit(image)), own(image))

    tile = picture(32, 32)
    made = PREPROCESS["cifar"].normalise(PREPROCESS["cifar"].fit(tile))
    assert made[1, 4, 5].item() == pytest.approx((tile[1, 4, 5].item() / 255 - 0.4865) / 0.2564)

    square = picture(256, 256)
    made = PREPROCESS["caffe"].normalise(PREPROCESS["caffe"].fit(square))
    assert made.shape == (3, 227, 227)
    inner = square[:, 14:241, 14:241].float()  # the central crop starts at (256 - 227) / 2, rounded to even
    torch.testing.assert_close(made[0], inner[2] - 104)
    torch.testing.assert_close(made[2], inner[0] - 123)


@pytest.mark.parametrize(("name", "size", "resize"), [("resnet20", 48, (48, 48)), ("resnet18", 112, 128)])
def test_size_keeps_the_field_of_view(name: str, size: int, resize: object) -> None:
    found = find_preprocess(Model(name, size=size))
    assert (found.crop, found.resize) == (size, resize)


@pytest.mark.parametrize("name", [*OWN, *TORCHVISION, "mobilenet_v3_small", "shufflenet_v2_x0_5", "regnet_y_400mf"])
def test_networks_trace(name: str) -> None:
    images = torch.randn(2, 3, *((32, 32) if name in OWN else (64, 64)))
    net = random_net(name)
    graph = trace(net, images)
    assert graph.sites
    with torch.inference_mode():
        torch.testing.assert_close(graph(images), net(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["alexnet", "densenet121", "googlenet", "inception_v3", "mnasnet0_5", "vgg11_bn"])
def test_more_of_torchvision_traces(name: str) -> None:
    assert trace(random_net(name), torch.randn(2, 3, 160, 160)).sites


def accuracy(classifier: Classifier, dataset: ClassFolders) -> dict[str, float]:
    logits = {}
    with torch.inference_mode():
        for first in range(0, len(dataset), 64):
            ids = dataset.ids[first : first + 64]
            images = torch.stack([classifier.preprocess(dataset.image(id))[0] for id in ids])
            logits |= zip(ids, classifier.decode(classifier.net(images), [None] * len(ids)), strict=True)
    return make_evaluator(dataset, classifier.classes)(logits)


def test_cifar_resnet20_has_its_published_accuracy(shared_data: Path) -> None:
    classifier = build_classifier(Model("resnet20", str(shared_data / "weights/cifar100_resnet20.safetensors")))
    dataset = ClassFolders(shared_data / "cifar100_subset", "test")
    assert len(dataset) == 916
    assert accuracy(classifier, dataset)["top1"] == pytest.approx(69.32, abs=0.12)  # one image is 0.11


@pytest.mark.slow
def test_squeezenet_recognises_imagenet(shared_data: Path) -> None:
    path = shared_data / "weights/squeezenet1_0_deep_compression.safetensors"
    classifier = build_classifier(Model("squeezenet1_0", str(path), preprocess="caffe"))
    found = accuracy(classifier, ClassFolders(shared_data / "imagenet_subset", "val"))
    assert found["top1"] == pytest.approx(65.5, abs=0.34)  # two of 600 images
    assert found["top5"] == pytest.approx(84.8, abs=0.34)


def test_timms_networks_by_name(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    net = timm.create_model("lcnet_050", num_classes=7).eval()
    path = tmp_path / "net.safetensors"
    save_file(net.state_dict(), path)
    found = build_classifier(Model("timm", str(path), arch="lcnet_050"))
    assert len(found.classes) == 7
    own = timm.data.resolve_model_data_config(net)
    assert (found.inputs.crop, found.inputs.mean, found.inputs.std) == (224, tuple(own["mean"]), tuple(own["std"]))
    assert found.inputs.resize == round(224 / own["crop_pct"])
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(found.net(image), net(image))
    with pytest.raises(InputError, match="no network of timm: did you mean lcnet_"):
        build_classifier(Model("timm", str(path), arch="lcnet_05"))


def tiny() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 6))


def test_ones_own_network_by_name(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    net = tiny()
    torch.save(net.state_dict(), path)
    found = build_classifier(Model(f"{__name__}:tiny", str(path), size=32))
    assert torch.equal(found.net[0].weight, net[0].weight)
    assert len(found.classes) == 6
    assert found.inputs.crop == 32
