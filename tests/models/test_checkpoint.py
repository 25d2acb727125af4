"""Files that ``torch.save`` wrote: what people put beside the weights, how they name them, and that nothing runs."""

import argparse
import builtins
import collections
import datetime
import enum
import functools
import gzip
import io
import os
import pickle
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from msat_det.base.config import Model
from msat_det.base.errors import InputError
from msat_det.models import build_detector, checkpoint
from msat_det.models.checkpoint import FAULTS, Checkpoint, Machine, Stored
from msat_det.models.classifiers import CLASSIFIERS, build_classifier
from msat_det.models.state_dict import WRAPPERS, find_weights, load_tensors, without_prefix
from msat_det.models.weights import read_tensors


def weights(classes: int = 10, seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    net = CLASSIFIERS["resnet20"].build(classes)
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape) + ("var" in name) * 9)
    return net.state_dict()


def loaded(path: Path) -> dict[str, Tensor]:
    return build_classifier(Model("resnet20", str(path))).net.state_dict()


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Stage(enum.Enum):
    LAST = 3


class Config(dict):
    """As addict's, OmegaConf's and others' dictionaries are."""


def training() -> dict[str, Any]:
    """What training programs save beside the weights."""
    net = nn.Linear(2, 3)
    optimiser = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 2)).sum().backward()
    optimiser.step()
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, functools.partial(pow, 0.9))
    return {
        "args": argparse.Namespace(lr=0.1, data=Path("/data"), device=torch.device("cpu")),
        "date": datetime.datetime(2026, 1, 2, 3, 4),
        "took": datetime.timedelta(seconds=9),
        "best_acc1": torch.tensor(71.5),  # imagenet's example
        "metrics": {"map": np.float64(0.4), "per_class": np.zeros(3), "seen": {1, 2}, "kinds": frozenset("ab")},
        "history": collections.defaultdict(list, loss=[1.0, 0.5]),
        "config": Config(model=Config(depth=20)),
        "stage": Stage.LAST,
        "rng": (torch.get_rng_state(), np.random.default_rng(0).bit_generator.state),
        "optimizer": optimiser.state_dict(),
        "lr_scheduler": scheduler.state_dict(),
        "scaler": {"scale": 65536.0, "_growth_tracker": 3},
        "loss_fn": torch.nn.CrossEntropyLoss(),
        "epoch": 90,
    }


@pytest.mark.parametrize("form", [2, 3, 4, 5, "before 1.6"])
def test_what_training_leaves_beside_the_weights_does_no_harm(tmp_path: Path, form: int | str) -> None:
    path = tmp_path / "last.pth.tar"
    options = {"_use_new_zipfile_serialization": False} if form == "before 1.6" else {"pickle_protocol": form}
    torch.save({"state_dict": weights()} | training(), path, **options)
    assert same(loaded(path), weights())


@pytest.mark.parametrize("key", [*WRAPPERS, "generator"])
def test_weights_are_found_under_the_keys_that_people_use(tmp_path: Path, key: str) -> None:
    path = tmp_path / "w.ckpt"
    torch.save(training() | {key: weights()}, path)
    assert same(read_tensors(path), dict(weights()))
    torch.save({"state": 1, key: {"decay": 0.999, "module": Config(weights())}}, path)
    if key in WRAPPERS:
        assert same(read_tensors(path), dict(weights()))


@pytest.mark.parametrize(
    "around",
    [
        lambda w: (w, 12),
        lambda w: [{"epoch": 3}, w],
        lambda w: {"model": [w]},
        lambda w: {"model": {"backbone": w, "loss": {"scale": torch.ones(1)}}},
        lambda w: {"student": {"online": {"encoder": w}}, "optimizer_states": [{"state": dict(w)}]},
        lambda w: {"best": w, "again": {"best": w}},  # one mapping, twice
    ],
)
def test_weights_are_found_at_any_depth(tmp_path: Path, around: Callable) -> None:
    path = tmp_path / "w.pt"
    torch.save(around(weights()), path)
    assert same(loaded(path), weights())


