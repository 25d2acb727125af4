"""The public API as a user with a type checker meets it: read by mypy in tests/test_types.py, never run."""

from collections.abc import Sequence
from typing import Any, assert_type

from PIL import Image
from torch import Tensor, nn

import msat_det


class Blobs:
    """A detector of one's own fits the protocol without a base class."""

    def __init__(self, net: nn.Module):
        self.net, self.classes = net, ["blob"]

    def preprocess(self, image: Tensor) -> tuple[Tensor, Any]:
        return image.float() / 255, image.shape

    def decode(self, outputs: Any, metas: list[Any]) -> list[msat_det.Detections]:
        return [msat_det.Detections(outputs, outputs, outputs) for _ in metas]


def use(net: nn.Module, images: Tensor, photographs: list[Tensor]) -> None:
    detector: msat_det.Detector = Blobs(net)
    observation = msat_det.observe(detector, photographs)
    snn = msat_det.convert(observation, method="signed-b3", T=8, gamma=5)
    assert_type(snn, msat_det.SpikingNetwork)
    module: nn.Module = snn.to("cpu").eval()
    assert_type(module.state_dict(), dict[str, Any])
    found = snn.detect(photographs, T=8, record=(4, 8))
    assert_type(found, dict[int, list[msat_det.Detections]])
    assert_type(found[8][0].names, list[str])
    assert_type(found[8][0].draw(photographs[0], score=0.5), Image.Image)
    assert_type(found[8][0].classes, Sequence[str])
    assert_type(snn.counts[8].energy_ratio, float)
    assert_type(snn.run(images, 8), dict[int, Any])
    assert_type(msat_det.describe("delta-3"), str)
    msat_det.save(snn, "snn.safetensors")
    assert_type(msat_det.load("snn.safetensors", detector), msat_det.SpikingNetwork)
    assert_type(list(msat_det.METHODS), list[str])
    msat_det.convert(net, images, T="eight")  # type: ignore[arg-type] # a mistake is seen
    print(snn.detect(photographs).boxes)  # type: ignore[attr-defined]
