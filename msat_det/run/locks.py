"""Locks on open files and folders. The operating system lifts one when its process ends, however it ends."""

from typing import IO

try:
    import fcntl
except ImportError:  # Windows: nothing keeps a second process out
    fcntl = None  # type: ignore[assignment]

POSSIBLE = fcntl is not None


def lock(file: IO | int, shared: bool = False) -> None:
    """Take the lock, alone or with others that share it, or raise BlockingIOError where somebody else holds it.

    OSError: the file system has no locks. Does nothing on a system without them.
    """
    if fcntl is not None:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
