"""The reader of plain values: a document to the letter, a person by what is meant, and one line for anything else."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msat_det.base.errors import InputError
from msat_det.base.reader import Reader, wanted

Word = Literal["low", "high"]


@dataclass
class Inner:
    x: float


@dataclass
class Outer:
    count: int = 1
    share: float = 0.5
    word: Word | None = None
    flags: tuple[bool, ...] = ()
    pair: tuple[float, float] = (0.0, 0.0)
    names: list[str] = field(default_factory=list)
    many: Sequence[float] = ()
    inner: Inner | None = None


DOCUMENT, PERSON = Reader("file"), Reader("file", by_hand=True)


def test_a_document_is_taken_to_the_letter() -> None:
    values = {"count": 3, "share": 1, "word": "low", "flags": [True], "pair": [1, 2.5], "names": ["a"], "many": [1]}
    found = DOCUMENT.read(Outer, values | {"inner": {"x": 2}})
    assert found == Outer(3, 1.0, "low", (True,), (1.0, 2.5), ["a"], (1.0,), Inner(2.0))
    assert [type(value) for value in (found.share, found.pair[0], found.inner.x)] == [float] * 3
    assert DOCUMENT.read(Outer, {}) == Outer()


@pytest.mark.parametrize(
    ("key", "value", "mend"),
    [
        ("count", "3", "a whole number"),
        ("count", True, "a whole number"),
        ("count", 2**31, "a whole number"),
        ("share", "0.5", "a number"),
        ("share", math.nan, "a number"),
        ("share", 10**400, "a number"),
        ("word", "middle", "one of low, high"),
        ("word", "null", "one of low, high"),
        ("flags", ["true"], "a list"),
        ("flags", True, "a list"),
        ("pair", [1], "a list of numbers such as 2,1,0.5"),
        ("names", "a,b", "a list of names"),
        ("names", [], "a list of names"),
        ("inner", 1, "a mapping of its fields"),
        ("inner", {"x": "y"}, "a number"),
    ],
)
def test_what_a_document_may_not_hold(key: str, value: object, mend: str) -> None:
    with pytest.raises(InputError, match=rf"^file: {key}(\.x)? is .*: give {mend}$"):
        DOCUMENT.read(Outer, {key: value})


@pytest.mark.parametrize(
    ("hint", "value", "meant"),
    [
        (int, "-3", -3),
        (float, "1e-2", 0.01),
        (bool, "On", True),
        (bool, "false", False),
        (str, 2007, "2007"),
        (int | None, "null", None),
        (str | None, "none", None),
        (Word, "high", "high"),
        (Literal["none"] | float, "none", "none"),
        (Literal["none"] | float, "0.25", 0.25),
        (list[int], "[4, 8]", [4, 8]),
        (list[int], 4, [4]),
        (tuple[float, ...], (2, "1"), (2.0, 1.0)),
        (tuple[str, ...], "conv1, conv2,", ("conv1", "conv2")),
        (tuple[str, ...], [], ()),
        (float | dict[int, float] | None, {4: 3, 8: 4.5}, {4: 3.0, 8: 4.5}),
        (list[dict], [{"label": "a"}], [{"label": "a"}]),
    ],
)
def test_what_a_person_means(hint: object, value: object, meant: object) -> None:
    found = PERSON.value(hint, value, "key")
    assert (found, type(found)) == (meant, type(meant))


@pytest.mark.parametrize(
    ("hint", "value", "mend"),
    [
        (int, "1e3", "a whole number"),
        (int, 1.0, "a whole number"),
        (int, "9" * 19, "a whole number"),
        (float, "nan", "a number"),
        (float, "-inf", "a number"),
        (float, math.inf, "a number"),
        (float, True, "a number"),
        (bool, 1, "true or false"),
        (str, "", "a text"),
        (str, "a\0", "a text"),
        (str, True, "a text"),
        (list[int], "4,,8", "whole numbers such as 4,8,16"),
        (tuple[str, ...], 3, "a list of names"),
        (tuple[str, ...], None, "a list of names"),
        (Word | float, "middle", "one of low, high or a number"),
        (float | dict[int, float], {"4": 1}, "a number or one for each T as in {4: 3.1, 8: 4.8}"),
        (float | dict[int, float], {}, "a number or one for each T as in {4: 3.1, 8: 4.8}"),
        (list[dict], {"label": "a"}, "a list of {label, method, …options}"),
    ],
)
def test_what_a_person_may_not_write(hint: object, value: object, mend: str) -> None:
    with pytest.raises(InputError) as caught:
        PERSON.value(hint, value, "key")
    assert str(caught.value).endswith(f": give {mend}")
    assert wanted(hint) == mend


def test_fields_that_are_unknown_missing_or_out_of_range() -> None:
    with pytest.raises(InputError, match=r"^file: there is no 'cuont': did you mean count\?$"):
        PERSON.read(Outer, {"cuont": 1})
    with pytest.raises(InputError, match=r"^file: inner\.x is missing: save it again$"):
        DOCUMENT.read(Outer, {"inner": {}})
    bounded = Reader("file", {(Outer, "many"): (0, 1)})
    assert bounded.read(Outer, {"many": [0, 1]}).many == (0.0, 1.0)
    with pytest.raises(InputError, match=r"^file: many is \[0, 1\.5\]: give values from 0 to 1$"):
        bounded.read(Outer, {"many": [0, 1.5]})


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from([DOCUMENT, PERSON]), st.dictionaries(st.sampled_from([*vars(Outer())]), PLAIN))
def test_whatever_comes_through_is_of_its_type(reader: Reader, values: dict) -> None:
    try:
        found = reader.read(Outer, values)
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return
    assert type(found.count) is int
    assert math.isfinite(found.share)
    assert found.word in ("low", "high", None)
    assert all(type(flag) is bool for flag in found.flags)
    assert all(type(name) is str for name in found.names)
    assert all(math.isfinite(number) for number in (*found.pair, *found.many))
