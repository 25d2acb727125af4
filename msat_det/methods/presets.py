"""Recipes with a name: options of a method that have shown to work on detectors as they are (docs/results).

None of them is fitted. ``DEFAULT`` is what ``convert`` takes: on the detectors measured it keeps the float network's
mAP at t = 1, for a quarter to a half of its energy (docs/delta.md).
"""

from typing import Any

from msat_det.methods import delta, direct  # noqa: F401 - the methods that presets are of
from msat_det.methods.registry import preset

DEFAULT = "delta-3"

_CHANNEL: dict[str, Any] = {"scale": "channel", "percentile": 99.9, "signed": True}
_HALF = _CHANNEL | {"initial": "half"}
_EITHER = ("rate", "delta")

preset("delta-2", "delta", "Delta coding, two terms a timestep: the cheapest", _EITHER, bits=6, terms=(2,))
preset("delta-3", "delta", "Delta coding, three terms a timestep: the default", _EITHER, bits=7, terms=(3,))
preset("signed", "constant", "Channel scales, and spikes that can be taken back", **_HALF)
preset("signed-b3", "constant", "As signed, with bursts of up to 3", **_HALF, gamma=3)
preset("signed-b7", "constant", "As signed, at half the threshold with bursts of up to 7", **_HALF, gamma=7, factor=0.5)
preset(
    "staged-4",
    "constant",
    "Coarse thresholds first, fine ones last: made for exactly four timesteps",
    **_CHANNEL,
    gamma=15,
    rounding="track",
    stages=(2.0, 1.0, 0.5, 0.25),
)
preset(
    "msat-signed-b3",
    "msat",
    "MSAT in units of each channel's scale, with spikes that can be taken back and bursts of up to 3",
    **_CHANNEL,
    variant="normalised",
    gamma=3,
    rounding="track",
)
