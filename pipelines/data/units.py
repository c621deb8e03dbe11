"""The units of an experiment: who met which arm, and what it came to; each counts once, when it is mature.

A unit is the value of the rollout's key, so that whoever comes a hundred times counts once, or a prediction where a
rollout has no key. It is of the arm that its first answer was of, whatever answered in that arm's place (intention to
treat), and stays there. When that answer is older than the horizon the unit is *mature*: its value is what was known by
then, and nothing that comes later changes it, so that a repeated look gives the same.

All goes by the wall clock, by when requests, labels and figures were received. Closed segments are read as they lie.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, NamedTuple

import msgspec
import polars as pl

from pipelines import segments
from pipelines.contracts import FigureLine, LabelLine
from pipelines.data.traffic import closed_since
from pipelines.params import LABEL
from pipelines.segments import Kind
from pipelines.settings import Settings

LEAST = 20
"""Units of a look, at least: a look of two would compare hardly anything."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SETTLING = timedelta(minutes=1)
"""So long after the weight has moved nobody becomes a unit: gateways follow the ledger within seconds."""
Fold = Literal["sum", "any", "mean"]
"""What a unit's value is of several: the sum of its figures, whether any of its labels is 1, or their mean."""
_MOMENT = pl.Datetime("us", "UTC")
SCHEMA: dict[str, Any] = {
    "unit": pl.String,
    "arm": pl.String,
    "stretch": pl.Int64,
    "begun": _MOMENT,
    "matured": _MOMENT,
    "value": pl.Float64,
}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """What an experiment counts.

    ``stretches`` are the moments at which the weight of its rollout was set, with that weight, in order; before the
    first one nobody is a unit. ``key`` names the field or attribute that units are values of, None: each prediction is
    one. ``outcome`` is ``label`` or the name of a figure.
    """

    stretches: Sequence[tuple[datetime, int]]
    key: str | None
    outcome: str
    horizon: timedelta
    fold: Fold


def read(settings: Settings, case: str, asked: Asked, until: datetime) -> pl.DataFrame:
    """The units that were answered before ``until``, in the order in which they are, or will be, mature.

    Columns: ``unit, arm, stretch`` (the position among ``asked.stretches``), ``begun`` (its first answer), ``matured``
    and ``value``, null while it is not mature and, where labels are the outcome, if it had none by then. A unit without
    a figure has 0. Raises IntegrityError for a segment that is not what was sealed.
    """
    since = asked.stretches[0][0]
    rows = _first_of_each(_rows(settings, case, asked.key, since), "id").filter(pl.col("at") < until)
    rows = rows.filter(pl.col("at") >= since).sort("at")
    moves = pl.DataFrame(
        {"moved": [moment for moment, _ in asked.stretches], "stretch": range(len(asked.stretches))},
        schema={"moved": _MOMENT, "stretch": pl.Int64},
    )
    rows = rows.join_asof(moves, left_on="at", right_on="moved", strategy="backward")
    first = (
        _first_of_each(rows.filter(pl.col("at") >= pl.col("moved") + SETTLING), "unit")
        .with_columns(begun=pl.col("at"), matured=pl.col("at") + asked.horizon)
        .select("unit", "arm", "stretch", "begun", "matured")
    )
    own = rows.select("id", "unit", "at").join(first.select("unit", "begun", "matured"), on="unit")
    own = own.filter((pl.col("at") >= pl.col("begun")) & (pl.col("at") < pl.col("matured")))
    known = own.join(_outcomes(settings, case, asked.outcome, since), on="id").filter(
        pl.col("known") <= pl.col("matured")
    )
    known = known.sort("revision", "known", descending=[True, False]).unique("id", keep="first", maintain_order=True)
    values = known.group_by("unit").agg(_folded(asked.fold).alias("value"))
    found = first.join(values, on="unit", how="left")
    value = pl.col("value") if asked.outcome == LABEL else pl.col("value").fill_null(0.0)
    found = found.with_columns(value=pl.when(pl.col("matured") <= until).then(value))
    return found.sort("matured", "unit").select(pl.col(name).cast(kind) for name, kind in SCHEMA.items())


class Moments(NamedTuple):
    """Units of one arm, the sum of their values and of their squares."""

    n: int = 0
    total: float = 0.0
    squares: float = 0.0


class Look(NamedTuple):
    """What became mature until ``at`` since the look before, of the units of one stretch."""

    at: datetime
    champion: Moments = Moments()
    challenger: Moments = Moments()


