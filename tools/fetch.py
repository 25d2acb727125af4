"""A shim of ``msat-det fetch``, for a checkout in which nothing is installed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from msat_det.__main__ import start

if __name__ == "__main__":
    sys.exit(start("msat_det.run.cli:fetch"))
