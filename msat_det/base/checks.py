"""Numbers are checked where they enter, by one function, so that each is refused in the same words."""

import math
import numbers
from collections.abc import Sequence
from typing import Any, TypeVar

from torch import Tensor

from msat_det.base.errors import InputError
from msat_det.base.files import show

T = TypeVar("T")


def present(value: T | None) -> T:
    """The value, where only a fault of ours could make it None. Raises TypeError."""
    if value is None:
        raise TypeError("a value that must be there is None")
    return value


def check_number(
    name: str,
    value: Any,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    above: bool = False,
    whole: bool = False,
    words: str = "",
) -> None:
    """Raise InputError, naming it, for what is no finite number from ``low`` (``above``: without it) to ``high``.

    whole: it must be an int. words: what else may be given, said before the number.
    """
    kind = numbers.Integral if whole else numbers.Real
    fits = isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)
    if fits and (low < value if above else low <= value) and value <= high:
        return
    raise InputError(f"{name} is {show(value)}: give {words}{_wanted(low, high, above, whole)}")


def _wanted(low: float, high: float = math.inf, above: bool = False, whole: bool = False) -> str:
    number = "a whole number" if whole else "a number"
    if high < math.inf:
        return f"{number} above {low:g}, at most {high:g}" if above else f"{number} from {low:g} to {high:g}"
    if low > -math.inf:
        return f"{number} above {low:g}" if above else f"{number} of at least {low:g}"
    return number


def check_percentile(name: str, value: Any) -> None:
    """Raise InputError for what is no percentile, a fraction such as .999 among them."""
    check_number(name, value, 0, 100, above=True)
    if value <= 1:
        raise InputError(f"{name} is {value:g}, which looks like a fraction: give {100 * value:.10g}")


def check_values(name: str, value: Any, low: float = -math.inf, over_time: bool = False) -> None:
    """Raise InputError for what is no float tensor () or (C,) of finite numbers, none of them below ``low``.

    over_time: it may be (K, C), too.
    """
    wanted = "one finite number for the layer or one for each channel" + (f", at least {low:g}" if low == 0 else "")
    if not isinstance(value, Tensor):
        raise InputError(f"{name} is {show(value)}: give a tensor, {wanted}")
    if value.dim() > 1 + over_time or value.numel() == 0 or not value.is_floating_point():
        found = f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
        raise InputError(f"{name} is {found}: give a float tensor () or (C,), {wanted}")
    wrong = value[~(value.isfinite() & (value >= low))]
    if wrong.numel():
        raise InputError(f"{name} holds {wrong.flatten()[0].item():g}: give {wanted}")


def check_numbers(name: str, value: Any, low: float, *, above: bool = False, whole: bool = False) -> None:
    """Raise InputError for what is no sequence of one number or more, each as ``check_number`` has it."""
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) == 0:
        raise InputError(f"{name} is {show(value)}: give a list, each of it {_wanted(low, above=above, whole=whole)}")
    for number in value:
        check_number(f"one of {name}", number, low, above=above, whole=whole)
