"""Import: a trained network of torch or ONNX -> a spec that people can read, and its weights."""
