"""The one error that a user is meant to see, and the one warning."""

LONGEST = 1500  # characters of a message


class InputError(Exception):
    """Bad input: its message is one line that says what is wrong, where, and how to mend it.

    The command line prints it as ``error: …`` and exits with status 2; a library user catches it by this name.
    Whatever file or name the message quotes, it is printable, and not endless.
    """

    def __str__(self) -> str:
        line = " ".join(super().__str__().split())
        line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
        return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} … {line[-LONGEST // 2 :]}"


class CalibrationWarning(UserWarning):
    """The calibration images do not determine something, and the conversion had to guess it."""
