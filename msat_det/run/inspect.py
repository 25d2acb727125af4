"""``msat-det inspect``: what every node of a configuration's network becomes, without running it in time."""

import sys
from dataclasses import replace

from msat_det.base.config import Config
from msat_det.measure.coverage import coverage
from msat_det.models.importers.darknet.network import RANDOM
from msat_det.report.coverage_table import coverage_text
from msat_det.run.ownership import drop_finished, refuse_finished, taken
from msat_det.run.prepare import build_model, convert, observed, settle, task_of


def inspect_network(config: Config) -> list[dict]:
    """Trace, observe and convert; print the coverage table and write it into ``config.out``. Returns its rows.

    Each method is converted for its last recorded timestep. Evaluated images are not touched. A Darknet network needs
    weights and no class names for that: without weights it gets random ones, which show in the thresholds alone. Raises
    InputError for bad input of any kind.
    """
    config = settle(config)
    with taken(config) as directory:
        refuse_finished(directory, config)
        if config.model.cfg and config.model.weights is None:
            told = "shapes, kinds and multiply-adds are the network's, its thresholds are not"
            print(f"{config.model.cfg} is inspected without weights, on random ones: {told}", file=sys.stderr)
            config = replace(config, model=replace(config.model, weights=RANDOM, names=None))
        observation = observed(config, build_model(config, task_of(config)))
        last = {entry["label"]: (entry, config.record_of(entry)[-1:]) for entry in config.methods}
        networks = {label: convert(config, entry, observation, t[0]) for label, (entry, t) in last.items() if t}
        rows = coverage(observation, networks)
        drop_finished(directory)
        directory.write_coverage(rows)
    if first := next(iter(networks), None):
        print(f"θ are the thresholds of {first} at t = {last[first][1][0]}; --methods LABEL prints another's\n")
    print(coverage_text(rows, most=1), end="")
    others = f", thresholds of all {len(networks)} methods with them" if len(networks) > 1 else ""
    print(f"coverage.json, coverage.txt and coverage.svg are in {directory.path}{others}", file=sys.stderr)
    return rows
