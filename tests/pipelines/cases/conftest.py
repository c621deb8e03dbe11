"""A tiny encoder for the tests of the text cases."""

from pathlib import Path

import pytest

from pipelines.params import TextModelParams
from tests import shop
from tests.declarations import declare
from tests.encoders import write_encoder


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory) -> Path:
    """A folder with a random two-layer BERT and its tokenizer."""
    return write_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def text_params(encoder_folder: Path) -> TextModelParams:
    """Parameters of a text model on the tiny encoder."""
    return TextModelParams(kind="encoder", encoder=str(encoder_folder), max_tokens=32, dropout=0.0)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Shop's rows as data/shop.csv, an empty state, and the case shop without a source.py."""
    monkeypatch.setenv("PERENNIAL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PERENNIAL_DATA_DIR", str(tmp_path / "data"))
    shop.write_rows(tmp_path / "data" / "shop.csv")
    with shop.installed(tmp_path / "cases") as root:
        (shop.write(root) / "source.py").unlink()
        declare(tmp_path, kind="files", url="shop.csv")
        yield tmp_path
