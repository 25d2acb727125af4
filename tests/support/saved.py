"""Networks of every kind to be saved, and everything that a run of them gives."""

from support.networks import images, observed
from torch import Tensor
from torch.utils import _pytree as pytree

from msat_det.base.settings import PROJECT
from msat_det.data.images import read_image
from msat_det.methods import METHODS
from msat_det.spiking.network import SpikingNetwork

T, RECORD = 8, (3, 8)
CASES = {
    **{name: ("residual", name, {}) for name in METHODS},
    "heads": ("yolo", "constant", {"signed": True, "gamma": 3, "scale": "channel"}),
    "tracking": ("bottleneck", "msat", {"variant": "normalised", "spiking_linear": True, "stages": [2, 1]}),
    "masks": ("plain", "burst", {"confidence": 0.6}),
    "analog": ("residual", "constant", {"analog": [observed("residual").graph.sites[0].name]}),
}


def results(snn: SpikingNetwork, record: tuple[int, ...] = RECORD) -> dict[str, Tensor]:
    """Everything that a run on two images gives, as named tensors."""
    outputs = snn.run(images(), record[-1], record, images=["a", 7])
    found = {f"{t}/{i}": x for t in outputs for i, x in enumerate(pytree.tree_leaves(outputs[t]))}
    for t, counts in snn.counts.items():
        found |= {f"{t}/{name}": getattr(counts, name) for name in ("spikes", "sops", "energy")}
        found |= {f"{t}/{name}": value for name, value in counts.sites.items()}
    return {name: value.clone().contiguous() for name, value in found.items()}


def detected(snn: SpikingNetwork) -> dict[str, Tensor]:
    photographs = [read_image(path) for path in sorted((PROJECT / "data").rglob("*.jpg"))[:2]]
    found = snn.detect(photographs, T, RECORD)
    boxes = {f"{t}/{i}": one for t in found for i, one in enumerate(found[t])}
    return {
        f"{n}/{key}": getattr(one, key).contiguous()
        for n, one in boxes.items()
        for key in ("boxes", "scores", "labels")
    }


def record_of(name: str) -> tuple[int, ...]:
    return (T,) if METHODS[CASES[name][1]].needs_t else RECORD
