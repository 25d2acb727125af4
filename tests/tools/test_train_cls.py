"""Training of classifiers: it learns, it can stop and go on, and its augmentation is its own."""

from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from training import classifiers as train_cls
from training.classifiers import Pictures, Recipe, TrainingDirectory, augmentation, read_recipe, train

from msat_det.base.config import Model
from msat_det.base.errors import InputError
from msat_det.base.settings import PROJECT
from msat_det.data import ClassFolders
from msat_det.models.classifiers import CLASSIFIERS, PREPROCESS, Network, build_classifier
from msat_det.report.directory import RunDirectory
from msat_det.run import cli
from msat_det.run.ownership import owned


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """Three classes that differ in colour, and a tiny network with dropout and batch norm."""
    random = np.random.default_rng(0)
    for split, count in (("train", 11), ("test", 4)):
        for label, name in enumerate(("blue", "green", "red")):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 160, (32, 32, 3), dtype=np.uint8)
                pixels[..., 2 - label] += 60
                Image.fromarray(pixels).save(folder / f"{i}.png")

    def build(classes: int) -> nn.Module:
        layers = [nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return nn.Sequential(*layers, nn.Dropout(0.2), nn.Linear(8, classes))

    monkeypatch.setitem(CLASSIFIERS, "tiny", Network(build))
    return Recipe("tiny", str(tmp_path / "data"), str(tmp_path / "out"), "folders", epochs=4, batch=8, warmup=1)


def files(recipe: Recipe) -> dict[str, bytes]:
    return {name: Path(recipe.out, name).read_bytes() for name in ("weights.safetensors", "log.csv")}


def test_it_learns_and_its_weights_load(recipe: Recipe) -> None:
    last = train(replace(recipe, epochs=8))
    assert last["top1"] == 100
    log = Path(recipe.out, "log.csv").read_text().splitlines()
    assert log[0] == "epoch,loss,top1,top5"
    assert len(log) == 9
    classifier = build_classifier(Model("tiny", str(Path(recipe.out, "weights.safetensors"))))
    assert len(classifier.classes) == 3


def test_equal_recipes_give_equal_files_whatever_the_number_of_workers(recipe: Recipe) -> None:
    recipe = replace(recipe, autoaugment=True, cutout=8)
    train(recipe)
    again = replace(recipe, out=recipe.out + "2", workers=2)
    train(again)
    assert files(again) == files(recipe)
    other = replace(recipe, out=recipe.out + "3", seed=1)
    train(other)
    assert files(other) != files(recipe)


def test_an_interrupted_training_ends_as_an_uninterrupted_one(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    train(recipe)
    stopped = replace(recipe, out=recipe.out + "2", resume=True)
    run_epoch = train_cls.run_epoch

    def interrupted(*arguments: object) -> float:
        if arguments[4] == 2:  # the third epoch
            raise KeyboardInterrupt
        return run_epoch(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(train_cls, "run_epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(stopped)
    assert not Path(stopped.out, "weights.safetensors").exists()
    train(stopped)
    assert files(stopped) == files(recipe)
    train(stopped)  # a finished one stays as it is
    assert files(stopped) == files(recipe)


def test_a_training_killed_at_its_very_end_has_its_whole_log(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    train(recipe)
    stopped = replace(recipe, out=recipe.out + "2", resume=True)
    write = TrainingDirectory.write

    def kept(directory: TrainingDirectory, name: str, content: str | bytes) -> None:
        write(directory, name, content)
        if name == "checkpoint.pt" and len(Path(stopped.out, "log.csv").read_text().splitlines()) >= recipe.epochs:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TrainingDirectory, "write", kept)
        with pytest.raises(KeyboardInterrupt):
            train(stopped)
    train(stopped)
    assert files(stopped) == files(recipe)


def test_a_folder_has_one_training_on_the_same_pictures(recipe: Recipe) -> None:
    recipe = replace(recipe, epochs=1)
    with owned(RunDirectory(recipe.out)), pytest.raises(InputError, match="belongs to a run that is still going"):
        train(recipe)
    train(recipe)
    (Path(recipe.root) / "train/red/0.png").write_bytes((Path(recipe.root) / "train/blue/0.png").read_bytes() + b" ")
    with pytest.raises(InputError, match=r"the pictures in .* are not those with which .*checkpoint\.pt began"):
        train(replace(recipe, resume=True))
    Path(recipe.out, "checkpoint.pt").unlink()
    with pytest.raises(InputError, match=r"weights\.safetensors would be replaced"):
        train(recipe)


def test_a_folder_keeps_its_training(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(recipe, epochs=2)
    train(recipe)
    with pytest.raises(InputError, match="holds a training: add --resume"):
        train(recipe)
    with pytest.raises(InputError, match=r"was trained with --rate 0.05, not 0.1"):
        train(replace(recipe, rate=0.1, resume=True))
    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", Mock(side_effect=MemoryError))
        with pytest.raises(MemoryError):  # nothing is wrong with the file
            train(replace(recipe, resume=True))
    Path(recipe.out, "checkpoint.pt").write_bytes(b"x" * 50)
    with pytest.raises(InputError, match=r"checkpoint.pt is damaged \(UnpicklingError\)"):
        train(replace(recipe, resume=True))


def test_bad_data_are_told(recipe: Recipe) -> None:
    with pytest.raises(InputError, match="give an existing one with --root"):
        train(replace(recipe, root=recipe.root + "2"))
    with pytest.raises(InputError, match=r"the loss is (nan|inf) in epoch 1: give a lower --rate"):
        train(replace(recipe, rate=1e30, warmup=0))
    with pytest.raises(InputError, match="tiny sees 32 pixels"):
        train(replace(recipe, cutout=32))
    Path(recipe.root, "train/red/0.png").write_bytes(b"x")
    with pytest.raises(InputError, match=r"can't read image .*red/0.png"):
        train(recipe)
    for path in Path(recipe.root, "test/red").iterdir():
        path.unlink()
    Path(recipe.root, "test/red").rmdir()
    with pytest.raises(InputError, match=r"train and test in .* differ in their classes"):
        train(recipe)


def test_augmentation_crops_flips_and_cuts(recipe: Recipe) -> None:
    inputs = PREPROCESS["cifar"]
    pictures = Pictures(ClassFolders(recipe.root, "train"), inputs, "train")
    plain = pictures[0][0]
    pictures.augment = augmentation(recipe, inputs)
    first = pictures[0][0]
    torch.testing.assert_close(pictures[0][0], first)
    pictures.key = (0, 1)
    assert not torch.equal(pictures[0][0], first)
    assert not torch.equal(first, plain)
    assert first.shape == plain.shape
    pictures.augment = augmentation(replace(recipe, cutout=16), inputs)
    blank = (pictures[0][0] == 0).all(0)
    assert blank.sum() == 16 * 16


def test_learning_rate_rises_and_falls() -> None:
    recipe = Recipe("tiny", "", "", rate=0.4, warmup=2, epochs=10)
    rates = [recipe.rate_at(epoch) for epoch in (0, 1, 2, 6, 10)]
    assert rates == pytest.approx([0, 0.2, 0.4, 0.2, 0])


def test_command_line(recipe: Recipe, capsys: pytest.CaptureFixture) -> None:
    words = ["--model", "tiny", "--root", recipe.root, "--out", recipe.out, "--kind", "folders", "--epochs", "2"]
    read = read_recipe([*words, "--rate", "0.2", "--resume"])
    assert (read.rate, read.resume, read.epochs, read.threads) == (0.2, True, 2, None)
    for extra, expected in (
        (["--epochs", "0"], "error: epochs is 0: give 1 or more\n"),
        (["--smoothing", "2"], "error: smoothing is 2.0: give 0 to 1\n"),
        (["--kind", "voc"], "error: kind is 'voc': give cifar100"),
        (["--lr", "2"], "error: unrecognized arguments: --lr 2 (--help lists all options)\n"),
        (["--model", "vgg16_cifra"], "error: no classifier 'vgg16_cifra': did you mean vgg16_cifar?"),
    ):
        assert cli.train([*words, *extra]) == 2
        assert capsys.readouterr().err.startswith(expected)
    assert cli.train(words) == 0
    assert f"the weights are in {recipe.out}" in capsys.readouterr().out


def test_interruption_says_how_to_go_on(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: Recipe) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train_cls, "train", interrupted)
    assert cli.train(["--model", "tiny", "--root", recipe.root, "--out", recipe.out]) == 130


def test_embedded_data_train_a_small_network(tmp_path: Path) -> None:
    """A few seconds on 160 drawn pictures already beat chance (5 %) by far."""
    recipe = Recipe("vgg_demo", str(PROJECT / "data/cls"), str(tmp_path), "folders", epochs=8, batch=32, warmup=1)
    assert train(recipe)["top1"] > 20
