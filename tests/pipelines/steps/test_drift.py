"""pipelines/steps/profile.py and drift.py: the loans stream through the log, the ledger and the two steps."""

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import date, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from benchmarks.full.episode import take_back
from pipelines import ledger, storage
from pipelines.contracts import Manifest, Order
from pipelines.drift import policy
from pipelines.drift.profile.counts import merge, read, to_bytes
from pipelines.drift.reference import reference_profile
from pipelines.drift_report import DriftReport, Explanation, Quality
from pipelines.errors import ConfigError, IntegrityError, Overtaken
from pipelines.files import file_sha256
from pipelines.params import Params
from pipelines.settings import Settings
from tests.pipelines.drift.stream import FIELDS, SPEC, START, Stream, midnight
from tests.pipelines.drift.stream import PARAMS as LOANS
from tests.pipelines.verbs import drift, profile

DRIFT_AT = 3
"""Day of the stream on which the inputs drift."""
PARAMS = LOANS.model_copy(update={"drift": LOANS.drift.model_copy(update={"min_new_labels": (0, 0, 0.0)})})
"""The case's own parameters, but that a retraining waits for no labels."""


@pytest.fixture(scope="module")
def stream() -> Stream:
    """A champion and its days."""
    return Stream(seed=0)


def day(number: int) -> date:
    """The n-th day of the stream."""
    return START + timedelta(days=number)


def release(settings: Settings, stream: Stream, as_of: datetime, version: int = 1, *, reference=None, **facts) -> None:
    """Put the stream's champion in the ledger, with the folders that a run leaves, without training.

    ``facts`` are the dataset's.
    """
    run_dir = settings.run_dir("loans", as_of)

    def dataset(folder: Path) -> dict:
        stream.generated(START - timedelta(days=1), "none", None).write_parquet(folder / "train.parquet")
        return facts

    def export(folder: Path) -> dict:
        (folder / "reference.parquet").write_bytes(to_bytes(reference or stream.reference))
        return {}

    for step, build in (("dataset", dataset), ("export", export)):
        inputs = {"dataset": f"dataset-{version}"} if step == "export" else {}
        storage.commit(run_dir / step, case="loans", as_of=as_of, key=f"{step}-{version}", inputs=inputs, build=build)
    ledger.append(
        settings.ledger,
        Order(
            case="loans",
            after=version - 1,
            champion=version,
            candidate_key=f"export-{version}",
            bundle=str((run_dir / "export").relative_to(settings.root)),
            action="promote",
            trigger="initial",
            reason="test",
            actor="test",
            as_of=as_of,
        ),
    )


def serve(
    settings: Settings,
    stream: Stream,
    number: int,
    *,
    version: int = 1,
    change=None,
    delay: float = LOANS.label_delay_days,
    imported: bool = False,
) -> None:
    """Log a day's answers, and the labels of those rows a week later, as closed segments.

    ``imported``: every second row is of version 0, and nobody answered it.
    """
    rows = stream.generated(day(number), "covariate", day(DRIFT_AT))
    scores = stream.scores(rows).tolist()
    if change:
        rows = change(rows)
        scores = scores[: rows.height]
    moments = [moment.isoformat() for moment in rows["event_time"]]
    later = [(moment + timedelta(days=delay)).isoformat() for moment in rows["event_time"]]
    answers = [
        {
            "prediction_id": id_,
            "request_id": id_,
            "event_time": at,
            "received_at": at,
            "version": version,
            "score": score,
            "prediction": int(score >= 0.5),
        }
        | {"row": {name: value for name, value in row.items() if value is not None}}
        for id_, at, score, row in zip(rows["id"], moments, scores, rows.select(FIELDS.names).to_dicts(), strict=True)
    ]
    if imported:
        for answer in answers[::2]:
            answer.update(version=0, score=None, prediction=None)
    known = [
        {"prediction_id": id_, "label": label, "revision": 0, "event_time": at, "received_at": at}
        for id_, at, label in zip(rows["id"], later, rows[FIELDS.label], strict=True)
    ]
    for kind, lines in (("predictions", answers), ("labels", known)):
        folder = settings.prediction_log / "loans" / kind
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"day-{number:02d}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def judge(settings: Settings, as_of: datetime, params: Params = PARAMS) -> Manifest:
    """Both steps of a drift run."""
    run_dir = settings.run_dir("loans", as_of)
    profile.run(params, settings, run_dir, as_of)
    return drift.run(params, settings, run_dir, as_of)


