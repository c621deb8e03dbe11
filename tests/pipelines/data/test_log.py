"""pipelines/data/log.py: whatever happens to segments, readers see one row and one label per prediction."""

import json
import os
import shutil
import signal
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipelines import segments
from pipelines.cases.loans import source as loans
from pipelines.cases.loans.schema import FIELDS
from pipelines.contracts import Window
from pipelines.data import compaction, log
from pipelines.errors import IntegrityError
from pipelines.settings import Settings
from tests.pipelines.data import loglines

DAY = datetime(2020, 5, 1, tzinfo=UTC)
WINDOW = Window(start=DAY, end=DAY + timedelta(days=1))
FRAME = loans.generate(date(2020, 5, 1), rows_per_day=48).with_columns(
    label_time=pl.col("event_time") + timedelta(days=7)
)
SENT = loglines.predictions(FRAME, FIELDS)
LABELS = loglines.labels(FRAME, FIELDS)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """An empty state folder."""
    return Settings(home=tmp_path)


def test_what_was_sent_is_read(settings: Settings):
    """Compacted lines come back as one row each, features as they were sent, with version and score."""
    loglines.write(settings, "loans", "predictions", "a", SENT)
    loglines.write(settings, "loans", "labels", "b", LABELS)
    assert log.compact(settings, "loans") == 2
    rows = log.read_predictions(settings, "loans", WINDOW)
    features = ["id", "event_time", *FIELDS.names]
    assert rows.select(features).equals(FRAME.select(features))
    assert rows["version"].unique().to_list() == [1]
    found = log.read_labels(settings, "loans", DAY + timedelta(days=9))
    assert found["label"].to_list() == FRAME["granted"].to_list()


def test_partitions_lie_by_hour_under_the_segments_name(settings: Settings):
    """Each hour of a segment is one file of the segment's name; compacting again makes and changes nothing."""
    loglines.write(settings, "loans", "predictions", "a", SENT)
    log.compact(settings, "loans")
    files = {path: path.stat().st_mtime_ns for path in (settings.lake_dir / "loans").rglob("*.parquet")}
    assert str(min(files).relative_to(settings.lake_dir)) == "loans/predictions/date=2020-05-01/hour=00/a.parquet"
    assert len(files) == 24
    assert log.compact(settings, "loans") == 0
    assert {path: path.stat().st_mtime_ns for path in (settings.lake_dir / "loans").rglob("*.parquet")} == files


def test_open_segments_are_left_alone(settings: Settings):
    """A segment that is still written to is not read."""
    path = loglines.write(settings, "loans", "predictions", "a", SENT)
    path.rename(path.with_suffix(".jsonl.open"))
    assert log.compact(settings, "loans") == 0
    assert log.read_predictions(settings, "loans", WINDOW).is_empty()
    assert log.first_day(settings, "loans") is None


@pytest.mark.parametrize("seed", range(5))
def test_order_and_repetition_do_not_matter(settings: Settings, tmp_path_factory, seed: int):
    """Lines that are shuffled, repeated and cut into other segments end in the same frames."""
    other = Settings(home=tmp_path_factory.mktemp("other"))
    loglines.write(settings, "loans", "predictions", "a", SENT)
    loglines.write(settings, "loans", "labels", "a", LABELS)
    rng = np.random.default_rng(seed)
    for kind, lines in (("predictions", SENT), ("labels", LABELS)):
        order = np.concatenate([rng.permutation(len(lines)), rng.integers(0, len(lines), 20)])
        for number, part in enumerate(np.array_split(order, 5)):
            loglines.write(other, "loans", kind, f"s{(number * 3) % 5}", [lines[at] for at in part])
            if number == 2:
                log.compact(other, "loans")
    log.compact(settings, "loans")
    log.compact(other, "loans")
    assert log.read_predictions(settings, "loans", WINDOW).equals(log.read_predictions(other, "loans", WINDOW))
    late = DAY + timedelta(days=30)
    assert log.read_labels(settings, "loans", late).equals(log.read_labels(other, "loans", late))


