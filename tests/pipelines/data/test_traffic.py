"""What a guard reads of a rollout: counts, pairs and answers by the wall clock, each once, with the first label."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pipelines.data import log, traffic
from pipelines.errors import IntegrityError
from pipelines.segments import adopt
from pipelines.settings import Settings
from tests.pipelines.data import loglines

START = datetime(2026, 5, 1, 7, tzinfo=UTC)
END = START + timedelta(minutes=5)


def after(seconds: float) -> str:
    """A moment of the window."""
    return (START + timedelta(seconds=seconds)).isoformat()


def counts(seconds: float, arm: str = "champion", version: int = 1, **outcomes: int) -> dict:
    """A line of the gateway's counts."""
    told = {"requests": sum(outcomes.values()), "outcomes": outcomes, "latency": {"3": 1}, "scores": {"7": 1}}
    return {"begin": after(seconds), "end": after(seconds + 10), "arm": arm, "version": version} | told


def pair(name: str, seconds: float, champion: float | None = 0.25, challenger: float | None = 0.5, **more) -> dict:
    """A row that both versions were asked."""
    scores = {"champion_score": champion, "challenger_score": challenger}
    about = {"prediction_id": name, "event_time": "2014-03-01T00:00:00+00:00", "received_at": after(seconds)}
    return about | {"arm": "champion", "champion": 1, "challenger": 2, "ms": 4.5} | scores | more


def row(name: str, seconds: float, arm: str | None = "champion", version: int = 1, **more) -> dict:
    """A line of the prediction log."""
    told = {"request_id": "r", "event_time": "2014-03-01T00:00:00+00:00", "received_at": after(seconds)}
    own = {} if arm is None else {"arm": arm}
    return {"prediction_id": name, "version": version, "score": 0.25, "prediction": 0, "row": {}} | told | own | more


def label(name: str, seconds: float, value: int, revision: int = 0) -> dict:
    """A label that came so many seconds after the start, whatever its event time is."""
    told = {"revision": revision, "event_time": "2014-03-02T00:00:00+00:00", "received_at": after(seconds)}
    return {"prediction_id": name, "label": value} | told


def test_counts_are_read_by_when_they_began(tmp_path: Path):
    """Lines of the stretch come in the order of their times, whichever worker wrote them, and no other ones."""
    settings = Settings(home=tmp_path)
    loglines.write(settings, "loans", "traffic", "b", [counts(20, ok=3), counts(300, ok=9)])
    loglines.write(settings, "loans", "traffic", "a", [counts(30, "challenger", 2, ok=1, fallback=2), counts(-1, ok=9)])
    found = traffic.read(settings, "loans", START, END)
    assert [(line["arm"], line["outcomes"]) for line in found] == [
        ("champion", {"ok": 3}),
        ("challenger", {"ok": 1, "fallback": 2}),
    ]
    assert found == traffic.read(settings, "loans", START, END)


def test_a_damaged_line_costs_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """A line that is none is left out and told, one that was torn too."""
    settings = Settings(home=tmp_path)
    bad = counts(2) | {"arm": "nobody"}
    loglines.write(settings, "loans", "traffic", "a", [counts(1, ok=1), bad, counts(3, ok=2)], tail=b'{"begin": "20')
    assert [line["outcomes"]["ok"] for line in traffic.read(settings, "loans", START, END)] == [1, 2]
    assert "2 line(s)" in caplog.text


def test_a_sealed_segment_that_changed_is_an_error(tmp_path: Path):
    """No rollout is judged by counts that are not what was written."""
    settings = Settings(home=tmp_path)
    path = loglines.write(settings, "loans", "traffic", "a", [counts(1, ok=1)])
    path.rename(path.with_name("a.jsonl.open"))
    assert adopt(path.parent) == 1
    assert len(traffic.read(settings, "loans", START, END)) == 1
    path.write_bytes(path.read_bytes().replace(b'"ok": 1', b'"ok": 7'))
    with pytest.raises(IntegrityError, match="is not what was written"):
        traffic.read(settings, "loans", START, END)


