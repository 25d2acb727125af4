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

    float32: without TF32, whatever PyTorch is set to; tf32: convolutions with operands of 11 significant bits; tf32x3:
    float32 but for what ``spiking.kernels.split`` takes, three products of such operands. Both are float32 on a CPU.
    bf16, fp16: see ``LOW``. Raises InputError for another name.
    """
    kind = "cpu" if device is None else device.type
    if PRECISIONS.find(precision) in LOW:
        with torch.autocast(kind, LOW[precision], cache_enabled=False):
            yield
    elif kind == "cuda":
        with _convolutions("tf32" if precision == "tf32" else "ieee"), _exact_products():
            yield
    else:
        yield


@contextmanager
def _convolutions(name: str) -> Iterator[None]:
    """What cuDNN makes of float32, ``ieee`` or ``tf32``, and as it was afterwards."""
    cudnn: Any = torch.backends.cudnn  # made when it is imported: a type checker does not know its parts
    switch = cudnn.conv
    before, switch.fp32_precision = switch.fp32_precision, name
    try:
        yield
    finally:
        switch.fp32_precision = before


@contextmanager
def _exact_products() -> Iterator[None]:
    """No TF32 in cuBLAS, and as it was afterwards. Its older switches raise where a newer one alone is turned."""
    switch = torch.backends.cuda.matmul
    if switch.fp32_precision != "tf32":
        yield
        return
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # it was set in another way
        before = None
    switch.allow_tf32 = False
    try:
        yield
    finally:
        if before is None:
            switch.allow_tf32 = True
        else:
            torch.set_float32_matmul_precision(before)
