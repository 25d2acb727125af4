"""Fuzz the readers: ``python tests/fuzz/run.py --inputs 100000 [--only NAME,NAME] [--seed N] [--json FILE]``.

Each reader runs in a process of its own, under a limit of memory and of time, and reads mutations of its seeds. A
mutation that ends in a new way (other lines that raise, another message) becomes a seed in its turn, as do some of
those that are read. An input that makes a reader do what it must not do is kept in tests/fuzz/found/NAME, and read
again by every later run, and by the tests.
"""

import argparse
import base64
import hashlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402 (only now: one thread)
from guard import OUTSIDE, Guard, Outcome, limit_memory, peak, resident  # noqa: E402
from mutate import Case, mutate  # noqa: E402
from readers import READERS, Reader  # noqa: E402
from seeds import image  # noqa: E402

from msat_det.base.settings import PROJECT  # noqa: E402

FOUND = HERE / "found"
FOLDERS = ("root", "outside", "elsewhere")
POOL = 3000  # seeds at most
MEMORY = Path("/dev/shm")  # a disk in memory, where there is one: laying a case out takes a third of the time
FULL = 512 << 20  # bytes of seeds and of what libraries keep, after which a new process goes on
OURS = 4  # exit status: the fuzzer itself is wrong
ENDLESS = {-signal.SIGPROF: "hang", -signal.SIGALRM: "waits for ever"}  # exit statuses
MOST_FAULTS = 40  # of different kinds, after which a reader is given up


@dataclass
class Report:
    """What fuzzing one reader has shown. outcomes: ways to end, counted. faults: {what: input number}."""

    inputs: int = 0
    read: int = 0
    ways: int = 0
    slowest: float = 0.0
    peak: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    kinds: Counter = field(default_factory=Counter)


class Workplace:
    """A folder with ``root``, where cases are laid out, beside ``outside``, where nothing may be touched, and
    ``elsewhere``, where a case's links may lead: they are its owner's."""

    def __init__(self, path: Path):
        path = path.resolve()
        self.path, self.root, self.outside, self.elsewhere = path, *(path / name for name in FOLDERS)
        self.outside.mkdir()
        (self.elsewhere / "deep").mkdir(parents=True)
        for name in ("1.jpg", "deep/2.jpg"):
            (self.elsewhere / name).write_bytes(image())
        (self.elsewhere / "deep/root").symlink_to(self.root)
        for suffix in ("jpg", "xml", "txt", "yaml", "safetensors", "json", "png", "cfg", "pt"):
            (self.outside / f"secret.{suffix}").write_bytes(image() if suffix == "jpg" else b"secret")

    def lay(self, case: Case) -> None:
        """Make ``root`` hold this case. What the file system refuses is left out."""
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir(exist_ok=True)
        for path, content in sorted(case.items(), key=lambda item: "@" in item[0]):  # plain files first
            name, _, kind = path.partition("@")
            target = self.root / os.fsdecode(name.encode("utf-8", "surrogatepass"))
            try:
                for folder in reversed(target.parents[: len(Path(name).parts) - 1]):
                    folder.mkdir(exist_ok=True)  # one by one: Python's own way is a recursion
                if kind == "link" and Path(os.path.realpath(target.parent)).is_relative_to(self.root):
                    target.symlink_to(os.fsdecode(content))
                elif kind == "pipe":
                    os.mkfifo(target)
                elif kind == "folder":
                    target.mkdir()
                elif not kind:
                    target.write_bytes(content)
            except (OSError, ValueError):
                continue


def signature(outcome: Outcome) -> tuple:
    """Outcomes of the same signature are one way to end."""
    words = re.sub(r"'[^']*'|\"[^\"]*\"|[\d.]+|/\S+", "_", outcome.message)[:60]
    return outcome.kind, outcome.trace, words


def fuzz(name: str, reader: Reader, begin: int, inputs: int, seed: int, place: Workplace, tell: int) -> None:
    """The forked process: reads, and tells each input's end as a line of JSON on the file descriptor ``tell``.

    It begins with the seeds, and, if its ``begin`` is 0, with the inputs that have ever shown a fault.
    """
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    pool = reader.seeds()
    for case in pool:  # whatever is imported late is imported now; and the seeds are valid
        place.lay(case)
        reader.read(place.root)
    if begin == 0:
        pool += [load(file.read_bytes()) for file in sorted((FOUND / name).glob("*.json"))]
    first, good = iter(pool.copy()), reader.seeds()
    guard = Guard(place.root, place.outside, place.elsewhere, reader.writes)
    limit_memory()
    held = resident()
    random, ways, current = Random(f"{name} {seed} {begin}"), set(), place.path / "current"
    with os.fdopen(tell, "w", buffering=1) as out:
        for number in range(begin, inputs):
            start = random.choice(good if random.random() < 0.7 else pool)
            case = next(first, None) or mutate(random, start, reader.kinds, reader.structure, reader.links)
            current.write_bytes(dump(case))
            place.lay(case)
            links = any(path.endswith("@link") for path in case)
            outcome = guard.watch(reader.read, links)
            if outcome.fault == OUTSIDE:  # or it was another process, such as a search through all folders
                place.lay(case)
                outcome = guard.watch(reader.read, links)
            way = signature(outcome)
            small = sum(map(len, case.values())) < 1 << 16
            if way not in ways:
                ways.add(way)
                if small and len(pool) < POOL:
                    pool.append(case)
            elif outcome.kind == "read" and small and len(good) < POOL and random.random() < 0.05:
                good.append(case)
            if outcome.fault:
                shutil.copy(current, place.path / f"fault {number}")
            out.write(json.dumps([outcome.kind, outcome.seconds, peak(), len(ways), outcome.fault, number]) + "\n")
            if "took" in outcome.fault[:5] or resident() > held + FULL:
                os._exit(3)  # the most memory ever held can't be forgotten otherwise, nor can torch.fx forget a graph


