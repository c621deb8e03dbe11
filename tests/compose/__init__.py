"""The full stack's files: what can be held without an engine that runs containers."""
