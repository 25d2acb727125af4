"""Options of every kind that any method can take."""

OPTIONS = [
    {"scale": "channel", "percentile": 99.0, "values": "nonzero", "factor": 0.7, "initial": "half"},
    {"signed": True, "gamma": 3, "rounding": "track", "margin": 0.75, "scale": "channel", "values": "all"},
    {"stages": [2, 1, 0.5, 0.25], "gamma": 15, "signed": True, "scale": "channel", "percentile": 99.9},
    {"confidence": "estimate", "drop": "lossy"},
    {"confidence": 0.413, "drop": "keep", "rounding": "fixed", "scale": "layer"},
]
