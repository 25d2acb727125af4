"""Activations, thresholds and currents that neurons are tried on."""

import torch
import torch.nn.functional as F
from torch import Tensor

from msat_det.graph.ops import Activation
from msat_det.spiking.neurons import Msat

RELU = Activation("relu", torch.relu, rectified=True)
RELU6 = Activation("relu6", F.relu6, rectified=True, upper=6.0)
IDENTITY = Activation("identity", lambda x: x)
LEAKY = Activation("leakyrelu", lambda x: F.leaky_relu(x, 0.1), slope=0.1)
SILU = Activation("silu", F.silu, curved=True)
VARIANTS = {
    "constant": None,
    "reference": Msat(),
    "paper": Msat(drive="depolarisation", twice=True, tau_mp=0.5, tau_rd=0.5, alpha=0.3),
    "normalised": Msat(normalised=True),
    "dtt only": Msat(det=False),
    "det only": Msat(dtt=False, normalised=True, drive="depolarisation"),
    "own parameters": Msat(alpha=0.2, k_a=0.7, k_i=0.4, C=2.0, tau_mp=0.8, tau_rd=1.3, rest=-0.6, twice=True),
}


def noise(*shape: int, seed: int = 0, mean: float = 0.3, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return mean + torch.randn(shape, generator=generator, dtype=dtype)
