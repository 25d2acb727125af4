"""Networks and whole runs on a device, with a stand-in for a GPU: nothing is left on the CPU, nothing made there."""

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import asdict, replace

import pytest
import torch
from support.devices import CUDA, MPS, StandIn
from support.small_runs import command, contents, run_quietly, tiny
from torch import Tensor, nn

import msat_det
from msat_det.base import device
from msat_det.base.errors import InputError
from msat_det.graph.graph import elements
from msat_det.measure.ledger import ledger
from msat_det.methods.observe import observe
from msat_det.models.detector import Detections
from msat_det.report.directory import RunDirectory
from msat_det.run import batches, prepare, resume
from msat_det.run.arguments import load_config
from msat_det.run.cli import run
from msat_det.spiking import engine, kernels
from msat_det.spiking.delta_engine import DeltaRun
from msat_det.spiking.kernels.delta import Corrections
from msat_det.spiking.network import SpikingNetwork

pytest.importorskip("triton")
METHODS = {
    "signed bursts": ("constant", {"signed": True, "gamma": 3, "scale": "channel"}),
    "confidence": ("constant", {"confidence": "estimate"}),
    "spiking linear": ("constant", {"spiking_linear": True}),
    "msat": ("msat", {}),
    "normalised": ("msat", {"variant": "normalised", "scale": "channel"}),
    "spike-norm": ("spike-norm", {}),
    "calibration": ("calibration", {"correct": "potential"}),
    "fit": ("msat-fit", {"budget_of": "sops"}),
    "switch coding": ("tsc", {}),
    "reset to zero": ("spike-norm", {"signed": True, "window": 16}),
    "bias over time": ("ftbc", {"images": 2, "passes": 2}),
    "binary levels": ("constant", {"levels": "binary", "bits": 3}),
    "delta": ("constant", {"coding": "delta", "gamma": 3}),
    "delta, binary levels": ("constant", {"coding": "delta", "levels": "binary", "bits": 4}),
    "delta, msat": ("msat", {"coding": "delta"}),
}


@contextlib.contextmanager
def standing_in(device: torch.device) -> Iterator[StandIn]:
    """Everything within may use this device."""
    with StandIn(device) as there, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of the interpreter, about masked lanes
        yield there


@pytest.fixture
def stand_in() -> Iterator[None]:
    with standing_in(CUDA):
        yield


def network() -> nn.Module:
    torch.manual_seed(0)
    head = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 6, 3), nn.SiLU()]
    return nn.Sequential(*head, nn.PReLU(6), nn.GroupNorm(2, 6), nn.Conv2d(6, 2, 1)).eval().requires_grad_(False)


def images() -> Tensor:
    return torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("where", [CUDA, MPS], ids=["cuda", "mps"])
@pytest.mark.parametrize("method", METHODS)
def test_a_network_on_a_device(method: str, where: torch.device, tmp_path) -> None:
    """Converted, run, saved and examined where it lies, with the CPU's numbers."""
    name, options = METHODS[method]
    T = {"tsc": 8, "msat-fit": 2}.get(name, 4)  # the fit tries the more the longer T is
    snn = msat_det.convert(observe(network(), [images()]), method=name, T=T, **options)
    expected, spikes = snn.run(images(), T)[T], snn.counts[T].spikes
    with standing_in(where):
        snn = msat_det.convert(observe(network().to(where), [images().to(where)]), method=name, T=T, **options)
        found = snn.run(images(), T)[T]
        assert found.device == where
        torch.testing.assert_close(found.cpu(), expected, atol=1e-6, rtol=1e-6)
        assert torch.equal(snn.counts[T].spikes, spikes)
        snn.save(tmp_path / "a.network")
        again = msat_det.load(tmp_path / "a.network").run(images(), T)[T]
        torch.testing.assert_close(again, expected, atol=1e-6, rtol=1e-6)
        moved = msat_det.load(tmp_path / "a.network").to(where).run(images(), T)[T]
        assert torch.equal(moved.cpu(), found.cpu())


