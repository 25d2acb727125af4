"""Darknet's cfg and weights files: reader of the cfg, layers, detector."""
