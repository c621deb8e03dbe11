"""Triton: the model repository, loading, the rollout handshake."""
