"""What a spiking network is written as and read from: its own file, plans of neurons, an ONNX step."""
