"""The traced network: operations and their kinds, the graph, fan-out.

May import: base, data.
"""
