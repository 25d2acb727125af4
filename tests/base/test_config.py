"""The configuration tree and its loader: what it resolves, and the one line that it refuses bad input with."""

import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from msat_det.base.config import (
    Augment,
    Bootstrap,
    Calib,
    Config,
    Data,
    Draw,
    Exit,
    Ledger,
    Model,
    Sim,
    method_options,
)
from msat_det.base.errors import InputError
from msat_det.base.settings import PROJECT
from msat_det.methods import METHODS, parse_options
from msat_det.run.arguments import load_config
from msat_det.run.cli import IDLE

TREE = {
    "data": {"kind": "coco", "root": "scenes/coco", "split": "val2017"},
    "model": {"name": "yolo_demo", "weights": "data/weights/x.safetensors", "score": "1e-2"},
    "calib": {"root": "$MSAT_DET_DATA/calib"},
    "methods": [
        {"label": "if", "method": "constant", "percentile": 99.9},
        {"label": "staged-4", "method": "constant", "stages": [2, 1], "record": [4]},
    ],
    "sim": {"record": [4, 8, 16]},
}


@pytest.fixture
def cfg(tmp_path: Path) -> Path:
    path = tmp_path / "demo.yaml"
    path.write_text(yaml.safe_dump(TREE))
    return path


def load(cfg: Path, words: str = "") -> Config:
    return load_config(["--cfg", str(cfg), *words.split()])


def changed(cfg: Path, **sections: object) -> list[str]:
    """The command words for TREE with some of its sections replaced (None: left out)."""
    tree = {key: value for key, value in (TREE | sections).items() if value is not None}
    cfg.write_text(yaml.safe_dump(tree))
    return ["--cfg", str(cfg)]


