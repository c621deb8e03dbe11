"""ingest, validate and dataset on more rows than may be held: what comes of them is what comes of all at once."""

from contextlib import nullcontext
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from pipelines.cases import by_day, columns
from pipelines.contracts import Manifest, Window
from pipelines.data import heap, lake, rows_file
from pipelines.errors import CaseError, DataError, TooFewRows
from pipelines.fields import Classes, Fields, Numeric
from pipelines.params import FilesSource
from pipelines.params_file import load_params
from pipelines.settings import Settings
from tests import shop
from tests.pipelines.verbs import dataset, ingest, validate

AS_OF = datetime(2024, 2, 16, tzinfo=UTC)
STEPS = (ingest, validate, dataset)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty state, and the case shop with a declared source, whose rows lie in no order."""
    monkeypatch.setenv("PERENNIAL_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("PERENNIAL_DATA_DIR", str(tmp_path / "data"))
    path = shop.write_rows(tmp_path / "data" / "shop.csv")
    pl.read_csv(path, infer_schema=False).sample(fraction=1.0, shuffle=True, seed=0).write_csv(path)
    with shop.installed(tmp_path / "cases") as root:
        (shop.write(root) / "source.py").unlink()
        declare(tmp_path)
        yield tmp_path


@pytest.fixture
def in_parts(monkeypatch):
    """Let a step hold rows of about two days, and read twenty at once."""

    def begin() -> None:
        for module in (by_day, heap, lake, rows_file):
            monkeypatch.setattr(module, "AT_ONCE", 4000)
        monkeypatch.setattr(rows_file, "SAMPLE", 10)
        monkeypatch.setattr(columns, "PIECE", 20)

    return begin


def declare(home: Path, **more: Any) -> None:
    """The shop's parameters: its source, and ``more`` of its dataset."""
    path = home / "cases" / "shop" / "params.yaml"
    params = yaml.safe_load(path.read_text())
    params["source"] = {"kind": "files", "url": "shop.csv"}
    params["dataset"] |= more
    path.write_text(yaml.safe_dump(params))


def run(home: Path, name: str) -> tuple[list[Manifest], Path]:
    """The three steps in a state folder of that name: their manifests, and the run's folder."""
    where = Settings(home=home / name, data_dir=home / "data")
    folder = where.run_dir("shop", AS_OF)
    return [step.run(load_params("shop"), where, folder, AS_OF) for step in STEPS], folder


def said(manifests: list[Manifest]) -> list[Any]:
    """Keys and facts."""
    return [(made.key, made.facts) for made in manifests]


def break_rows(home: Path) -> None:
    """Rows without a time, with a price that is none or too high, exact repeats, and ids that come on several days."""
    path = home / "data" / "shop.csv"
    rows = pl.read_csv(path, infer_schema=False).with_row_index("n")
    n = pl.col("n")
    broken = rows.with_columns(
        event_time=pl.when(n == 7).then(pl.lit("soon")).when(n == 90).then(None).otherwise("event_time"),
        price=pl.when(n.is_in([3, 200])).then(pl.lit("dear")).when(n == 150).then(pl.lit("2e6")).otherwise("price"),
        id=pl.when(n.is_in([10, 170, 300])).then(pl.lit("again")).otherwise("id"),
    )
    pl.concat([broken, broken.filter(n < 5)]).drop("n").write_csv(path)


def test_rows_in_parts_are_the_rows_at_once(home, in_parts):
    """Sound rows of an unsorted file give the same keys, facts and partitions, and the same rows to train and judge."""
    at_once, before = run(home, "a")
    in_parts()
    parts, after = run(home, "b")
    assert said(parts) == said(at_once)
    for name in ("validate/rows", "dataset/train", "dataset/holdout"):
        assert pl.read_parquet(after / f"{name}.parquet").equals(pl.read_parquet(before / f"{name}.parquet"))
    assert not list((home / "b" / "lake").rglob("*scratch*"))


def test_bad_rows_in_parts_are_counted_once(home, in_parts):
    """Refused rows, repeats, and ids that several days have are found, counted and kept as in one frame."""
    break_rows(home)
    at_once, before = run(home, "a")
    in_parts()
    parts, after = run(home, "b")
    own, theirs = ([made.facts for made in manifests] for manifests in (parts, at_once))
    assert theirs[0]["counts"]["refused"] == 2
    assert theirs[1]["reasons"]["id: not unique"] == 2  # the third one is of a later day
    assert theirs[0]["counts"]["repeats"] == 5
    for fact in ("counts", "reasons", "rows", "labelled"):
        assert own[0][fact] == theirs[0][fact]
    assert own[1:] == theirs[1:]
    for name in ("validate/rows", "validate/quarantine", "dataset/train", "dataset/holdout"):
        found, expected = (pl.read_parquet(folder / f"{name}.parquet") for folder in (after, before))
        assert found.select(expected.columns).equals(expected), name