def test_a_repeated_request_keeps_its_first_answer(settings: Settings):
    """Of two lines with one id the one received first is the row, also if the retry's event lies in another window."""
    first = SENT[-1]
    again = {
        **first,
        "event_time": WINDOW.end.isoformat(),
        "received_at": (WINDOW.end + timedelta(hours=1)).isoformat(),
        "version": 2,
    }
    loglines.write(settings, "loans", "predictions", "a", [again])
    loglines.write(settings, "loans", "predictions", "b", [first])
    log.compact(settings, "loans")
    assert log.read_predictions(settings, "loans", WINDOW)["version"].to_list() == [1]
    assert log.read_predictions(
        settings, "loans", Window(start=WINDOW.end, end=WINDOW.end + timedelta(days=1))
    ).is_empty()


def test_corrections_count_from_their_arrival(settings: Settings):
    """The highest revision that has arrived is the label; before it arrived, the one before is."""
    label, arrived = LABELS[0], FRAME["label_time"][0]
    corrected = {
        **label,
        "label": 1 - label["label"],
        "revision": 1,
        "event_time": (arrived + timedelta(days=2)).isoformat(),
    }
    loglines.write(settings, "loans", "labels", "a", [corrected, label])
    log.compact(settings, "loans")
    assert log.read_labels(settings, "loans", arrived - timedelta(seconds=1)).is_empty()
    assert log.read_labels(settings, "loans", arrived)["label"].to_list() == [label["label"]]
    assert log.read_labels(settings, "loans", arrived + timedelta(days=2))["label"].to_list() == [1 - label["label"]]


def test_a_torn_last_line_is_counted_and_skipped(settings: Settings):
    """The half line of a writer that died is no row and no quarantine; the whole ones before it are rows."""
    loglines.write(settings, "loans", "predictions", "a", SENT[:3], tail=json.dumps(SENT[3]).encode()[:-20])
    log.compact(settings, "loans")
    assert log.read_predictions(settings, "loans", WINDOW).height == 3
    [record] = (settings.lake_dir / "loans" / "predictions" / "segments").iterdir()
    [done] = json.loads(record.read_text())["segments"]
    assert {name: done[name] for name in ("segment", "rows", "torn", "malformed")} == {
        "segment": "a",
        "rows": 3,
        "torn": 1,
        "malformed": 0,
    }
    assert [place for place, _ in done["parts"]] == ["date=2020-05-01/hour=00", "date=2020-05-01/hour=01"]
    assert not (settings.lake_dir / "loans" / "quarantine").exists()


@pytest.mark.parametrize("bad", [b"\xff\xfe", b"{}", b'{"prediction_id": 3', b"null"])
def test_malformed_lines_are_quarantined(settings: Settings, bad: bytes):
    """A line that is none of the contract is kept with its segment and number, and costs no other row."""
    path = loglines.write(settings, "loans", "predictions", "a", SENT[:2], tail=bad + b"\n")
    path.write_bytes(path.read_bytes() + json.dumps(SENT[2]).encode() + b"\n")
    log.compact(settings, "loans")
    assert log.read_predictions(settings, "loans", WINDOW).height == 3
    [line] = (settings.lake_dir / "loans" / "quarantine" / "predictions" / "a.jsonl").read_text().splitlines()
    kept = json.loads(line)
    assert (kept["segment"], kept["line"]) == ("a.jsonl", 3)
    assert kept["text"] == bad.decode(errors="backslashreplace")


def test_times_without_a_zone_are_malformed(settings: Settings):
    """A time that could mean any zone is not guessed at."""
    naive = {**SENT[0], "event_time": "2020-05-01T10:00:00"}
    loglines.write(settings, "loans", "predictions", "a", [naive, SENT[1]])
    log.compact(settings, "loans")
    assert log.read_predictions(settings, "loans", WINDOW)["id"].to_list() == [SENT[1]["prediction_id"]]


