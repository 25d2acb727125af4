"""Training a float classifier from scratch: SGD with a warmed-up cosine, crops and flips; it can stop and go on.

What is random in an epoch is a function of (seed, epoch, picture) alone. So the result depends neither on how often a
training was interrupted nor on how many processes prepare the pictures, and a checkpoint needs no generators' states.
"""

import argparse
import csv
import io
import math
from dataclasses import MISSING, asdict, dataclass, replace
from typing import Annotated, Any

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision.transforms import v2

from msat_det.base.config import Model
from msat_det.base.errors import InputError, lack_of_memory
from msat_det.base.progress import Progress
from msat_det.base.reader import Reader
from msat_det.base.settings import described, expanded
from msat_det.data import Dataset, build_dataset
from msat_det.measure.accuracy.topk import topk
from msat_det.models.classifiers import CLASSIFIERS, Network, Preprocess, find_preprocess
from msat_det.report.directory import RunDirectory
from msat_det.run.arguments import Parser, add_option
from msat_det.run.digests import images_digest
from msat_det.run.ownership import owned

MOMENTUM = 0.9
UNCHANGED = ("resume", "workers", "threads", "out")  # settings that do not decide what comes out


@dataclass(frozen=True)
class Recipe:
    """What decides a training, with the usual values for CIFAR-100."""

    model: Annotated[str, "a classifier's name (msat-det list classifiers)"]
    root: Annotated[str, "the data set's folder"]
    out: Annotated[str, "folder for checkpoint.pt, log.csv and weights.safetensors"]
    kind: Annotated[str, "reader of the data set, cifar100 or folders"] = "cifar100"
    train: Annotated[str, "split that is trained on"] = "train"
    test: Annotated[str, "split that is tested on after every epoch, never to choose anything"] = "test"
    epochs: Annotated[int, "passes through the training pictures"] = 300
    batch: Annotated[int, "pictures a step"] = 128
    rate: Annotated[float, "learning rate after the warm-up"] = 0.05
    decay: Annotated[float, "weight decay"] = 5e-4
    warmup: Annotated[int, "epochs in which the learning rate rises from 0"] = 5
    smoothing: Annotated[float, "label smoothing, 0 to 1"] = 0.1
    autoaugment: Annotated[bool, "AutoAugment's policy for CIFAR-10 after crop and flip"] = False
    cutout: Annotated[int, "side of the square that is blanked, pixels; 0 for none"] = 0
    seed: Annotated[int, "seed of weights, order and augmentation"] = 0
    workers: Annotated[int, "processes that prepare pictures"] = 0
    threads: Annotated[int | None, "CPU threads; as PyTorch finds it by default"] = None
    resume: Annotated[bool, "go on from the checkpoint in --out where there is one"] = False

    def __post_init__(self) -> None:
        for name, low, high in (
            *((name, 1, math.inf) for name in ("epochs", "batch")),
            *((name, 0, math.inf) for name in ("rate", "decay", "warmup", "cutout", "seed", "workers")),
            ("smoothing", 0, 1),
        ):
            if not low <= getattr(self, name) <= high:
                bounds = f"{low} or more" if high == math.inf else f"{low} to {high}"
                raise InputError(f"{name} is {getattr(self, name)}: give {bounds}")
        if self.threads is not None and self.threads < 1:
            raise InputError(f"threads is {self.threads}: give 1 or more")
        if self.kind not in ("cifar100", "folders", "imagenet"):
            raise InputError(f"kind is {self.kind!r}: give cifar100, folders or imagenet, which have classes")

    def rate_at(self, epoch: float) -> float:
        """The learning rate at a fractional epoch: linear up to ``rate``, then half a cosine down to 0."""
        if epoch < self.warmup:
            return self.rate * epoch / self.warmup
        return self.rate * (1 + math.cos(math.pi * (epoch - self.warmup) / max(self.epochs - self.warmup, 1))) / 2


class Pictures(TorchDataset):
    """All pictures of a data set in memory, as a network takes them: (3, h, w) float32 and the class.

    augment: a function of the uint8 picture, its randomness seeded by ``key`` and the picture's place; None for tests.
    """

    def __init__(self, dataset: Dataset, inputs: Preprocess, name: str):
        progress = Progress(range(len(dataset)), f"reading {name}", unit="image", leave=False)
        self.pixels = torch.stack([inputs.fit(dataset[i].image) for i in progress])
        self.labels = torch.tensor([dataset.target(id) for id in dataset.ids])
        self.inputs, self.augment, self.key = inputs, None, (0, 0)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.pixels[index]
        if self.augment is None:
            return self.inputs.normalise(image), self.labels[index]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(mixed(*self.key, index))
            return self.augment(image), self.labels[index]


