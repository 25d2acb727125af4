"""Every code block of README and docs/ runs, or is read as far as it can be; links and names lead somewhere."""

import importlib.util
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from support.onnx_files import node, write_onnx
from support.pages import PAGES, Block, anchors, assert_prints, blocks, commands, words_of
from torchvision.models import WeightsEnum, get_model, get_model_weights, list_models
from ultralytics.nn.tasks import DetectionModel

from msat_det import models as detectors
from msat_det.base.config import Config, method_options
from msat_det.base.settings import PROJECT
from msat_det.data import DATASETS
from msat_det.methods import METHODS, parse_options
from msat_det.run import cli
from msat_det.run.arguments import load_config

# Commands that do not run here as they stand, the first fitting row for each: those with words to add, which make them
# small, run with these; the others are read: the command, its options, their values, the files they name.
SKIPPED = "skipped"
ROWS: list[tuple[str, str | None, str]] = [
    (r"-m pytest$", SKIPPED, "what CI does"),
    (r"-m venv|^pip install", SKIPPED, "installs"),
    (r"fetch(\.py)? (?!--list)", None, "downloads; test_fetch.py does from a local server"),
    (r"torchrun", None, "starts processes; test_ranks.py does"),
    (r"benchmarks/", None, "a minute to hours"),
    (r"~/data", None, "data of the reader's"),
    (r"make_results|\breal/", None, "hours"),
    (r"--onnx", None, "needs more packages; test_onnx.py does"),
    (r"compare .*vgg_demo", None, "every method on all images; test_compare.py does"),
    (r"--resume", None, "a hundred images; test_resume.py does"),
    (r"detect|doctor|inspect|export|report|list", "", "small as it stands"),
    (r"--data.limit 8", "--draw.images 1", "but for the pictures small as it stands"),
    (r"budget", "--data.limit 2 --calib.limit 1 --sim.record 1 --draw.images 0", "a search"),
    (r".", "--data.limit 2 --calib.limit 4 --sim.record 2 --draw.images 0", "longer than a test should, on all images"),
]
# What the commands call, replaced where a command is only read.
WORK = [
    *("msat_det.run.experiment.run", "msat_det.run.compare.compare", "msat_det.run.inspect.inspect_network"),
    *("msat_det.run.doctor.doctor", "msat_det.run.export.export", "msat_det.report.page.page.write_report"),
    "msat_det.run.fetch.fetch_entry",
]
for _name in WORK:  # before any of them is replaced: a module imported then would keep the replacement
    importlib.import_module(_name.rpartition(".")[0])


