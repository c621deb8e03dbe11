"""pipelines/rescoring: what was answered comes out again, what does not is named, and a candidate is set beside."""

import fcntl
import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest import mock

import numpy as np
import polars as pl
import pytest

from pipelines import answering, cli, encoding, runtime
from pipelines.contracts import Window
from pipelines.data import lines as log_lines
from pipelines.data import log as prediction_log
from pipelines.errors import ConfigError, DataError, NotKept
from pipelines.params_file import load_params
from pipelines.rescoring import daily
from pipelines.rescoring.command import rescore
from pipelines.settings import Settings
from tests.pipelines.candidates import CASE, T0
from tests.pipelines.data import loglines
from tests.pipelines.rescoring.state import (
    FIELDS,
    as_of,
    bundle,
    lines,
    log,
    reseal,
    traffic,
    trained,
)

PARAMS = load_params(CASE)
EVER = Window(start=datetime(2000, 1, 1, tzinfo=UTC), end=datetime(2050, 1, 1, tzinfo=UTC))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Version 1 has answered 120 rows and version 2 60 more, in two segments; version 3 was never released."""
    found = Settings(home=tmp_path_factory.mktemp("made") / "state")
    for version, bias in ((1, -0.4), (2, -0.2)):
        trained(found, version, bias)
    trained(found, 3, 0.3, released=False)
    log(found, "w-000001", lines(found, 1, traffic(1, 120)))
    log(found, "w-000002", lines(found, 2, traffic(2, 60, seed=8)))
    return found


@pytest.fixture
def settings(made: Settings, tmp_path: Path) -> Settings:
    """A copy of that state."""
    return Settings(home=shutil.copytree(made.root, tmp_path / "state"))


def of_all(settings: Settings, version: int | None = None) -> dict:
    """The answer for the whole log."""
    return rescore(PARAMS, settings, EVER.start, EVER.end, version)


def edited(path: Path, change, *, sealed: bool = True) -> None:
    """Change the lines of a segment, and its seal with them."""
    told = [json.loads(line) for line in path.read_text().splitlines()]
    if sealed:
        log(Settings(home=path.parents[3]), path.stem, change(told))
    else:
        path.write_text("".join(json.dumps(line) + "\n" for line in change(told)))


def test_every_logged_score_comes_out_again(settings):
    """All rows of all versions have the same bits again, alone as they were answered or together as they are scored."""
    answer = of_all(settings)
    assert answer["ok"]
    assert answer["problems"] == []
    assert {one["version"]: (one["rows"], one["identical"]) for one in answer["replay"]["versions"]} == {
        1: (120, 120),
        2: (60, 60),
    }


@pytest.mark.parametrize("size", [1, 2, 7, 120])
def test_a_table_scores_alike_however_rows_are_joined(settings, size):
    """The bits of a row's score do not hang on how many rows share its inference."""
    model = answering.load(bundle(settings, 1))
    frame = traffic(1, 120)
    whole = model.scores({name: frame[name].to_list() for name in FIELDS.reads})
    parts = [
        model.scores({name: frame[name][start : start + size].to_list() for name in FIELDS.reads})
        for start in range(0, 120, size)
    ]
    assert np.array_equal(np.concatenate(parts), whole)


def test_the_span_is_half_open_and_reads_no_other_segment(settings):
    """Only rows with event time in the span count, and segments without such rows are not opened."""
    prediction_log.catch_up(settings, CASE, EVER)
    other = settings.prediction_log / CASE / "predictions" / "w-000002.jsonl"
    other.write_bytes(b"not what was written")
    answer = rescore(PARAMS, settings, T0, T0 + timedelta(hours=5))
    assert (answer["ok"], answer["replay"]["rows"]) == (True, 5)


def test_rows_of_nobody_are_counted_and_left_out(settings):
    """Imported rows and declared defaults are no model's: they are counted, and nothing is said of their scores."""
    told = loglines.predictions(traffic(1, 3, seed=9), FIELDS, version=0)
    told[0] |= {"outcome": "default"}
    log(settings, "w-000003", told)
    answer = of_all(settings)
    assert (answer["ok"], answer["replay"]["rows"], answer["replay"]["left_out"]) == (True, 180, 3)


def test_a_segment_of_another_machine_is_read_from_the_lake(settings):
    """Where a compacted segment is not here its partitions are scored again."""
    before = of_all(settings)["replay"]
    (settings.prediction_log / CASE / "predictions" / "w-000001.jsonl").unlink()
    (settings.prediction_log / CASE / "predictions" / "w-000001.sha256").unlink()
    after = of_all(settings)["replay"]
    assert {**after, "seconds": 0} == {**before, "seconds": 0}


