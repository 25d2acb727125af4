"""``msat-det fetch``: data and weights by name, each whole and verified or not there at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from msat_det.base.errors import InputError
from msat_det.base.files import file_digest, one_line, show, write_whole
from msat_det.base.names import hint
from msat_det.base.progress import Progress
from msat_det.base.settings import data_root, expanded
from msat_det.data.catalogue import CATALOGUE, INSTEAD, Entry, Item, Source, instead
from msat_det.data.download import download, matches
from msat_det.data.unpack import unpack
from msat_det.run.arguments import Parser
from msat_det.run.locks import POSSIBLE, lock

ABOUT = """\
Fetches data sets and weights by name into the folder that --data.root of a run then names. Files that are there stay
as they are, an interrupted transfer resumes where it stopped, and everything is checked against a known checksum. If
its publisher names none, the first copy is trusted, and later ones must have its SHA-256, which is kept beside it."""
EPILOG = """\
imagenet says how to lay out ImageNet, which only its owners may hand out. torchvision:MODEL, or with the name of one of
its weights torchvision:MODEL:WEIGHTS, goes into torch.hub's cache, where torchvision looks for it.

environment variables:
  MSAT_DET_MIRROR=https://mirror
      asks https://mirror/HOST/PATH for https://HOST/PATH
  MSAT_DET_MIRROR=https://from=https://to
      replaces that beginning of an address; separate several by blanks

examples:
  msat-det fetch --list
  msat-det fetch coco2017 yolo-nano-coco
  msat-det fetch voc2007 --root /data/voc"""
IMAGENET_CLASSES = 1_000
MORE = "msat-det fetch --list shows all names"


def fetch(argv: list[str]) -> None:
    """The command. Raises InputError for a name, a transfer, an archive or a folder that is not as it must be."""
    parser = Parser("msat-det fetch", "NAME … [--root DIR]", ABOUT, EPILOG, more=MORE)
    parser.add_argument("names", nargs="*", metavar="NAME", help="what to fetch; --list shows what there is")
    parser.add_argument(
        "--list", action="store_true", help="show all names, what they are and where they go, and what can't be fetched"
    )
    text = f"folder for all but torchvision's weights, which go to its own (default {data_root()})"
    parser.add_argument("--root", metavar="DIR", help=text.replace("%", "%%"))
    given = parser.parse_args(argv)
    if given.list:
        if given.names or given.root:
            raise InputError(f"{(given.names or ['--root'])[0]} beside --list, which shows all names: leave it out")
        print(listing())
        return
    if not given.names:
        _refuse("nothing named")
    if given.root and all(name.startswith("torchvision:") for name in given.names):
        raise InputError("torchvision's weights go to its own folder, which TORCH_HOME names: leave --root out")
    for name in given.names:
        root, entry = find(name, expanded(given.root or data_root()))
        try:
            fetch_entry(entry, root)
        except OSError as error:
            raise InputError(
                f"can't write {one_line(error.filename or root)} ({error.strerror or one_line(error)}): free space, "
                "mend the folder's rights or give another one with --root DIR"
            ) from error


def find(name: str, root: Path) -> tuple[Path, Entry]:
    """Where a name's items go and what they are. Raises InputError for an unknown name."""
    if name.startswith("torchvision:"):
        return torchvision_weights(name)
    if name == "imagenet":
        return root, imagenet(root)
    for place in INSTEAD:
        if name in (place, *place.split("/")[-1:], Path(place).stem):
            raise InputError(f"{place} can't be fetched: run {instead(place, root)}")
    if name not in CATALOGUE:
        _refuse(f"nothing is called {show(name)}: {hint(name, [*CATALOGUE, 'imagenet'], 'take a name of the list')}")
    return root, CATALOGUE[name]


def fetch_entry(entry: Entry, root: Path) -> None:
    """Make every item of ``entry`` whole below ``root``, and say so."""
    root.mkdir(parents=True, exist_ok=True)
    with alone(root):
        for item in entry.items:
            target = root / item.path
            if target.exists():
                check(item, root)
                drop_stage(item, root)
                print(f"{target} is there")
            else:
                fetch_item(item, root)
                print(f"{target} fetched")


def fetch_item(item: Item, root: Path) -> None:
    """Bring the item together in a folder of its own and move it to its place in one step.

    An archive that has come whole is not fetched again if unpacking it was cut short.
    """
    stage = stage_of(item, root)
    whole = stage / "whole"
    made = whole / item.path
    if item.unpacked:
        for source in item.sources:
            download(source, stage / source.name)
        shutil.rmtree(whole, ignore_errors=True)
        for source in item.sources:
            unpack(stage / source.name, whole, item.path, item.unpacked)
    else:
        many = len(item.sources) > 1
        for source in Progress(item.sources, item.path, unit=" files", disable=None if many else True):
            download(source, made / source.name if many else made, show=not many)
    if count(made) < item.least:
        raise InputError(
            f"{', '.join(source.name for source in item.sources)}: {count(made)} files in {item.path}, at least "
            f"{item.least} belong there: give another mirror with MSAT_DET_MIRROR"
        )
    trust(item, whole, root)
    keep_sums(item, whole, root)
    if hasattr(os, "sync"):  # not on Windows
        os.sync()  # a power cut must not leave the folder with empty files in it
    (root / item.path).parent.mkdir(parents=True, exist_ok=True)
    made.replace(root / item.path)
    drop_stage(item, root)


def stage_of(item: Item, root: Path) -> Path:
    """The folder in which an item comes together."""
    return root / ".fetching" / item.path.replace("/", "_")


def drop_stage(item: Item, root: Path) -> None:
    """Remove that folder, or what a fetch has left of it that was killed when the item was in its place."""
    stage = stage_of(item, root)
    shutil.rmtree(stage, ignore_errors=True)
    with suppress(OSError):  # another item's, begun and not ended
        stage.parent.rmdir()