@pytest.mark.parametrize(
    ("batch", "bytes_", "chunk"), [(2, 400 << 20, 16), (5, 400 << 20, 12), (70, 400 << 20, 1), (2, 14400, 3)]
)
def test_a_chunk_holds_no_more_than_convolutions_are_fast_with(
    batch: int, bytes_: int, chunk: int, stand_in: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most 16 timesteps, 64 images, and so many bytes of the largest call site: 6 · 10 · 10 neurons here."""
    monkeypatch.setattr(engine, "CHUNK_BYTES_GPU", bytes_)
    snn = msat_det.convert(observe(network().to("cuda"), [images()]), method="constant", T=4)
    with torch.inference_mode():
        assert engine.Run(snn.setup, images()[:1].repeat(batch, 1, 1, 1)).chunk == chunk


def test_the_stand_in_tells_what_is_mixed(stand_in: None) -> None:
    there = torch.ones(2, device="cuda")
    assert (there + 1).device == CUDA
    assert there.to("cpu").device.type == "cpu"
    with pytest.raises(RuntimeError, match="several devices"):
        there + torch.ones(2)


@pytest.mark.parametrize("where", [CUDA, MPS], ids=["cuda", "mps"])
@pytest.mark.parametrize("method", ["msat", "reset to zero", "delta", "delta, msat"])
def test_a_ledger_on_a_device(method: str, where: torch.device) -> None:
    """What looks into the neurons while they run finds the CPU's numbers."""
    name, options = METHODS[method]

    def entries(device: torch.device) -> list[list[float]]:
        batch = images().to(device)
        snn = msat_det.convert(observe(network().to(device), [batch]), method=name, T=3, **options)
        return [list(asdict(entry).values())[1:] for entry in ledger(snn, [batch], 3, [1, 3]).entries]

    expected = entries(torch.device("cpu"))
    with standing_in(where):
        for found, row in zip(entries(where), expected, strict=True):
            assert found == pytest.approx(row, rel=1e-4, abs=1e-5, nan_ok=True)


def resting() -> tuple[SpikingNetwork, Tensor]:
    """On the device: levels fine enough for all of it to be sent in the first timestep."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.LeakyReLU(), nn.Conv2d(4, 2, 1)).eval()
    torch.manual_seed(0)
    options = {"bits": 12, "terms": 12, "percentile": 100.0}
    snn = msat_det.convert(observe(net.to("cuda"), [images().to("cuda")]), method="delta", T=6, **options)
    return snn, images().to("cuda")


@pytest.mark.parametrize("triton", [True, False])
def test_delta_coding_waits_once_a_timestep_and_rests(triton: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has sent nothing is told once a timestep, and then not looked at; neither is what follows it."""
    if not triton:
        monkeypatch.setattr(kernels.delta, "on_gpu", lambda: None)
    steps, step = [], Corrections.step
    monkeypatch.setattr(
        Corrections, "step", lambda self, sums, t, *a, **b: steps.append(t) or step(self, sums, t, *a, **b)
    )
    with StandIn() as there, torch.inference_mode():
        snn, x = resting()
        snn.run(x, 1)  # the multiply-adds behind each neuron are brought there
        run = DeltaRun(snn.setup, x, 6)
        for noted in (steps, there.waits, there.copies):
            noted.clear()
        run.advance(0, 1)
        assert there.waits == there.copies == []
        run.advance(1, 5)
        assert there.waits == ["tolist"] * 5
    assert steps == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("method", "waits"), [*((name, 0) for name in ("signed bursts", "msat", "calibration")), ("delta", 3)]
)
def test_a_simulation_is_launched_without_waiting_for_it(method: str, waits: int) -> None:
    """Its counts wait, and what is read of the one before; delta coding once a timestep but the first."""
    name, options = METHODS[method]
    with standing_in(CUDA) as there:
        snn = msat_det.convert(observe(network().to("cuda"), [images()]), method=name, T=4, **options)
        x = images().to("cuda")
        snn.run(x, 1)  # the multiply-adds behind each neuron are brought there
        there.waits.clear()
        result = snn.simulate(x, 4, [1, 2, 4])
        assert there.waits == ["tolist"] * waits
        there.waits.clear()
        assert result.counts.keys() == {1, 2, 4}
        assert there.waits == ["cpu"] * 3


@pytest.mark.parametrize("method", ["signed bursts", "confidence", "msat", "binary levels", "delta", "delta, msat"])
def test_the_first_batch_of_a_shape_uploads_nothing_but_its_images(method: str) -> None:
    """Each call site's thresholds lie there already, and what is one number for all neurons is filled in there."""
    name, options = METHODS[method]
    with standing_in(CUDA) as there:
        snn = msat_det.convert(observe(network().to("cuda"), [images()]), method=name, T=2, **options)
        snn.run(images(), 2)
        there.copies.clear()
        snn.run(images(), 2)
        assert there.copies == ["to"]


