"""Names that users write: tables of what has one, and what to say of a name that is in none of them."""

import difflib
from collections.abc import Iterable
from typing import TypeVar

from msat_det.base.errors import InputError
from msat_det.base.files import show

T = TypeVar("T")


def hint(word: object, names: Iterable[str], otherwise: str, likeness: float = 0.6) -> str:
    """``did you mean NAME?`` for the nearest name in any case; ``otherwise`` where none is that like (0 to 1)."""
    lower = {name.lower(): name for name in names}
    near = difflib.get_close_matches(str(word).lower(), lower, 1, likeness)
    return f"did you mean {lower[near[0]]}?" if near else otherwise


class Names(dict[str, T]):
    """Things by name, in the order in which they were registered. what: the word for one of them in messages."""

    def __init__(self, what: str, things: dict[str, T] | None = None):
        super().__init__(things or {})
        self.what = what

    def find(self, name: object) -> T:
        """The thing of that name. Raises InputError with the nearest name."""
        if not isinstance(name, str) or name not in self:
            known = ", ".join(self)
            listed = f"the {self.what}s are {known}" if len(known) < 600 else f"`msat-det list {self.what}s` shows all"
            raise InputError(f"no {self.what} {show(name)}: {hint(name, self, listed)}")
        return self[name]


# of convolutions, potentials are float32 in all of them
PRECISIONS = Names("precision", {name: name for name in ("float32", "tf32x3", "tf32", "bf16", "fp16")})