def report(settings: Settings, as_of: datetime) -> DriftReport:
    """The report of a drift run."""
    return DriftReport.model_validate_json((settings.run_dir("loans", as_of) / "drift" / "report.json").read_bytes())


def after(number: int, hours: float = 2.0) -> datetime:
    """The as_of of the drift run that judges the n-th day: two hours into the next."""
    return midnight(day(number)) + timedelta(days=1, hours=hours)


@pytest.fixture
def settings(tmp_path) -> Settings:
    """An empty state folder."""
    return Settings(home=tmp_path / "state")


@pytest.fixture(scope="module")
def drifted(tmp_path_factory, stream) -> Settings:
    """A state folder after the run that confirmed the drift; copied before it is changed."""
    settings = Settings(home=tmp_path_factory.mktemp("drifted") / "state")
    release(settings, stream, midnight(day(0)))
    for number in range(DRIFT_AT + 2):
        serve(settings, stream, number)
        judge(settings, after(number))
    return settings


@pytest.fixture
def replayed(drifted, tmp_path) -> Settings:
    """A copy of the state after the drift was confirmed."""
    shutil.copytree(drifted.root, tmp_path / "state")
    return Settings(home=tmp_path / "state")


def tree(settings: Settings) -> dict[str, str]:
    """Every artefact by its hash, the ledger's rows of drift with it."""
    files = {
        str(path.relative_to(settings.root)): file_sha256(path)
        for path in settings.root.rglob("*")
        if path.is_file() and "ledger.db" not in path.name
    }
    rows = ledger.episodes(settings.ledger, "loans"), ledger.drift_state_before(settings.ledger, "loans", after(99))
    return files | {"ledger": storage.digest(rows)}


def test_imported_rows_are_inputs_and_nobodys_answers(settings, stream):
    """Rows that nobody answered count as rows of their day; what a model gave and lost is judged without them."""
    release(settings, stream, midnight(day(0)))
    for number in range(3):
        serve(settings, stream, number, imported=True, delay=0.5)
        judge(settings, after(number, hours=14))
    last = report(settings, after(2, hours=14))
    assert (last.state, last.quality.problems, last.model_version) == ("STABLE", (), 1)
    assert last.current_rows == stream.generated(day(2), "none", None).height
    assert last.quality.volume == pytest.approx(1, abs=0.2)
    assert "score" in {feature.feature for feature in last.features}
    assert not [feature.feature for feature in last.features if feature.drifted]
    found = {one.version: one for one in last.performance.rolling if one.end == last.window.end}
    assert found[0].rows == found[1].rows == last.current_rows // 2
    assert found[0].labelled == found[1].labelled > 0
    assert found[0].log_loss is None
    assert found[1].log_loss is not None


