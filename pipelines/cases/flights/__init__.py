"""The flights case."""
