"""The bank case."""
