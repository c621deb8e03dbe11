"""Derived features: formulas give what polars gives, and what cannot be computed for a single row is refused."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace

import polars as pl
import pytest

from pipelines.derived import derive, from_json, reads, to_json, with_derived, with_formulas
from pipelines.errors import ConfigError, IntegrityError
from pipelines.fields import Attribute, Categorical, Fields, Flag, Numeric, frame_schema
from pipelines.fields import from_json as fields_from_json
from pipelines.fields import to_json as fields_to_json

RAW = (
    Numeric("a", missing=True),
    Numeric("b", missing=True),
    Numeric("t", 0.0, 4e9),
    Categorical("c", ("x", "y"), missing=True),
    Categorical("o", ("x", "y"), other=True),
    Flag("f", missing=True),
    Attribute("customer"),
)
A, B, T, C, OPEN, F = (pl.col(name) for name in "abtcof")
NUMBERS = {
    "sum": A + B,
    "difference": 1 - A,
    "product": A * B * -2,
    "ratio": A / B,
    "ratio of equal ones": A / A,
    "by a constant": A / 49,
    "whole": A // 49,
    "whole of a column": A // B,
    "rest": A % 7,
    "rest of a column": A % B,
    "negative": -A,
    "log": A.log(),
    "log10": A.log(10),
    "log1p": A.log1p(),
    "exp": A.exp(),
    "root": A.sqrt(),
    "square": A**2,
    "power": A**B,
    "size": A.abs(),
    "floor": A.floor(),
    "ceil": A.ceil(),
    "wave": A.sin() + A.cos(),
    "clipped": A.clip(-1, 50),
    "clipped below": (A / B).clip(lower_bound=0),
    "filled": A.fill_null(B).fill_null(-1),
    "flag": F.cast(pl.Float64) + 1,
    "chosen": pl.when(A > B).then(A).when(F).then(1).otherwise(None),
    "interaction": pl.when(C == "x").then(A).otherwise(B * 2),
    "hour": pl.from_epoch(T, time_unit="s").dt.hour(),
    "weekday": pl.from_epoch(T, time_unit="s").dt.weekday().cast(pl.Float64) * 24,
    "month": pl.from_epoch(T, time_unit="s").dt.month(),
    "year": pl.from_epoch(T, time_unit="s").dt.year(),
    "day": pl.from_epoch(T, time_unit="s").dt.day(),
    "minute": pl.from_epoch(T, time_unit="s").dt.minute().alias("renamed"),
}
TEXTS = {
    "bucket": A.bin_intervals([-1.0, 2.5, 49.0], labels=["l", "m", "h", "t"]).cast(pl.String),
    "bucket from above": (A / B).bin_intervals([1.0, 2.0], labels=["l", "m", "h"], right_closed=True).cast(pl.String),
    "category": pl.when(A.is_null()).then(pl.lit("none")).when(A >= 49).then(pl.lit("much")).otherwise(C),
    "pair": C + "|" + pl.when(F).then(pl.lit("yes")).otherwise(pl.lit("no")),
    "joined": pl.concat_str(C, pl.lit("and"), OPEN, separator=" "),
    "other": OPEN,
}
TRUTHS = {
    "above": A > B,
    "not below": A / B >= 1,
    "below": A < 49,
    "at most": A / B <= B / A,
    "same": A == B,
    "different": C != OPEN,
    "quotients": A / B == B / A,
    "both": (A > 1) & F,
    "either": (A > 1) | F,
    "neither": ~((A > 1) | F),
    "between": A.is_between(0, 49, closed="left"),
    "outside": ~A.is_between(0, 49),
    "among": C.is_in(["x", "z"]),
    "number among": A.is_in([1.0, 49.0]),
    "there": A.is_not_null(),
}
EXPRESSIONS = NUMBERS | TEXTS | TRUTHS
VALUES = (None, 0.0, -0.0, 1.0, -1.0, 2.5, 49.0, 147.0, -7.5, 1e-3, 1e30, -3e38)


def declared(expressions):
    """The fields with a feature, of the right kind and as open as can be, for each expression."""
    kinds = {name: Numeric(f"d{i}", missing=True) for i, name in enumerate(NUMBERS)}
    kinds |= {name: Categorical(f"e{i}", ("x",), missing=True, other=True) for i, name in enumerate(TEXTS)}
    kinds |= {name: Flag(f"g{i}", missing=True) for i, name in enumerate(TRUTHS)}
    chosen = [kinds[name] for name in expressions]
    fields = Fields("shop", RAW, label="sold", derived=tuple(chosen))
    named = {field.name: expressions[name] for field, name in zip(chosen, expressions, strict=True)}
    return with_formulas(fields, named), named


def rows():
    """Raw rows of all pairs of awkward numbers, with texts, flags and times that change from row to row."""
    pairs = list(itertools.product(VALUES, VALUES))
    turns = range(len(pairs))
    frame = {
        "a": [a for a, _ in pairs],
        "b": [b for _, b in pairs],
        "t": [float(turn) * 27_654_321.5 for turn in turns],
        "c": [("x", "y", None)[turn % 3] for turn in turns],
        "o": [("x", "y", "z", "")[turn % 4] for turn in turns],
        "f": [(True, False, None)[turn % 5 % 3] for turn in turns],
    }
    kinds = frame_schema(Fields("shop", RAW, label="sold"))
    return pl.DataFrame(frame, schema={name: kinds[name] for name in frame})


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_a_formula_gives_what_polars_gives_of_every_row(name):
    """Row by row a formula is the author's polars expression: exactly, to a rounding for powers; NaN is missing."""
    fields, named = declared({name: EXPRESSIONS[name]})
    ((own, expression),) = named.items()
    frame = rows()
    found = derive(fields, frame.to_dict(as_series=False))[own]
    for position, value in enumerate(found):
        wanted = frame[position].select(expression.alias("it"))["it"][0]
        if name in NUMBERS:
            wanted = None if wanted is None or not abs(wanted) <= 3.4028234663852886e38 else wanted
            if wanted is not None and value is not None:
                assert math.isclose(value, wanted, rel_tol=1e-15 if name in {"square", "power"} else 0.0)
                continue
        assert value == wanted
    assert len({*found}) > 1


