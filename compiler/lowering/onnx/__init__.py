"""Lower a compact graph to an ONNX model."""
