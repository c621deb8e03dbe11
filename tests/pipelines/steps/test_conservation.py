"""Nothing that is delivered vanishes: rows, quarantined, exact repeats, outside; and the order does not show."""

import json
import tempfile
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.cases.loans import source as loans
from pipelines.cases.loans.schema import FIELDS
from pipelines.cases.sources import canonical
from pipelines.contracts import Manifest, Window
from pipelines.data import lake
from pipelines.data import log as prediction_log
from pipelines.errors import DataError, TooFewRows
from pipelines.params import Params
from pipelines.params_file import load_params
from pipelines.settings import Settings
from tests.pipelines.data import loglines
from tests.pipelines.steps.champion import promote_first
from tests.pipelines.verbs import ingest, validate

AS_OF = datetime(2020, 6, 1, tzinfo=UTC)
_DEFAULTS = load_params("loans")
PARAMS = _DEFAULTS.model_copy(
    update={
        "dataset": _DEFAULTS.dataset.model_copy(
            update={"window_days": 20, "min_rows": 10, "fallback_rows": 1000, "max_bad_share": 1.0},
        ),
        "label_delay_days": 0.0,  # labels that no run may see yet are another test's matter
    }
)
STREAM = pl.concat([loans.generate(date(2020, 5, 16) + timedelta(days=day), rows_per_day=3) for day in range(16)])
SOUND = STREAM.to_dicts()
Lines = list[dict[str, Any]]


def _run(home: Path, params: Any = PARAMS) -> tuple[Manifest, Manifest, Path]:
    """Ingest and validate one run."""
    settings = Settings(home=home)
    run_dir = settings.run_dir("loans", AS_OF)
    return ingest.run(params, settings, run_dir, AS_OF), validate.run(params, settings, run_dir, AS_OF), run_dir


def _deliver(monkeypatch: pytest.MonkeyPatch, frame: pl.DataFrame, *, by_hand: bool, pieces: bool = False) -> None:
    """Let the case's source deliver ``frame``, brought into canonical form by the case or, ``by_hand``, not.

    Or let it give the rows in ``pieces``, as they are.
    """

    def rows(_source: loans.Source, window: Window, params: Params) -> pl.DataFrame:
        return frame if by_hand else canonical(frame, FIELDS, window, params)

    monkeypatch.setattr(loans, "rows", rows)
    if pieces:
        monkeypatch.setattr(loans, "pieces", lambda *_: frame.iter_slices(7), raising=False)
    else:
        monkeypatch.delattr(loans, "pieces", raising=False)


FAULTS: dict[str, dict[str, Any]] = {
    "sound": {},
    "no id": {"id": None},
    "no time": {"event_time": None},
    "fractional label": {"granted": 0.37},
    "label is not a number": {"granted": float("nan")},
    "label of no class": {"granted": 7},
    "label beyond int8": {"granted": 900},
    "unknown category": {"car": "tesla"},
    "no category": {"car": None},
    "below its bound": {"age": 3.0},
    "infinite": {"salary": float("inf")},
    "not a number": {"salary": float("nan")},
    "beyond float32": {"salary": 1e300},
    "no number": {"salary": None},
    "before the period": {"event_time": datetime(1970, 1, 19, tzinfo=UTC)},
    "after the run": {"event_time": AS_OF + timedelta(days=1)},
    "no label yet": {"granted": None},
}
"""What is wrong with a row -> the values that make it so."""
QUARANTINED = FAULTS.keys() - {"sound", "no label yet", "before the period", "after the run"}