def test_of_several_weights_the_averaged_ones_are_read_and_told(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "w.pt"
    torch.save({"model": weights(seed=1), "ema": weights(), "net": None}, path)
    assert same(loaded(path), weights())
    assert capsys.readouterr().err == f"{path}: weights are taken from 'ema', not from 'model'\n"
    few = {"decay": torch.tensor(0.99), "updates": torch.tensor(3)}
    torch.save({"ema": few, "net": weights(), "metrics": few}, path)
    assert same(loaded(path), weights())
    torch.save({"generator": weights(), "metrics": few, "best": torch.tensor(1.0)}, path)
    assert same(loaded(path), weights())
    torch.save(dict(weights()) | {"metrics": few, "swa": weights(seed=1)}, path)
    assert same(loaded(path), weights())
    assert capsys.readouterr().err == ""
    torch.save({"student": weights(), "teacher": weights(), "optimizer": {"state": {}, "x": torch.ones(1)}}, path)
    with pytest.raises(InputError, match=r"it holds several: 'student', 'teacher'; save a state dict: torch.save"):
        read_tensors(path)


PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "_orig_mod.module.", "net.encoder.model.")


@pytest.mark.parametrize("prefix", PREFIXES)
def test_one_common_beginning_of_names_is_taken_off(tmp_path: Path, prefix: str, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "w.pt"
    torch.save({prefix + name: tensor for name, tensor in weights().items()}, path)
    assert same(loaded(path), weights())
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("word", ["_orig_mod", "module", "_checkpoint_wrapped_module"])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_what_wrappers_of_parts_put_inside_of_names_goes(
    tmp_path: Path, prefix: str, word: str, capsys: pytest.CaptureFixture
) -> None:
    """``net.layer1 = torch.compile(net.layer1)``, or VGG's ``features`` in DataParallel."""
    path = tmp_path / "w.pt"
    named = {name.replace("layer1.", f"layer1.{word}."): tensor for name, tensor in weights().items()}
    assert len(named.keys() - weights().keys()) > 3
    torch.save({prefix + name: tensor for name, tensor in named.items()}, path)
    assert same(loaded(path), weights())
    assert capsys.readouterr().err == ""


def test_what_lies_beside_the_networks_names_is_told(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "w.ckpt"
    tensors = {f"model.{name}": tensor for name, tensor in weights().items()}
    torch.save({"state_dict": tensors | {f"loss.{i}": torch.ones(1) for i in range(5)}}, path)
    assert same(loaded(path), weights())
    told = "the network's names begin with 'model.'; left out: 'loss.0', 'loss.1', 'loss.2' and 2 more"
    assert capsys.readouterr().err == f"{path}: {told}\n"


def test_counters_of_training_and_profilers_count_for_nothing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path, tensors = tmp_path / "w.pt", weights()
    thop = {f"{name}.{what}": torch.zeros(1) for name in ("layer1.0.conv1", "fc") for what in ("total_ops",)}
    thop |= {"total_ops": torch.zeros(1), "total_params": torch.zeros(1, dtype=torch.float64)}
    none = {name: tensor for name, tensor in tensors.items() if "num_batches_tracked" not in name}
    averaged = {"n_averaged": torch.tensor(4)} | {f"module.{name}": tensor for name, tensor in tensors.items()}
    for saved in (tensors | thop, none, averaged):
        torch.save(saved, path)
        found = loaded(path)
        assert all(torch.equal(found[name], tensor) for name, tensor in none.items())
    assert capsys.readouterr().err == ""
    frozen = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False))
    load_tensors(frozen, {"0.weight": torch.ones(4, 3, 1, 1), "0.num_batches_tracked": torch.tensor(1)}, path)
    assert frozen[0].weight.eq(1).all()