def test_too_many_bad_rows_in_parts_stop_the_run(home, in_parts):
    """The message and the rows that are set aside are those of one frame."""
    break_rows(home)
    declare(home, max_bad_share=0.001)
    texts, rows = [], []
    for name in ("a", "b"):
        with pytest.raises(DataError) as caught:
            run(home, name)
        texts.append(str(caught.value).replace(str(home / name), ""))
        [path] = (home / name / "lake" / "shop" / "quarantine" / "rows").glob("*.parquet")
        rows.append(pl.read_parquet(path))
        in_parts()
    assert "rows (" in texts[0]
    assert texts[1].partition("; the bad rows")[0] == texts[0].partition("; the bad rows")[0]
    assert rows[1].select(rows[0].columns).equals(rows[0])


PIECES = """

def pieces(source, window, params):
    \"\"\"The same rows, some at once.\"\"\"
    frame = pl.read_csv(source.path, infer_schema=False)
    for piece in frame.iter_slices(30):
        yield PIECE
"""


def own_source(home: Path, piece: str) -> None:
    """Give the shop its source.py again, with pieces, and take the declaration out."""
    (home / "cases" / "shop" / "source.py").write_text(shop.SOURCE + PIECES.replace("PIECE", piece))
    path = home / "cases" / "shop" / "params.yaml"
    params = yaml.safe_load(path.read_text())
    del params["source"]
    path.write_text(yaml.safe_dump(params))


def test_the_pieces_of_a_case_are_its_rows(home, in_parts):
    """What a source.py gives piece by piece is counted, refused and kept as the same rows in one frame are."""
    break_rows(home)
    own_source(home, "piece")
    path = home / "cases" / "shop" / "source.py"
    text = (
        path.read_text().partition("    frame = pl.read_csv")[0]
        + "    return pl.concat(frames(source, window, params))\n"
    )
    path.write_text((text + PIECES).replace("PIECE", 'piece.with_columns(pl.col("sold").cast(pl.Int8))'))
    shop.edit(path, ("def pieces", "def frames"))
    at_once, before = run(home, "a")
    shop.edit(path, ("frames", "pieces"))
    in_parts()
    parts, after = run(home, "b")
    assert at_once[0].facts["counts"]["outside_window"] > 0
    for own, theirs in zip(parts, at_once, strict=True):
        assert own.facts == theirs.facts
    for name in ("validate/rows", "validate/quarantine", "dataset/train", "dataset/holdout"):
        found, expected = (pl.read_parquet(folder / f"{name}.parquet") for folder in (after, before))
        assert found.select(expected.columns).equals(expected), name
    assert not list((home / "b" / "lake").rglob("*scratch*"))


@pytest.mark.parametrize(
    ("piece", "said"),
    [
        ("piece.to_dicts()", "list: give polars DataFrames with id, event_time, the fields and the label"),
        ('piece.drop("event_time")', r"'id', 'colour', .*: give polars DataFrames"),
        ('piece.select(sorted(piece.columns, reverse="shop-0" in piece["id"]))', "pieces of other columns or types"),
        ('piece.drop("colour")', r"column\(s\) colour missing"),
    ],
)
def test_a_piece_that_is_none_is_told_with_its_line(home, piece, said):
    """What is no frame, lacks a column or has another form than the first one is the case's own mistake, by line."""
    own_source(home, piece)
    with pytest.raises(CaseError, match=rf"shop/source.py, line 22: pieces returned what cannot be used: .*{said}"):
        run(home, "a")


def test_no_piece_is_no_row(home):
    """A source that gives nothing has no rows yet: the run is too early, as with an empty frame."""
    own_source(home, "piece")
    path = home / "cases" / "shop" / "source.py"
    path.write_text(path.read_text().replace("iter_slices(30)", "head(0).iter_slices(30)"))
    with pytest.raises(TooFewRows, match="the source has no rows before"):
        run(home, "a")


def test_a_look_back_in_parts_takes_no_day_too_many(home, in_parts):
    """Where the window is too short, days are read that nobody needs: they are counted, and not written."""
    declare(home, window_days=2, min_rows=100, fallback_rows=100)
    at_once, _ = run(home, "a")
    in_parts()
    parts, _ = run(home, "b")
    assert said(parts) == said(at_once)
    assert parts[0].facts["counts"]["outside_window"] > 0
    written = {
        path.parent.name.removeprefix("date=") for path in (home / "b" / "lake" / "shop" / "rows").rglob("*.parquet")
    }
    assert written == {part["date"] for part in parts[0].facts["partitions"]}


