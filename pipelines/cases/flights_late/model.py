"""The model of the case of late flights: the network of the tabular cases."""

from pipelines.cases.tabular import build

__all__ = ["build"]
