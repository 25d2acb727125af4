"""``msat-det inspect``: what every node of a configuration's network becomes, without running it in time."""

import sys

import torch

from msat_det.base.config import Config, method_options
from msat_det.measure.coverage import coverage
from msat_det.methods import parse_options
from msat_det.methods.convert import spiking_network
from msat_det.methods.observe import observe
from msat_det.report.coverage_table import coverage_text
from msat_det.report.directory import RunDirectory
from msat_det.run.experiment import build_model, calibration_batches


def inspect_network(config: Config) -> list[dict]:
    """Trace, observe and convert; print the coverage table and write it into ``config.out``. Returns its rows.

    Each method is converted for its last recorded timestep. Evaluated images are not touched.
    Raises InputError for bad input of any kind.
    """
    directory = RunDirectory(config.out)
    torch.set_num_threads(config.threads or torch.get_num_threads())
    torch.manual_seed(config.seed)
    converted = [entry for entry in config.methods if config.record_of(entry)]
    for entry in converted:
        parse_options(entry["method"], method_options(entry))
    model = build_model(config, "detection" if config.data.kind in ("voc", "coco") else "classification")
    observation = observe(model.net, calibration_batches(config, model), progress=True)
    networks = {
        entry["label"]: spiking_network(
            entry["method"], method_options(entry), observation, config.record_of(entry)[-1], config.seed
        )
        for entry in converted
    }
    rows = coverage(observation, networks)
    directory.write_coverage(rows)
    print(coverage_text(rows, most=1), end="")
    others = f", thresholds of all {len(networks)} methods with them" if len(networks) > 1 else ""
    print(f"coverage.json, coverage.txt and coverage.svg are in {directory.path}{others}", file=sys.stderr)
    return rows
