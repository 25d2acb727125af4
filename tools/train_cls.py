"""Trains a float classifier to be converted by eval_cls.py; needs no installation. --help tells how."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from msat_det.__main__ import start

if __name__ == "__main__":
    sys.exit(start("training.classifiers:main"))