@pytest.fixture
def checkout(tmp_path: Path, stand_ins: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder that looks like a checkout; what a page registers is forgotten."""
    for name in ("configs", "data", "tools", "msat_det"):
        (tmp_path / name).symlink_to(PROJECT / name)
    monkeypatch.chdir(tmp_path)
    for file in stand_ins.iterdir():
        (tmp_path / file.name).symlink_to(file)
    monkeypatch.setattr(WeightsEnum, "get_state_dict", drawn)
    registries = METHODS, DATASETS, detectors.DETECTORS
    before = [dict(registry) for registry in registries]
    yield tmp_path
    for registry, entries in zip(registries, before, strict=True):
        registry.clear()
        registry.update(entries)


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small files under the names of the reader's: a YOLOv8n for 64 pixels, and an ONNX file with YOLOX's outputs."""
    folder = tmp_path_factory.mktemp("reader")
    model = DetectionModel("yolov8n.yaml", verbose=False)
    torch.save({"model": model, "train_args": {"imgsz": 64}, "ema": None}, folder / "yolov8n.pt")
    write_onnx(
        folder / "yolox_nano.onnx",
        [node("Conv", "x w v", "a", strides=[8, 8]), node("Relu", "a", "b"), node("Conv", "b h", "c"),
         node("MaxPool", "b", "d", kernel_shape=[2, 2], strides=[2, 2]), node("Conv", "d h", "e"),
         node("MaxPool", "d", "f", kernel_shape=[2, 2], strides=[2, 2]), node("Conv", "f h", "g")],
        constants={"w": np.full((4, 3, 8, 8), 1e-4), "v": np.zeros(4), "h": np.full((85, 4, 1, 1), 0.1)},
        outputs="c e g",
        shape=(1, 3, 64, 64),
    )  # fmt: skip
    return folder


def drawn(weights: WeightsEnum, *_: Any, **__: Any) -> dict[str, Any]:
    """Random weights in place of those that torchvision would download."""
    name = next(name for name in list_models() if get_model_weights(name) is type(weights))
    backbone = {"weights_backbone": None} if name in list_models(module=torchvision.models.detection) else {}
    return get_model(name, weights=None, **backbone).state_dict()


SLOW = ("howto.md", "tutorial.md")
BY_TIME = [pytest.param(page, marks=pytest.mark.slow if page.name in SLOW else ()) for page in PAGES]


@pytest.mark.parametrize("page", BY_TIME, ids=lambda page: page.name)
def test_page_runs_and_cells_may_be_run_again(
    page: Path, checkout: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = ("python", "sh") if page.name == "tutorial.md" else ("python",)
    cells = [block for block in blocks(page) for _ in range(1 + (block.language in again))]
    run_blocks(cells, page, capsys, monkeypatch)


def run_blocks(cells: list[Block], page: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {"__name__": page.stem}
    printed = ""
    for block in cells:
        if block.language == "text":
            assert_prints(printed, block.text)
            continue
        capsys.readouterr()
        if block.language == "python":
            code = compile("\n" * block.line + block.text, str(page), "exec")
            exec(code, names)  # noqa: S102
        elif block.language == "yaml":
            save(block)
        else:
            assert block.language == "sh", f"{page.name}, line {block.line}: a block in {block.language or 'nothing'}"
            shell(block, monkeypatch)
        printed = capsys.readouterr().out


def save(block: Block) -> None:
    """A YAML block is a configuration, and a file, which its first line names."""
    file = re.match(r"# (\w+\.yaml)\n", block.text)
    assert file, f"a YAML block begins with # and its file's name, not {block.text[:40]!r}"
    Path(file[1]).write_text(block.text, encoding="utf-8")
    check_methods(load_config(["--cfg", file[1], "--data.root", ".", "--calib.root", "."]))


def shell(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a block's commands, or read them, as ROWS says."""
    subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)
    for command in commands(block):
        added = row_of(command)[1]
        if added is None:
            read(command, monkeypatch)
        elif added is not SKIPPED:
            assert cli.main([*words_of(command), *added.split()]) == 0, command


def check_methods(config: Config) -> None:
    for entry in config.methods:
        parse_options(entry["method"], method_options(entry))


def row_of(command: str) -> tuple[str, str | None, str]:
    return next(row for row in ROWS if re.search(row[0], command))


def read(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that comes before the work: words, configuration, methods with their options, names to fetch."""
    words, calls = words_of(command), []
    if words[0].endswith(".py"):  # a script of its own: its options are in its text
        text = (PROJECT / words[0]).read_text(encoding="utf-8")
        assert all(f'"{word}"' in text for word in words if word.startswith("--")), command
        return

    def work(first: Any, *_: Any, **__: Any) -> None:
        if isinstance(first, Config):
            check_methods(first)
        calls.append(first)

    with monkeypatch.context() as patch:
        for name in WORK:
            patch.setattr(name, work)
        assert cli.main(words) == 0, command
    assert calls, f"{command}: does nothing"


def test_every_row_is_of_use() -> None:
    found = [row_of(c) for page in PAGES for block in blocks(page) if block.language == "sh" for c in commands(block)]
    assert [row for row in ROWS if row not in found] == []


def test_a_wrong_command_is_seen(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = "python tools/convert_det.py --cfg configs/yolo_voc.yaml"
    read(f"torchrun --nproc-per-node 2 {good[7:]}", monkeypatch)
    for bad in (
        good.replace("convert_det", "convert"),
        good.replace("yolo_voc", "yolo"),
        f"{good} --sim.t 4",
        f"{good} --methods nope",
        f"{good} --methods.signed.gama 3",
        "msat-det look runs/a",
        "msat-det run yolo",
        "python benchmarks/bench.py --quickly",
        "msat-det fetch voc207",
        "convert-det --cfg configs/yolo_voc.yaml",
    ):
        with pytest.raises(AssertionError):
            read(bad, monkeypatch)


def test_outputs_are_compared() -> None:
    assert_prints("a 1.5  to 2e-3\nb\nc", "a 7 to 0.1\n…\nc\n")
    for printed in ("a 1 to 2\nb\nd", "a x to 2\nc", ""):
        with pytest.raises(AssertionError):
            assert_prints(printed, "a 7 to 0.1\n…\nc\n")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_names_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if not target.startswith("https://"):
            name, _, fragment = target.partition("#")
            file = page.parent / name if name else page
            assert file.is_file(), f"{page.name}: no {target}"
            assert not fragment or fragment in anchors(file), f"{page.name}: no {target}"
    for name in re.findall(r"(?<![\w./$])((?:benchmarks|configs|docs|msat_det|tests|tools)/[\w./-]*\w)", text):
        assert (PROJECT / name).exists(), f"{page.name}: no {name}"
    for command in re.findall(r"`msat-det (\w[\w-]*)", text):
        assert command in cli.COMMANDS, f"{page.name}: no msat-det {command}"


def test_the_reference_is_of_these_docstrings() -> None:
    spec = importlib.util.spec_from_file_location("make_reference", PROJECT / "tools/make_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.reference()
    assert "**`SpikingNetwork.detect(" in made
    assert module.PAGE.read_text(encoding="utf-8") == made, "docstrings have changed: python tools/make_reference.py"


def test_no_text_sends_readers_to_what_is_not_in_the_repository() -> None:
    for file in (PROJECT / "msat_det").rglob("*.py"):
        assert not re.search(r"DESIGN §|METHODS\.md|HOUSE\.md", file.read_text("utf-8")), file