def test_drift_asks_for_training_once(replayed):
    """Quiet days pass; after two days of drifted inputs one retraining is asked for.

    It is asked for under the episode's name, with a page to look at.
    """
    states = [report(replayed, after(number)) for number in range(DRIFT_AT + 2)]
    assert [one.action for one in states] == [*["none"] * (DRIFT_AT + 1), "retrain"]
    assert {one.state for one in states[:DRIFT_AT]} == {"STABLE"}
    assert states[DRIFT_AT].state == "WATCH"
    last = states[-1]
    assert (last.state, last.policy.kind) == ("RETRAINING", "covariate")
    assert {"age", "salary"} <= {feature.feature for feature in last.features if feature.drifted}
    assert last.episode == f"loans-{after(DRIFT_AT + 1):%Y%m%dT%H%M%SZ}"
    [opened] = ledger.episodes(replayed.ledger, "loans")
    assert (opened["episode"], opened["evidence"]["trigger"]) == (last.episode, "drift")
    assert (
        last.policy.trigger
        == storage.read_manifest(replayed.run_dir("loans", after(DRIFT_AT + 1)) / "drift").facts["trigger"]
        == "drift"
    )
    page = replayed.run_dir("loans", after(DRIFT_AT + 1)) / "drift" / "drift.html"
    assert "<html" in page.read_text()[:2000].lower()
    assert [one.explanation for one in states[:DRIFT_AT]] == [Explanation()] * DRIFT_AT
    assert {one.feature for one in last.explanation.features[:2]} == {"age", "salary"}
    assert last.explanation.auc.low > 0.6


def test_the_report_says_why(replayed):
    """The report names the kind, the features, the days and the first of them, and so does the episode.

    They come from the profiles that earlier runs left.
    """
    last = report(replayed, after(DRIFT_AT + 1))
    assert (last.diagnosis.kind, last.diagnosis.performance) == ("covariate", "unknown")
    assert last.diagnosis.since == day(DRIFT_AT)
    assert last.diagnosis.dates == (day(DRIFT_AT), day(DRIFT_AT + 1))
    assert last.diagnosis.why.startswith("salary, age, commission moved since")
    (episode,) = ledger.episodes(replayed.ledger, "loans")
    assert {name: episode["evidence"][name] for name in ("kind", "why", "since")} == {
        "kind": last.diagnosis.kind,
        "why": last.diagnosis.why,
        "since": last.diagnosis.since.isoformat(),
    }
    assert report(replayed, after(0)).diagnosis.kind == "none"


def test_the_report_shows_performance_with_and_without_labels(settings, stream):
    """Before labels come there is an estimate.

    Once they are in, the metric with coverage and delay, and what the estimate was worth.
    """
    release(settings, stream, midnight(day(0)))
    for number in range(3):
        serve(settings, stream, number, delay=1.5)
        judge(settings, after(number))
    rows = LOANS.source["rows_per_day"]
    first, last = (report(settings, after(number)).performance for number in (0, 2))
    assert [(one.rows, one.coverage, one.log_loss) for one in first.rolling] == [(rows, 0.0, None)]
    assert (first.estimate.rows, first.earlier, first.slices) == (rows, (), ())
    assert [(f"{one.end:%Y-%m-%d}", one.coverage) for one in last.rolling] == [
        (str(day(1)), 1.0),
        (str(day(2)), 0.5),
        (str(day(3)), 0.0),
    ]
    assert {one.delay_days for one in last.rolling} == {1.5, None}
    assert last.earlier[0].estimated == first.estimate.log_loss
    assert [one.inside for one in last.earlier] == [True, True]
    assert {one.field for one in last.slices} == set(LOANS.gate.slices)
    assert sum(one.rows for one in last.slices) == 2 * rows


def test_running_again_changes_nothing(replayed):
    """Both steps run again leave every byte as it is and give the same answer.

    The retraining and its episode are part of it.
    """
    before = tree(replayed)
    for number in (0, DRIFT_AT, DRIFT_AT + 1):
        manifest = judge(replayed, after(number))
    assert tree(replayed) == before
    assert manifest.facts["action"] == "retrain"
    assert manifest.facts["episode"] == report(replayed, after(DRIFT_AT + 1)).episode


def test_the_decision_stands_when_the_folder_is_lost(replayed):
    """A run whose folder is gone finds its decision in the ledger and writes the same report."""
    folder = replayed.run_dir("loans", after(DRIFT_AT + 1))
    before = (folder / "drift" / "report.json").read_bytes()
    shutil.rmtree(folder)
    judge(replayed, after(DRIFT_AT + 1))
    assert (folder / "drift" / "report.json").read_bytes() == before