def test_lines_are_read_whole_whatever_they_repeat(settings):
    """A row that was logged twice is two lines, each with what was answered then."""
    first = lines(settings, 1, traffic(1, 2))
    log(settings, "w-000003", first)
    prediction_log.catch_up(settings, CASE, EVER)
    assert sum(one.height for one in log_lines.read(settings, CASE, EVER)) == 182


# --- what is wrong is named ---------------------------------------------------------------------


def wrong(settings: Settings) -> list[tuple[str, str]]:
    """Causes and words of what is wrong."""
    answer = of_all(settings)
    assert answer["ok"] is not bool(answer["problems"])
    return [(one["cause"], one["told"]) for one in answer["problems"]]


def test_a_file_that_is_not_what_was_committed(settings):
    """A changed bundle is the artefact's fault, with the file; the rows of other versions are scored all the same."""
    (bundle(settings, 1) / "model.onnx").write_bytes(b"broken")
    answer = of_all(settings)
    [problem] = answer["problems"]
    assert (problem["cause"], problem["version"], problem["rows"]) == ("artefact", 1, 120)
    assert "model.onnx has sha256" in problem["told"]
    assert {one["version"]: one["identical"] for one in answer["replay"]["versions"]} == {1: 0, 2: 60}


def test_another_versions_bundle_with_good_hashes(settings):
    """A bundle that holds another version's model is named by that version, however good its hashes are."""
    (bundle(settings, 1) / "model.onnx").write_bytes((bundle(settings, 2) / "model.onnx").read_bytes())
    reseal(bundle(settings, 1))
    [(cause, told)] = wrong(settings)
    assert cause == "artefact"
    assert "120 of 120 scores of version 1 differ" in told
    assert "its holdout does not come out" in told
    assert "its model.onnx is that of version 2" in told


def test_an_edited_line_is_the_logs(settings):
    """One changed score under a rewritten seal is found by the score, and as it differs from what was compacted."""
    path = settings.prediction_log / CASE / "predictions" / "w-000001.jsonl"
    prediction_log.catch_up(settings, CASE, EVER)

    def change(told: list) -> list:
        told[4]["score"] = 0.123456
        return told

    edited(path, change)
    [(cause, told)] = wrong(settings)
    assert cause == "log"
    assert "1 of 120 scores of version 1 differ" in told
    assert "others than were compacted, e.g. r7-4" in told


def test_a_line_edited_before_it_was_compacted_is_the_logs(settings):
    """One changed feature that no seal and no copy tells of is the log's fault, as the version is what it was."""
    path = settings.prediction_log / CASE / "predictions" / "w-000001.jsonl"

    def change(told: list) -> list:
        told[4]["row"]["age"] += 30
        return told

    edited(path, change)
    [(cause, told)] = wrong(settings)
    assert cause == "log"
    assert "the lines do not hold what was answered, e.g. r7-4" in told


def test_a_segment_with_a_broken_seal_is_the_logs(settings):
    """An edit that leaves the seal stops the reading at that segment, by name."""
    path = settings.prediction_log / CASE / "predictions" / "w-000001.jsonl"
    edited(path, lambda told: told[1:], sealed=False)
    assert [cause for cause, _ in wrong(settings)] == ["log"]
    assert "w-000001" in wrong(settings)[0][1]


def test_a_decision_that_is_not_its_scores(settings):
    """A line whose decision is not that of its own score was changed, whatever its score is."""
    path = settings.prediction_log / CASE / "predictions" / "w-000001.jsonl"

    def change(told: list) -> list:
        told[4]["prediction"] = 1 - told[4]["prediction"]
        return told

    edited(path, change)
    [(cause, told)] = wrong(settings)
    assert (cause, "another decision" in told) == ("log", True)


def test_a_value_that_no_encoding_takes_is_the_logs_alone(settings):
    """One undeclared value keeps one row from being scored, and no other."""
    path = settings.prediction_log / CASE / "predictions" / "w-000001.jsonl"

    def change(told: list) -> list:
        told[4]["row"]["job"] = "astronaut"
        return told

    edited(path, change)
    answer = of_all(settings)
    assert (answer["replay"]["identical"], answer["replay"]["unfit"]) == (179, 1)
    [problem] = answer["problems"]
    assert (problem["cause"], "job" in problem["told"]) == ("log", True)


def test_rows_of_a_version_that_nobody_knows(settings):
    """A version that was never registered is said with those that were."""
    log(settings, "w-000003", [line | {"version": 9} for line in lines(settings, 1, traffic(1, 2, seed=9))])
    [(cause, told)] = wrong(settings)
    assert (cause, "no version 9" in told, "1, 2, 3" in told) == ("log", True, True)


