"""What a person looks at: the run directory's files, pictures, pages, TensorBoard.

May import: base, data, graph, models, spiking, methods, measure.
"""
