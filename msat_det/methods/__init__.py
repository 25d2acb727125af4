"""The conversion methods: each a dataclass of its options and one function from observations to neurons (DESIGN §5).

To add one: subclass ``Options``, write the function, put ``@method(name, YourOptions)`` on it in a module that is
imported here. It then appears in ``msat-det list methods`` and in the contract test. A recipe, options of a method
that deserve a name, is a line in ``presets``.
"""

from msat_det.methods import adafire, delta, direct, fitted, layerwise  # noqa: F401 - they register their methods
from msat_det.methods.presets import DEFAULT
from msat_det.methods.registry import METHODS, Method, find_method, method, parse_options, preset

__all__ = ["DEFAULT", "METHODS", "Method", "find_method", "method", "parse_options", "preset"]