def test_a_lost_episode_is_mended(replayed):
    """A run that died between state and episode is mended by running again: the episode is opened then."""
    take_back(replayed.ledger, "loans", "drift_episodes")
    judge(replayed, after(DRIFT_AT + 1))
    assert len(ledger.episodes(replayed.ledger, "loans")) == 1


def test_an_older_run_reports_and_does_not_step(replayed):
    """A run older than the newest window that was judged, or of a window that was judged before, changes no state."""
    newest = ledger.drift_state_before(replayed.ledger, "loans", after(99))
    for moment in (after(1, hours=5), after(DRIFT_AT + 1, hours=5)):
        manifest = judge(replayed, moment)
        assert manifest.facts["action"] == "none"
        assert "reported only" in manifest.facts["reason"]
        assert ledger.drift_state_before(replayed.ledger, "loans", after(99)) == newest


def test_late_rows_change_the_report_and_not_the_decision(replayed, stream):
    """Rows that arrive after the run are in the report of the next try; what was decided stays."""
    before = report(replayed, after(DRIFT_AT + 1))
    late = stream.generated(day(DRIFT_AT + 1), "none", None).with_columns(id=pl.lit("late-") + pl.col("id"))
    serve(replayed, stream, 40, change=lambda _rows: late)
    judge(replayed, after(DRIFT_AT + 1))
    now = report(replayed, after(DRIFT_AT + 1))
    assert now.current_rows == before.current_rows + late.height
    assert (now.state, now.action, now.episode, now.reason) == (
        before.state,
        before.action,
        before.episode,
        before.reason,
    )


def test_a_promotion_is_answered_by_a_new_reference(replayed, stream):
    """After a promotion the policy rests, and the window is compared with the new champion's rows and scores."""
    release(replayed, stream, after(DRIFT_AT + 1), version=2)
    serve(replayed, stream, DRIFT_AT + 2, version=2)
    judge(replayed, after(DRIFT_AT + 2))
    found = report(replayed, after(DRIFT_AT + 2))
    assert (found.model_version, found.state) == (2, "COOLDOWN")
    assert found.policy.path == ("RETRAINING", "COOLDOWN")
    assert "score" in {feature.feature for feature in found.features}
    # Labels that arrived were of rows the old champion scored: they say nothing about the new one.
    assert found.labels.rows == 0


def test_without_a_verdict_the_policy_waits(replayed, stream):
    """While the training run has no verdict the next window asks for nothing."""
    serve(replayed, stream, DRIFT_AT + 2)
    assert judge(replayed, after(DRIFT_AT + 2)).facts["state"] == "RETRAINING"


def test_a_page_that_cannot_be_drawn_changes_no_decision(replayed, monkeypatch):
    """Where Evidently fails the decision is the same, and the report says that there is no page."""

    def broken(*arguments):
        raise RuntimeError("no page")

    before = report(replayed, after(DRIFT_AT + 1))
    folder = replayed.run_dir("loans", after(DRIFT_AT + 1)) / "drift"
    shutil.rmtree(folder)
    monkeypatch.setattr("pipelines.reports.evidently.draw", broken)
    judge(replayed, after(DRIFT_AT + 1))
    now = report(replayed, after(DRIFT_AT + 1))
    assert now.quality.page_error == "could not be drawn (RuntimeError)"
    assert now.model_copy(update={"quality": Quality()}) == before.model_copy(update={"quality": Quality()})
    assert not (folder / "drift.html").exists()


def test_an_explanation_that_fails_changes_no_decision(replayed, monkeypatch):
    """Where the classifier fails the decision is the same, and the report says that nothing was explained."""

    def broken(*arguments):
        raise ValueError("no answer")

    before = report(replayed, after(DRIFT_AT + 1))
    shutil.rmtree(replayed.run_dir("loans", after(DRIFT_AT + 1)) / "drift")
    monkeypatch.setattr("pipelines.drift.why.explain.explain", broken)
    monkeypatch.setattr("pipelines.reports.evidently.draw", lambda path, *_: path.write_text("<html>"))
    judge(replayed, after(DRIFT_AT + 1))
    now = report(replayed, after(DRIFT_AT + 1))
    assert now.explanation == Explanation(about="could not be explained (ValueError)")
    assert now.model_copy(update={"explanation": Explanation()}) == before.model_copy(
        update={"explanation": Explanation()}
    )


