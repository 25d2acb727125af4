"""The one error that a user is meant to see."""


class InputError(Exception):
    """Bad input: its message is one line that says what is wrong, where, and how to mend it.

    The command line prints it as ``error: …`` and exits with status 2; a library user catches it by this name.
    """
