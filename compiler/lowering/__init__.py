"""Lowerings: IR to torch.fx and to ONNX."""
