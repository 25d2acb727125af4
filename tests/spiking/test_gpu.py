"""Whole networks on a GPU: the same as on the CPU but for ties. Skipped where there is no CUDA device."""

from collections.abc import Callable

import pytest
import torch
from support.networks import Residual, Yolo
from support.on_gpu import METHODS, UNREPEATED, assert_the_same_bits, converted, needs_gpu, plain, wide
from torch import nn

import msat_det
from msat_det.graph.precision import arithmetic
from msat_det.methods.observe import observe
from msat_det.spiking import kernels
from msat_det.spiking.delta_engine import DeltaRun
from msat_det.spiking.engine import Run
from msat_det.spiking.kernels import product, split
from msat_det.spiking.network import SpikingNetwork


@needs_gpu
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", [plain, Residual, Yolo])
def test_a_network_converted_on_a_gpu_gives_what_it_gives_on_the_cpu(make: Callable, method: str) -> None:
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


@needs_gpu
def test_nothing_waits_for_the_gpu_in_a_timestep_of_delta_coding() -> None:
    """Before each but the first one it is asked, once, what has come to rest (tests/run/test_devices.py)."""
    snn, batches = converted("delta")
    snn.run(batches[0], 8)
    with torch.inference_mode():
        run = DeltaRun(snn.setup, batches[0], 8)
        torch.cuda.set_sync_debug_mode("error")
        try:
            run.advance(0, 1)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@needs_gpu
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", [plain, Residual, Yolo])
def test_batches_in_the_memory_of_the_last_one_give_the_same_bits(make: Callable, method: str) -> None:
    snn = assert_the_same_bits(method, make)
    assert (snn._replays.replay is None) == (method in UNREPEATED)


@needs_gpu
def test_float32_is_exact_and_the_other_precisions_are_near() -> None:
    """cuDNN's and as a product of matrices; the others are less so, by their bits."""
    torch.manual_seed(0)
    conv = nn.Conv2d(64, 64, 3, padding=1).cuda().to(memory_format=torch.channels_last)
    x = torch.randn(2, 64, 20, 20, device="cuda").contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        exact = conv.double()(x.double())
        conv.float()

        def error(y: torch.Tensor) -> float:
            return ((y - exact).abs().max() / exact.abs().max()).item()

        assert error(product.convolution(conv, x)) < 2e-6
        assert error(kernels.convolution(conv, x, "tf32x3")) < 3e-5
        bounds = {"float32": (0, 2e-6), "tf32": (2e-5, 2e-3), "fp16": (2e-5, 3e-3), "bf16": (2e-4, 2e-2)}
        for name, (low, high) in bounds.items():
            with arithmetic(name, x.device):
                assert low < error(conv(x).float()) < high, name


def outputs(snn: SpikingNetwork, batch: torch.Tensor) -> torch.Tensor:
    return torch.cat([leaf.flatten() for leaf in torch.utils._pytree.tree_leaves(snn.run(batch, 8))])


@needs_gpu
@pytest.mark.parametrize("precision", ["tf32", "bf16", "fp16"])
def test_a_network_in_another_precision_finds_about_the_same(precision: str) -> None:
    snn, batches = converted("signed bursts", Yolo)
    expected = outputs(snn, batches[0])
    snn.precision = precision
    for _ in range(2):  # the second time in the memory of the first
        found = outputs(snn, batches[0])
        assert found.dtype == torch.float32
        assert 0 < (found - expected).abs().mean() < 0.2 * expected.abs().mean()


@needs_gpu
@pytest.mark.parametrize(("make", "taken"), [(wide, {(32, 32)}), (Yolo, set())])
def test_a_network_in_tf32x3_finds_about_the_same(
    make: Callable, taken: set[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing ties even the same bits: outputs are float32's of the spikes, so no least difference is asked."""
    snn, batches = converted("signed bursts", make)
    expected, seen, convolution = outputs(snn, batches[0]), set(), split.convolution

    def spied(conv: nn.Conv2d, parts: torch.Tensor) -> torch.Tensor:
        seen.add((conv.in_channels, conv.out_channels))
        return convolution(conv, parts)

    monkeypatch.setattr(split, "convolution", spied)
    snn.precision = "tf32x3"
    for _ in range(2):  # the second time in the memory of the first
        found = outputs(snn, batches[0])
        assert found.dtype == torch.float32
        assert (found - expected).abs().mean() < 0.2 * expected.abs().mean()
    assert seen == taken
    if not taken:
        assert torch.equal(found, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no two CUDA devices here")
@pytest.mark.parametrize("method", ["signed bursts", "calibration", "spike-norm", "delta", "delta, msat"])
def test_a_network_on_the_second_gpu_gives_the_bits_of_the_first(method: str) -> None:
    """PyTorch's current device is the first one all the while, for what converts layer by layer as well."""
    name, options = METHODS[method]
    found = []
    for device in ("cuda:0", "cuda:1"):
        torch.manual_seed(0)
        net, images = Yolo().eval().to(device), torch.randn(2, 3, 32, 32)
        snn = msat_det.convert(observe(net, [images.to(device)]), method=name, T=4, **options)
        found.append([leaf.cpu() for leaf in torch.utils._pytree.tree_leaves(snn.run(images, 4))])
    assert all(map(torch.equal, *found))
