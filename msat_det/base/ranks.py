"""The processes that torchrun starts, called ranks: what each one takes, what they agree on, how they wait.

A process that was started alone is rank 0 of 1, for which all of this does nothing. Results travel as files
(``measure.batch_files``); over the network go only decisions, which GPU each has, and the statistics of the calibration
images. All lie in main memory, so that gloo carries them on machines with and without GPUs.
"""

import atexit
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from msat_det.base.errors import InputError

if TYPE_CHECKING:  # PyTorch is imported where it is used: the command line asks for the rank before it needs PyTorch
    from torch import Tensor

T = TypeVar("T")
PATIENCE = timedelta(days=30)  # the quickest rank waits for the slowest; the wait for a dead one ends at once


def count() -> int:
    """The number of ranks; 1 outside torchrun."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def rank() -> int:
    """This process's number, 0 … count() − 1. Rank 0 alone talks to the user and writes the run's files."""
    return int(os.environ["RANK"]) if count() > 1 else 0


def local_rank() -> int:
    """This process's number among those of its machine; 0 outside torchrun."""
    return int(os.environ["LOCAL_RANK"]) if count() > 1 else 0


def local_count() -> int:
    """The number of ranks on this machine; 1 outside torchrun."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if count() > 1 else 1


def share(items: Sequence[T]) -> Sequence[T]:
    """Every count()-th of the items: those that are this rank's to do."""
    return items[rank() :: count()]


def join() -> None:
    """Meet the other ranks; everything below needs that."""
    if count() > 1:
        import torch.distributed as dist

        if not dist.is_initialized():
            dist.init_process_group("gloo", timeout=PATIENCE)
            atexit.register(_leave)


def _leave() -> None:
    """Stop gloo's threads: a process that ends beside them may abort, and its exit status be lost."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def from_first(decide: Callable[[], T]) -> T:
    """What ``decide`` returns on rank 0, for every rank; the others wait for it."""
    box: list[Any] = [decide() if rank() == 0 else None]
    if count() > 1:
        import torch.distributed as dist

        with _peers():
            dist.broadcast_object_list(box, src=0)
    return box[0]


def from_all(mine: T) -> list[T]:
    """What every rank hands in, in their order, for every rank; all wait for the last one."""
    box: list[Any] = [mine] * count()
    if count() > 1:
        import torch.distributed as dist

        with _peers():
            dist.all_gather_object(box, mine)
    return box


def add_up(counts: "Iterable[Tensor]", maxima: "Iterable[Tensor]") -> None:
    """Shares of an observation → the whole, in place, on every rank. Counts and maxima do not depend on the order."""
    if count() > 1:
        import torch.distributed as dist

        with _peers():
            for histogram in counts:
                dist.all_reduce(histogram)
            for maximum in maxima:
                dist.all_reduce(maximum, dist.ReduceOp.MAX)


def wait(tick: Callable[[], object] = lambda: None) -> None:
    """Wait until every rank is here, and call ``tick`` ten times a second meanwhile."""
    if count() > 1:
        import torch.distributed as dist

        with _peers():
            barrier = dist.barrier(async_op=True)
            while not barrier.is_completed():
                tick()
                time.sleep(0.1)
            barrier.wait()


def is_first_to_tell() -> bool:
    """Whether no other rank has asked this yet: of an error that all of them meet, one line is enough."""
    if count() == 1:
        return True
    import torch.distributed as dist

    where = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        store = dist.TCPStore(*where, is_master=False, timeout=timedelta(seconds=20))
        return store.add(f"msat-det/told/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", 1) == 1
    except RuntimeError:  # torchrun itself is gone: better twice than never
        return True


@contextmanager
def _peers() -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        atexit.unregister(_leave)  # which would wait for what the others have not answered
        if not isinstance(error, RuntimeError):
            raise
        raise InputError(
            "another process of this run has ended: its own message says why; --resume goes on from here"
        ) from error
