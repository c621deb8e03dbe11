"""Metrics of a scored holdout."""
