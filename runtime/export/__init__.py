"""From trained weights to checked ONNX files, and how fast these run."""
