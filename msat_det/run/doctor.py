"""``msat-det doctor``: what each call site of each method adds to the error, and how to mend the worst of them."""

import sys

import torch

from msat_det.base.config import Config, method_options
from msat_det.base.errors import InputError
from msat_det.measure.examination import Examination, examine
from msat_det.methods import parse_options
from msat_det.methods.observe import observe
from msat_det.report.directory import RunDirectory
from msat_det.run.examine import examination_text, write_examinations
from msat_det.run.experiment import build_model, calibration_batches, convert_all
from msat_det.spiking.energy import prices

IMAGES = 8


def doctor(config: Config) -> list[Examination]:
    """Convert, take every method apart on calibration images (``config.ledger.images``, 8 where it is 0), print the
    worst call sites with cause and mend, and write the ledger into ``config.out``. Evaluated images are not touched.

    Raises InputError for bad input of any kind.
    """
    directory = RunDirectory(config.out)
    torch.set_num_threads(config.threads or torch.get_num_threads())
    torch.manual_seed(config.seed)
    prices(config.energy)
    for entry in config.methods:
        parse_options(entry["method"], method_options(entry))
    model = build_model(config, "detection" if config.data.kind in ("voc", "coco") else "classification")
    observation = observe(model.net, calibration_batches(config, model), progress=True)
    conversions = list(convert_all(config, observation))
    if not conversions:
        raise InputError("there is no method to examine: name some with --methods LABEL,…")
    found = examine(config, observation, conversions, config.ledger.images or IMAGES)
    write_examinations(directory, found)
    print(examination_text(found), end="")
    print(f"ledger.json, doctor.json and the pictures in doctor/ are in {directory.path}", file=sys.stderr)
    return found