def check(item: Item, root: Path) -> None:
    """Raise InputError if what lies at the item's place is not it: half a folder, another file."""
    target = root / item.path
    found = count(target)
    if found < item.least:
        raise InputError(
            f"{target} is incomplete, {found} files of at least {item.least}: move it away and fetch it again"
        )
    for source in () if item.unpacked else item.sources:
        file = target if target.is_file() else target / source.name
        if not file.is_file() or not matches(file, source.checksum):
            raise InputError(f"{file} is another file, or missing: move {target} away and fetch it again")
    trust(item, root, root)


def trust(item: Item, folder: Path, root: Path) -> None:
    """Compare files without a known checksum, below ``folder``, with the SHA-256 that their first copies had.

    The sums are in ``<path>.sha256`` below ``root``, which ``sha256sum -c`` reads. Raises InputError on a difference.
    """
    file = sums_file(item, root)
    if not file.exists():
        return
    sums = first_sums(item, folder)
    for line in file.read_text("utf-8").splitlines():
        digits, _, name = line.partition("  ")
        if sums.get(name) != digits:
            raise InputError(
                f"{folder / name} is not what the first fetch brought: delete {file} if you trust the new one, else "
                "move the folder away and fetch it again"
            )


def keep_sums(item: Item, folder: Path, root: Path) -> None:
    """Write the first copies' SHA-256 for ``trust``; nothing where checksums are known or the sums are kept."""
    sums, file = first_sums(item, folder), sums_file(item, root)
    if sums and not file.exists():
        text = "".join(f"{digits}  {name}\n" for name, digits in sums.items())
        write_whole(file, lambda part: part.write_text(text, "utf-8"))


def sums_file(item: Item, root: Path) -> Path:
    return root / f"{item.path}.sha256"


def first_sums(item: Item, folder: Path) -> dict[str, str]:
    """Path below ``folder`` → SHA-256 of the item's files that have no known checksum and are there."""
    made = folder / item.path
    files = [made if made.is_file() else made / source.name for source in item.sources if not source.checksum]
    return {file.relative_to(folder).as_posix(): file_digest(file) for file in files if file.is_file()}


def count(path: Path) -> int:
    """The number of files at or below a path; 0 where there is nothing."""
    return int(path.is_file()) or sum(len(files) for _, _, files in os.walk(path))


@contextmanager
def alone(root: Path) -> Iterator[None]:
    """Keep a second fetch out of the same folder: both would write the same unfinished files."""
    if not POSSIBLE:
        yield
        return
    handle = os.open(root, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            try:
                lock(handle)
            except BlockingIOError:
                raise InputError(f"another fetch writes to {root}: wait for its end or give another --root") from None
        yield
    finally:
        os.close(handle)


def torchvision_weights(name: str) -> tuple[Path, Entry]:
    """``torchvision:MODEL[:WEIGHTS]`` → torch.hub's folder and the weights file, whose name ends in its SHA-256."""
    from torch import hub  # only now: PyTorch takes seconds to import
    from torchvision.models import list_models

    from msat_det.models.weights import published

    model, _, weights = name.removeprefix("torchvision:").partition(":")
    if model not in list_models():
        raise InputError(f"torchvision has no model {show(model)}: {hint(model, list_models(), '', 0)}")
    enum = published(model, weights or "DEFAULT")
    file = Path(enum.url).name
    digits = hub.HASH_REGEX.search(file)
    size = int(enum.meta.get("_file_size", 2_000) * 1_100_000) + 1_000_000  # a bound: torchvision tells it in MB
    item = Item(file, (Source(enum.url, size, f"sha256:{digits[1]}" if digits else ""),))
    return Path(hub.get_dir(), "checkpoints"), Entry(f"{model}'s weights", (item,))


def imagenet(root: Path) -> Entry:
    """Nothing to fetch where the folders are there; else InputError that says what belongs where."""
    folders = [path for path in root.glob("val/*") if path.is_dir()]
    if len(folders) == IMAGENET_CLASSES:
        return Entry("ImageNet's validation images, which are there", ())
    raise InputError(
        f"ImageNet can't be fetched by name, {root}/val has {len(folders)} of {IMAGENET_CLASSES} folders: get "
        "ILSVRC2012_img_val.tar with an account of https://image-net.org, put every image into DIR/val/WNID/ "
        "(n01440764, …; the sorted WNIDs are the classes 0 to 999) and run with --data.kind imagenet --data.root DIR"
    )


def listing() -> str:
    """A line for every name: bytes to transfer, what it is, where it goes, checksum, licence."""
    rows = []
    for name, entry in CATALOGUE.items():
        sources = [source for item in entry.items for source in item.sources]
        size = sum(source.size for source in sources if source.checksum) / 1e6
        kinds = sorted({source.checksum.partition(":")[0] or "first copy trusted" for source in sources})
        where = ", ".join(dict.fromkeys(f"{Path(item.path).parts[0]}/" for item in entry.items))
        text = f"{entry.about} → {where} ({', '.join([*kinds, entry.licence])})"
        rows.append((name, f"{size:,.1f} MB" if size else "", text))
    for place, other in INSTEAD.items():
        rows.append((Path(place).stem, "", f"can't be fetched: made from {other.page} ({other.licence})"))
    rows.append(("imagenet", "", "how to lay out ImageNet's validation images → val"))
    rows.append(("torchvision:MODEL[:WEIGHTS]", "", "weights of a torchvision model → torch.hub's cache (sha256)"))
    return "\n".join(f"{name:<32}{size:>11}  {text}" for name, size, text in rows)


def _refuse(message: str) -> None:
    raise InputError(f"{message} ({MORE})")