def run(name: str, inputs: int, seed: int, keep: bool = True) -> Report:
    """Fuzz one reader, in as many processes after each other as it takes."""
    report = Report()
    while report.inputs < inputs and len(report.faults) < MOST_FAULTS:
        with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
            place = Workplace(Path(folder))
            out, tell = os.pipe()
            child = os.fork()
            if not child:
                os.close(out)
                status = 1
                try:
                    fuzz(name, READERS[name], report.inputs, inputs, seed, place, tell)
                    status = 0
                except Exception:  # noqa: BLE001 (of ours, not the reader's; the process ends in the next line)
                    traceback.print_exc()
                    status = OURS
                finally:
                    os._exit(status)
            os.close(tell)
            with os.fdopen(out) as lines:
                for line in lines:
                    kind, seconds, memory, ways, fault, number = json.loads(line)
                    report.inputs += 1
                    report.read += kind == "read"
                    report.kinds[kind] += 1
                    report.slowest, report.peak = max(report.slowest, seconds), max(report.peak, memory)
                    report.ways = max(report.ways, ways)
                    if fault:
                        blame(report, name, fault, place.path / f"fault {number}", keep)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if status not in (0, 3):
                reason = ENDLESS.get(status, f"died of {status}")
                if status == OURS:
                    raise SystemExit(f"{name}: a seed can't be read, or the mutation of one is wrong")
                report.inputs += 1
                if reason in ENDLESS.values() and not hangs_again(READERS[name], place):
                    print(f"  {name}: input {report.inputs} ended as {reason!r} once, not again", file=sys.stderr)
                    continue
                blame(report, name, reason, place.path / "current", keep)
    return report


def hangs_again(reader: Reader, place: Workplace) -> bool:
    """Whether the current input takes as long in another process: where a virtual machine stands still, its clock
    charges whoever was running, and a process may have been stopped."""
    child = os.fork()
    if not child:
        try:
            place.lay(reader.seeds()[0])
            reader.read(place.root)  # imports what is imported late
            place.lay(load((place.path / "current").read_bytes()))
            Guard(place.root, place.outside, place.elsewhere, reader.writes).watch(reader.read)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) in ENDLESS


def blame(report: Report, name: str, fault: str, file: Path, keep: bool) -> None:
    """Note a fault once, and keep its input, with nothing in it of the machine that found it."""
    known = re.sub(r"[\d.]+|'[^']*'|/\S+", "_", fault)[:90]
    if known in report.faults:
        return
    report.faults[known] = report.inputs
    content = dump(anonymous(load(file.read_bytes()), PROJECT, Path.home(), Path(sys.prefix), file.parent))
    digest = hashlib.sha256(content).hexdigest()[:12]
    print(f"  {name}: {fault}  [{digest}]", file=sys.stderr, flush=True)
    if keep:
        (FOUND / name).mkdir(parents=True, exist_ok=True)
        (FOUND / name / f"{digest}.json").write_bytes(content)


def anonymous(case: Case, *folders: Path) -> Case:
    """The case with other names of the same length for the folders, so that a fault that hangs on offsets stays one."""
    for folder in map(os.fsencode, folders):
        other = re.sub(rb"[^/]", b"x", folder)
        case = {path: content.replace(folder, other) for path, content in case.items()}
    return case


def dump(case: Case) -> bytes:
    """A case as JSON: text as it is, anything else in base 64."""
    plain = {}
    for path, content in case.items():
        try:
            plain[path] = content.decode()
        except UnicodeDecodeError:
            plain[path] = [base64.b64encode(content).decode()]
    return json.dumps(plain).encode()


def load(content: bytes) -> Case:
    found = json.loads(content)
    return {
        path: base64.b64decode(data[0]) if isinstance(data, list) else data.encode() for path, data in found.items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz the readers.")
    parser.add_argument("--inputs", type=int, default=1000, metavar="N", help="inputs for each reader")
    parser.add_argument("--only", default=",".join(READERS), metavar="NAME,NAME", help="readers: " + ", ".join(READERS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table there as JSON, too")
    parser.add_argument("--forget", action="store_true", help="do not keep the inputs that show a fault")
    arguments = parser.parse_args()
    table = {}
    print(f"{'reader':16}{'inputs':>9}{'read':>9}{'ways':>6}{'faults':>8}{'slowest s':>11}{'peak MiB':>10}")
    for name in arguments.only.split(","):
        found = run(name, arguments.inputs, arguments.seed, not arguments.forget)
        print(
            f"{name:16}{found.inputs:9}{found.read:9}{found.ways:6}{len(found.faults):8}{found.slowest:11.2f}"
            f"{found.peak >> 20:10}",
            flush=True,
        )
        table[name] = vars(found)
    if arguments.json:
        arguments.json.write_text(json.dumps(table))
    return int(any(found["faults"] for found in table.values()))


if __name__ == "__main__":
    sys.exit(main())
