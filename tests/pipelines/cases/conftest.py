"""A tiny encoder for the tests of the text cases."""

from pathlib import Path

import pytest

from pipelines.params import TextModelParams
from tests.encoders import write_encoder


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory) -> Path:
    """A folder with a random two-layer BERT and its tokenizer."""
    return write_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def text_params(encoder_folder: Path) -> TextModelParams:
    """Parameters of a text model on the tiny encoder."""
    return TextModelParams(kind="encoder", encoder=str(encoder_folder), max_tokens=32, dropout=0.0)
