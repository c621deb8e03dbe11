"""A vector in a row: what sums it up in profiles, what is no vector, and that a turned one drifts."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from pipelines.cases.receiving import receive
from pipelines.data.contract import split
from pipelines.drift.inputs.compare import compare
from pipelines.drift.profile.counts import profile_frame
from pipelines.drift.profile.spec import freeze_spec
from pipelines.drift.reference import reference_profile
from pipelines.encoding import encode, summarise, unfolded
from pipelines.errors import ConfigError, DataError
from pipelines.fields import Vector, from_json, to_json
from pipelines.headroom import probe
from pipelines.params_file import load_params
from pipelines.settings import Settings
from serving.gateway.refusal import Refused
from serving.gateway.rows import read, row_shape
from tests.conformance.table import KINDS, WINDOW, declare, delivered, installed

SIZE = 32
FIELDS = declare(KINDS["number"], Vector("face", SIZE))


@pytest.fixture
def drawn():
    """Canonical rows with vectors about a direction of their own, of different lengths."""
    rng = np.random.default_rng(1)
    vectors = rng.normal(0.0, 1.0, (2000, SIZE)) + 2 * (np.arange(SIZE) < 8)
    rows = delivered(FIELDS, rows=2000).with_columns(face=pl.Series(vectors.tolist()))
    return rows.with_columns(pl.col("sold").cast(pl.Int8))


def test_a_vector_is_summed_up_alike_alone_and_among_many():
    """A row has the same summaries to the bit alone, in another order and beside vectors of any size."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(300, SIZE)) * 10.0 ** rng.integers(-30, 30, (300, 1))
    together = summarise(vectors)
    assert np.array_equal(together, np.concatenate([summarise(one[None]) for one in vectors]))
    assert np.array_equal(together, summarise(np.asfortranarray(vectors)))
    assert together[:, 0] == pytest.approx(np.linalg.norm(vectors, axis=1), rel=1e-5)
    assert together[:, 1:].std() == pytest.approx(1.0, abs=0.1)


def test_what_is_no_vector_has_no_summaries():
    """A list of another size, with a hole or with what is not finite counts as missing, beside rows that are whole."""
    bad = [None, [1.0], [1.0] * (SIZE + 1), [None, *[1.0] * (SIZE - 1)], [float("nan")] * SIZE]
    frame = pl.DataFrame({"face": [[1.0] * SIZE, *bad]}, schema={"face": pl.List(pl.Float64)})
    assert unfolded(frame, FIELDS)["face.length"].to_list() == [pytest.approx(SIZE**0.5), *[None] * len(bad)]


@pytest.mark.parametrize(
    ("sent", "code", "said"),
    [
        ("[1, 2]", "type", "a string"),
        (None, "type", "null"),
        ([1.0] * 31, "bounds", "must have 32 numbers, has 31"),
        ([1.0] * 33, "bounds", "has 33"),
        ([*[1.0] * 31, "x"], "type", "number 31: expected a number"),
        ([float("nan")] * 32, "not_finite", "number 0: must be finite"),
        ([1e39] * 32, "bounds", "32-bit"),
        ([[1.0]] * 32, "type", "number 0: expected a number, got a list"),
    ],
)
def test_what_is_no_vector_is_refused_by_the_gateway(sent, code, said):
    """A value that is no list of so many finite numbers is refused with the field, and the place in the list."""
    body = json.dumps({"rows": [{"number": 1.0, "face": [0.5] * SIZE}, {"number": 1.0, "face": sent}]}).encode()
    with pytest.raises(Refused, match=said) as refused:
        read(row_shape(FIELDS, 10), body)
    assert (refused.value.reason, refused.value.field, refused.value.row) == (code, "face", 1)


def test_what_a_source_delivers_is_checked(tmp_path):
    """Vectors of another size or with no number are set aside with the reason; a column of text is an error."""
    with installed(tmp_path, FIELDS):
        params = load_params(FIELDS.case)
        values = [[1] * SIZE, [1] * 3, [None, *[1] * (SIZE - 1)], None]
        rows = delivered(FIELDS, rows=4).with_columns(face=pl.Series(values))
        good, bad = split(receive(rows, FIELDS, WINDOW, params).rows, FIELDS)
        assert good["face"].to_list() == [[1.0] * SIZE]
        assert [reasons.split(":")[0] for reasons in bad["reasons"]] == ["face"] * 3
        assert "not 32 numbers" in bad["reasons"][0]
        with pytest.raises(DataError, match="expected a list of numbers"):
            receive(rows.with_columns(face=pl.lit("x")), FIELDS, WINDOW, params)


def test_its_numbers_are_the_last_ones_of_the_model():
    """The model is given the numbers of a vector as they are, behind the others, and nothing of another size."""
    tensors = encode(FIELDS, {"number": [7.0], "face": [list(map(float, range(SIZE)))]})
    assert tensors["numeric"].tolist() == [[7.0, *map(float, range(SIZE))]]
    for wrong in ([1.0], None, [1e39] * SIZE):
        with pytest.raises(DataError, match="face"):
            encode(FIELDS, {"number": [7.0], "face": [wrong]})


def test_vectors_that_turn_drift(drawn, tmp_path):
    """Vectors that point elsewhere drift by their components, scaled ones by their length; the same ones do not."""
    with installed(tmp_path, FIELDS):
        spec = freeze_spec(FIELDS, Settings(home=tmp_path), lambda: drawn)
        params = load_params(FIELDS.case).drift.model_copy(update={"min_rows": 100, "ignore": ()})
    reference = reference_profile(drawn, np.full(drawn.height, 0.5), FIELDS, spec, drawn)

    def moved(change):
        rows = drawn.with_columns(pl.col("face").list.eval(change))
        features = compare(reference, profile_frame(rows, FIELDS, spec), FIELDS, spec, params)
        return {one.feature for one in features if one.drifted}

    assert not moved(pl.element())
    assert moved(2 * pl.element()) == {"face.length"}
    turned = moved(pl.element().reverse())
    assert turned
    assert "face.length" not in turned
    assert all(name.startswith("face.component") for name in turned)


@pytest.mark.parametrize("family", ["logistic", "boosting"])
def test_a_probe_learns_from_its_numbers(drawn, family):
    """What only one number of a vector tells is found by a probe."""
    told = drawn.with_columns(sold=(pl.col("face").list.get(20) > 0).cast(pl.Int8))
    found = probe.answers(told.head(1500), told.tail(500), FIELDS, family)
    assert ((found > 0.5) == told.tail(500)["sold"].to_numpy()).mean() > 0.9


@pytest.mark.parametrize("size", [0, 4097, 3.0, True])
def test_a_size_that_cannot_be_is_refused(size):
    """A declaration says how many numbers a vector has, within what is taken."""
    with pytest.raises(ConfigError, match="size"):
        declare(Vector("face", size))


def test_a_declaration_comes_back_as_it_was():
    """A bundle's declaration of a vector is equal to the original, and its size is part of the hash."""
    assert from_json(json.loads(json.dumps(to_json(FIELDS)))) == FIELDS
    assert FIELDS.hash != declare(KINDS["number"], Vector("face", SIZE + 1)).hash