@pytest.mark.parametrize("name", ["yolo_demo", "ssd_demo", "ssdlite320_mobilenet_v3_large"])
def test_detectors_read_checkpoints_too(tmp_path: Path, name: str) -> None:
    path = tmp_path / "w.ckpt"
    own = {} if name.endswith("demo") else {"num_classes": 20}
    net = getattr((detector := build_detector(Model(name, **own))), "model", detector.net)
    tensors = {key: torch.rand_like(value) if "weight" in key else value for key, value in net.state_dict().items()}
    torch.save(training() | {"state_dict": {f"model.{key}": value for key, value in tensors.items()}}, path)
    again = build_detector(Model(name, str(path), **own))
    assert same(getattr(again, "model", again.net).state_dict(), tensors)


def test_names_that_fit_are_left_alone() -> None:
    own = {"a.weight": torch.zeros(1), "b.a.weight": torch.ones(1)}
    assert without_prefix(own, own, "w.pt") == own
    assert without_prefix({}, own, "w.pt") == {}
    long = {"x" + "." * 100_000: torch.zeros(1)}
    assert without_prefix(long, own, "w.pt") == long


def refusal(path: Path, name: str = "resnet20", **model: Any) -> str:
    with pytest.raises(InputError) as caught:
        build_classifier(Model(name, str(path), **model))
    text = str(caught.value)
    assert text.startswith(str(path))
    assert "\\x1b" not in text
    assert text.isprintable()
    assert text[-1].isalnum() or text[-1] == ")"
    return text


def test_what_does_not_fit_is_told_from_both_sides(tmp_path: Path) -> None:
    path, tensors = tmp_path / "w.pt", weights()
    few = {name: tensor for name, tensor in tensors.items() if not name.startswith("layer3")}
    torch.save(few | {"fc.extra": torch.ones(2), "bn1.bias": torch.ones(4)}, path)
    text = refusal(path)
    assert "'bn1.bias': the network has shape (16,), the file shape (4,); 'fc.extra': the network has no such" in text
    missing = sum(name.startswith("layer3") and "num_batches" not in name for name in tensors)
    assert f"({missing} missing in the file, 1 unknown to the network, 1 of another shape; of" in text
    assert text.endswith("give weights of this network")
    torch.save(weights(7), path)
    mend = "give weights of this network, or set model.num_classes to the number of classes that it was trained for"
    assert refusal(path, num_classes=10).endswith(mend)
    torch.save({f"a{i}": torch.ones(2) for i in range(4)}, path)
    names = "the file's names are 'a0', 'a1', 'a2' and 1 more, the network's 'conv1.weight', 'bn1.weight', "
    assert names in refusal(path)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)