def test_a_frame_gets_the_same_bits_as_a_row():
    """What profiles count of a frame, missing columns and strange values included, is what a row is scored by."""
    fields, _ = declared(EXPRESSIONS)
    frame = rows()
    together = with_derived(frame, fields)
    columns = derive(fields, frame.to_dict(as_series=False))
    for field in fields.derived:
        assert together[field.name].to_list() == columns[field.name]
    assert with_derived(together, fields) is together
    bare = with_derived(pl.DataFrame({"a": ["no number", "2"]}), fields)
    assert bare["d0"].to_list() == [None, None]
    assert bare["d5"].to_list() == [None, 2 / 49]


def test_formulas_travel_as_json():
    """A bundle's formulas are read back as they were, and damaged ones are refused before they compute anything."""
    fields, _ = declared(EXPRESSIONS)
    bare = replace(fields, formulas=())
    written = json.loads(json.dumps(to_json(fields)))
    assert from_json(bare, written) == fields
    assert fields_from_json(json.loads(json.dumps(fields_to_json(fields)))) == bare
    first = fields.derived[0].name
    for damage in (None, {}, {first: ["system", "ls"]}, {**written, first: ["add", ["column", "nowhere"], 1]}):
        with pytest.raises(IntegrityError, match="restore the bundle"):
            from_json(bare, damage)
    with pytest.raises(ConfigError, match="load_fields"):
        derive(bare, rows().to_dict(as_series=False))


