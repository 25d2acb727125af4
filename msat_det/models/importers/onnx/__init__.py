"""ONNX files → networks that trace: read (``file``), built node by node (``operators``), whole (``network``)."""
