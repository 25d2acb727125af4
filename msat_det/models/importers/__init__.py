"""Networks that others wrote: torchvision's detectors, Darknet files."""
