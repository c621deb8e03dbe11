"""The model of the flights case: the network of the tabular cases."""

from pipelines.cases.tabular import build

__all__ = ["build"]