def test_a_killed_compaction_is_finished_by_the_next(settings: Settings):
    """After SIGKILL between partitions and marker, compacting again gives every row once."""
    loglines.write(settings, "loans", "predictions", "a", SENT)
    code = "from pipelines.settings import Settings; from pipelines.data import log; log.compact(Settings(), 'loans')"
    environment = {
        **os.environ,
        "PERENNIAL_FAILPOINT": "compact:files",
        "PERENNIAL_HOME": str(settings.root),
        "PYTHONPATH": str(Path.cwd()),
    }
    killed = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not list((settings.lake_dir / "loans" / "predictions").glob("segments/*.json"))
    assert log.compact(settings, "loans") == 1
    assert log.read_predictions(settings, "loans", WINDOW)["id"].to_list() == FRAME["id"].to_list()


def test_a_compaction_killed_in_a_partition_leaves_nothing_of_it(settings: Settings):
    """After SIGKILL while a partition is published, compacting again removes what was left beside it."""
    loglines.write(settings, "loans", "predictions", "a", SENT)
    code = (
        "import os, signal; from pipelines.settings import Settings; from pipelines.data import log; "
        "os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL); log.compact(Settings(), 'loans')"
    )
    environment = {**os.environ, "PERENNIAL_HOME": str(settings.root), "PYTHONPATH": str(Path.cwd())}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == -signal.SIGKILL
    assert len(list(settings.lake_dir.rglob(".*"))) == 1
    assert log.compact(settings, "loans") == 1
    assert list(settings.lake_dir.rglob(".*")) == []


def test_a_damaged_partition_says_how_to_mend_it(settings: Settings):
    """Partitions are made from the segments: a broken one is named, with what to remove."""
    loglines.write(settings, "loans", "predictions", "a", SENT)
    log.compact(settings, "loans")
    next(iter((settings.lake_dir / "loans" / "predictions").rglob("*.parquet"))).write_bytes(b"")
    with pytest.raises(IntegrityError, match="remove that folder, it is made again"):
        log.read_predictions(settings, "loans", WINDOW)


@pytest.mark.parametrize(
    "gone",
    [
        "predictions",
        "predictions/date=2020-05-01",
        "predictions/date=2020-05-01/hour=07",
        "labels/date=2020-05-08/hour=07",
    ],
)
def test_a_folder_that_was_removed_is_made_again(settings: Settings, gone: str):
    """What the error says works: whatever partition is removed, the next compaction brings its rows back."""
    for number, (half, halves) in enumerate(zip((SENT[::2], SENT[1::2]), (LABELS[::2], LABELS[1::2]), strict=True)):
        loglines.write(settings, "loans", "predictions", f"s{number}", half)
        loglines.write(settings, "loans", "labels", f"s{number}", halves)
    log.compact(settings, "loans")
    shutil.rmtree(settings.lake_dir / "loans" / gone)
    assert log.compact(settings, "loans") == 2
    assert log.read_predictions(settings, "loans", WINDOW)["id"].to_list() == FRAME["id"].to_list()
    assert log.read_labels(settings, "loans", DAY + timedelta(days=9))["id"].to_list() == FRAME["id"].to_list()
    assert log.compact(settings, "loans") == 0


@pytest.mark.parametrize("marker", [b'{"rows": 48, "torn": 0, "malformed": 0}', b'{"rows": 4'])
def test_a_marker_without_partitions_vouches_for_nothing(settings: Settings, marker: bytes):
    """A marker of an earlier version, or half a one, leads to one more compaction, which finds what is missing."""
    loglines.write(settings, "loans", "predictions", "a", SENT)
    log.compact(settings, "loans")
    (settings.lake_dir / "loans" / "predictions" / "segments" / "a.json").write_bytes(marker)
    next(iter((settings.lake_dir / "loans" / "predictions").rglob("*.parquet"))).unlink()
    assert log.compact(settings, "loans") == 1
    assert log.read_predictions(settings, "loans", WINDOW)["id"].to_list() == FRAME["id"].to_list()
    assert log.compact(settings, "loans") == 0


