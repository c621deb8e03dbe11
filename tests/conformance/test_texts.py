"""A text that may be missing, with an attribute beside it: from what is delivered to what is answered and counted."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from pipelines import runtime
from pipelines.cases.receiving import receive
from pipelines.data import dataset, log
from pipelines.data.contract import split
from pipelines.drift.inputs.compare import compare, quality
from pipelines.drift.profile.counts import profile_frame, typed
from pipelines.drift.profile.kernel import profile_parquet
from pipelines.drift.profile.spec import freeze_spec
from pipelines.drift.reference import reference_profile
from pipelines.encoding import encoder
from pipelines.errors import DataError
from pipelines.fields import Attribute, Classes, Text
from pipelines.headroom import probe
from pipelines.params_file import load_params
from pipelines.settings import Settings
from pipelines.text import TOKENIZER, load_tokenizer, tokenise
from serving.gateway.refusal import Refused
from serving.gateway.rows import read, row_shape
from tests.conformance.table import START, WINDOW, declare, installed
from tests.pipelines.data.loglines import predictions, write
from tests.texts import some_texts, write_text_bundle

FIELDS = declare(Text("note", missing=True), Attribute("customer"), target=Classes(("a", "b", "c")))


@pytest.fixture
def rows(tmp_path):
    """Canonical rows of a case that is there, a third of them without a text."""
    with installed(tmp_path, FIELDS):
        count = 300
        texts = some_texts(count, longest=20)
        frame = pl.DataFrame(
            {
                "id": [f"shop-{row}" for row in range(count)],
                "event_time": [START] * count,
                "note": [None if row % 3 == 0 else text for row, text in enumerate(texts)],
                "customer": ["one"] * count,
                "sold": [row % 3 for row in range(count)],
            }
        )
        received = receive(frame, FIELDS, WINDOW, load_params(FIELDS.case))
        good, bad = split(received.rows, FIELDS)
        assert (good.height, bad.height) == (count, 0)
        yield good


def test_a_missing_text_is_one_without_words(rows, tmp_path):
    """Null through the gateway's decoder is answered as the model answers a text without words; "" stays refused."""
    write_text_bundle(tmp_path, 3, seed=0)
    sent = rows.head(30).select(FIELDS.names).to_dicts()
    items = read(row_shape(FIELDS, 100), json.dumps({"rows": sent}).encode())
    found = runtime.score_rows(tmp_path, FIELDS, {"note": [item.note for item in items]})
    ids = tokenise(load_tokenizer(tmp_path / TOKENIZER), [row["note"] or "" for row in sent])
    own = [runtime.score(tmp_path, {"input_ids": np.array([one]), "attention_mask": np.ones((1, len(one)), np.int64)})
           for one in ids]  # fmt: skip
    assert np.abs(found - np.concatenate(own)).max() <= 1e-5
    with pytest.raises(Refused, match="must not be empty"):
        read(row_shape(FIELDS, 100), json.dumps({"rows": [{**sent[0], "note": " "}]}).encode())
    plain = declare(Text("note"), target=FIELDS.target)
    with pytest.raises(DataError, match="missing or not text"):
        encoder(plain, tmp_path)({"note": [None]})


def test_its_share_is_counted_and_drifts(rows, tmp_path):
    """The log gives the rows back, frame and file count alike, and a jump of missing texts is a drift, no fault."""
    settings = Settings(home=tmp_path)
    spec = freeze_spec(FIELDS, settings, lambda: rows)
    write(settings, FIELDS.case, "predictions", "a", predictions(rows, FIELDS))
    log.compact(settings, FIELDS.case)
    logged = typed(log.read_predictions(settings, FIELDS.case, WINDOW), FIELDS)
    assert logged.select("id", *FIELDS.names).equals(rows.sort("id").select("id", *FIELDS.names))
    expected = profile_frame(rows, FIELDS, spec).columns
    streamed = profile_parquet(log.near(settings, FIELDS.case, WINDOW), FIELDS, spec).columns
    for name, column in expected.items():
        assert (streamed[name].counts.tolist(), streamed[name].missing) == (column.counts.tolist(), column.missing)
    assert expected["note.missing"].counts.tolist() == [100, 200]
    params = load_params(FIELDS.case).drift.model_copy(update={"min_rows": 50, "ignore": ()})
    reference = reference_profile(rows, np.full((rows.height, 3), 1 / 3), FIELDS, spec, rows)
    gone = pl.when(pl.int_range(pl.len()) % 4 == 0).then(pl.col("note"))
    current = profile_frame(rows.with_columns(gone.alias("note")), FIELDS, spec)
    found = {one.feature for one in compare(reference, current, FIELDS, spec, params) if one.drifted}
    assert found == {"note.missing"}
    assert not quality(reference, current, WINDOW, params).problems


def test_rows_without_a_text_are_told_apart_by_nothing(rows):
    """A holdout keeps them, as nobody remembers a row by a text that is missing; a probe reads them as empty."""
    known = dataset.known_rows((rows.head(150),), FIELDS.repeats)
    left = dataset.without_repeats(rows.tail(150), FIELDS.repeats, known)
    assert left["note"].null_count() == rows.tail(150)["note"].null_count()
    assert probe.answers(rows, rows, FIELDS, "logistic").shape == (rows.height, 3)
