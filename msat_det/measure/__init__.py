"""Figures: accuracy, costs, differences, exits, the ledger and its diagnosis.

May import: base, data, graph, models, spiking, methods.
"""
