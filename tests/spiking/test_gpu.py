"""Whole networks on a GPU: the same as on the CPU but for ties. Skipped where there is no CUDA device."""

from collections.abc import Callable

import pytest
import torch
from support.networks import Residual, Yolo
from torch import nn

import msat_det
from msat_det.methods.observe import observe
from msat_det.spiking.engine import Run
from msat_det.spiking.network import SpikingNetwork

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
METHODS = {
    "signed bursts": ("constant", {"signed": True, "gamma": 3, "scale": "channel", "initial": "half"}),
    "msat": ("msat", {}),
    "msat normalised": ("msat", {"variant": "normalised", "signed": True, "gamma": 3}),
    "calibration": ("calibration", {}),
    "spike-norm": ("spike-norm", {}),
    "confidence": ("constant", {"confidence": "estimate"}),
}


def plain() -> nn.Module:
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.SiLU(), nn.Conv2d(8, 2, 1)]
    return nn.Sequential(*layers)


@needs_gpu
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", [plain, Residual, Yolo])
def test_a_network_converted_on_a_gpu_gives_what_it_gives_on_the_cpu(make: Callable, method: str) -> None:
    torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    net, images = make().eval(), torch.randn(4, 3, 32, 32)
    name, options = METHODS[method]
    means, spikes = {}, {}
    for device in ("cpu", "cuda"):
        x = images.to(device)
        snn = msat_det.convert(observe(net.to(device), [x]), method=name, T=8, **options)
        assert snn.device.type == device
        outputs = snn.run(images, 8, record=[4, 8])  # a batch is brought to the network
        leaves = torch.utils._pytree.tree_leaves(outputs[8])
        assert all(leaf.device.type == device for leaf in leaves)
        means[device] = torch.cat([leaf.flatten().cpu() for leaf in leaves])
        spikes[device] = snn.counts[8].spikes_per_neuron
    assert spikes["cuda"] == pytest.approx(spikes["cpu"], rel=2e-2)
    # a tie that rounds otherwise moves an output by a spike
    assert (means["cuda"] - means["cpu"]).abs().mean() < 0.02 * means["cpu"].abs().mean()


@needs_gpu
def test_a_network_moves_to_a_gpu_and_back_and_saves_there(tmp_path) -> None:
    torch.manual_seed(0)
    net, images = plain().eval(), torch.randn(2, 3, 32, 32)
    snn: SpikingNetwork = msat_det.convert(observe(net, [images]), method="constant", T=8, signed=True, gamma=3)
    before = snn.run(images, 8)[8]
    snn.to("cuda").save(tmp_path / "a.network")
    there = snn.run(images, 8)[8]
    again = snn.run(images, 8)[8]
    assert there.is_cuda
    assert torch.equal(there, again)
    assert torch.equal(snn.to("cpu").run(images, 8)[8], before)
    assert torch.equal(msat_det.load(tmp_path / "a.network").run(images, 8)[8], before)


@needs_gpu
def test_nothing_waits_for_the_gpu_inside_a_chunk() -> None:
    net, images = plain().eval().cuda(), torch.randn(2, 3, 32, 32).cuda()
    snn = msat_det.convert(observe(net, [images]), method="msat", T=8)
    snn.run(images, 8)  # what is compiled and found out once

    with torch.inference_mode():
        run = Run(snn.setup, images)
        torch.cuda.set_sync_debug_mode("error")
        try:
            run.advance(0, 4)
            run.advance(4, 4)
        finally:
            torch.cuda.set_sync_debug_mode("default")
