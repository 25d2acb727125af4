"""Progress bars: live on a terminal, a line now and then in a log, none where nobody wants them."""

import os
import sys
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

SECONDS_OF_A_LOG = 30.0  # between two lines


class Progress(tqdm):
    """tqdm's bar. A log, which is no terminal, gets lines of its own: the first, the last, one in half a minute.

    With TQDM_DISABLE, which ``--quiet`` sets, there is none.
    """

    def __init__(self, *arguments: Any, **settings: Any):
        self.live = sys.stderr.isatty()
        if os.environ.get("TQDM_DISABLE"):
            settings["disable"] = True
        if not self.live:
            settings |= {"mininterval": SECONDS_OF_A_LOG, "maxinterval": SECONDS_OF_A_LOG}
        super().__init__(*arguments, **settings)

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> None:
        """What stands behind the bar; a log gets it with its next line."""
        super().set_postfix_str(s, refresh and self.live)

    def close(self) -> None:
        """The bar's end."""
        if not self.live and not self.disable:
            self.refresh()
            self.sp = None  # tqdm would add an empty line
        super().close()

    @classmethod
    def write(cls, s: str, file: Any = None, end: str = "\n", nolock: bool = False) -> None:
        """Print beside the bar, which a log does not get anew each time."""
        if sys.stderr.isatty():
            super().write(s, file, end, nolock)
        else:
            print(s, file=file, end=end)

    @staticmethod
    def status_printer(file: Any) -> Callable[[str], None]:
        """What writes the bar's text."""
        if sys.stderr.isatty():
            return tqdm.status_printer(file)
        return lambda text: print(text.strip(), file=file, flush=True) if text.strip() else None