def test_file_and_defaults(cfg: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSAT_DET_DATA", "/somewhere")
    config = load(cfg)
    assert config.data == Data("coco", str(cfg.parent / "scenes/coco"), "val2017")
    assert config.model == Model("yolo_demo", str(cfg.parent / "data/weights/x.safetensors"), score=0.01)
    assert config.calib == Calib("images", "/somewhere/calib")
    assert config.sim == Sim(16, [4, 8, 16])
    assert (config.batch, config.seed, config.resume, config.strict) == (8, 0, False, False)
    assert config.out == str(Path.cwd() / "runs/demo")


def test_a_path_that_counted_from_the_project_is_mended(cfg: Path) -> None:
    words = changed(cfg, data={"kind": "voc", "root": "data/voc"})
    with pytest.raises(
        InputError, match=r"^data\.root is data/voc in .*demo\.yaml, which is not there: .*; write "
    ) as e:
        load_config(words)
    right = str(e.value).rpartition(" ")[2]
    assert load_config([*words, "--data.root", "."]).data.root == str(Path.cwd())
    assert load_config(changed(cfg, data={"kind": "voc", "root": right})).data.root == str(PROJECT / "data/voc")
    (cfg.parent / "data/voc").mkdir(parents=True)
    words = changed(cfg, data={"kind": "voc", "root": "data/voc"})
    assert load_config(words).data.root == str(cfg.parent / "data/voc")
    with pytest.raises(InputError, match=r"names \$MSAT_SHARED_DATA: it is \$MSAT_DET_DATA now, ~/data unless set$"):
        load_config(changed(cfg, calib={"root": "$MSAT_SHARED_DATA/x"}))


def test_the_data_folder_is_at_home_unless_set(cfg: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MSAT_DET_DATA", raising=False)
    monkeypatch.setenv("HOME", "/home/someone")
    assert load(cfg).calib.root == "/home/someone/data/calib"


def test_a_finished_run_keeps_its_directory(
    cfg: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = tmp_path / "runs"

    def out(words: str = "") -> str:
        return Path(load(cfg, words).out).name

    assert (out(), out("--resume"), out("--overwrite")) == ("demo", "demo", "demo")
    for name, following in (("demo", "demo-2"), ("demo-2", "demo-3")):
        (runs / name).mkdir(parents=True)
        assert (out(), out("--resume")) == (name, name)  # an unfinished one is told of later
        (runs / name / "summary.json").touch()
        assert (out(), out("--resume"), out("--overwrite")) == (following, name, "demo")
    told = f"{runs / 'demo'} holds a finished run, this goes to demo-2; --overwrite would replace it"
    assert told in capsys.readouterr().err.splitlines()
    assert out("--out runs/demo") == "demo"  # the run itself refuses


def test_command_line_wins(cfg: Path) -> None:
    config = load(cfg, "--data.limit 5 --batch=2 --resume --strict false --model.score .5 --out there --data.year 2012")
    assert (config.data.limit, config.batch, config.model.score, config.data.year) == (5, 2, 0.5, "2012")
    assert (config.resume, config.strict) == (True, False)
    assert config.out == str(Path.cwd() / "there")
    assert load(cfg, "--model.score null").model.score is None


def test_paths_on_the_command_line_are_relative_to_the_working_directory(
    cfg: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    config = load_config(["--cfg", "demo.yaml", "--data.root", "../coco", "--calib.root", "~/c"])
    assert config.data.root == str(tmp_path.parent / "coco")
    assert config.calib.root == "/home/someone/c"


def test_weights_may_be_a_name(cfg: Path) -> None:
    assert load(cfg, "--model.weights DEFAULT").model.weights == "DEFAULT"


def test_darknet_file_names_the_network(cfg: Path) -> None:
    assert load(cfg, "--model.cfg net.cfg").model.name == "darknet"


def test_calibration_follows_the_data(cfg: Path) -> None:
    words = changed(cfg, calib={"kind": "coco", "split": "train2017"})
    assert load_config([*words, "--data.root", "/real"]).calib == Calib("coco", "/real", "train2017")


def test_calibration_images_are_not_evaluated(cfg: Path) -> None:
    words = [*changed(cfg, calib={"kind": "coco", "split": "val2017", "skip": 8}), "--data.split", "val2017"]
    load_config([*words, "--data.limit", "8"]).require_unseen()
    for rest in (["--data.limit", "9"], ["--data.limit", "null"]):
        with pytest.raises(InputError, match="calibration images would be evaluated"):
            load_config([*words, *rest]).require_unseen()
    load_config([*words, "--data.split", "train2017"]).require_unseen()


def test_what_a_command_has_no_use_for_is_passed_over_in_a_file(cfg: Path) -> None:
    """Also where a run would refuse it: methods that are not among those picked, images of calibration."""
    data = TREE["data"] | {"limit": 9}
    others = {"draw": {"method": "if", "t": [8]}, "exit": {"methods": ["if"]}, "ledger": {"images": 2}}
    words = [*changed(cfg, data=data, calib={"kind": "coco", "split": "val2017", "skip": 8}, **others)]
    words += ["--methods", "staged-4", "--sim.record", "4"]
    with pytest.raises(InputError, match=r"exit\.methods names 'if'"):
        load_config(words)
    config = load_config(words, idle=IDLE["doctor"])
    assert (config.data.limit, config.draw, config.exit.methods, config.ledger.images) == (None, Draw(), [], 2)
    assert load_config(words, idle=IDLE["inspect"]).ledger.images == 0
    with pytest.raises(InputError, match=r"unknown key draw\.image"):
        load_config(changed(cfg, draw={"image": 2}), idle=IDLE["inspect"])


@pytest.mark.parametrize(
    ("words", "sim"),
    [
        ("--sim.T 8", Sim(8, [4, 8])),
        ("--sim.T 64", Sim(64, [4, 8, 16, 64])),
        ("--sim.T 3", Sim(3, [3])),
        ("--sim.record 2,32", Sim(32, [2, 32])),
        ("--sim.record 6", Sim(6, [6])),
        ("--sim.record null --sim.T 10", Sim(10, [1, 2, 4, 8, 10])),
        ("--sim.record 4,8 --sim.T 16", Sim(16, [4, 8, 16])),
    ],
)
def test_timesteps(cfg: Path, words: str, sim: Sim) -> None:
    assert load(cfg, words).sim == sim


def test_methods_are_picked_and_changed_by_label(cfg: Path) -> None:
    words = ["--methods", "staged-4,if", "--methods.staged-4.stages", "[4, 2]", "--methods.if.gamma=3"]
    staged, plain = load_config(["--cfg", str(cfg), *words]).methods
    assert staged == {"label": "staged-4", "method": "constant", "stages": [4, 2], "record": [4]}
    assert plain == {"label": "if", "method": "constant", "percentile": 99.9, "gamma": 3}


def test_small_numbers_of_a_method_may_have_an_exponent(cfg: Path, tmp_path: Path) -> None:
    config = load(cfg, "--methods if --methods.if.factor 1e-3 --data.split 1e3 --methods.if.stages [1e0,5e-1]")
    (entry,) = config.methods
    assert parse_options("constant", method_options(entry)).factor == 0.001
    assert (config.data.split, entry["stages"]) == ("1e3", [1.0, 0.5])
    again = tmp_path / "again.yaml"
    again.write_text(config.to_yaml())
    assert load_config(["--cfg", str(again)]) == config


def test_all_methods_by_their_own_names(cfg: Path) -> None:
    own = {"label": "burst", "method": "burst", "gamma": 3}
    words = changed(cfg, methods=[own, {"label": "x", "method": "msat"}])
    methods = load_config([*words, "--methods", "all,x", "--methods.opt.percentile", "99"]).methods
    assert [entry["label"] for entry in methods] == [*METHODS, "x"]
    assert own in methods
    assert {"label": "opt", "method": "opt", "percentile": 99} in methods
    assert {"label": "msat", "method": "msat"} in methods


def test_record_of_a_method_meets_the_runs(cfg: Path) -> None:
    config = load(cfg)
    plain, staged = config.methods
    assert config.record_of(plain) == [4, 8, 16]
    assert config.record_of(staged) == [4]
    assert config.drawn_times(staged) == [4]
    assert load(cfg, "--sim.record 8").record_of(staged) == []


def test_drawn_times(cfg: Path) -> None:
    config = load(cfg, "--sim.record 1,2,4,8,16")
    assert config.drawn_times(config.methods[0]) == [1, 4, 16]
    config = load(cfg, "--draw.t 8,4")
    assert config.drawn_times(config.methods[0]) == [4, 8]


def test_yaml_of_a_configuration_makes_it_again(cfg: Path, tmp_path: Path) -> None:
    config = load(cfg, "--data.limit 3 --sim.T 8")
    again = tmp_path / "again.yaml"
    again.write_text(config.to_yaml())
    assert load_config(["--cfg", str(again)]) == config


@pytest.mark.parametrize("file", sorted(PROJECT.glob("configs/**/*.yaml")), ids=lambda file: file.stem)
def test_shipped_configurations(file: Path) -> None:
    config = load_config(["--cfg", str(file)])
    assert config.methods
    assert all(config.record_of(entry) for entry in config.methods)
    header = file.read_text().partition("\ndata:")[0]
    assert all(part in header for part in ("Paper:", "Expected:"))
    name = file.relative_to(PROJECT / "configs").with_suffix("")
    assert re.search(rf"msat-det (run|compare) {name}\b", header)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("--sim.recrd 4", ["unknown key sim.recrd", "did you mean sim.record?"]),
        ("--limit 4", ["unknown key limit", "did you mean data.limit?"]),
        ("--zzz 4", ["unknown key zzz", "--help"]),
        ("--sim.T 0", ["sim.T is 0"]),
        ("--sim.T -3", ["sim.T is -3"]),
        ("--sim.T four", ["sim.T is 'four' on the command line", "whole number"]),
        ("--sim.T", ["--sim.T", "expected one argument"]),
        ("--sim.record 4,x", ["sim.record is '4,x'", "4,8,16"]),
        ("--sim.record 0,4", ["sim.record holds 0"]),
        ("--sim.record 4,8 --sim.T 6", ["sim.record holds 8, beyond sim.T = 6"]),
        ("--methods if,nope", ["unknown method label nope", "if, staged-4"]),
        ("--methods.nope.gamma 3", ["unknown method label nope", "if, staged-4"]),
        ("--methods.if.gamma", ["--methods.if.gamma has no value"]),
        ("--methods.if.gamma {a:", ["--methods.if.gamma is '{a:'"]),
        ("--methods.if.label staged-4", ["two methods are labelled staged-4"]),
        ("--batch 0", ["batch is 0"]),
        ("--batch none", ["batch is 'none'", "whole number"]),
        ("--data.limit 0", ["data.limit is 0"]),
        ("--calib.skip -1", ["calib.skip is -1"]),
        ("--data.root ~nobody-of-that-name/x", ["data.root", "a path that exists"]),
        ("--model.score nan", ["model.score is 'nan'", "a number"]),
        ("--model.nms_iou 2", ["model.nms_iou is 2.0", "0 to 1"]),
        ("--model.resize squash", ["model.resize is 'squash'", "stretch or letterbox"]),
        ("--resume maybe", ["resume is 'maybe'", "true or false"]),
        ("--draw.method x", ["draw.method is 'x'", "if, staged-4"]),
        ("--draw.t 5", ["draw.t holds 5", "[4, 8, 16]"]),
        ("--draw.images -1", ["draw.images is -1"]),
        ("stray", ["'stray' on the command line belongs to no option"]),
    ],
)
def test_refused_on_the_command_line(cfg: Path, words: str, parts: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        load(cfg, words)
    assert_one_line(caught.value, parts)


@pytest.mark.parametrize(
    ("sections", "parts"),
    [
        ({"smi": {"T": 4}}, ["unknown key smi in", "demo.yaml"]),
        ({"sim": {"t": 4}}, ["unknown key sim.t in", "did you mean sim.T?"]),
        ({"sim": 4}, ["sim in", "is 4", "mapping"]),
        ({"sim": {}}, ["sim has neither T nor record"]),
        ({"sim": {"T": 4.5}}, ["sim.T is 4.5 in", "whole number"]),
        ({"sim": {"T": True}}, ["sim.T is True in", "whole number"]),
        ({"data": None}, ["data.kind is missing in", "--data.kind VALUE"]),
        ({"data": {"kind": "coco", "root": ["a"]}}, ["data.root is ['a'] in", "a text"]),
        ({"calib": None}, ["calib.root is missing"]),
        ({"methods": {"if": 1}}, ["methods is {'if': 1} in", "a list of {label, method"]),
        ({"methods": [{"label": "a"}]}, ["a method's method is None"]),
        ({"methods": [{"label": "a/b", "method": "x"}]}, ["a method's label is 'a/b'"]),
        ({"methods": [{"label": "float", "method": "x"}]}, ["labelled float"]),
        ({"methods": [{"label": "all", "method": "x"}]}, ["labelled all"]),
        ({"methods": [{"method": "x"}, {"method": "x"}]}, ["two methods are labelled x"]),
        ({"methods": [{"method": "x", "deep": {"a": 1}}]}, ["option deep of method x is nested"]),
        ({"methods": [{"method": "x", "record": [0]}]}, ["record of method x is [0]"]),
    ],
)
def test_refused_in_the_file(cfg: Path, sections: dict, parts: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        load_config(changed(cfg, **sections))
    assert_one_line(caught.value, parts)


def test_refused_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^no configuration: give a file or a name of `msat-det list configs`$"):
        load_config([])
    with pytest.raises(InputError, match=r"no configuration .*nope\.yaml: `msat-det list configs` shows"):
        load_config(["--cfg", str(tmp_path / "nope.yaml")])
    with pytest.raises(InputError, match="cannot read"):
        load_config(["--cfg", str(tmp_path)])
    for name, text, message in (
        ("broken", b"data: {kind: [\n", "line 2, is not YAML"),
        ("list", b"- a\n", "does not hold a mapping"),
        ("bytes", b"\xff\xfe\x00", "is not YAML"),
        ("deep", b"[" * 5000, "is not YAML"),
    ):
        (tmp_path / name).write_bytes(text)
        with pytest.raises(InputError, match=message) as caught:
            load_config(["--cfg", str(tmp_path / name)])
        assert_one_line(caught.value, [name])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=60) | st.sampled_from(["a: &a [*a]", "? [1]\n: 2", "a: 2001-99-99", "methods: [{a: 1}]"]))
def test_any_file_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "any.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(InputError) as caught:
        load_config(["--cfg", str(path)])
    assert_one_line(caught.value, [])


def test_a_configuration_made_in_python_is_checked_too() -> None:
    parts = {"data": Data("coco", "r"), "model": Model("m"), "calib": Calib(root="c")}
    assert Config(**parts, sim=Sim(T=6)).sim.record == [1, 2, 4, 6]
    with pytest.raises(InputError, match="batch is 0"):
        Config(**parts, sim=Sim(T=6), batch=0)


def test_python_may_give_tuples_paths_and_numbers_of_numpy(tmp_path: Path) -> None:
    """Each was a TypeError somewhere, or a configuration that cannot be read again."""
    given = Config(
        data=Data("coco", Path("/r"), year=2012, limit=np.int64(3)),
        model=Model(
            "m",
            Path("/w.pt"),
            strides=(8, torch.tensor(16)),
            anchors=np.array([[1, 2], [3, 4]]),
            outputs=("a", "b"),
            mean=(1, 2.5, np.float32(3)),
            bgr=np.bool_(True),
            size=np.int32(320),
            score=torch.tensor(0.5),
        ),
        calib=Calib(root=Path("/c"), augment=Augment(flip=True, copies=np.int64(2))),
        methods=({"method": "constant", "stages": (2, 1), "gamma": np.int64(3), "record": (4, 8)},),
        sim=Sim(record=(np.int64(8), 4)),
        draw=Draw(t=(8,)),
        exit=Exit(methods=("constant",)),
        out=Path("/o"),
    )
    expected = Config(
        data=Data("coco", "/r", year="2012", limit=3),
        model=Model(
            "m",
            "/w.pt",
            strides=[8, 16],
            anchors=[[1.0, 2.0], [3.0, 4.0]],
            outputs=["a", "b"],
            mean=[1.0, 2.5, 3.0],
            bgr=True,
            size=320,
            score=0.5,
        ),
        calib=Calib(root="/c", augment=Augment(flip=True, copies=2)),
        methods=[{"method": "constant", "stages": [2, 1], "gamma": 3, "record": [4, 8]}],
        sim=Sim(8, [4, 8]),
        draw=Draw(t=[8]),
        exit=Exit(["constant"]),
        out="/o",
    )
    assert given == expected
    (tmp_path / "again.yaml").write_text(given.to_yaml())
    assert load(tmp_path / "again.yaml") == expected


NEEDED = {Data: {"kind": "coco", "root": "r"}, Model: {"name": "m"}, Sim: {"T": 8}}
NEEDED[Config] = {"data": Data("coco", "r"), "model": Model("m"), "calib": Calib(root="c"), "sim": Sim(T=8)}


@pytest.mark.parametrize("wrong", [object(), {"a": 1}, ((1, 2), object()), torch.zeros(2, 2, 2)], ids=type)
@pytest.mark.parametrize("cls", [Data, Model, Augment, Calib, Sim, Draw, Ledger, Exit, Bootstrap, Config])
def test_what_python_gives_of_a_wrong_kind_is_named(cls: type, wrong: object) -> None:
    for item in fields(cls):
        with pytest.raises(InputError) as caught:
            cls(**NEEDED.get(cls, {}) | {item.name: wrong})
        assert_one_line(caught.value, [item.name])
    with pytest.raises(InputError, match=r"model\.size is \[416, 320\]: give a whole number$"):
        Model("m", size=(416, 320))


def assert_one_line(error: InputError, parts: list[str]) -> None:
    message = str(error)
    assert "\n" not in message
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--exit.allowance 0.5", "exit.allowance is 0.5, and exit.methods names no method: name one, or leave it out"),
        ("--exit.images 4", "exit.images is 4, and exit.methods names no method"),
        ("--bootstrap.draws 50", "bootstrap.draws is 50, and bootstrap.against names no method"),
        ("--bootstrap.confidence 0.5", "bootstrap.confidence is 0.5, and bootstrap.against names no method"),
        ("--calib.augment.copies 2", "copies is 2, and no change is on that copies differ by: set flip, photometric"),
    ],
)
def test_a_key_of_a_section_that_is_off_is_refused(cfg: Path, words: str, said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        load_config(["--cfg", str(cfg), *words.split()])
