"""``msat-det export``: one method of a configuration as a file that is run elsewhere."""

import sys
from pathlib import Path

import torch

from msat_det.base.config import Config
from msat_det.base.errors import InputError
from msat_det.methods import parse_options
from msat_det.methods.convert import spiking_network
from msat_det.methods.observe import observe
from msat_det.run.experiment import build_model, calibration_batches, method_options
from msat_det.spiking.formats.onnx_check import check
from msat_det.spiking.formats.onnx_step import Step, export_step, require_packages, write_onnx


def export(config: Config, T: int | None, file: Path, onnx: bool = False) -> None:
    """Convert the one method of ``config`` for timestep T (its last recorded one if None) and write it.

    file: what ``msat_det.load`` reads; with ``onnx`` one timestep (``onnx_step``), checked in onnxruntime on the first
    calibration image before it is written. Raises InputError for bad input of any kind, and where the check fails.
    """
    (entry,) = config.methods
    options = method_options(entry)
    parse_options(entry["method"], options)
    if onnx:
        require_packages()
    if not file.parent.is_dir():
        raise InputError(f"cannot write {file}: there is no folder {file.parent}; make it first")
    torch.set_num_threads(config.threads or torch.get_num_threads())
    torch.manual_seed(config.seed)
    model = build_model(config, "detection" if config.data.kind in ("voc", "coco") else "classification")
    observation = observe(model.net, calibration_batches(config, model), progress=True)
    observation.detector = model
    T = T or (config.record_of(entry) or config.sim.record)[-1]
    snn = spiking_network(entry["method"], options, observation, T, config.seed, config.sim.chunk)
    snn.energy = config.energy
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