def test_partitions_are_durable_before_their_marker(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    """When the marker appears, every partition and every folder on the way to it has been synced."""
    loglines.write(settings, "loans", "predictions", "a", SENT)
    lake, synced, before = settings.lake_dir / "loans" / "predictions", set(), []
    fsync, replace = os.fsync, os.replace

    def noted(fd: int) -> None:
        fsync(fd)
        synced.add(Path(f"/proc/self/fd/{fd}").readlink())

    def published(source: str, target: Path) -> None:
        if Path(target).suffix == ".json":
            before.extend(sorted(synced))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(os, "replace", published)
    log.compact(settings, "loans")
    day = lake / "date=2020-05-01"
    assert len(list(day.glob("hour=*/a.parquet"))) == 24
    assert {*day.glob("hour=*/a.parquet"), *day.glob("hour=*"), day, lake, lake.parent, settings.lake_dir} <= set(
        before
    )


def flip(path: Path, at: int, bit: int) -> None:
    """Turn one bit of a file around."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(bytes(data))


def close(settings: Settings, segment: str, lines: list[dict]) -> Path:
    """Write a segment as the gateway does: open, then durable, sealed and renamed."""
    path = loglines.write(settings, "loans", "predictions", segment, lines)
    held = path.rename(path.with_name(f"{path.name}.open"))
    with held.open("rb+") as file:
        segments.finish(file.fileno(), held)
    return path


def test_a_flipped_bit_of_a_partition_is_found(settings: Settings, tmp_path_factory):
    """Each of 150 random flips in the compacted rows is an error that names the partition; none reads as other rows."""
    loglines.write(settings, "loans", "predictions", "a", SENT)
    log.compact(settings, "loans")
    files = sorted((settings.lake_dir / "loans" / "predictions").rglob("*.parquet"))
    rng = np.random.default_rng(0)
    for _ in range(150):
        path = files[rng.integers(len(files))]
        at, bit = int(rng.integers(path.stat().st_size)), int(rng.integers(8))
        flip(path, at, bit)
        with pytest.raises(IntegrityError, match=r"a partition in .*hour=\d+ is damaged \(a\.parquet"):
            log.read_predictions(settings, "loans", WINDOW)
        flip(path, at, bit)
    assert log.read_predictions(settings, "loans", WINDOW)["id"].to_list() == FRAME["id"].to_list()


@pytest.mark.parametrize("of", ["read_predictions", "read_days", "partitions", "read_labels", "count"])
def test_a_partition_that_is_missing_is_told(settings: Settings, of: str):
    """No reader takes a removed partition for an hour without rows; the next compaction brings its rows back."""
    loglines.write(settings, "loans", "predictions", "a", SENT)
    loglines.write(settings, "loans", "labels", "a", LABELS)
    log.compact(settings, "loans")
    readers = {
        "read_predictions": lambda: log.read_predictions(settings, "loans", WINDOW),
        "read_days": lambda: list(log.read_days(settings, "loans", [DAY.date()], lambda scan: scan)),
        "partitions": lambda: log.partitions(settings, "loans", DAY.date()),
        "read_labels": lambda: log.read_labels(settings, "loans", DAY + timedelta(days=9)),
        "count": lambda: log.count(settings, "loans", "predictions", WINDOW.start, WINDOW.end),
    }
    kind, day = ("labels", "2020-05-08") if of == "read_labels" else ("predictions", "2020-05-01")
    path = settings.lake_dir / "loans" / kind / f"date={day}" / "hour=07" / "a.parquet"
    for gone in (path, path.parent, path.parent.parent):
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
        with pytest.raises(IntegrityError, match=r"hour=07/a\.parquet is missing|hour=00/a\.parquet is missing"):
            readers[of]()
        assert log.compact(settings, "loans") == 1
        readers[of]()


def test_a_flipped_bit_of_a_closed_segment_is_found(settings: Settings):
    """Each of 50 random flips in a segment of the gateway's is an error that names it; no row of it is compacted."""
    path = close(settings, "a", SENT)
    rng, size = np.random.default_rng(1), path.stat().st_size
    for _ in range(50):
        at, bit = int(rng.integers(size)), int(rng.integers(8))
        flip(path, at, bit)
        with pytest.raises(
            IntegrityError, match=r"closed segment .*a\.jsonl is not what was written.*Restore it.*remove a\.sha256"
        ):
            log.compact(settings, "loans")
        flip(path, at, bit)
    assert not list(settings.lake_dir.rglob("*.parquet"))
    assert log.compact(settings, "loans") == 1
    assert log.read_predictions(settings, "loans", WINDOW)["id"].to_list() == FRAME["id"].to_list()


@pytest.mark.parametrize("cut", [-20, None])
def test_a_closed_segment_that_was_cut_off_is_told(settings: Settings, cut: int | None):
    """A segment that is cut off is named by an error; others are compacted, and its rest once the seal is gone."""
    path = close(settings, "a", SENT[:24])
    close(settings, "b", SENT[24:])
    data = path.read_bytes()
    path.write_bytes(data[:cut] if cut else b"".join(data.splitlines(keepends=True)[:-1]))
    with pytest.raises(IntegrityError, match=r"closed segment .*a\.jsonl is not what was written"):
        log.compact(settings, "loans")
    assert log.read_predictions(settings, "loans", WINDOW)["id"].to_list() == FRAME["id"].to_list()[24:]
    path.with_name("a.sha256").unlink()
    log.compact(settings, "loans")
    assert log.read_predictions(settings, "loans", WINDOW).height == 47


def test_a_segment_without_a_seal_that_is_cut_off_is_named(settings: Settings, caplog: pytest.LogCaptureFixture):
    """A segment of an earlier release is still read; that it ends in the middle of a line is an error in the log."""
    path = loglines.write(settings, "loans", "predictions", "a", SENT[:3], tail=json.dumps(SENT[3]).encode()[:-20])
    log.compact(settings, "loans")
    [told] = [entry.message for entry in caplog.records if entry.levelname == "ERROR"]
    assert f"the closed segment {path} is cut off in the middle of a line" in told


def test_a_segment_that_is_gone_before_it_was_compacted_is_told(settings: Settings):
    """Of a lost segment the seal is left, and says so; one that is removed once it is compacted is missed by nobody."""
    lost, kept = close(settings, "a", SENT[:24]), close(settings, "b", SENT[24:])
    lost.unlink()
    with pytest.raises(IntegrityError, match=r"closed segment .*a\.jsonl is gone and was not compacted"):
        log.compact(settings, "loans")
    kept.unlink()
    lost.with_name("a.sha256").unlink()
    assert log.compact(settings, "loans") == 0
    assert log.read_predictions(settings, "loans", WINDOW).height == 24


def test_a_segment_that_grew_is_compacted_again(settings: Settings):
    """A file that was read while somebody copied it to its place is read again once it is longer."""
    loglines.write(settings, "loans", "predictions", "a", SENT[:20])
    assert log.compact(settings, "loans") == 1
    loglines.write(settings, "loans", "predictions", "a", SENT)
    assert log.compact(settings, "loans") == 1
    assert log.read_predictions(settings, "loans", WINDOW).height == 48


def test_a_changed_record_vouches_for_nothing(settings: Settings):
    """Whatever bit of a record is flipped, the next compaction makes it again, and the rows are the same."""
    for number, lines in enumerate((SENT[:40], SENT[40:])):
        loglines.write(settings, "loans", "predictions", f"s{number}", lines)
    log.compact(settings, "loans")
    folder, rng = settings.lake_dir / "loans" / "predictions" / "segments", np.random.default_rng(2)
    for _ in range(8):
        [path] = folder.iterdir()
        flip(path, int(rng.integers(path.stat().st_size)), int(rng.integers(8)))
        assert log.compact(settings, "loans") == 2
        assert log.compacted(settings, "loans")["predictions"] == ["s0", "s1"]
        assert log.fate(settings, "loans")["predictions"]["rows"] == len(SENT)


def test_markers_of_before_are_taken_into_one_record(settings: Settings):
    """Markers that name partitions without hashes count, and become one record with hashes at the next compaction."""
    for number in range(40):
        loglines.write(settings, "loans", "predictions", f"s-{number:06d}", SENT[number : number + 1])
    assert log.compact(settings, "loans") == 40
    folder = settings.lake_dir / "loans" / "predictions" / "segments"
    [record] = folder.iterdir()
    for done in json.loads(record.read_text())["segments"]:
        marker = {name: done[name] for name in ("rows", "torn", "malformed")} | {
            "partitions": [place for place, _ in done["parts"]]
        }
        (folder / f"{done['segment']}.json").write_text(json.dumps(marker))
    before = record.read_bytes()
    record.unlink()
    assert log.read_predictions(settings, "loans", WINDOW).height == 40
    assert log.compact(settings, "loans") == 0
    [record] = folder.iterdir()
    assert [done["parts"] for done in json.loads(record.read_text())["segments"]] == [
        done["parts"] for done in json.loads(before)["segments"]
    ]


def test_many_compactions_leave_few_records(settings: Settings):
    """A compaction leaves one record, and once there are many records they become one; all segments stay known."""
    folder = settings.lake_dir / "loans" / "predictions" / "segments"
    for number in range(40):
        loglines.write(settings, "loans", "predictions", f"s-{number:06d}", SENT[number : number + 1])
        assert log.compact(settings, "loans") == 1
        assert len(list(folder.iterdir())) <= 33
    assert len(list(folder.iterdir())) <= 10
    assert len(log.compacted(settings, "loans")["predictions"]) == 40
    assert log.read_predictions(settings, "loans", WINDOW).height == 40


def test_rows_of_many_hours_share_a_file(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    """Of a segment with rows of thousands of hours the emptiest hours share one file; every reader finds every row."""
    monkeypatch.setattr(compaction, "MOST_PARTITIONS", 30)
    times = [DAY + timedelta(hours=7 * number) for number in range(2000)]
    many = [
        {
            **SENT[0],
            "prediction_id": f"far-{number}",
            "event_time": moment.isoformat(),
            "received_at": moment.isoformat(),
        }
        for number, moment in enumerate(times)
    ]
    labels = [
        {
            **LABELS[0],
            "prediction_id": line["prediction_id"],
            "event_time": line["event_time"],
            "received_at": line["received_at"],
        }
        for line in many
    ]
    loglines.write(settings, "loans", "predictions", "a", [*many, *SENT])
    loglines.write(settings, "loans", "labels", "a", labels)
    log.compact(settings, "loans")
    for kind in log.KINDS:
        assert len(list((settings.lake_dir / "loans" / kind).rglob("*.parquet"))) == 31
    whole = Window(start=DAY, end=DAY + timedelta(hours=14_000))
    assert log.read_predictions(settings, "loans", whole).height == 2048
    assert log.read_labels(settings, "loans", whole.end).height == 2000
    assert log.count(settings, "loans", "predictions", whole.start, whole.end) == 2048
    late = Window(start=times[-1] - timedelta(days=1), end=whole.end)
    assert log.read_predictions(settings, "loans", late)["id"].to_list() == [
        f"far-{number}" for number in range(1996, 2000)
    ]
    assert log.read_labels(settings, "loans", whole.end, since=late.start).height == log.count(
        settings, "loans", "labels", late.start, whole.end
    )
    assert log.days(settings, "loans", whole) == sorted({moment.date() for moment in times})
    assert log.first_row(settings, "loans") == DAY
    assert log.compact(settings, "loans") == 0
    (settings.lake_dir / "loans" / "predictions" / "spread" / "a.parquet").unlink()
    with pytest.raises(IntegrityError, match=r"spread/a\.parquet is missing"):
        log.read_predictions(settings, "loans", late)
    assert log.compact(settings, "loans") == 1
    assert log.read_predictions(settings, "loans", whole).height == 2048


@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        ("predictions", {"event_time": "1900-01-01T00:00:00+00:00"}),
        ("predictions", {"event_time": "2199-12-31T00:00:00+00:00"}),
        ("labels", {"event_time": "2199-12-31T00:00:00+00:00"}),
        ("labels", {"revision": 2**31 - 1}),
    ],
)
def test_what_cannot_have_been_received_is_quarantined(settings: Settings, kind: log.Kind, changed: dict):
    """A line years away from its receipt, or of a revision beyond correction, is kept aside with its reason."""
    line = (SENT if kind == "predictions" else LABELS)[0]
    loglines.write(settings, "loans", kind, "a", [line, {**line, "prediction_id": "wrong", **changed}])
    log.compact(settings, "loans")
    assert log.fate(settings, "loans")[kind] == {"rows": 1, "torn": 0, "malformed": 1}
    [kept] = (settings.lake_dir / "loans" / "quarantine" / kind / "a.jsonl").read_text().splitlines()
    assert json.loads(kept)["error"].startswith(("event_time must not", "revision must not"))