def mixed(*key: int) -> int:
    """A seed out of several numbers."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])


def augmentation(recipe: Recipe, inputs: Preprocess) -> v2.Transform:
    """uint8 (3, s, s) → augmented float32 (3, s, s). What is cut out gets the mean colour.

    Crop, flip, AutoAugment (Cubuk et al. 2019), cutout (DeVries & Taylor 2017; here always whole within the picture).
    """
    steps: list[Any] = [v2.RandomCrop(inputs.crop, padding=inputs.crop // 8), v2.RandomHorizontalFlip()]
    if recipe.autoaugment:
        steps.append(v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10))
    steps.append(inputs.normalise)
    if recipe.cutout:
        if recipe.cutout >= inputs.crop:
            raise InputError(f"cutout is {recipe.cutout}: {recipe.model} sees {inputs.crop} pixels, give fewer")
        share = (recipe.cutout / inputs.crop) ** 2
        steps.append(v2.RandomErasing(1.0, scale=(share, share), ratio=(1.0, 1.0)))
    return v2.Compose(steps)


class TrainingDirectory(RunDirectory):
    """The output folder of a training; each file is written whole or not at all."""

    names = ("checkpoint.pt", "log.csv", "weights.safetensors")

    def write_checkpoint(
        self, net: nn.Module, optimiser: torch.optim.Optimizer, recipe: Recipe, images: list[str], log: list[dict]
    ) -> None:
        """log.csv and checkpoint.pt after an epoch, in this order: a training that goes on writes the line again."""
        table = io.StringIO()
        writer = csv.DictWriter(table, log[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(log)
        self.write("log.csv", table.getvalue())
        state = {"recipe": asdict(recipe), "images": images, "log": log}
        buffer = io.BytesIO()
        torch.save(state | {"net": net.state_dict(), "optimiser": optimiser.state_dict()}, buffer)
        self.write("checkpoint.pt", buffer.getvalue())

    def write_weights(self, net: nn.Module) -> None:
        """weights.safetensors: the state dict that ``model.weights`` takes."""
        tensors = {name: tensor.cpu().contiguous() for name, tensor in net.state_dict().items()}
        self.write("weights.safetensors", safetensors.torch.save(tensors))

    def read(self, net: nn.Module, optimiser: torch.optim.Optimizer, recipe: Recipe, images: list[str]) -> list[dict]:
        """Put back the last checkpoint, if there is one, and return its log. Raises InputError where it doesn't fit.

        images: ``images_digest`` of both splits.
        """
        file, weights = self.path / "checkpoint.pt", self.path / "weights.safetensors"
        if not file.is_file():
            if weights.exists():
                raise InputError(f"{weights} would be replaced, and no checkpoint is with it: give another --out DIR")
            return []
        if not recipe.resume:
            raise InputError(f"{self.path} holds a training: add --resume to go on, or give another --out DIR")
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
            old = state["recipe"]
            for name, value in asdict(recipe).items():
                if name not in UNCHANGED and old[name] != value:
                    raise InputError(f"{file} was trained with --{name} {old[name]}, not {value}: give the same")
            if state.get("images", images) != images:  # older checkpoints have none
                raise InputError(f"the pictures in {recipe.root} are not those with which {file} began: put them back")
            net.load_state_dict(state["net"])
            optimiser.load_state_dict(state["optimiser"])
            return state["log"]
        except InputError:
            raise
        except Exception as error:  # the unpickler raises a dozen types on damaged files
            if lack_of_memory(error):
                raise
            raise InputError(f"{file} is damaged ({type(error).__name__}): remove it to start anew") from error


def train(recipe: Recipe) -> dict[str, float]:
    """Train as the recipe says. Returns the last epoch's loss, top1 and top5; its weights are kept, not the best.

    Raises InputError for bad data, a folder that holds another training, and a loss that is no number any more.
    """
    network = CLASSIFIERS.find(recipe.model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(recipe.threads or torch.get_num_threads())
    directory = TrainingDirectory(recipe.out)
    with owned(directory), directory:
        return _train(recipe, network, directory, device)


def _train(recipe: Recipe, network: Network, directory: TrainingDirectory, device: torch.device) -> dict[str, float]:
    """``train`` in a directory that is its own."""
    splits = recipe.train, recipe.test
    sources = [build_dataset(recipe.kind, recipe.root, split, option="--root") for split in splits]
    if sources[0].classes != sources[1].classes:
        raise InputError(
            f"{recipe.train} and {recipe.test} in {recipe.root} differ in their classes: give matching ones"
        )

    torch.manual_seed(recipe.seed)
    net = network.build(len(sources[0].classes)).to(device).to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(net.parameters(), recipe.rate, MOMENTUM, weight_decay=recipe.decay, nesterov=True)
    images = [images_digest(source) for source in sources]
    log = directory.read(net, optimiser, recipe, images)
    inputs = find_preprocess(Model(recipe.model))
    augment = augmentation(recipe, inputs)
    pictures, tests = (Pictures(source, inputs, split) for source, split in zip(sources, splits, strict=True))
    pictures.augment = augment

    total = recipe.epochs * len(pictures)
    bar = Progress(total=total, initial=len(log) * len(pictures), desc=f"training {recipe.model}", unit="image")
    with bar, torch.backends.cudnn.flags(benchmark=False, deterministic=True):
        for epoch in range(len(log), recipe.epochs):
            loss = run_epoch(net, optimiser, pictures, recipe, epoch, device, bar)
            row = {"epoch": epoch + 1, "loss": round(loss, 4)} | accuracy(net, tests, recipe, device)
            log.append(row)
            directory.write_checkpoint(net, optimiser, recipe, images, log)
            bar.set_postfix(row, refresh=False)
    directory.write_weights(net)
    return log[-1]


def run_epoch(
    net: nn.Module,
    optimiser: torch.optim.Optimizer,
    pictures: Pictures,
    recipe: Recipe,
    epoch: int,
    device: torch.device,
    bar: Progress,
) -> float:
    """One pass through the training pictures. Returns the mean loss."""
    seed = mixed(recipe.seed, epoch)
    torch.manual_seed(seed)  # for dropout
    pictures.key = (recipe.seed, epoch)
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(seed)).tolist()
    rest = len(pictures) % recipe.batch if len(pictures) > recipe.batch else 0  # left out: too few for batch norm
    batches = loader(pictures, recipe, order[: len(pictures) - rest])
    net.train()
    losses = []
    for step, (images, labels) in enumerate(batches):
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate_at(epoch + (step + 0.5) / len(batches))
        images, labels = images.to(device, memory_format=torch.channels_last), labels.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = net(images)
        value = F.cross_entropy(logits.float(), labels, label_smoothing=recipe.smoothing)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        losses.append(value.detach())
        bar.update(len(images))
    bar.update(rest)
    loss = torch.stack(losses).mean().item()
    if not math.isfinite(loss):
        raise InputError(f"the loss is {loss} in epoch {epoch + 1}: give a lower --rate")
    return loss


def accuracy(net: nn.Module, pictures: Pictures, recipe: Recipe, device: torch.device) -> dict[str, float]:
    """top1 and top5 of the network on ``pictures``, percent."""
    net.eval()
    with torch.inference_mode():
        logits = [net(images.to(device)).float().cpu() for images, _ in loader(pictures, recipe)]
    return {name: round(value, 2) for name, value in topk(torch.cat(logits), pictures.labels).items()}


def loader(pictures: Pictures, recipe: Recipe, order: list[int] | None = None) -> DataLoader:
    """Batches of the pictures in the given order, or all of them as they come."""
    return DataLoader(
        pictures, recipe.batch, sampler=order, num_workers=recipe.workers, pin_memory=torch.cuda.is_available()
    )


def read_recipe(argv: list[str]) -> Recipe:
    """The command line → Recipe. Raises InputError; --help exits."""
    parser = Parser(
        "msat-det train",
        description="Trains a float classifier from scratch, on a GPU where there is one. Ctrl-C stops it; the same "
        "command with --resume goes on after the last finished epoch, to the same result.",
        epilog="example, where ~/data holds cifar-100-python/:\n"
        "  msat-det train --model vgg16_cifar --root ~/data --autoaugment --cutout 16 \\\n"
        "      --workers 8 --out runs/train/vgg16_cifar",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    for item, hint, text in described(Recipe):
        required = item.default is MISSING
        default = "" if required or item.default is None or hint is bool else f" (default: {item.default})"
        add_option(parser, item.name, hint, text + default, required=required)
    values = vars(parser.parse_args(argv))
    recipe = Reader("train_cls", by_hand=True).read(Recipe, values)
    return replace(recipe, root=str(expanded(recipe.root)), out=str(expanded(recipe.out)))


def main(argv: list[str]) -> None:
    """``msat-det train``: train and say where the weights are and what they reach."""
    recipe = read_recipe(argv)
    last = train(recipe)
    print(f"top1 {last['top1']:.2f}, top5 {last['top5']:.2f} on {recipe.test}; the weights are in {recipe.out}")
