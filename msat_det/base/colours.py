"""The colours of every picture, and those that can be read on them."""

# Okabe and Ito's colours without yellow and black, then two of Tol's: told apart by colour-blind readers.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#882255", "#999933"]
COLOURS_UNDER_WHITE = {"#0072B2", "#882255"}  # white text on them, black on the others: a contrast of 4.5 at least
INK = "#333333"


def text_on(colour: str) -> str:
    """The colour of text that can be read on one of COLOURS."""
    return "white" if colour in COLOURS_UNDER_WHITE else "black"
