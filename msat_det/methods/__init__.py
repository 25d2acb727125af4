"""The conversion methods: each a dataclass of options and a function from observations to neurons.

May import: base, data, graph, models, spiking.
"""

# they register their methods, in this order
from msat_det.methods import adafire, delta, by_distribution, direct, fitted, layerwise  # noqa: F401, I001
from msat_det.methods.presets import DEFAULT
from msat_det.methods.registry import METHODS, Method, method, parse_options, preset

__all__ = ["DEFAULT", "METHODS", "Method", "method", "parse_options", "preset"]
