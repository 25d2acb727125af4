"""The colours that mean the same in every picture: those of classes, in the order in which a network names them."""

from collections.abc import Iterable

# Okabe and Ito's colours without yellow and black, then two of Tol's: told apart by colour-blind readers.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#882255", "#999933"]
COLOURS_UNDER_WHITE = {"#0072B2", "#D55E00", "#009E73", "#882255"}  # dark enough for white text
INK = "#333333"


def class_colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for each class by its place; a ninth class shares the first one's."""
    return {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(dict.fromkeys(names))}


def text_on(colour: str) -> str:
    """The colour of text that can be read on one of COLOURS."""
    return "white" if colour in COLOURS_UNDER_WHITE else "black"