@pytest.mark.parametrize("where", [CUDA, MPS], ids=["cuda", "mps"])
def test_a_whole_run_on_a_device(where: torch.device, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Boxes, costs, ledger and exit rule of a run on the stand-in are those of the CPU."""
    # two images, and no kernels, which the interpreter would take minutes for
    monkeypatch.setattr(kernels, "on_gpu", lambda: None)
    text = "--data.limit 2 --batch 2 --sim.record 1,2 --methods signed --ledger.images 1 --exit.methods signed"
    words = [*text.split(), "--exit.images", "2"]
    rows = run_quietly(tiny(tmp_path / "cpu", *words, "--device", "cpu"))
    monkeypatch.setattr(prepare, "find_device", lambda name: CUDA if where is CUDA else torch.device("mps"))
    with standing_in(where):
        there = run_quietly(tiny(tmp_path / "there", *words, "--device", where.type))
    for row, also in zip(rows[1:], there[1:], strict=True):
        assert also.accuracies == pytest.approx(row.accuracies, abs=0.2)
        assert also.spikes_per_neuron == pytest.approx(row.spikes_per_neuron, rel=1e-3)
    assert contents(tmp_path / "there").keys() == contents(tmp_path / "cpu").keys()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cuda", "device is cuda, and PyTorch sees no CUDA device here: give --device auto or cpu"),
        ("mps", "device is mps, and there is none here: give --device auto or cpu"),
    ],
)
def test_a_device_that_is_not_there(name: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys, tmp_path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert run([*command(tmp_path), "--device", name]) == 2
    assert capsys.readouterr().err == f"error: {said}\n"


def test_devices_by_name(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some Card")
    assert device.find_device("cuda:1") == torch.device("cuda:1")
    assert device.find_device("cpu") == torch.device("cpu")
    assert capsys.readouterr().err == ""
    assert device.find_device("auto") == torch.device("cuda:0")
    assert capsys.readouterr().err == "msat-det: on cuda (Some Card); --device cpu for the CPU\n"
    with pytest.raises(InputError, match="device is cuda:2, and there are 2 here: give cuda:0 to cuda:1"):
        device.find_device("cuda:2")


@pytest.mark.parametrize(("name", "found"), [("cuda", 1), ("auto", 1), ("cuda:0", 0)])
def test_every_rank_of_a_machine_takes_a_gpu_of_its_own(
    name: str, found: int, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    ranks = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "8", "RANK": "7", "LOCAL_RANK": "3"}
    for key, value in ranks.items():
        monkeypatch.setenv(key, value)
    assert device.find_device(name) == torch.device("cuda", found)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("free", "batch"), [(80 << 30, 64), (1 << 20, 8), (1, 1)])
def test_a_free_batch_fits_a_gpu(free: int, batch: int, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most what convolutions are fast with; five values of 1,008 neurons and eight of the largest call site's 600
    are 39,360 bytes an image, for which half of the memory is taken."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda where: (free, 1 << 40))
    graph = observe(network(), [images()]).graph
    assert [elements(node) for node in graph.sites] == [600, 54, 54]
    config = replace(tiny(tmp_path), device="cuda:0", free_batch=True)
    assert batches.batch_size(config, graph) == batch
    assert batches.batch_size(replace(config, free_batch=False), graph) == 3


def test_a_batch_is_free_where_none_is_given_and_on_a_gpu_alone(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = command(tmp_path)
    at = words.index("--batch")
    config = load_config(words[:at] + words[at + 2 :])
    assert (config.free_batch, config.batch, tiny(tmp_path).free_batch) == (True, 8, False)
    assert not prepare.settle(replace(config, device="cpu")).free_batch
    monkeypatch.setattr(prepare, "find_device", lambda name: CUDA)
    assert prepare.settle(config).free_batch


def test_a_run_that_goes_on_keeps_the_batch_that_it_began_with(tmp_path) -> None:
    config = replace(tiny(tmp_path / "a", "--resume"), free_batch=True)
    directory = RunDirectory(config.out)
    directory.parts.mkdir(parents=True)
    (directory.parts / "begun.safetensors").touch()
    directory.write("config.yaml", replace(config, batch=32).to_yaml())
    assert not resume.is_finished(directory, config)  # nor refused
    assert resume.earlier_batch(directory, config) == 32
    with pytest.raises(InputError, match="batch is 3 and was 32"):
        resume.is_finished(directory, replace(config, free_batch=False))
    directory.write("config.yaml", config.to_yaml().replace("batch: 3", "batch: none"))
    with pytest.raises(InputError, match=r"^batch is .* in .*config\.yaml: give a whole number"):
        resume.earlier_batch(directory, config)


def test_a_name_that_is_no_device(tmp_path) -> None:
    with pytest.raises(InputError, match="device is 'gpu': give auto, cpu, cuda, cuda:N or mps"):
        tiny(tmp_path, "--device", "gpu")


def test_boxes_come_to_the_cpu_in_one_piece(stand_in: None) -> None:
    found = [Detections(torch.rand(n, 4), torch.rand(n), torch.arange(n)) for n in (2, 0, 3)]
    there = [Detections(*(getattr(one, name).to("cuda") for name in ("boxes", "scores", "labels"))) for one in found]
    for one, back in zip(found, batches.on_cpu(there), strict=True):
        assert back.boxes.device.type == "cpu"
        assert torch.equal(back.boxes, one.boxes)
        assert torch.equal(back.labels, one.labels)