def looks(found: pl.DataFrame, every: timedelta, until: datetime, least: int = LEAST) -> list[Look]:
    """What :func:`read` gave as looks, oldest first: whole spans of ``every`` that ended by ``until``.

    Spans are joined until at least ``least`` units with a value became mature in them, which says nothing of their
    values; the last ones wait for more. Units of several stretches are looks of their own, as an arm's share of the
    units is another one in each.
    """
    width = round(every / timedelta(microseconds=1))
    place = pl.col("matured").dt.epoch("us") // width
    value = pl.col("value")
    sums = (
        found.drop_nulls("value")
        .group_by(place.alias("place"), "stretch", "arm")
        .agg(pl.len().alias("n"), value.sum().alias("total"), (value * value).sum().alias("squares"))
        .filter((pl.col("place") + 1) * width <= round((until - _EPOCH) / timedelta(microseconds=1)))
        .sort("place", "stretch", "arm")
    )
    told: list[Look] = []
    gathered: dict[int, dict[str, Moments]] = {}
    for (at,), span in sums.group_by("place", maintain_order=True):
        for stretch, arm, *more in span.select("stretch", "arm", "n", "total", "squares").iter_rows():
            own = gathered.setdefault(stretch, {})
            own[arm] = Moments(*(old + new for old, new in zip(own.get(arm, Moments()), more, strict=True)))
        if sum(one.n for arms in gathered.values() for one in arms.values()) >= least:
            end = _EPOCH + timedelta(microseconds=(int(str(at)) + 1) * width)
            told += [Look(end, **arms) for _, arms in sorted(gathered.items())]
            gathered = {}
    return told


def _folded(fold: Fold) -> pl.Expr:
    value = pl.col("value")
    if fold == "sum":
        return value.sum()
    return value.max() if fold == "any" else value.mean()


def _first_of_each(rows: pl.DataFrame, name: str) -> pl.DataFrame:
    return rows.sort("at", "id").unique(name, keep="first", maintain_order=True)


# --- lines --------------------------------------------------------------------------------------


class _Row(msgspec.Struct, gc=False):
    """What is read of a line of the prediction log."""

    prediction_id: str
    received_at: str
    arm: str = ""


def _rows(settings: Settings, case: str, key: str | None, since: datetime) -> pl.DataFrame:
    """The rows that belong to an arm: ``id, unit, arm, at``."""
    line: Any = _Row
    if key is not None:
        features = msgspec.defstruct("_Features", [("key", Any, None)], rename={"key": key}, gc=False)
        line = msgspec.defstruct("_Keyed", [("row", features | None, None)], bases=(_Row,), gc=False)
    found = []
    for rows in _lines(settings, case, "predictions", since, msgspec.json.Decoder(line)):
        own = [row for row in rows if row.arm]
        ids = [row.prediction_id for row in own]
        keys = [None] * len(own) if key is None else [row.row and row.row.key for row in own]
        frame = {
            "id": ids,
            # A customer may be called as a prediction is.
            "unit": [f"id {id_}" if of is None else f"key {of}" for id_, of in zip(ids, keys, strict=True)],
            "arm": [row.arm for row in own],
            "at": [row.received_at for row in own],
        }
        found.append(_timed(pl.DataFrame(frame, schema=dict.fromkeys(frame, pl.String)), "at"))
    schema: dict[str, Any] = {"id": pl.String, "unit": pl.String, "arm": pl.String, "at": _MOMENT}
    return pl.concat([pl.DataFrame(schema=schema), *found])


def _outcomes(settings: Settings, case: str, outcome: str, since: datetime) -> pl.DataFrame:
    """The labels, or the figures of a name: ``id, value, revision, known``."""
    schema: dict[str, Any] = {"id": pl.String, "value": pl.Float64, "revision": pl.Int64, "known": pl.String}
    found = [pl.DataFrame(schema=schema).with_columns(pl.lit(None, _MOMENT).alias("known"))]
    kind: Kind = "labels" if outcome == LABEL else "figures"
    decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(LabelLine if outcome == LABEL else FigureLine)
    for lines in _lines(settings, case, kind, since, decoder):
        own = lines if outcome == LABEL else [line for line in lines if line["name"] == outcome]
        values = {
            "id": [line["prediction_id"] for line in own],
            "value": [float(line["label" if outcome == LABEL else "value"]) for line in own],
            "revision": [line["revision"] for line in own],
            "known": [line["received_at"] for line in own],
        }
        found.append(_timed(pl.DataFrame(values, schema=schema), "known"))
    return pl.concat(found)


def _timed(frame: pl.DataFrame, name: str) -> pl.DataFrame:
    """With the column ``name`` as moments; lines whose time cannot be read are left out."""
    moments = pl.col(name).str.to_datetime("%+", time_unit="us", time_zone="UTC", strict=False)
    return frame.with_columns(moments).drop_nulls(name)


def _lines(
    settings: Settings, case: str, kind: Kind, since: datetime, decoder: msgspec.json.Decoder[Any]
) -> Iterator[list[Any]]:
    """The lines of each segment that was written to after ``since``."""
    for path in closed_since(settings, case, kind, since):
        data, _ = segments.read(path)
        try:
            yield decoder.decode_lines(data)
        except msgspec.MsgspecError:
            yield list(_whole(data, decoder, str(path)))


def _whole(data: bytes, decoder: msgspec.json.Decoder[Any], name: str) -> Iterator[Any]:
    """The lines that can be read; how many cannot is said."""
    damaged = 0
    for line in filter(None, data.split(b"\n")):
        try:
            yield decoder.decode(line)
        except msgspec.MsgspecError:
            damaged += 1
    log.warning("%d line(s) of %s cannot be read: they are left out", damaged, name)
