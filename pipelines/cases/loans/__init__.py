"""The loans case."""