def test_what_stays_refused_is_named_with_its_class(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    for whole, words in (
        (Net(), r"is a whole test_checkpoint.Net and holds no state dict"),
        (nn.DataParallel(nn.Linear(2, 2)), "is a whole torch.nn.parallel.data_parallel.DataParallel"),
        ({"epoch": 3, "model": Net(), "ema": None}, "'model' is a whole test_checkpoint.Net, and"),
        ([1, 2], "holds no state dict (names with tensors) but a list"),
        (torch.ones(3), "holds no state dict (names with tensors) but a tensor"),
        ({"epoch": 3, "args": argparse.Namespace()}, "holds no state dict (names with tensors) but 'epoch', 'args'"),
        ({}, "holds no state dict (names with tensors) but nothing"),
    ):
        for new in (True, False):
            torch.save(whole, path, _use_new_zipfile_serialization=new)
            text = refusal(path)
            assert words in text
            assert text.endswith("save a state dict: torch.save(model.state_dict(), FILE)")


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_files_of_other_kinds_are_named(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.jit.script(nn.Linear(2, 2)).save(path)
    assert "is a TorchScript archive, a program: save a state dict: torch.save(torch.jit.load(FILE)" in refusal(path)
    with tarfile.open(path, "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            archive.addfile(tarfile.TarInfo(name))
    assert "(it is a tar archive, the form of PyTorch before 0.1.10)" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/b.txt", "x")
    assert "(a zip archive without data.pkl, which torch.save puts into it)" in refusal(path)
    for content, words in (
        (b"<!doctype html>", "it is a web page (a download that went wrong)"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it is a pointer of Git LFS"),
        (gzip.compress(b"x"), "it is a gzip archive (unpack it first)"),
        (b"", "it is neither safetensors nor what torch.save writes"),
        (b"\x80\x02}.", "a pickle that torch.save did not write"),
        (pickle.dumps({"a": 1}, 4), "a pickle that torch.save did not write"),
    ):
        path.write_bytes(content)
        assert words in refusal(path)
    torch.save(weights(), tmp_path / "misnamed.safetensors")  # what it holds counts
    assert same(loaded(tmp_path / "misnamed.safetensors"), weights())


@pytest.mark.parametrize("new", [True, False])
def test_damaged_files_are_told(tmp_path: Path, new: bool) -> None:
    path = tmp_path / "w.pt"
    torch.save(weights(), path, _use_new_zipfile_serialization=new)
    data = path.read_bytes()
    for cut in (1000, len(data) // 2, len(data) - 100):
        path.write_bytes(data[:cut])
        assert f"not readable as weights ({'a zip archive that ends too early' if new else ''}" in refusal(path)


@pytest.mark.parametrize("new", [True, False])
def test_tensors_are_those_that_torch_reads(tmp_path: Path, new: bool) -> None:
    path, base = tmp_path / "w.pt", torch.arange(24.0).reshape(2, 3, 4)
    tensors = {
        **{str(dtype): torch.arange(5).to(dtype) for dtype in (torch.float64, torch.float16, torch.bfloat16)},
        **{str(dtype): torch.arange(5).to(dtype) for dtype in (torch.int32, torch.int16, torch.int8, torch.uint8)},
        "bool": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(3.0),
        "transposed": base.transpose(0, 2),
        "part": base[1, 1:, ::2],
        "channels last": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "parameter": nn.Parameter(torch.ones(2)),
    }
    tensors["with state"] = nn.Parameter(torch.ones(3))
    tensors["with state"].note = "mine"
    torch.save(tensors, path, _use_new_zipfile_serialization=new)
    found, expected = read_tensors(path), torch.load(path, weights_only=True)
    assert found.keys() == tensors.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor)
        assert (found[name].dtype, found[name].stride()) == (tensor.dtype, tensor.stride())
    assert found["part"].untyped_storage().data_ptr() == found["transposed"].untyped_storage().data_ptr()


def test_the_other_byte_order(tmp_path: Path) -> None:
    path, tensor = tmp_path / "w.pt", torch.arange(5, dtype=torch.int32)
    torch.save({"a": tensor}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            if name.endswith("byteorder"):
                content = b"big"
            archive.writestr(name, tensor.numpy().byteswap().tobytes() if name.endswith("data/0") else content)
    assert torch.equal(read_tensors(path)["a"], tensor)


class Calls:
    """Pickled as a call, or as an object made with ``__new__`` and then given a state."""

    def __init__(self, *reduced: Any):
        self.reduced = reduced

    def __reduce_ex__(self, protocol: int) -> tuple:
        return self.reduced


def forbidden(*_: object) -> None:
    raise AssertionError("a pickle looked something up or called it")


@pytest.mark.parametrize("protocol", [2, 4])
def test_nothing_in_a_pickle_runs(tmp_path: Path, protocol: int, monkeypatch: pytest.MonkeyPatch) -> None:
    path, mark = tmp_path / "w.pt", tmp_path / "sprung"
    command = f"touch {mark}"
    traps = [
        Calls(os.system, (command,)),
        Calls(eval, (f"open({str(mark)!r}, 'w')",)),
        Calls(getattr, (os, "system")) if protocol == 9 else Calls(map, (os.system, [command])),
        Calls(Path.touch, (mark,)),
        Calls(functools.partial, (os.system, command)),
        Calls(torch.load, (str(path),)),
        Calls(nn.Linear, (10**6, 10**6)),
        Calls(bytearray, (10**12,)),
        Calls(Config, (), {"__class__": nn.Module, "forward": os.system}),
        Calls(collections.OrderedDict, (), (None, {"update": os.system})),
        Calls(list, (), None, iter([1, 2]), iter([("a", 1)])),
    ]
    torch.save({"state_dict": weights(), "traps": traps}, path, pickle_protocol=protocol)
    torch.save({"state_dict": weights(), "traps": traps}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    expected = weights()
    with monkeypatch.context() as patched:
        for name in ("_Unpickler", "Unpickler", "load", "loads"):
            patched.setattr(pickle, name, forbidden)
        patched.setattr(torch, "load", forbidden)
        patched.setattr(builtins, "eval", forbidden)
        assert same(read_tensors(path), dict(expected))
        assert same(read_tensors(tmp_path / "old.pt"), dict(expected))
    assert not mark.exists()


def program(*parts: bytes) -> Callable[[], Any]:
    return lambda: Machine().run(io.BytesIO(b"".join(parts)))


STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"


@pytest.mark.parametrize(
    "run",
    [
        program(b"."),  # nothing on the stack
        program(b"\x80\x02K\x01R."),
        program(b"K\x01K\x02R."),  # calls a number
        program(b"K\x01)\x81."),
        program(b"h\x05."),  # nothing remembered
        program(b"t."),  # no mark
        program(b"(X\x01\x00\x00\x00atQ."),  # a reference that is no storage
        program(b"ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x00))tR."),
        program(b"ctorch._utils\n_rebuild_tensor_v2\n", STORAGE, b"\x85R."),
        program(b"\x97."),  # a buffer outside
        program(b"\xff."),
        program(b"K\x01"),
        program(b"0" * 10),
        program(b"ctorch._tensor\n_rebuild_from_type_v2\n" * 3, b"NNN\x87\x87R."),
        program(b"}K\x01s."),
    ],
)
def test_programs_that_make_no_sense_end_in_one_of_the_known_faults(run: Callable[[], Any]) -> None:
    with pytest.raises(FAULTS):
        run()


def test_a_pickle_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "MAX_STEPS", 100)
    assert program(b"N" * 99, b".")() is None
    with pytest.raises(ValueError, match="a pickle of more than 100 steps"):
        program(b"N" * 101, b".")()


def test_references_to_one_mapping_cost_it_once() -> None:
    large = {str(i): None for i in range(200_000)}
    content = large
    for _ in range(300):
        content = dict.fromkeys(WRAPPERS, large) | {"model": content} | {str(i): large for i in range(9)}
    begun = time.process_time()
    with pytest.raises(InputError, match="holds no state dict"):
        find_weights(content, "w.pt")
    assert time.process_time() - begun < 2


def test_tensors_never_leave_their_storage(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"a": torch.arange(8.0)}, path)
    with Checkpoint(path) as file:
        good = file.content["a"]
        beyond = (1, (8,), (1,)), (0, (9,), (1,)), (0, (2, 5), (4, 1)), (-1, (2,), (1,)), (0, (2,), (-1,))
        for offset, size, stride in beyond:
            with pytest.raises(RuntimeError):
                file.tensor(Stored(good.storage, good.dtype, offset, size, stride))
        for size in (("a",), None, (2.5,), (2**70,)):
            with pytest.raises((TypeError, RuntimeError, OverflowError)):
                file.tensor(Stored(good.storage, good.dtype, 0, size, (1,)))
        assert file.tensor(good).tolist() == list(range(8))
