"""Every kind of field with every kind of target: from what a source delivers to what is answered and counted."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from pipelines import runtime
from pipelines.cases import load_fields
from pipelines.cases.receiving import receive
from pipelines.data import lake, log
from pipelines.data.contract import split
from pipelines.drift.evidence import LabelEvidence
from pipelines.drift.inputs.compare import compare, quality
from pipelines.drift.profile.counts import profile_frame, scored, typed
from pipelines.drift.profile.kernel import profile_parquet
from pipelines.drift.profile.spec import freeze_spec, with_counts
from pipelines.drift.reference import reference_profile
from pipelines.drift.why import explain
from pipelines.drift.why.diagnosis import diagnose
from pipelines.drift.why.findings import Seen
from pipelines.encoding import encoder
from pipelines.export.bundle import check_parity, neighbours
from pipelines.feature_names import COUNTED, PREDICTION, SCORE, in_words
from pipelines.fields import Binary, Classes, Number
from pipelines.headroom import probe
from pipelines.params_file import load_params
from pipelines.reports import evidently
from pipelines.settings import Settings
from serving.gateway.rows import read, row_shape
from tests.conformance.table import (
    ATTRIBUTES,
    EVERYTHING,
    KINDS,
    TEXT,
    WINDOW,
    bundle_of,
    declare,
    delivered,
    installed,
    own_answers,
    sent,
)
from tests.pipelines.data.loglines import predictions, write

TOLERANCE = 1e-5
"""How far the gateway's answer may lie from the model's own."""
TABLES = {
    **{name: (field,) for name, field in KINDS.items()},
    "number and attributes": (ATTRIBUTES[0], KINDS["number"], ATTRIBUTES[1]),
    "everything": EVERYTHING,
    "number and a text": (KINDS["number"], TEXT),
    "everything and a text": (*EVERYTHING, TEXT),
}
TARGETS = {"binary": Binary(), "classes": Classes(("a", "b", "c")), "number": Number("minutes", -5, 5)}
DERIVED = "everything, a text and what is derived"
PAIRS = [
    *((name, "binary") for name in TABLES),
    *((name, target) for name in ("everything", "everything and a text") for target in ("classes", "number")),
    *((DERIVED, target) for target in ("binary", "number")),
]
"""The tables with everything have every kind: so each of them meets each target, with and without a text beside it."""


@pytest.fixture(params=PAIRS, ids="-".join)
def fields(request, tmp_path):
    """The declaration of a case that is there: one kind of field, or all of them, and a target."""
    table, target = request.param
    if table == DERIVED:
        declared = declare(*EVERYTHING, TEXT, target=TARGETS[target], derived=True)
    else:
        declared = declare(*TABLES[table], target=TARGETS[target])
    with installed(tmp_path, declared):
        assert load_fields(declared.case) == declared
        yield declared


@pytest.fixture
def canonical(fields, tmp_path):
    """The rows that were delivered, in canonical form: what the lake keeps of them."""
    received = receive(delivered(fields), fields, WINDOW, load_params(fields.case))
    assert received.counts["rows"] == received.counts["delivered"]
    settings = Settings(home=tmp_path)
    kept = lake.read_days(settings, lake.write_days(settings, fields.case, received.rows))
    good, bad = split(kept, fields)
    assert bad.is_empty()
    return good


def answered(fields, bundle, rows):
    """What the gateway's decoder, the bundle's encoder and ONNX Runtime make of canonical rows as JSON."""
    items = read(row_shape(fields, 1000), json.dumps({"rows": sent(fields, rows)}).encode())
    columns = {name: [getattr(item, name) for item in items] for name in (*fields.names, "event_time")}
    # A gateway has no formulas but the bundle's.
    return runtime.score(bundle, encoder(replace(fields, formulas=()), bundle)(columns)).reshape(rows.height, -1)


def test_an_answer_is_the_models_own(fields, canonical, tmp_path):
    """Whatever a row holds or lacks, JSON, encoding and ONNX Runtime answer what torch answers on the raw row."""
    bundle = tmp_path / "bundle"
    model = bundle_of(fields, canonical, bundle)
    own = own_answers(model, fields, canonical, bundle)
    found = answered(fields, bundle, canonical)
    assert np.isfinite(found).all()
    assert np.abs(found - own).max() <= TOLERANCE
    assert np.ptp(found[:, 0]) > 0.01  # rows do differ
    columns = canonical.select(fields.reads).to_dict(as_series=False)
    assert check_parity(model, fields, bundle, columns, seed=0) <= TOLERANCE
    assert neighbours(fields, bundle, columns, seed=0) <= TOLERANCE


def test_a_logged_row_counts_as_its_canonical_one(fields, canonical, tmp_path):
    """The log, compacted, gives the canonical rows back, and its profile as frame and as file is theirs."""
    settings = Settings(home=tmp_path)
    spec = freeze_spec(fields, settings, lambda: canonical)
    # A segment whose first rows lack whatever may be missing, and one with the others.
    order = canonical.sort(pl.sum_horizontal(pl.all().is_null()), descending=True)
    lines = predictions(order, fields)
    write(settings, fields.case, "predictions", "a", lines[:3])
    write(settings, fields.case, "predictions", "b", lines[3:])
    log.compact(settings, fields.case)
    rows = log.read_predictions(settings, fields.case, WINDOW)
    files = log.near(settings, fields.case, WINDOW)
    again = typed(rows, fields).select(fields.names)
    assert again.equals(canonical.sort("event_time", "id").select(fields.names))
    inputs = [name for name in (*fields.feature_names, *fields.shares) if name != TEXT.name]
    if fields.text is not None:
        inputs += [TEXT.name + counted for counted in COUNTED]
    expected = profile_frame(canonical, fields, spec).columns
    framed = profile_frame(scored(typed(rows, fields), fields), fields, spec).columns
    streamed = profile_parquet(files, fields, spec).columns
    assert set(expected) == set(inputs)
    for name in inputs:
        for columns in (framed, streamed):
            assert columns[name].counts.tolist() == expected[name].counts.tolist()
            assert columns[name].bins.tolist() == expected[name].bins.tolist()
            assert columns[name].missing == expected[name].missing


def test_the_share_that_moves_is_the_one_that_drifts(fields, canonical, tmp_path):
    """A jump of missing values, or of undeclared ones, is a drift of that share, named as such, and no fault."""
    spec = freeze_spec(fields, Settings(home=tmp_path), lambda: canonical)
    params = load_params(fields.case).drift.model_copy(update={"min_rows": 100, "ignore": ()})
    scores = np.full((canonical.height, fields.outputs), 1 / fields.outputs)
    if not fields.classes:
        scores = np.full(canonical.height, 0.5)
    reference = reference_profile(canonical, scores, fields, spec, canonical)

    def moved(rows):
        current = profile_frame(rows, fields, spec)
        assert not quality(reference, current, WINDOW, params).problems
        features = compare(reference, current, fields, spec, params)
        nothing = LabelEvidence(rows=0, errors=0, baseline=0.5)
        why = diagnose(Seen(1, reference, current, features, nothing), params).why
        return {one.feature for one in features if one.drifted}, why

    assert not moved(canonical)[0]
    made = {name for name in (*fields.feature_names, *fields.shares) if name.partition(".")[0] not in fields.inputs}
    for share in (share for share in fields.shares if share not in made):
        name, _, kind = share.rpartition(".")
        half = pl.int_range(canonical.height) % 2 == 0
        value = pl.lit(None) if kind == "missing" else pl.lit("never seen")
        changed = canonical.with_columns(pl.when(half).then(value).otherwise(pl.col(name)).alias(name))
        found, why = moved(changed.cast(dict(canonical.schema)))
        assert share in found
        assert found - made <= {share, name}
        assert not made or share != "holes.missing" or {"ratio.missing", "size"} <= found
        assert in_words(share) in why


@pytest.mark.parametrize("fields", [("everything", "binary"), (DERIVED, "classes")], indirect=True)
def test_pages_and_explanations_are_drawn_of_it(fields, canonical, tmp_path):
    """Evidently draws every column that can drift, and the classifier names the fields that tell the windows apart."""
    sides = with_counts(canonical, fields), with_counts(canonical.tail(200), fields)
    params = load_params(fields.case).drift
    columns = [name for name in fields.measured if name not in (SCORE, PREDICTION)]
    assert evidently.page(tmp_path / "drift.html", lambda: sides, columns, fields, params) == ("drift.html", None)
    told = explain.explain(*sides, fields)
    assert told.features
    assert {one.feature for one in told.features} <= set(fields.feature_names)
    assert bool(told.words) == (fields.text is not None)


@pytest.mark.parametrize(
    "fields",
    [*(("everything", target) for target in TARGETS), *((DERIVED, target) for target in TARGETS)],
    indirect=True,
)
def test_a_probe_reads_it(fields, canonical):
    """Both families of probes learn from whatever a row holds or lacks, and answer in the target's terms.

    Beside a text there is one: trees do not read texts.
    """
    for family in ("logistic", "boosting") if fields.text is None else ("logistic",):
        found = probe.answers(canonical, canonical, fields, family)
        assert found.shape[0] == canonical.height
        assert np.isfinite(found).all()