@st.composite
def deliveries(draw: st.DrawFn) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Rows in any order, some broken, some more than once; and what is wrong with each id."""
    faults = {row["id"]: draw(st.sampled_from(sorted(FAULTS))) for row in SOUND} | {SOUND[0]["id"]: "sound"}
    rows = [row | FAULTS[faults[row["id"]]] for row in SOUND]
    again = draw(st.lists(st.sampled_from(range(len(rows))), max_size=20))
    return draw(st.permutations(rows + [rows[number] for number in again])), faults


@settings(max_examples=14, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    delivery=deliveries(),
    form=st.sampled_from(["numbers", "text"]),
    how=st.sampled_from(["canonical", "by hand", "in pieces"]),
)
def test_every_row_of_a_source_is_accounted_for(
    monkeypatch: pytest.MonkeyPatch, delivery: tuple[list[dict[str, Any]], dict[str, str]], form: str, how: str
):
    """Good + quarantined + exact repeats + outside = delivered; each broken row is quarantined once."""
    rows, faults = delivery
    frame = pl.DataFrame(rows, schema=dict(STREAM.schema) | {"granted": pl.Float64})
    if form == "text":
        written = pl.col("event_time").dt.strftime("%Y-%m-%dT%H:%M:%S%.f%:z")
        frame = frame.with_columns(written, pl.col("salary").cast(pl.String))
    _deliver(monkeypatch, frame, by_hand=how == "by hand", pieces=how == "in pieces")
    with tempfile.TemporaryDirectory() as home:
        made, checked, run_dir = _run(Path(home))
        good, bad = (pl.read_parquet(run_dir / "validate" / f"{name}.parquet") for name in ("rows", "quarantine"))
        facts, counts = checked.facts, made.facts["counts"]
    assert facts["rows"] + facts["bad"] + facts["repeats"] + facts["outside"] == facts["delivered"] == len(rows)
    assert sum(count for name, count in counts.items() if name != "delivered") == counts["delivered"] == len(rows)
    assert (facts["rows"], facts["bad"]) == (good.height, bad.height)
    assert sorted(good["id"]) == [name for name, fault in faults.items() if fault in {"sound", "no label yet"}]
    assert bad.height == sum(fault in QUARANTINED for fault in faults.values())
    came = {json.loads(row.get("as_delivered") or "{}").get("id", row["id"]) for row in bad.iter_rows(named=True)}
    assert came - {None} == {name for name, fault in faults.items() if fault in QUARANTINED - {"no id"}}
    assert all(bad["reasons"])
    assert sum(facts["reasons"].values()) >= facts["bad"]


def test_the_order_of_a_delivery_does_not_show(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Rows once and in order, and the same rows shuffled and delivered twice, are the same run, rows of one id too."""
    clash = STREAM.head(1).with_columns(age=pl.lit(44.0), granted=1 - pl.col("granted"))
    broken = STREAM.tail(2).with_columns(event_time=pl.lit(None, STREAM.schema["event_time"]))
    rows = pl.concat([STREAM.head(40), clash, broken])
    found = []
    doubled = pl.concat([rows.sample(fraction=1.0, shuffle=True, seed=1), rows.head(9), broken])
    for number, frame in enumerate((rows, rows.reverse(), doubled)):
        _deliver(monkeypatch, frame, by_hand=number == 1)
        made, checked, run_dir = _run(tmp_path / str(number))
        found.append(
            (
                made.key,
                checked.key,
                [
                    pl.read_parquet(run_dir / "validate" / f"{name}.parquet").to_dicts()
                    for name in ("rows", "quarantine")
                ],
            )
        )
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            pl.lit(None, pl.String).alias("id"),
            r"none of 48 rows that the source delivered can be used: id: missing \(48\)",
        ),
        (pl.lit("2020-05-20 10:00").alias("event_time"), r"not an ISO 8601 time with a time zone \(48\)"),
        (
            pl.lit(0.4).alias("granted"),
            r"granted: not a whole number \(48\).*'granted': 0\.4|granted: not a whole number \(48\)",
        ),
        (
            pl.from_epoch(pl.lit(1588300)).dt.replace_time_zone("UTC").alias("event_time"),
            r"lies in the case's period.*1970-01-19",
        ),
        (pl.col("event_time").dt.epoch("s").alias("event_time"), "whose unit could be any"),
        (
            pl.lit("12,5").alias("salary"),
            r"48 of 48 rows \(100\.0%\) break the contract.*salary: missing or not a number.*salary = '12,5'",
        ),
    ],
)
@pytest.mark.parametrize("by_hand", [True, False])
def test_a_run_without_a_usable_row_is_broken(monkeypatch, tmp_path, change, message, by_hand):
    """Where rows came and none can be used the run says so and is red: it is not skipped as one that came too early."""
    _deliver(monkeypatch, STREAM.with_columns(change), by_hand=by_hand)
    with pytest.raises(DataError, match=message) as caught:
        _run(tmp_path)
    assert not isinstance(caught.value, TooFewRows)
    assert "loans" in str(caught.value)
    kept = list((tmp_path / "lake" / "loans" / "quarantine" / "rows").glob("*.parquet"))
    assert all(pl.read_parquet(path).height == 48 and str(path) in str(caught.value) for path in kept)