def test_answers_of_another_version_in_its_place(settings):
    """Rows that another version answered under this one's number are named by it, and by what served."""
    log(settings, "w-000003", [line | {"version": 2} for line in lines(settings, 1, traffic(1, 90, seed=9))])
    [(cause, told)] = wrong(settings)
    assert cause == "runtime"
    assert "version 1 as a whole gives them: it answered in its place" in told


def test_a_changed_encoder_is_named(settings):
    """Code that encodes otherwise is told from changed files by the plain encoder beside it."""
    codes = encoding._codes
    with mock.patch.object(encoding, "_codes", lambda field, values: [code // 2 for code in codes(field, values)]):
        found = wrong(settings)
    assert {cause for cause, _ in found} == {"encoder"}
    assert all("categorical" in told for _, told in found)


def test_a_changed_runtime_is_named(settings):
    """A runtime that computes otherwise is told from changed files by onnx's own evaluator."""
    score = runtime.score
    with mock.patch.object(runtime, "score", lambda *given, **more: score(*given, **more) + 1e-3):
        found = wrong(settings)
    assert {cause for cause, _ in found} == {"runtime"}


@pytest.mark.parametrize("seed", range(8))
def test_any_changed_number_is_found(settings, seed):
    """Whatever score or feature of whatever line is changed beyond the tolerance, exactly that line is counted."""
    rng = np.random.default_rng(seed)
    path = settings.prediction_log / CASE / "predictions" / "w-000001.jsonl"
    row = int(rng.integers(120))

    def change(told: list) -> list:
        if rng.random() < 0.5:
            told[row]["score"] += float(rng.choice([-1, 1])) * 10 ** rng.uniform(-5.5, -2)
        else:
            name = str(rng.choice([field.name for field in FIELDS.numeric]))
            told[row]["row"][name] += float(rng.uniform(1, 9))
        return told

    edited(path, change)
    answer = of_all(settings)
    assert (answer["replay"]["differ"], answer["replay"]["identical"]) == (1, 179)
    assert [one["cause"] for one in answer["problems"]] == ["log"]


# --- a candidate --------------------------------------------------------------------------------


def test_a_candidate_on_the_rows_of_others(settings):
    """A version that was only registered is compared by slice and by day, with the labels that arrived since."""
    frame = pl.concat([traffic(1, 120), traffic(2, 60, seed=8)])
    loglines.write(settings, CASE, "labels", "l-000001", loglines.labels(frame.head(100), FIELDS))
    answer = of_all(settings, 3)
    compared = answer["comparison"]
    assert (answer["ok"], answer["replay"]["rows"], compared["others"]) == (True, 0, [1, 2])
    whole = compared["all"]
    assert (whole["rows"], whole["labelled"]) == (180, 100)
    assert 0 < whole["p05"] < whole["p50"] < whole["p95"] < 1  # its bias is above both others'
    assert sum(part["rows"] for part in compared["days"]) == 180
    assert whole["lift"]["low"] <= whole["lift"]["value"] <= whole["lift"]["high"]
    assert whole["lift"]["value"] == pytest.approx(whole["theirs"] - whole["ours"])
    for name in PARAMS.gate.slice_fields:
        parts = [part for part in compared["slices"] if part["name"].startswith(f"{name}=")]
        assert sum(part["rows"] for part in parts) == 180


def test_a_version_that_answered_some_is_replayed_and_compared(settings):
    """Its own rows come out again, and on the others' rows it is compared with them."""
    answer = of_all(settings, 2)
    assert [one["version"] for one in answer["replay"]["versions"]] == [2]
    assert answer["replay"]["identical"] == 60
    assert (answer["comparison"]["others"], answer["comparison"]["all"]["rows"]) == ([1], 120)


def test_a_row_that_is_logged_twice_counts_once_in_a_comparison(settings):
    """Two lines of one row are one row of the comparison, its first answer."""
    log(settings, "w-000003", lines(settings, 1, traffic(1, 5)))
    assert of_all(settings, 3)["comparison"]["all"]["rows"] == 180


# --- errors, and the command --------------------------------------------------------------------


def test_errors_say_what_to_do(settings):
    """No span, no rows in it, an unknown version and a bundle that is gone are errors that say what to do."""
    with pytest.raises(ConfigError, match="is not before --to"):
        rescore(PARAMS, settings, EVER.end, EVER.start)
    with pytest.raises(DataError, match="the oldest logged row is of 2008-08-01"):
        rescore(PARAMS, settings, datetime(2007, 1, 1, tzinfo=UTC), datetime(2007, 2, 1, tzinfo=UTC))
    with pytest.raises(ConfigError, match="no version 9"):
        of_all(settings, 9)
    bundle(settings, 3).rename(bundle(settings, 3).with_name("lost"))
    with pytest.raises(NotKept, match="the bundle of version 3 of bank is gone"):
        of_all(settings, 3)


def test_the_command_answers_in_json_and_with_a_page(settings, tmp_path, monkeypatch, capfd):
    """`rescore` exits with 0 for a yes and 1 for a no; its page says the same and loads nothing."""
    monkeypatch.setenv("PERENNIAL_HOME", str(settings.root))
    page = tmp_path / "page.html"
    asked = ["rescore", CASE, "--from", "2008-08-01", "--to", "2009-01-01", "--version", "3", "--page", str(page)]
    assert cli.main(asked) == 0
    assert json.loads(capfd.readouterr().out)["comparison"]["all"]["rows"] == 180
    assert "version 3 on rows that version(s) 1, 2 answered" in page.read_text()
    assert "http" not in page.read_text()
    (bundle(settings, 1) / "model.onnx").write_bytes(b"broken")
    assert cli.main(["rescore", "--case", CASE, "--from", "2008-08-01", "--to", "2009-01-01"]) == 1
    assert json.loads(capfd.readouterr().out)["ok"] is False


def test_a_person_reads_a_table(settings):
    """What a terminal shows says what came out, what is wrong, and how the candidate differs."""
    from rich.console import Console

    from pipelines.reports import rescored

    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(rescored.table(of_all(settings)))
    console.print(rescored.table(of_all(settings, 3)))
    (bundle(settings, 1) / "model.onnx").write_bytes(b"broken")
    console.print(rescored.table(of_all(settings)))
    text = console.export_text()
    assert "180 of 180 logged scores come out again within 1e-06, 100.0% bit by bit" in text
    assert "version 3 answered no row of this span itself" in text
    assert "artefact: " in text


def test_a_person_reads_what_was_not_read(settings):
    """Rows in a segment that a worker still has open, and a span of which nothing could be read, are told of.

    Both at a terminal and on the page.
    """
    from pipelines.reports import rescored

    folder = settings.prediction_log / CASE / "predictions"
    (folder / "w-000002.jsonl").rename(folder / "w-000002.jsonl.open")
    with (folder / "w-000002.jsonl.open").open("rb+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        answer = of_all(settings.model_copy(update={"log_close_seconds": 0.0}))
        with pytest.raises(DataError, match="60 rows lie in segments that gateways still have open: try again"):
            rescore(PARAMS, settings.model_copy(update={"log_close_seconds": 0.0}), as_of(2), EVER.end)
    told = "60 more rows lie in segments that are still open and were not scored"
    assert (answer["replay"]["rows"], answer["replay"]["unread"]) == (120, 60)
    assert told in rescored.headline(answer)
    assert told in rescored.page(answer)
    edited(folder / "w-000001.jsonl", lambda told: told[1:], sealed=False)
    assert rescored.headline(of_all(settings)) == "no row of this span could be scored again: 1 problem(s)"


# --- the daily proof ----------------------------------------------------------------------------


def test_a_sample_is_spread_over_versions_and_the_same_every_time(settings):
    """A sample has rows of every version and no more than asked for, and is drawn alike each time."""
    prediction_log.catch_up(settings, CASE, EVER)
    first, again = (daily.sample(settings, CASE, EVER, most=40) for _ in range(2))
    assert first.equals(again)
    counts = dict(first["version"].value_counts().iter_rows())
    assert counts == {1: 20, 2: 20}


def test_a_drift_run_is_told_of_scores_that_differ(settings):
    """The check counts what does not come out and says why; a sound log is said to be sound."""
    prediction_log.catch_up(settings, CASE, EVER)
    assert daily.check(PARAMS, settings, EVER) == daily.Skew(rows=180)
    (bundle(settings, 1) / "model.onnx").write_bytes(b"broken")
    found = daily.check(PARAMS, settings, EVER)
    assert (found.rows, found.differ) == (180, 120)
    assert found.problems[0].startswith("artefact: ")


def test_a_check_that_fails_is_a_problem_and_no_error(settings, monkeypatch):
    """Whatever the check meets is told, so that people hear of all else; a case may switch its rule off."""
    monkeypatch.setattr(daily, "sample", lambda *_: 1 / 0)
    [problem] = daily.check(PARAMS, settings, EVER).problems
    assert "ZeroDivisionError" in problem
    off = PARAMS.model_copy(update={"alerts": PARAMS.alerts.model_copy(update={"off": ("scores_differ",)})})
    assert daily.check(off, settings, EVER) == daily.Skew()


def test_an_unknown_bundle_of_the_window_is_told(settings):
    """A bundle that is gone is told of, as nobody can say any more what was served."""
    prediction_log.catch_up(settings, CASE, EVER)
    bundle(settings, 2).rename(bundle(settings, 2).with_name("lost"))
    found = daily.check(PARAMS, settings, EVER)
    assert found.differ == 60
    assert "the bundle of version 2 of bank is gone" in found.problems[0]
