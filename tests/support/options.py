"""Options of every kind that any method can take, and what single methods refuse."""

OPTIONS = [
    {"scale": "channel", "percentile": 99.0, "values": "nonzero", "factor": 0.7, "initial": "half"},
    {"signed": True, "gamma": 3, "rounding": "track", "margin": 0.75, "scale": "channel", "values": "all"},
    {"stages": [2, 1, 0.5, 0.25], "gamma": 15, "signed": True, "scale": "channel", "percentile": 99.9},
    {"stages": [2, 1, 0.5, 0.25], "factor": 0.5},
    {"confidence": "estimate", "drop": "lossy"},
    {"confidence": 0.413, "drop": "keep", "rounding": "fixed", "scale": "layer"},
]

# What methods refuse whatever stands beside it.
STATISTIC = ("scale", "percentile", "values")
RATE_ALONE = ("coding", "signed", "margin", "initial", "rounding", "confidence", "drop")
REFUSED = {
    "tsc": ("signed", "margin", "gamma", "levels", "bits", "terms", "stages", "drop", "correct"),
    "h-mt": (*STATISTIC, "gamma", "levels"),
    "ltb": STATISTIC,
    "ftbc": ("correct",),
    "adafire": ("gamma", "levels", "bits", "terms"),
    "dcgs": (*STATISTIC, *RATE_ALONE, "correct"),
    "int8": (*RATE_ALONE, "correct", "gamma", "zone", "levels", "bits", "terms"),
    **dict.fromkeys(("delta-fit", "delta-fit-anytime"), (*RATE_ALONE, "stages", "terms", "zone")),
    **dict.fromkeys(("msat-fit", "msat-fit-anytime"), ("zone",)),
}
# What they refuse of ``OPTIONS`` beside their own defaults, and where a network has ReLU alone.
REFUSED_THERE = {
    **dict.fromkeys(("msat-fit", "msat-fit-anytime"), ("gamma",)),
    **dict.fromkeys(("spike-norm", "rmp"), STATISTIC),
}
