"""The conversion methods: each a dataclass of options and a function from observations to neurons.

May import: base, data, graph, models, spiking.
"""

from msat_det.methods import adafire, delta, direct, fitted, layerwise  # noqa: F401 - they register their methods
from msat_det.methods.presets import DEFAULT
from msat_det.methods.registry import METHODS, Method, method, parse_options, preset

__all__ = ["DEFAULT", "METHODS", "Method", "method", "parse_options", "preset"]