def test_windows_that_race_open_one_episode(replayed, stream, monkeypatch):
    """Two windows judged at once, each of which would confirm, open one episode.

    Whichever is first has the other look again, or only report.
    """
    serve(replayed, stream, DRIFT_AT + 2)
    for number in (DRIFT_AT + 1, DRIFT_AT + 2):
        shutil.rmtree(replayed.run_dir("loans", after(number)) / "drift", ignore_errors=True)
        profile.run(PARAMS, replayed, replayed.run_dir("loans", after(number)), after(number))
    take_back(replayed.ledger, "loans", "drift_chain")
    monkeypatch.setattr("pipelines.reports.evidently.draw", lambda path, *_rest: path.write_text("page"))

    both, alone, decide = threading.Barrier(2), threading.local(), policy.step

    def together(*arguments):
        # Each has read the earlier state when the other one writes.
        if not hasattr(alone, "waited"):
            alone.waited = True
            both.wait(60)
        return decide(*arguments)

    monkeypatch.setattr(policy, "step", together)

    def tried(number):
        for _ in range(3):
            with suppress(Overtaken):
                return drift.run(PARAMS, replayed, replayed.run_dir("loans", after(number)), after(number)).facts
        raise AssertionError("overtaken again and again")

    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(tried, (DRIFT_AT + 1, DRIFT_AT + 2)))
    assert [answer["action"] for answer in answers].count("retrain") == 1
    assert len(ledger.episodes(replayed.ledger, "loans")) == 1


def test_concurrent_runs_open_one_episode(replayed, monkeypatch):
    """Eight runs of the same window at once agree on one decision and one episode."""
    shutil.rmtree(replayed.run_dir("loans", after(DRIFT_AT + 1)))
    take_back(replayed.ledger, "loans", "drift_chain")
    monkeypatch.setattr("pipelines.reports.evidently.draw", lambda path, *_rest: path.write_text("page"))
    with ThreadPoolExecutor(8) as pool:
        answers = {
            json.dumps(one.facts, sort_keys=True)
            for one in pool.map(lambda _: judge(replayed, after(DRIFT_AT + 1)), range(8))
        }
    assert len(answers) == 1
    assert [row["episode"] for row in ledger.episodes(replayed.ledger, "loans")] == [
        json.loads(answers.pop())["episode"]
    ]


def test_profiles_are_kept_per_day(replayed):
    """Day profiles lie under their hash in the lake, and those of a window add up to its rows."""
    manifest = storage.read_manifest(replayed.run_dir("loans", after(2)) / "profile")
    (only,) = manifest.facts["days"]
    assert only["date"] == str(day(2))
    path = replayed.root / only["path"]
    assert path.stem == file_sha256(path)[:16]
    assert merge([read(path)], manifest.facts["spec"]).rows == manifest.facts["rows"] == PARAMS.source["rows_per_day"]


def test_no_champion_is_a_state(settings, stream):
    """Before the first release a drift run is green, says so, and keeps nothing in the ledger."""
    serve(settings, stream, 0)
    manifest = judge(settings, after(0))
    assert (manifest.facts["state"], manifest.facts["action"], manifest.facts["kind"]) == (
        "NO_CHAMPION",
        "none",
        "unknown",
    )
    assert ledger.drift_state_before(settings.ledger, "loans", after(99)) is None


