"""Texts to token ids, and the encoder that every room shares."""

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from pipelines.encoding import encoder
from pipelines.errors import ConfigError, DataError, IntegrityError
from pipelines.fields import Fields, Text
from pipelines.text import TOKENIZER, load_tokenizer, normalise, pad, tokenise

FIELDS = Fields(case="reports", label="team", classes=("a", "b", "c"), fields=(Text("text"),))


@pytest.fixture
def folder(tmp_path):
    """A folder with a tokenizer of four words that truncates at three."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "heap": 1, "overflow": 2, "in": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=16)
    tokenizer.save(str(tmp_path / TOKENIZER))
    return tmp_path


def test_ids_are_truncated_and_never_padded(folder):
    """The file's truncation holds and its padding, which some published tokenizers carry, does not."""
    assert tokenise(load_tokenizer(folder / TOKENIZER), ["heap", "heap overflow in in", "libpng"]) == [
        [1],
        [1, 2, 3],
        [0],
    ]


def test_the_encoder_pads_to_the_longest_text_of_the_call(folder):
    """Ids and mask are int64 [B, longest]; white space and control characters do not change them."""
    tensors = encoder(FIELDS, folder)({"text": ["heap\toverflow", " in\u200b "]})
    assert np.array_equal(tensors["input_ids"], [[1, 2], [3, 0]])
    assert np.array_equal(tensors["attention_mask"], [[1, 1], [1, 0]])
    assert tensors["input_ids"].dtype == np.int64


def test_padding_to_a_given_width():
    """A bucket's width is kept also where all of its texts are shorter."""
    assert pad([[5], [6, 7]], to=4)["input_ids"].shape == (2, 4)


def test_normalising_twice_changes_nothing():
    """Normalising is a projection, so a text from the log is the text that was scored."""
    once = normalise("Cafe\u0301\x00 \u2028 buffer")
    assert normalise(once) == once == "Caf\u00e9 buffer"


def test_missing_texts_are_named(folder):
    """Without the column, or with a null in it, the error names the field."""
    for columns in ({}, {"text": ["heap", None]}):
        with pytest.raises(DataError, match="text"):
            encoder(FIELDS, folder)(columns)


def test_a_missing_or_broken_tokenizer_is_an_error_that_says_so(folder, tmp_path):
    """No file, another file, and a tokenizer without truncation are each refused."""
    with pytest.raises(ConfigError, match="does not exist"):
        load_tokenizer(tmp_path / "nowhere" / TOKENIZER)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(IntegrityError, match="no tokenizer"):
        load_tokenizer(tmp_path / "other.json")
    endless = Tokenizer.from_file(str(folder / TOKENIZER))
    endless.no_truncation()
    endless.save(str(tmp_path / "endless.json"))
    with pytest.raises(IntegrityError, match="truncates nothing"):
        load_tokenizer(tmp_path / "endless.json")