def test_replay_and_history_in_parts(home, in_parts):
    """Older rows that are trained on or judged are the same ones."""
    declare(home, window_days=5, min_rows=50, replay_share=0.3, history_rows=40)
    at_once, before = run(home, "a")
    in_parts()
    parts, after = run(home, "b")
    assert said(parts) == said(at_once)
    for name in ("train", "holdout", "history"):
        own, theirs = (pl.read_parquet(folder / "dataset" / f"{name}.parquet") for folder in (after, before))
        assert own.equals(theirs)


def test_rows_are_sampled_by_a_hash_of_their_ids(home, in_parts):
    """A smaller sample is a part of a larger one, in parts too, and the facts say how many of how many there are."""
    found = {}
    in_parts()
    for most in (120, 240):
        declare(home, max_rows=most, sampling="hash")
        manifests, folder = run(home, str(most))
        files = [pl.read_parquet(folder / "dataset" / f"{name}.parquet") for name in ("train", "holdout")]
        rows = pl.concat(files)
        assert rows["event_time"].is_sorted()
        assert manifests[-1].facts["sampled"] == {"rows": most, "of": 14 * 24 + 1}
        found[most] = set(rows["id"])
        assert len(found[most]) == most
    assert found[120] < found[240]


def test_days_come_whole_and_the_newest_first(tmp_path, monkeypatch):
    """Of rows in any order each comes once, with its whole day; those without a time come last."""
    monkeypatch.setattr(by_day, "AT_ONCE", 1000)
    rng = np.random.default_rng(0)
    start = datetime(2024, 1, 1, tzinfo=UTC)
    times = [start + timedelta(minutes=int(minute)) for minute in rng.integers(0, 30 * 1440, 500)]
    rows = pl.DataFrame({"id": [str(n) for n in range(500)], "event_time": times}).with_columns(
        event_time=pl.when(pl.int_range(500) % 50 == 7).then(None).otherwise(pl.col("event_time")).cast(columns.MOMENT)
    )
    frames = list(by_day.by_day(rows.iter_slices(40), lambda: nullcontext(tmp_path)))
    assert len(frames) > 5
    assert sorted(pl.concat(frames)["id"], key=int) == rows["id"].to_list()
    days: list[set[date | None]] = [set(frame["event_time"].dt.date()) for frame in frames]
    assert days[-1] == {None}
    flat = [day for some in days[:-1] for day in sorted(some, reverse=True)]
    assert flat == sorted(set(flat), reverse=True)


def test_times_of_which_no_piece_alone_tells_enough(home, in_parts):
    """Whether a column of times lacks a zone is told by all of its pieces: a few without one are refused one by one."""
    path = home / "data" / "shop.csv"
    rows = pl.read_csv(path, infer_schema=False).with_row_index("n")
    without = pl.when(pl.col("n") < 25).then(pl.col("event_time").str.replace("Z", "")).otherwise("event_time")
    rows.with_columns(event_time=without).drop("n").write_csv(path)
    declare(home, max_bad_share=0.5)
    in_parts()
    manifests, _ = run(home, "a")
    assert manifests[0].facts["reasons"] == {"event_time: not an ISO 8601 time with a time zone": 25}
    rows.with_columns(event_time=pl.col("event_time").str.replace("Z", "")).drop("n").write_csv(path)
    with pytest.raises(DataError, match=r"event_time holds times like .* declare it as source.time_zone"):
        run(home, "b")


def test_labels_are_names_of_classes_in_every_piece_or_in_none(monkeypatch):
    """A file whose labels are classes at first and numbers later is refused, as it is when it is read at once."""
    fields = Fields("desk", (Numeric("price", 0, 1),), label="team", target=Classes(("web", "mail")))
    rows = pl.DataFrame(
        {
            "id": [str(n) for n in range(40)],
            "event_time": ["2024-02-01T00:00:00Z"] * 40,
            "price": ["0.5"] * 40,
            "team": ["mail"] * 30 + ["1"] * 10,
        }
    )
    source = FilesSource(kind="files", url="desk.csv")
    asked = columns.Asked(fields, source, Window(start=AS_OF - timedelta(days=30), end=AS_OF))
    for size in (40, 20, 10):
        monkeypatch.setattr(columns, "PIECE", size)
        with pytest.raises(DataError, match=r"holds '(mail|1)': it is none of the classes web, mail"):
            list(columns.pieces([rows.lazy()], asked, "desk"))
    [whole] = [piece["team"].to_list() for piece in columns.pieces([rows.head(8).lazy()], asked, "desk")]
    assert whole == [1] * 8
