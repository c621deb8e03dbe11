"""The only home of ONNX Runtime."""
