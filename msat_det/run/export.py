"""``msat-det export``: one method of a configuration as a file that is run elsewhere."""

import sys
from dataclasses import replace
from pathlib import Path

from msat_det.base.config import Config
from msat_det.base.errors import InputError
from msat_det.run.prepare import build_model, convert, observed, settle, task_of
from msat_det.spiking.formats.onnx_check import check
from msat_det.spiking.formats.onnx_step import Step, export_step, require_packages, write_onnx


def export(config: Config, T: int | None, file: Path, onnx: bool = False) -> None:
    """Convert the one method of ``config`` for timestep T (its last recorded one if None) and write it.

    file: what ``msat_det.load`` reads; with ``onnx`` one timestep (``onnx_step``), checked in onnxruntime on the first
    calibration image before it is written. Raises InputError for bad input of any kind, and where the check fails.
    """
    config = settle(replace(config, device="cpu", precision="float32") if onnx else config)  # as onnxruntime does
    (entry,) = config.methods
    if onnx:
        require_packages()
    if file.is_dir():
        raise InputError(f"cannot write {file}: it is a folder; name a file in it")
    if not file.parent.is_dir():
        raise InputError(f"cannot write {file}: there is no folder {file.parent}; make it first")
    observation = observed(config, build_model(config, task_of(config)))
    snn = convert(config, entry, observation, T or (config.record_of(entry) or config.sim.record or [1])[-1])
    if onnx:
        module = Step(snn)
        program = export_step(module)
        found = check(program, snn, (observation.first(1),))
        if not found.holds:
            raise InputError(f"{file} is not written, the exported step is not this network: {found}")
        write_onnx(program, module, file)
        print(found, file=sys.stderr)
    else:
        snn.save(file)
    print(file)
