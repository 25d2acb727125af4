"""``python -m msat_det``, ``msat-det`` and the scripts in tools/: a command as a process of its own."""

import sys


def start(name: str = "main") -> int:
    """The exit status of a command in ``msat_det.run.cli``. Ctrl-C is told in one line while that is imported, too."""
    try:
        from msat_det.run import cli
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    return getattr(cli, name)()


if __name__ == "__main__":
    sys.exit(start())
