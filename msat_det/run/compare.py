"""The methods of one experiment side by side: a table and a picture, made from the files of its run directory."""

from msat_det.base.config import Config
from msat_det.measure.rows import CurveRow
from msat_det.report.comparison import markdown, read_comparison, table
from msat_det.report.curves import draw_pareto
from msat_det.report.directory import RunDirectory
from msat_det.run.experiment import run
from msat_det.run.prepare import task_of


def compare(config: Config) -> list[CurveRow]:
    """Run the experiment; add compare.md, compare.csv and pareto.png to its run directory. Returns the curve's rows.

    Raises InputError as ``experiment.run`` does.
    """
    return run(config, task_of(config), write_comparison)


def write_comparison(directory: RunDirectory) -> None:
    """The files that a comparison adds to the directory of a finished run."""
    comparison = read_comparison(directory.path)
    directory.write("compare.md", f"# {comparison.title}\n\n{markdown(comparison)}")
    directory.write("compare.csv", table(comparison))
    directory.save("pareto.png", draw_pareto(comparison.rows, comparison.title))
