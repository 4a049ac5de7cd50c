"""The compiler: graph IR, elaboration, passes, lowerings to torch.fx and ONNX, drawing."""
