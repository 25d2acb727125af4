"""What everything else stands on: errors, files, configuration, ranks.

May import nothing of the package.
"""
