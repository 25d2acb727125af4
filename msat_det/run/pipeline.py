"""On a GPU, what one network has found is read while the next one is simulated."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch


class Pipeline:
    """Reads what has been launched on a GPU when the next thing is launched, one behind; on other devices at once.

    Decoding waits for the GPU in its middle and counts are priced on the CPU, both for milliseconds in which the GPU
    would have nothing to do. So reading has a stream of its own, which waits for what is read but not for what follows
    it, and comes first where both have work. At most two networks' outputs are on the GPU.

    Whatever ends the block, everything launched in it is read first.
    """

    def __init__(self, device: torch.device):
        self.device, self.waiting = device, list[Callable[[], None]]()
        cuda = device.type == "cuda" and torch.cuda.is_available()
        self.stream = torch.cuda.Stream(device, priority=-1) if cuda else None

    def __enter__(self) -> "Pipeline":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        try:
            self.catch_up()
        except RuntimeError:  # as of a GPU that has failed: then what it failed at tells more
            if kind is None:
                raise

    def read(self, call: Callable[[], None]) -> None:
        """Have ``call`` read what has just been launched, and read what was launched before that."""
        if self.stream is None:
            self.catch_up()
        else:
            launched = torch.cuda.current_stream(self.device).record_event()
            self.catch_up()
            self.stream.wait_event(launched)
        self.after(call)

    def after(self, call: Callable[[], None]) -> None:
        """Have ``call`` follow what is to be read so far; it does not if that fails."""
        self.waiting.append(call)
        if self.device.type != "cuda":
            self.catch_up()

    def catch_up(self) -> None:
        """Read everything launched so far."""
        calls, self.waiting = self.waiting, []
        with nullcontext() if self.stream is None else torch.cuda.stream(self.stream):
            for call in calls:
                call()
        if self.stream is not None:
            self.stream.synchronize()  # from here on the simulation may have that memory
