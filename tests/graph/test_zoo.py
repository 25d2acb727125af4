"""Networks of other packages as they are: every one converts, and its outputs converge under both codings."""

import importlib.util
from pathlib import Path

import pytest
import torch
from make_zoo_table import (
    DETRS,
    LARGER,
    PICKING,
    QUERIES,
    RATE,
    ZOO,
    build,
    detr,
    error,
    features,
    in_order,
    picking,
    timm,
    ultralytics,
)
from torchvision import models
from torchvision.models import list_models

import msat_det

PACKAGES = {ultralytics: "ultralytics", timm: "timm", features: "timm"}
PACKAGES |= dict.fromkeys((picking, detr), "transformers")
QUICK = ("deformable_detr", "shufflenet_v2_x0_5", "vit_tiny_patch16_224", "yolov8n")


def needed(name: str) -> str | None:
    """The package that builds a network, where it is no dependency."""
    make = ZOO[name][0]
    return PACKAGES.get(getattr(make, "func", make))


def cases() -> list:
    """The larger ones of torchvision are left out, of which test_torchvision_classifiers has some."""
    names = [name for name in ZOO if name not in LARGER.split()]
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in names]


def test_the_table_has_all_of_torchvisions_classifiers() -> None:
    names = {name.partition(",")[0] for name in ZOO}
    assert set(list_models(module=models)) - names == {"regnet_y_128gf"}


@pytest.mark.parametrize("name", cases())
def test_it_converts_and_converges_as_it_is(name: str) -> None:
    package = needed(name)
    if package and importlib.util.find_spec(package) is None:
        pytest.skip(f"{name} is built by {package}, which is not installed")
    net, images = build(name)
    observed = msat_det.observe(net, images[:2])
    with torch.no_grad():
        wanted = net(images[4:])
    assert error(observed.graph(images[4:]), wanted) < 1e-4
    snn = msat_det.convert(observed, method="delta", bits=12, terms=6, spiking_linear=True)
    got = snn.run(images[4:], 8)[8]
    assert error(in_order(got, wanted) if name in PICKING else got, wanted) < 0.05
    assert snn.fanout.analog_share < 0.1  # attention's products stay
    if name in QUICK:
        snn = msat_det.convert(observed, method="constant", T=48, **RATE)
        outputs = snn.run(images[4:], 48, (8, 48))
        assert error(outputs[48], wanted) < min(0.08, error(outputs[8], wanted) / 2)


EXPORTED = {name: "detr" if name in ("detr", "table_transformer", "yolos") else "rtdetr" for name in DETRS.split()}
EXPORTED |= {name: "rtdetr" for name in QUERIES.split() if name != "rf_detr"}  # PyTorch's newer exporter takes that one


@pytest.mark.filterwarnings("ignore")  # of PyTorch's exporter
@pytest.mark.parametrize("name", EXPORTED)
def test_transformers_detectors_exported_as_onnx(name: str, tmp_path: Path) -> None:
    """As docs/own_detector.md says: the file is for one image, the network that comes out of it for many."""
    pytest.importorskip("transformers")
    net, images = build(name)
    with torch.no_grad():
        wanted = net(images[:2])
    torch.onnx.export(net, (images[:1],), tmp_path / "net.onnx", dynamo=False, opset_version=17)
    count = wanted["logits"].shape[-1] - (EXPORTED[name] == "detr")
    one = msat_det.load_detector(tmp_path / "net.onnx", EXPORTED[name], [f"class {i}" for i in range(count)])
    for found, expected in zip(one.net(images[:2]), wanted.values(), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
