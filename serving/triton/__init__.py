"""What Triton needs beside its own binaries: the Python-based ``onnxruntime`` backend."""