def test_an_empty_window_blocks_unless_allowed(settings, stream):
    """Without a single row in a window after the first served one the case that promises rows blocks with an alert.

    One that does not stays stable.
    """
    release(settings, stream, midnight(day(0)))
    serve(settings, stream, 0)
    manifest = judge(settings, after(1))
    assert (manifest.facts["state"], manifest.facts["action"]) == ("BLOCKED_DATA_QUALITY", "alert")
    allowed = PARAMS.model_copy(update={"drift": PARAMS.drift.model_copy(update={"allow_empty": True})})
    assert judge(settings, after(2), allowed).facts["state"] == "STABLE"


def test_few_rows_are_not_compared(settings, stream):
    """A window below min_rows is reported as too small, with no feature judged."""
    release(settings, stream, midnight(day(0)))
    serve(settings, stream, 0, change=lambda rows: rows.head(PARAMS.drift.min_rows - 1))
    assert judge(settings, after(0)).facts["state"] == "STABLE"
    found = report(settings, after(0))
    assert found.features == ()
    assert "few_rows" in {warning.code for warning in found.quality.warnings}
    assert "volume" in {warning.code for warning in found.quality.warnings}


@pytest.mark.parametrize(
    ("facts", "volume"), [({"rows_per_day": 400.0}, 1.0), ({}, 10.0)], ids=["recorded", "of an earlier release"]
)
def test_the_volume_is_compared_with_rows_before_thinning(settings, stream, facts, volume):
    """Of a champion that learned from every tenth row the usual volume is that of all rows, as its dataset recorded.

    Without the record, of those it has.
    """
    days = pl.concat([stream.generated(START - timedelta(days=number), "none", None) for number in (3, 2, 1)])
    thinned = reference_profile(days.gather_every(10), stream.scores(days.tail(400)), FIELDS, SPEC, days.tail(400))
    release(settings, stream, midnight(day(0)), reference=thinned, **facts)
    for number in (0, 1):
        serve(settings, stream, number)
        judge(settings, after(number))
    assert report(settings, after(1)).quality.volume == pytest.approx(volume)


def test_a_null_jump_blocks(settings, stream):
    """Where a field is suddenly missing, however strong the drift, the policy blocks, and asks for no training."""
    release(settings, stream, midnight(day(0)))

    def spoil(rows: pl.DataFrame) -> pl.DataFrame:
        return rows.with_columns(
            age=pl.lit(99.0), house_years=pl.when(pl.int_range(pl.len()) < 40).then(None).otherwise("house_years")
        )

    for number in (0, 1):
        serve(settings, stream, number, change=spoil)
        manifest = judge(settings, after(number))
        assert (manifest.facts["state"], manifest.facts["action"]) == ("BLOCKED_DATA_QUALITY", "alert")
        assert "house_years: 10.0% missing" in manifest.facts["reason"]


def test_steps_need_the_one_before(settings):
    """The drift step without a profile says which step to run."""
    with pytest.raises(ConfigError, match="run the step 'profile' first"):
        drift.run(PARAMS, settings, settings.run_dir("loans", after(0)), after(0))


def test_a_champion_without_its_reference_is_an_error(settings, stream):
    """A bundle that lost its reference is named, not skipped."""
    release(settings, stream, midnight(day(0)))
    serve(settings, stream, 0)
    (settings.run_dir("loans", midnight(day(0))) / "export" / "reference.parquet").unlink()
    with pytest.raises(IntegrityError, match=r"reference\.parquet has sha256 missing"):
        judge(settings, after(0))


def test_labels_count_in_one_window(settings, stream):
    """Every label that arrived is in the evidence of exactly one window, also when a run was left out."""
    release(settings, stream, midnight(day(0)))
    params = PARAMS.model_copy(update={"label_delay_days": 1.0})
    counted = []
    for number in range(5):
        serve(settings, stream, number, delay=1)
        if number != 2:
            judge(settings, after(number), params)
            counted.append(report(settings, after(number)).labels.rows)
    rows = LOANS.source["rows_per_day"]
    assert counted == [0, rows, 2 * rows, rows]
    found = report(settings, after(1))
    assert 0 < found.labels.errors / rows < 0.2
    assert found.labels.drop.low < 0 < found.labels.drop.high
