"""What everything else stands on: errors, files, configuration, names, ranks.

May import: nothing of the package.
"""

__version__ = "0.1.0"
