"""From a float network to a plan of neurons: trace, classify, observe, and the conversion methods."""
