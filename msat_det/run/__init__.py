"""The commands, one file each, and the pipeline that they share.

May import: base, data, graph, models, spiking, methods, measure, report.
"""
