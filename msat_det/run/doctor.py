"""``msat-det doctor``: what each call site of each method adds to the error, and how to mend the worst of them."""

import sys

from msat_det.base.config import Config
from msat_det.base.errors import InputError
from msat_det.measure.examination import Examination, examine
from msat_det.report.examinations import examination_text, write_examinations
from msat_det.run.ownership import drop_finished, refuse_finished, taken
from msat_det.run.prepare import build_model, conversions, observed, settle, task_of

IMAGES = 8


def doctor(config: Config) -> list[Examination]:
    """Convert, take every method apart on calibration images (``config.ledger.images``, 8 where it is 0), print the
    worst call sites with cause and mend, and write the ledger into ``config.out``. Evaluated images are not touched.

    Raises InputError for bad input of any kind.
    """
    config = settle(config)
    with taken(config) as directory:
        refuse_finished(directory, config)
        observation = observed(config, build_model(config, task_of(config)))
        converted = list(conversions(config, observation))
        if not converted:
            raise InputError("there is no method to examine: name some with --methods LABEL,…")
        found = examine(config, observation, converted, config.ledger.images or IMAGES)
        drop_finished(directory)
        write_examinations(directory, found)
    print(examination_text(found), end="")
    print(f"ledger.json, doctor.json and the pictures in doctor/ are in {directory.path}", file=sys.stderr)
    return found
