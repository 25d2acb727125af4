"""torchvision's convolutional classifiers: the smallest and the deepest of each kind converge to their outputs."""

import gc

import pytest
import torch
from support.networks import images, unit_variance
from torch import nn
from torchvision.models import get_model

import msat_det
from msat_det.graph.trace import trace
from msat_det.methods.observe import observe

SMALLEST = (
    *("alexnet", "vgg11", "resnet18", "resnext50_32x4d", "wide_resnet50_2", "densenet121", "squeezenet1_1"),
    *("googlenet", "inception_v3", "mobilenet_v2", "mobilenet_v3_small", "mnasnet0_5", "shufflenet_v2_x0_5"),
    *("regnet_x_400mf", "regnet_y_400mf", "efficientnet_b0", "efficientnet_v2_s", "convnext_tiny"),
)
DEEPEST = (  # of each builder or way that it builds, and the largest; those between are the same code at other sizes
    *("convnext_small", "densenet201", "efficientnet_b7", "efficientnet_v2_l", "mnasnet1_3", "mobilenet_v3_large"),
    *("regnet_x_3_2gf", "regnet_y_1_6gf", "resnet34", "resnet50", "resnet152", "resnext101_64x4d", "wide_resnet101_2"),
    *("shufflenet_v2_x2_0", "squeezenet1_0", "vgg11_bn", "vgg19", "vgg19_bn", "regnet_y_128gf"),
)
LATE = (  # that many layers take longer to settle
    *("regnet_x_3_2gf", "regnet_y_128gf", "resnet152", "resnext101_64x4d", "wide_resnet101_2"),
)
SIDES = {"alexnet": 63, "inception_v3": 75}  # the least that they take, where it is more than 32


def classifier(name: str) -> tuple[nn.Module, torch.Tensor]:
    """The network with lively weights, and six images for it."""
    torch.manual_seed(0)
    drawn = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}  # theirs takes half a minute
    net = get_model(name, weights=None, num_classes=10, **drawn).eval().requires_grad_(False)
    for key, parameter in net.named_parameters():
        if key.endswith("layer_scale"):
            parameter.fill_(0.5)  # ConvNeXt begins with 1e-6, which would leave its blocks nothing to say
    batch = images(6, size=SIDES.get(name, 32))
    unit_variance(net, batch)
    return net, batch


CASES = [(name, 32) for name in SMALLEST]
CASES += [pytest.param(name, 64 if name in LATE else 32, marks=pytest.mark.slow) for name in DEEPEST]


@pytest.mark.parametrize(("name", "T"), CASES)
def test_convolutional_classifiers_converge(name: str, T: int) -> None:
    net, batch = classifier(name)
    expected = net(batch[4:])
    graph = trace(net, batch[:2])
    del net  # the largest one's weights take 2.6 GB, as much as its activations' statistics
    gc.collect()
    snn = msat_det.convert(observe(graph, [batch[:4]]), method="constant", scale="channel", signed=True, gamma=7)
    snn.chunk = T  # of two small images that is faster
    outputs = snn.run(batch[4:], T, (8, T))
    first, last = (((outputs[t] - expected).norm() / expected.norm()).item() for t in outputs)
    assert last < min(0.5, first / 2), (first, last)
    assert snn.counts[T].macs > 0


def test_convnext_is_no_blank() -> None:
    """Its blocks count: without the scales above, the head alone would be compared."""
    net, batch = classifier("convnext_tiny")
    expected = net(batch)
    for key, parameter in net.named_parameters():
        if key.endswith("layer_scale"):
            parameter.fill_(1e-6)
    assert (net(batch) - expected).norm() > 0.5 * expected.norm()
