"""The spiking network: neurons, their kernels, the engine, energy, and the files that hold a network.

May import: base, data, graph, models.
"""
