"""From torch to ONNX, with parity."""