def test_a_run_before_its_rows_came_is_skipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Sound rows that lie after the run are no fault: there is nothing to learn from yet."""
    _deliver(monkeypatch, STREAM.with_columns(pl.col("event_time") + timedelta(days=60)), by_hand=False)
    with pytest.raises(TooFewRows, match="has no rows before"):
        _run(tmp_path)


# --- the closed loop ----------------------------------------------------------------------------

SERVED = STREAM.tail(18).with_columns(label_time=pl.col("event_time") + timedelta(hours=1))
PREDICTIONS = loglines.predictions(SERVED, FIELDS)
LABELS = loglines.labels(SERVED, FIELDS)
CORRECTED = [{**line, "label": 1 - line["label"], "revision": 1} for line in LABELS[::5]]
RETRIED = [{**line, "version": 2, "received_at": "2020-06-01T00:00:00+00:00"} for line in PREDICTIONS[::7]]
UNKNOWN = [{**line, "prediction_id": f"never-served-{number}"} for number, line in enumerate(LABELS[:3])]


def _promoted(home: Path) -> Settings:
    where = Settings(home=home)
    promote_first(where)
    return where


def _logged(home: Path, segments: list[tuple[str, Lines]], compacted: int) -> tuple[Manifest, pl.DataFrame]:
    """Close the segments one by one, look at them every ``compacted`` ones, and ingest."""
    where = _promoted(home)
    for number, (kind, lines) in enumerate(segments):
        loglines.write(where, "loans", kind, f"s{number}", lines)
        if number % compacted == 0:
            prediction_log.compact(where, "loans")
    made, _, _ = _run(home)
    return made, lake.read_days(where, made.facts["partitions"])


@pytest.fixture(scope="module")
def in_order(tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, pl.DataFrame]:
    """Every row and every label once, in order."""
    return _logged(
        tmp_path_factory.mktemp("in-order"),
        [("predictions", PREDICTIONS), ("labels", LABELS), ("labels", CORRECTED)],
        1,
    )


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_any_interleaving_of_rows_and_labels_ends_in_the_same_state(in_order, data):
    """Late, doubled and corrected rows and labels, in any order, are the rows of one delivery; each line counts."""
    lines = {
        "predictions": PREDICTIONS + RETRIED,
        "labels": LABELS + CORRECTED + UNKNOWN + data.draw(st.lists(st.sampled_from(LABELS + CORRECTED), max_size=20)),
    }
    segments = []
    for kind, own in lines.items():
        shuffled = data.draw(st.permutations(own))
        cuts = sorted(data.draw(st.lists(st.integers(0, len(own)), max_size=3)))
        pieces = zip([0, *cuts], [*cuts, len(own)], strict=True)
        segments += [(kind, shuffled[start:end]) for start, end in pieces if start < end]
    with tempfile.TemporaryDirectory() as home:
        made, rows = _logged(Path(home), data.draw(st.permutations(segments)), data.draw(st.integers(1, 3)))
    expected, sound = in_order
    assert rows.equals(sound)
    assert made.key == expected.key
    counts, labels = made.facts["counts"], made.facts["log"]["labels"]
    assert counts["delivered"] == len(lines["predictions"]) == counts["rows"] + counts["repeats"]
    assert labels["used"] == len(LABELS)
    assert labels["of_no_row"] == len(UNKNOWN)
    assert labels["lines"] == len(lines["labels"]) == labels["used"] + labels["superseded"] + labels["of_no_row"]


def test_lines_that_are_no_rows_or_labels_are_counted(tmp_path: Path):
    """A row without event time, a label that is none and a half line each stand in the facts; bad lines are kept."""
    where = _promoted(tmp_path)
    timeless = {name: value for name, value in PREDICTIONS[0].items() if name != "event_time"}
    loglines.write(
        where,
        "loans",
        "predictions",
        "a",
        [*PREDICTIONS, timeless, {**PREDICTIONS[1], "event_time": None}],
        tail=b'{"predict',
    )
    strange = [
        {**LABELS[number], "label": label, "revision": 9} for number, label in enumerate((32_768, -32_769, 0.4, None))
    ]
    loglines.write(where, "loans", "labels", "a", [*LABELS, *strange, {**LABELS[5], "label": 2, "revision": 1}])
    made, checked, _ = _run(tmp_path)
    lines = made.facts["log"]["lines"]
    assert lines["predictions"] == {"rows": len(PREDICTIONS), "torn": 1, "malformed": 2}
    assert lines["labels"] == {"rows": len(LABELS) + 1, "torn": 0, "malformed": 4}
    assert checked.facts["reasons"] == {"granted: neither 0 nor 1": 1}
    assert checked.facts["rows"] + checked.facts["bad"] == checked.facts["delivered"] == len(PREDICTIONS)
    quarantine = where.lake_dir / "loans" / "quarantine" / "labels" / "a.jsonl"
    kept = [json.loads(line) for line in quarantine.read_text().splitlines()]
    assert [line["line"] for line in kept] == [len(LABELS) + 1 + number for number in range(4)]
