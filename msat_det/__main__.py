"""``python -m msat_det``, ``msat-det`` and the scripts in tools/: a command as a process of its own."""

import importlib
import sys


def start(command: str = "msat_det.run.cli:main") -> int:
    """The exit status of the command MODULE:FUNCTION. Ctrl-C is one line while that is imported, too."""
    module, _, name = command.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    return function()


if __name__ == "__main__":
    sys.exit(start())
