"""The model of the triage case: the network of the text cases."""

from pipelines.cases.embedding import fit_head
from pipelines.cases.encoder import base_sha256, build, tokenizer

__all__ = ["base_sha256", "build", "fit_head", "tokenizer"]