def test_hashes_tell_a_declaration_from_its_formulas():
    """The fields' hash knows what is derived, the features' hash also how; neither changes for who derives nothing."""
    plain = Fields("shop", RAW, label="sold")
    one, _ = declared({"ratio": A / B})
    ratio = {"d3": EXPRESSIONS["ratio"]}
    other = with_formulas(one, {one.derived[0].name: A / (B + 1)})
    assert plain.features_hash == plain.hash
    assert one.hash != plain.hash
    assert one.hash == other.hash
    assert one.features_hash not in {one.hash, other.features_hash}
    assert reads(one) == ("a", "b")
    assert one.inputs == plain.inputs == ("a", "b", "t", "c", "o", "f")
    assert one.feature_names == (*plain.inputs, *ratio)
    assert one.names == plain.names


@pytest.mark.parametrize(
    ("field", "expression", "why"),
    [
        (Numeric("d", missing=True), A.mean(), "Agg cannot be computed for a single row"),
        (Numeric("d", missing=True), A.shift(1), "Shift cannot be computed for a single row"),
        (Numeric("d", missing=True), A.rank(), "cannot be computed for a single row"),
        (Numeric("d", missing=True), A.map_elements(abs), "AnonymousFunction cannot be computed for a single row"),
        (Numeric("d", missing=True), A.cast(pl.Int8), "a cast to"),
        (Numeric("d", missing=True), pl.col("sold"), "'sold' is no number, category or flag of the case"),
        (Numeric("d", missing=True), pl.col("customer"), "'customer' is no number, category or flag of the case"),
        (Numeric("d", missing=True), A + F, "add takes a number or a text, it is given a truth: cast it"),
        (Numeric("d", missing=True), A + C, "add is given a number and a text"),
        (Numeric("d", missing=True), A.clip(B, 1), "a bound of clip has to be a number"),
        (Numeric("d", missing=True), A.log(1), "the base of log"),
        (Numeric("d", missing=True), C, "it gives a text, declared is a number"),
        (Numeric("d", missing=True), pl.from_epoch(A, time_unit="s").dt.hour(), "with low and high declared"),
        (Numeric("d", missing=True), pl.from_epoch(T, time_unit="ms").dt.hour(), "dates are made by"),
        (Numeric("d", missing=True), pl.from_epoch(T, time_unit="s").dt.hour() * 60, "it is given a part: cast it"),
        (Numeric("d", missing=True), 3.0, "float is no polars expression"),
        (Flag("d"), A > 1, "it has no value where one that it is made of is missing"),
        (Categorical("d", ("x", "y")), C, "it has no value where one that it is made of is missing"),
        (Categorical("d", ("x",)), C.fill_null("x"), "it can give 'y', which is not declared"),
        (Categorical("d", ("x",)), OPEN, "it can give any text: declare other=True"),
        (Categorical("d", ("x",), missing=True), A > 1, "it gives a truth, declared is a Categorical"),
    ],
)
def test_what_cannot_be_computed_for_a_row_is_refused(field, expression, why):
    """An expression beyond the subset, or one that gives what is not declared, is refused with the feature's name."""
    fields = Fields("shop", RAW, label="sold", derived=(field,))
    with pytest.raises(ConfigError, match=rf"^d: .*{why}"):
        with_formulas(fields, {"d": expression})


def test_a_declaration_and_its_expressions_name_the_same_features():
    """A feature without expression, an expression without feature, and wrong declarations are told."""
    ratio = Numeric("ratio", missing=True)
    fields = Fields("shop", RAW, label="sold", derived=(ratio,))
    with pytest.raises(ConfigError, match=r"ratio: features\.py has no expression"):
        with_formulas(fields, {})
    with pytest.raises(ConfigError, match=r"more: schema\.py does not declare it"):
        with_formulas(fields, {"ratio": A / B, "more": A})
    with pytest.raises(ConfigError, match="FEATURES is a list"):
        with_formulas(fields, [A / B])
    for wrong, why in (
        (Numeric("ratio"), "declare it with missing=True"),
        (Numeric("ratio", 0, missing=True), "leave out low, high and integer"),
        (Attribute("ratio"), "no derived feature"),
        (Numeric("a", missing=True), "the field a is declared twice"),
        (Numeric("sold", missing=True), "the label sold is declared as a field"),
    ):
        with pytest.raises(ConfigError, match=why):
            Fields("shop", RAW, label="sold", derived=(wrong,))
