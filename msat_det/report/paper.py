"""What the MSAT paper itself reports, to stand beside what is measured here. Nothing is computed from it.

Source: "MSAT: Multi-stage adaptive threshold for deep spiking neural networks", Table 1: top-1 accuracy on CIFAR-100 in
percent, of a VGG16 and of a "ResNet20" that is of ResNet-18's size. Its detection table is empty.
"""

from dataclasses import dataclass

SOURCE = "its Table 1, CIFAR-100"
TIMES = (32, 64, 128, 256)


@dataclass(frozen=True)
class Reported:
    """One line of Table 1, percent. ann: its float network. best: "SNN Best". at: accuracy by number of timesteps."""

    ann: float
    best: float
    at: dict[int, float]


def _line(ann: float, best: float, *accuracies: float | None) -> Reported:
    return Reported(ann, best, {t: x for t, x in zip(TIMES, accuracies, strict=True) if x is not None})


# Network → method's name here → its line; "This Work" is msat. The lines take the methods' float networks from their
# own papers, so that those differ within a network.
TABLE_1: dict[str, dict[str, Reported]] = {
    "VGG16": {
        "p-norm": _line(78.49, 58.44, 44.88, 51.89, 56.02, 58.44),
        "channel-norm": _line(78.49, 74.74, 54.03, 67.34, 72.50, 74.73),
        "spike-norm": _line(71.22, 70.77, None, None, None, None),
        "tsc": _line(71.22, 70.97, None, None, 69.86, 70.65),
        "rmp": _line(71.22, 70.93, None, None, 63.76, 68.34),
        "opt": _line(77.89, 77.71, 7.64, 21.84, 55.04, 73.54),
        "calibration": _line(77.89, 77.87, 73.55, 76.64, 77.40, 77.68),
        "burst": _line(78.49, 78.71, 74.98, 78.26, 78.66, 78.65),
        "msat": _line(78.49, 78.64, 63.26, 75.46, 78.13, 78.58),
    },
    "ResNet20": {
        "p-norm": _line(80.69, 67.35, 38.13, 58.09, 64.96, 67.33),
        "channel-norm": _line(80.69, 71.26, 52.59, 66.05, 70.08, 71.26),
        "spike-norm": _line(68.72, 64.09, None, None, None, None),
        "tsc": _line(68.72, 68.18, None, None, 58.42, 65.27),
        "rmp": _line(68.72, 67.82, 27.64, 46.91, 57.69, 64.06),
        "opt": _line(77.16, 77.22, 51.27, 70.12, 75.81, 77.22),
        "calibration": _line(77.16, 77.73, 76.32, 77.29, 77.73, 77.63),
        "burst": _line(80.69, 80.72, 76.39, 79.83, 80.52, 80.57),
        "msat": _line(80.69, 80.58, 71.98, 78.58, 80.25, 80.57),
    },
}
