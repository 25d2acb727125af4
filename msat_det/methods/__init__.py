"""The conversion methods: each a dataclass of its options and one function from observations to neurons (DESIGN §5).

To add one: subclass ``Options``, write the function, put ``@method(name, YourOptions)`` on it in a module that is
imported here. It then appears in ``msat-det list methods`` and in the contract test.
"""

from msat_det.methods import adafire, delta, direct, fitted, layerwise  # noqa: F401 - they register their methods
from msat_det.methods.registry import METHODS, Method, find_method, method, parse_options

__all__ = ["METHODS", "Method", "find_method", "method", "parse_options"]
