"""Networks that others wrote: torchvision's and Ultralytics' detectors, Darknet and ONNX files."""