def test_a_case_that_replays_history_takes_any_time(settings: Settings):
    """`bank` replays: rows of 2009 that are received today are rows."""
    line = {**SENT[0], "event_time": "1950-05-01T00:00:00+00:00", "received_at": "2026-05-01T00:00:00+00:00"}
    loglines.write(settings, "bank", "predictions", "a", [line])
    log.compact(settings, "bank")
    assert log.fate(settings, "bank")["predictions"] == {"rows": 1, "torn": 0, "malformed": 0}


def test_the_scores_of_all_classes_are_read(settings: Settings):
    """Probabilities of all classes come back as lists; a segment without them leaves its rows' lists empty."""
    loglines.write(settings, "loans", "predictions", "a", [line | {"scores": [0.25, 0.5, 0.25]} for line in SENT[:24]])
    loglines.write(settings, "loans", "predictions", "b", SENT[24:])
    log.compact(settings, "loans")
    rows = log.read_predictions(settings, "loans", WINDOW)
    assert rows.schema["scores"] == pl.List(pl.Float64)
    assert rows["scores"].to_list() == [[0.25, 0.5, 0.25]] * 24 + [None] * 24
    assert rows.select(FIELDS.names).equals(FRAME.select(FIELDS.names))


def test_rows_that_nobody_answered_are_read_without_an_answer(settings: Settings):
    """An imported line may have no score and no prediction, both or none; a line of a model of ours has them."""
    nothing = {"score": None, "prediction": None}
    loglines.write(settings, "loans", "predictions", "a", [line | nothing | {"version": 0} for line in SENT[:24]])
    wrong = [SENT[24] | nothing, SENT[25] | {"version": 0, "score": None}]
    loglines.write(settings, "loans", "predictions", "b", [*wrong, *SENT[26:]])
    log.compact(settings, "loans")
    rows = log.read_predictions(settings, "loans", WINDOW)
    assert rows["score"].null_count() == rows["prediction"].null_count() == rows.filter(version=0).height == 24
    assert log.fate(settings, "loans")["predictions"] == {"rows": len(SENT) - 2, "torn": 0, "malformed": 2}
