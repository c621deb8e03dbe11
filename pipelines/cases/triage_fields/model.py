"""The model of triage by text and fields: the network of a text beside a table."""

from pipelines.cases.mixed import base_sha256, build, tokenizer

__all__ = ["base_sha256", "build", "tokenizer"]
