"""One experiment: a float network, its conversions, the evaluated images → a run directory.

``compute`` reads as the pipeline: prepare → observe → convert → simulate → score → write.
"""

import sys
from collections.abc import Callable
from dataclasses import replace

from msat_det.base import ranks
from msat_det.base.config import Config
from msat_det.base.errors import InputError
from msat_det.data import Dataset, select
from msat_det.data.overlap import overlap
from msat_det.measure.accuracy import make_evaluator
from msat_det.measure.batch_files import Parts
from msat_det.measure.coverage import coverage
from msat_det.measure.differences import require_bootstrap
from msat_det.measure.rows import CurveRow, read_summary
from msat_det.measure.score import score
from msat_det.report.directory import RunDirectory
from msat_det.run.batches import batch_size, simulate
from msat_det.run.digests import digests_of, require_same
from msat_det.run.ownership import taken
from msat_det.run.prepare import (
    Task,
    annotated_images,
    build_model,
    calibration_images,
    conversions,
    evaluated_images,
    observed,
    settle,
)
from msat_det.run.results import Outcome, keep_plans, tell, write_results
from msat_det.run.resume import begin, earlier_batch, finish, is_finished


def run(config: Config, task: Task = "detection", then: Callable[[RunDirectory], None] | None = None) -> list[CurveRow]:
    """Run an experiment and leave its files in ``config.out``. Returns the rows of the curve, the float row first.

    Under torchrun the ranks share the batches; the rows come from rank 0, the others return none. then: what adds to
    the finished directory.
    Raises InputError for bad input of any kind; what was computed before is in the run directory, and ``config.resume``
    continues with it.
    """
    config.require_unseen()
    config = settle(config)
    ranks.join()
    with taken(config) as directory:
        finished = ranks.from_first(lambda: is_finished(directory, config))
        rows = read_summary(directory.path)[0] if finished else compute(config, task, directory)
        if ranks.rank() == 0:
            if finished:
                print(f"the run in {directory.path} was finished: nothing of it is computed again", file=sys.stderr)
            finish(directory)
            if then:
                then(directory)
        ranks.wait()
    if ranks.rank() == 0:
        tell(directory, config, rows)
    return rows


def compute(config: Config, task: Task, directory: RunDirectory) -> list[CurveRow]:
    """Convert, simulate and write everything that the directory does not hold yet."""
    model = build_model(config, task)
    annotated = annotated_images(config, model.classes)
    calibration = calibration_images(config)
    dataset = evaluated_images(config, annotated, calibration)
    # classes that do not fit are told now, not after the simulation
    require_bootstrap(config, make_evaluator(dataset, model.classes))
    observation = observed(config, model, calibration)
    earlier = ranks.from_first(lambda: earlier_batch(directory, config))
    batch = earlier or batch_size(config, observation.graph)
    config = replace(config, batch=batch)
    converted = list(conversions(config, observation))

    batches = [dataset.ids[i : i + config.batch] for i in range(0, len(dataset), config.batch)]
    digests = digests_of(config, observation, dataset, calibration)
    begun = ranks.from_first(lambda: begin(directory, config, observation, digests, len(batches)))
    require_same(digests, begun.digests)
    if ranks.rank() == 0:
        directory.write_coverage(coverage(observation, {c.label: c.snn for c in converted}))
        keep_plans(directory, config, converted)
    parts = Parts(directory.parts, batches, len(model.classes))
    simulate(config, model, dataset, batches, ranks.share(begun.todo), observation, converted, parts)
    if ranks.rank() > 0:
        return []

    require_all(parts, len(batches))
    good = readable(dataset, parts, directory)
    rows = score(good, model.classes, converted, parts)
    seen = len(overlap(good, calibration))
    write_results(directory, Outcome(config, model, good, observation, converted, parts, rows, seen, begun))
    return rows


def require_all(parts: Parts, batches: int) -> None:
    """Raise InputError where a batch is not there after all, which would be left out of the figures."""
    if missing := set(range(batches)) - parts.done():
        raise InputError(
            f"{len(missing)} of {batches} batches are not in {parts.folder}, the first: {min(missing)}: every machine "
            "must write into the same folder; --resume goes on from here"
        )


def readable(dataset: Dataset, parts: Parts, directory: RunDirectory) -> Dataset:
    """The images that could be read. Raises InputError where there is none."""
    ids, corrupt = parts.ids(), parts.corrupt()
    if not ids:
        finish(directory)  # nothing to go on with
        raise InputError(f"none of the {len(dataset)} images could be read; the first: {corrupt[0]}")
    return select(dataset, ids)
