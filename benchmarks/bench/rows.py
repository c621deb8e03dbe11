"""What a row costs the gateway, decoded and encoded: holes, other values, flags and attributes beside plain fields.

The fields of `bank` as they are, and with every number and category declared ``missing`` and every category ``other``,
a fifth of the values null or undeclared; with four flags and two attributes beside them; and with four features that
are derived of them. Request by request in turns, in seconds of the processor. `make bench-rows`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.record import goal, record
from pipelines.cases import load_fields
from pipelines.derived import deriving, with_formulas
from pipelines.encoding import Encode, encode
from pipelines.fields import Attribute, Categorical, Field, Fields, Flag, Numeric
from serving.gateway.identity import digest
from serving.gateway.rows import Shape, read, row_shape

CASE = "bank"
SIZES = {1: 2000, 100: 60}
"""Rows of a request, and how many requests are measured."""
SHARE = 0.2
"""Values that are missing or undeclared, where they are declared."""
LIMIT = 1.5
DERIVED = "plain and four derived features"
MOST = 100
Work = Callable[[], object]
Encoding = Callable[[], dict[str, NDArray[Any]]]


def main() -> None:
    """Measure, and write benchmarks/results/rows.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench.rows", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the requests; nothing is written")
    options = parser.parse_args()
    began = time.perf_counter()
    rows: list[dict[str, Any]] = []
    goals: list[dict[str, Any]] = []
    plain = load_fields(CASE)
    tables = {
        "plain": plain,
        "missing and other": opened(plain),
        "and flags and attributes": wider(opened(plain)),
        DERIVED: with_derived(plain),
    }
    for size, requests in SIZES.items():
        works = {name: _request(fields, size) for name, fields in tables.items()}
        found = measure(works, requests // 10 if options.quick else requests)
        for name, seconds in found.items():
            middle = float(np.median(seconds)) / size * 1e6
            rows.append({"rows": size, "fields": len(tables[name].fields), "name": name, "us a row": round(middle, 2)})
        for name in ("missing and other", "and flags and attributes"):
            ratio = _each(found[name], tables[name]) / _each(found["plain"], plain)
            goals.append(goal(f"{name}, {size} row(s): a field's cost beside today's", ratio, LIMIT))
        ratio = float(np.median(found[DERIVED]) / np.median(found["plain"]))
        goals.append(goal(f"{DERIVED}, {size} row(s): a row's cost beside today's", ratio, LIMIT))
    record(
        "rows",
        rows=rows,
        goals=goals,
        seconds=time.perf_counter() - began,
        packages=("msgspec", "numpy"),
        keep=not options.quick,
    )


def measure(works: Mapping[str, Work], times: int) -> dict[str, list[float]]:
    """Processor seconds of every call, the works taking turns so that a busy machine is busy for all of them."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()
    for _ in range(times):
        for name, work in works.items():
            started = time.process_time()
            work()
            found[name].append(time.process_time() - started)
    return found


def _each(seconds: Sequence[float], fields: Fields) -> float:
    return float(np.median(seconds)) / len(fields.fields)


def opened(fields: Fields) -> Fields:
    """Every field with the options that its kind has."""

    def one(field: Field) -> Field:
        if isinstance(field, Categorical):
            return replace(field, missing=True, other=True)
        return replace(field, missing=True) if isinstance(field, Numeric) else field

    return replace(fields, fields=tuple(one(field) for field in fields.fields))


def wider(fields: Fields) -> Fields:
    """Four flags and two attributes beside the fields."""
    more: tuple[Field, ...] = (
        *(Flag(f"flag_{number}", missing=True) for number in range(4)),
        Attribute("key"),
        Attribute("group"),
    )
    return replace(fields, fields=(*fields.fields, *more))


def with_derived(fields: Fields) -> Fields:
    """A ratio, a logarithm, a bucket and an interaction beside the fields; missing where what they are of may be."""
    import polars as pl

    young = pl.col("age").bin_intervals([30.0, 60.0], labels=["young", "middle", "old"]).cast(pl.String)
    expressions = {
        "calls_before": pl.col("previous") / pl.col("campaign"),
        "log_campaign": pl.col("campaign").log1p(),
        "age_group": young,
        "job_of_age": pl.col("job") + "|" + young,
    }
    missing = any(field.missing for field in fields.numeric)
    derived: tuple[Categorical | Numeric | Flag, ...] = (
        Numeric("calls_before", missing=True),
        Numeric("log_campaign", missing=True),
        Categorical("age_group", ("young", "middle", "old"), missing=missing),
        Categorical("job_of_age", ("student|young", "retired|old"), missing=missing, other=True),
    )
    return with_formulas(replace(fields, derived=derived), expressions)


def _request(fields: Fields, rows: int) -> Encoding:
    generator = np.random.default_rng(0)
    encoder = partial(encode, fields, derive=deriving(fields))  # as pipelines.encoding.encoder makes it of a bundle
    return request(fields, [drawn_row(fields, generator) for _ in range(rows)], encoder)


def request(fields: Fields, rows: Sequence[dict[str, Any]], encoder: Encode) -> Encoding:
    """The gateway's work on one request: decode and check, a digest of every row, columns, tensors."""
    return partial(_work, row_shape(fields, MOST), fields, encoder, json.dumps({"rows": rows}).encode())


def _work(shape: Shape, fields: Fields, encoder: Encode, body: bytes) -> dict[str, NDArray[Any]]:
    features = [msgspec.structs.astuple(item)[: len(fields.fields)] for item in read(shape, body)]
    for own in features:
        digest(own)
    return encoder(dict(zip(fields.names, zip(*features, strict=True), strict=True)))


def drawn_row(fields: Fields, generator: np.random.Generator) -> dict[str, Any]:
    """A row as a client sends it, with holes and undeclared values wherever the declaration takes them."""
    return {field.name: _value(field, generator) for field in fields.fields}


def _value(field: Field, generator: np.random.Generator) -> Any:
    drawn = generator.random()
    if not isinstance(field, Attribute) and getattr(field, "missing", False) and drawn < SHARE / 2:
        return None
    if isinstance(field, Categorical):
        return "undeclared" if field.other and drawn < SHARE else str(generator.choice(field.values))
    if isinstance(field, Flag):
        return bool(drawn < 0.5)
    if isinstance(field, Numeric):
        low, high = field.low or 0.0, field.high or 1.0
        return float(round(generator.uniform(low, high)) if field.integer else generator.uniform(low, high))
    return "a customer's key"


if __name__ == "__main__":
    main()
