"""The precision in which convolutions and products of matrices are calculated."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from msat_det.base.names import PRECISIONS

LOW = {"bf16": torch.bfloat16, "fp16": torch.float16}  # operands and results; sums stay float32


@contextmanager
def arithmetic(precision: str, device: torch.device | None) -> Iterator[None]:
    """Convolutions and products inside of it run at this precision.

    float32: without TF32, whatever PyTorch is set to; tf32: operands with 10 bits behind the point, on a CPU the same
    as float32; bf16, fp16: see ``LOW``. Raises InputError for another name.
    """
    kind = "cpu" if device is None else device.type
    if PRECISIONS.find(precision) in LOW:
        with torch.autocast(kind, LOW[precision], cache_enabled=False):
            yield
    elif kind == "cuda":
        with _units("tf32" if precision == "tf32" else "ieee"):
            yield
    else:
        yield


@contextmanager
def _units(name: str) -> Iterator[None]:
    """What cuDNN and cuBLAS make of float32, ``ieee`` or ``tf32``, and as it was afterwards."""
    switches: tuple[Any, Any] = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = [switch.fp32_precision for switch in switches]
    for switch in switches:
        switch.fp32_precision = name
    try:
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value