def test_segments_from_before_are_not_opened(tmp_path: Path):
    """A segment that nobody has written to since the stretch began costs nothing, damaged as it may be."""
    settings = Settings(home=tmp_path)
    old = loglines.write(settings, "loans", "traffic", "a", [counts(1, ok=1)])
    old.with_suffix(".sha256").write_text("0" * 64)
    moment = (START - timedelta(hours=1)).timestamp()
    os.utime(old, (moment, moment))
    assert traffic.read(settings, "loans", START, END) == []


def test_pairs_come_with_the_label_that_came_first(tmp_path: Path):
    """Labels join by id, as far as they have come; a later correction changes nothing that was looked at."""
    settings = Settings(home=tmp_path)
    loglines.write(
        settings, "loans", "shadow", "a", [pair("b", 2), pair("a", 1, challenger=None), pair("late", 301), pair("c", 3)]
    )
    loglines.write(settings, "loans", "labels", "a", [label("a", 400, 1), label("b", 500, 0, revision=3)])
    loglines.write(settings, "loans", "labels", "b", [label("b", 450, 1), label("nobody", 5, 1)])
    found = traffic.pairs(settings, "loans", START, END)
    assert found.select("prediction_id", "champion_score", "challenger_score", "label").rows() == [
        ("a", 0.25, None, 1.0),
        ("b", 0.25, 0.5, 1.0),
        ("c", 0.25, 0.5, None),
    ]
    assert found["label_received_at"].to_list() == [
        START + timedelta(seconds=400),
        START + timedelta(seconds=450),
        None,
    ]
    assert found["champion_scores"].null_count() == 3


def test_pairs_of_classes_have_all_scores(tmp_path: Path):
    """In a case with classes each version's probabilities stand beside its score."""
    settings = Settings(home=tmp_path)
    scores = {"champion_scores": [0.25, 0.75], "challenger_scores": [0.5, 0.5]}
    loglines.write(settings, "loans", "shadow", "a", [pair("a", 1, 0.75, 0.5, **scores)])
    [found] = traffic.pairs(settings, "loans", START, END).to_dicts()
    assert (found["champion_scores"], found["challenger_scores"]) == ([0.25, 0.75], [0.5, 0.5])


def test_answers_of_arms_come_from_the_log_once_each(tmp_path: Path):
    """Rows with an arm are read with version and label, a repeated id as it was answered first; others are left out."""
    settings = Settings(home=tmp_path)
    rows = [row("a", 4, "challenger", 2), row("a", 1), row("x", 2, None), row("b", 3, "challenger", 1), row("y", 301)]
    loglines.write(settings, "loans", "predictions", "a", rows)
    loglines.write(settings, "loans", "labels", "a", [label("b", 9, 1)])
    found = traffic.answered(settings, "loans", START, END)
    assert found.select("prediction_id", "arm", "version", "label").rows() == [
        ("a", "champion", 1, None),
        ("b", "challenger", 1, 1.0),
    ]


def test_nothing_is_there_without_a_rollout(tmp_path: Path):
    """A case that never had one has empty answers of the right form."""
    settings = Settings(home=tmp_path)
    assert traffic.read(settings, "loans", START, END) == []
    assert traffic.pairs(settings, "loans", START, END).columns[-2:] == ["label", "label_received_at"]
    assert traffic.answered(settings, "loans", START, END).height == 0


def test_neither_training_nor_drift_sees_a_shadow(tmp_path: Path):
    """Of a shadow's rows and the counts nothing becomes part of the lake, wherever they lie beside the log's own."""
    settings = Settings(home=tmp_path)
    loglines.write(settings, "loans", "predictions", "a", [row("seen", 1) | {"event_time": after(1)}])
    loglines.write(settings, "loans", "shadow", "a", [pair("unseen", 1) | {"event_time": after(1)}])
    loglines.write(settings, "loans", "traffic", "a", [counts(1, ok=1)])
    window = log.window_of(START.date())
    assert log.catch_up(settings, "loans", window) == 0
    frame = log.read_predictions(settings, "loans", window)
    assert frame["id"].to_list() == ["seen"]
    assert "arm" not in frame.columns
    kept = {path.relative_to(settings.lake_dir).parts[1] for path in settings.lake_dir.rglob("*") if path.is_file()}
    assert kept == {"predictions"}
