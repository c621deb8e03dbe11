"""pipelines/steps/headroom.py: what a retraining would gain, from the log, and everything that can be in the way."""

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from pipelines import ledger, storage
from pipelines.cases import load_fields
from pipelines.contracts import Order
from pipelines.drift_report import Headroom, read_headroom
from pipelines.headroom import probe
from pipelines.params_file import load_params
from pipelines.settings import Settings
from tests.pipelines.drift.stream import FIELDS, Stream, midnight
from tests.pipelines.steps.test_drift import LOANS, after, day, release, report, serve
from tests.pipelines.verbs import drift, headroom, profile
from tests.texts import WORDS, some_texts

DAY = 10
"""The day whose drift run is looked at: it is about the labels of the day a week earlier."""
SMALL = LOANS.model_copy(update={"headroom": LOANS.headroom.model_copy(update={"family": "logistic", "price": 0.02})})
"""The case's own parameters, with a probe that is fitted in no time."""


@pytest.fixture(scope="module")
def stream() -> Stream:
    """A champion and its days."""
    return Stream(seed=0)


def granted_otherwise(rows: pl.DataFrame) -> pl.DataFrame:
    """The other answer to every application: nothing that the champion learned holds any more."""
    return rows.with_columns((1 - pl.col(FIELDS.label)).cast(pl.Int8).alias(FIELDS.label))


def at_noon(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows of a day, all within one hour: there are fewer files to write and to read."""
    noon = pl.col("event_time").dt.truncate("1d") + pl.duration(hours=12, seconds=pl.int_range(pl.len()))
    return rows.with_columns(noon.alias("event_time"))


def state(folder, stream: Stream, days: int = 4, change=lambda rows: rows, **served) -> Settings:
    """A champion released before the first day, and ``days`` days of answers."""
    settings = Settings(home=folder / "state")
    release(settings, stream, midnight(day(0)))
    for number in range(days):
        serve(settings, stream, number, change=lambda rows: at_noon(change(rows)), **served)
    return settings


def look(settings: Settings, params=SMALL, number: int = DAY) -> Headroom:
    """What the step says in the drift run of a day."""
    as_of = after(number)
    run_dir = settings.run_dir("loans", as_of)
    profile.run(params, settings, run_dir, as_of)
    made = headroom.run(params, settings, run_dir, as_of)
    found = read_headroom(run_dir / "headroom")
    assert (made.facts["code"], made.facts["rows"]) == (found.code, found.rows)
    return found


@pytest.fixture(scope="module")
def quiet(tmp_path_factory, stream) -> tuple[Settings, Headroom]:
    """A state in which nothing changed, and what was found there; copied before it is changed."""
    settings = state(tmp_path_factory.mktemp("quiet"), stream)
    return settings, look(settings)


def test_a_champion_that_the_world_has_left_has_headroom(tmp_path, stream):
    """Where every answer has turned, a probe of the days after it gains far more than the price, with confidence."""
    found = look(state(tmp_path, stream, change=granted_otherwise))
    assert (found.code, found.family, found.price) == ("measured", "logistic", 0.02)
    assert (found.window.start, found.window.end) == (midnight(day(3)), midnight(day(4)))
    assert found.gain.low > 0.5
    assert found.own_past.low > 0.1
    assert found.log_e > 9
    assert found.rows > 300
    assert found.coverage == 1.0
    assert {one.field for one in found.slices} <= {"education"}


def test_a_champion_of_the_same_world_has_none(quiet):
    """Where nothing changed, no gain is above the price with confidence."""
    _, found = quiet
    assert found.code == "measured"
    assert found.gain.low < found.price
    assert found.log_e < 3


def test_the_probe_has_not_seen_what_it_is_judged_on(tmp_path, stream, monkeypatch):
    """It learns from rows older than the window alone: served ones, and before them those of the champion."""
    learned = []

    def fit(rows, fields, family):
        learned.append(rows)
        return probe_fit(rows, fields, family)

    probe_fit = probe.fit
    monkeypatch.setattr(probe, "fit", fit)
    found = look(state(tmp_path, stream))
    times = [(rows["event_time"].min(), rows["event_time"].max()) for rows in learned]
    assert all(last < found.window.start for _, last in times)
    assert times[0][0] < midnight(day(0)) < times[0][1] or times[1][0] < midnight(day(0)) < times[1][1]
    assert found.learned == max(rows.height for rows in learned)


def test_nothing_is_fitted_twice(quiet, tmp_path, stream, monkeypatch):
    """A second run of the same rows is a no-op, bits and all; a label that comes late is another trial."""
    shutil.copytree(quiet[0].root, tmp_path / "state")
    settings = Settings(home=tmp_path / "state")
    folder = settings.run_dir("loans", after(DAY)) / "headroom"
    before = storage.read_manifest(folder)
    with monkeypatch.context() as patched:
        patched.setattr(probe, "fit", None)
        assert look(settings) == quiet[1]
    assert storage.read_manifest(folder) == before
    rows = stream.generated(day(2), "covariate", day(3))
    late = {"prediction_id": rows["id"][0], "label": 1 - rows[FIELDS.label][0], "revision": 1}
    moment = (after(DAY) - timedelta(days=1)).isoformat()
    path = settings.prediction_log / "loans" / "labels" / "late.jsonl"
    path.write_text(json.dumps(late | {"event_time": moment, "received_at": moment}) + "\n")
    look(settings)
    assert storage.read_manifest(folder).key != before.key


def test_the_same_rows_give_the_same_figures_anywhere(quiet, tmp_path, stream):
    """Another state that logged the same rows says the same, under the same key, whoever asked and whenever."""
    settings = state(tmp_path, stream)
    for path in (settings.prediction_log / "loans" / "predictions").glob("*.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for number, line in enumerate(lines):
            later = datetime.fromisoformat(line["received_at"]) + timedelta(seconds=number % 7)
            line |= {"request_id": f"another-{number}", "received_at": later.isoformat()}
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert look(settings) == quiet[1]
    keys = [
        storage.read_manifest(one.run_dir("loans", after(DAY)) / "headroom", verify=False).key
        for one in (settings, quiet[0])
    ]
    assert keys[0] == keys[1]


def test_a_champion_that_has_just_come_is_measured_by_what_it_learned(tmp_path, stream):
    """Rows that another version answered count, if they are newer than what the champion was trained on, for probes.

    Its own answers are compared once there are enough.
    """
    settings = state(tmp_path, stream)
    release(settings, stream, midnight(day(5)), version=2)
    found = look(settings)
    assert (found.code, found.answered, found.gain) == ("measured", 0, None)
    assert found.own_past is not None


def test_rows_that_the_champion_was_trained_on_are_left_out(tmp_path, stream):
    """A champion is not judged, nor a probe of its time, on rows that are as old as those that it learned from."""
    settings = state(tmp_path, stream)
    folder = settings.run_dir("loans", midnight(day(0))) / "dataset"
    shutil.rmtree(folder)
    rows = stream.generated(day(3), "none", None)
    facts = {"case": "loans", "as_of": midnight(day(0)), "key": "dataset-1", "inputs": {}}

    def dataset(made):
        rows.write_parquet(made / "train.parquet")
        return {}

    storage.commit(folder, build=dataset, **facts)
    found = look(settings)
    assert (found.code, found.rows) == ("few_rows", 0)


def test_before_the_first_champion_there_is_nothing_to_compare_with(tmp_path):
    """The step says so, and a case that has served nothing yet too."""
    settings = Settings(home=tmp_path / "state")
    assert look(settings).code == "no_champion"


def test_before_the_first_mature_row_there_is_nothing_to_measure(tmp_path, stream):
    """In the first week of a case whose labels take a week nothing can be said."""
    found = look(state(tmp_path, stream), number=3)
    assert found.code == "not_served"
    assert "labels take 7 days" in found.why


def unlabelled(settings: Settings) -> None:
    """Take back every label."""
    for path in (settings.prediction_log / "loans" / "labels").glob("*.jsonl"):
        path.unlink()


def test_without_labels_there_is_no_figure(tmp_path, stream):
    """Labels that have not come, though they should have, are a code and a sentence."""
    settings = state(tmp_path, stream)
    unlabelled(settings)
    found = look(settings)
    assert (found.code, found.gain) == ("no_labels", None)
    assert "has a label yet" in found.why


FEW = {"dataset": SMALL.dataset.model_copy(update={"window_days": 1, "min_rows": 500, "fallback_rows": 50})}
WAYS = {
    "few_rows": ({"change": lambda rows: rows.head(50)}, {}),
    "one_class": ({"change": lambda rows: rows.with_columns(pl.lit(1, pl.Int8).alias(FIELDS.label))}, {}),
    "few_to_learn": ({}, FEW),
}


@pytest.mark.parametrize("code", WAYS)
def test_what_is_in_the_way_is_named(tmp_path, stream, code):
    """Fifty rows, labels of one class only, hardly any older row: each is an outcome of its own and no error."""
    served, changed = WAYS[code]
    found = look(state(tmp_path, stream, **served), SMALL.model_copy(update=changed))
    assert found.code == code
    assert found.why
    assert found.gain is None


def test_the_probe_learns_from_what_a_training_would_choose(tmp_path, stream, monkeypatch):
    """Where the declared days hold too few rows for a training, the newest ones are taken, however old they are."""
    learned = []
    probe_fit = probe.fit
    monkeypatch.setattr(probe, "fit", lambda *of: learned.append(of[0]) or probe_fit(*of))
    own = SMALL.dataset.model_copy(update={"window_days": 1, "min_rows": 500, "fallback_rows": 600})
    found = look(state(tmp_path, stream), SMALL.model_copy(update={"dataset": own}))
    assert (found.code, found.learned) == ("measured", 600)
    assert midnight(day(1)) < min(rows["event_time"].min() for rows in learned if rows.height == 600) < midnight(day(2))


def test_labels_for_some_rows_only_are_told_of(tmp_path, stream):
    """Where every second row gets a label, the figure is of those rows, and their share stands beside it."""
    settings = state(tmp_path, stream)
    for path in (settings.prediction_log / "loans" / "labels").glob("*.jsonl"):
        path.write_text("".join(path.read_text().splitlines(keepends=True)[::2]))
    found = look(settings)
    assert found.code == "measured"
    assert found.coverage == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(("delay", "number"), [(0.0, 3), (90.0, 93)])
def test_the_window_follows_the_labels_delay(tmp_path, stream, delay, number):
    """Labels that come at once are of yesterday, those that take a season of the day before that season."""
    params = SMALL.model_copy(update={"label_delay_days": delay})
    settings = state(tmp_path, stream, delay=delay)
    found = look(settings, params, number)
    assert (found.code, found.window.start) == ("measured", midnight(day(3)))


def test_a_probe_that_fails_is_an_answer(tmp_path, stream, monkeypatch):
    """Whatever a probe raises is a code with the error's words, and the task stays green."""

    def fit(*_):
        raise RuntimeError("no core left")

    monkeypatch.setattr(probe, "fit", fit)
    found = look(state(tmp_path, stream))
    assert (found.code, found.why) == ("probe_failed", "the probe failed: RuntimeError: no core left")


@pytest.mark.parametrize(
    ("answer", "code"), [(lambda rows: [0.5] * rows.height, "measured"), (lambda _: [0.5], "probe_failed")]
)
def test_a_case_may_bring_its_own_probe(tmp_path, stream, monkeypatch, answer, code):
    """Family ``own`` is the case's probe.py; what it answers is checked, and the case's code is part of the key."""

    class Own:
        @staticmethod
        def fit(rows, fields):
            assert (rows.height > 100, fields.case) == (True, "loans")
            return answer

    monkeypatch.setattr("pipelines.headroom.probe.part", lambda case, name: {("loans", "probe"): Own}[case, name])
    params = SMALL.model_copy(update={"headroom": SMALL.headroom.model_copy(update={"family": "own"})})
    found = look(state(tmp_path, stream), params)
    assert (found.code, found.family) == (code, "own")


def test_memory_is_bounded_by_the_declared_rows(tmp_path, stream, monkeypatch):
    """With ``max_rows`` 150 no probe learns from more, and no more are judged, whatever the log holds."""
    learned = []
    probe_fit = probe.fit
    monkeypatch.setattr(probe, "fit", lambda *of: learned.append(of[0].height) or probe_fit(*of))
    params = SMALL.model_copy(update={"headroom": SMALL.headroom.model_copy(update={"max_rows": 150})})
    found = look(state(tmp_path, stream), params)
    assert (found.rows, found.learned) == (150, 150)
    assert max(learned) == 150


def test_the_drift_step_decides_by_it(quiet, tmp_path, stream):
    """A gain above its price opens an episode of its own name; where nothing was measured the window is judged too."""
    drift_params = SMALL.drift.model_copy(
        update={"triggers": ("headroom",), "min_new_labels": (0, 0, 0.0), "evidently": "never"}
    )
    params = SMALL.model_copy(update={"drift": drift_params})
    settings = state(tmp_path, stream, change=granted_otherwise)
    serve(settings, stream, DAY)
    found, run_dir = look(settings, params), settings.run_dir("loans", after(DAY))
    made = drift.run(params, settings, run_dir, after(DAY))
    told = report(settings, after(DAY))
    assert (told.action, told.policy.trigger, made.facts["trigger"]) == ("retrain", "headroom", "headroom")
    assert (told.headroom.pooled, told.headroom.own_pooled, told.headroom.pooled_of) == (found.gain, found.own_past, 1)
    assert made.inputs["headroom"] == storage.read_manifest(run_dir / "headroom").key
    [opened] = ledger.episodes(settings.ledger, "loans")
    assert (opened["episode"], opened["evidence"]["trigger"]) == (told.episode, "headroom")

    shutil.copytree(quiet[0].root, tmp_path / "other")
    without = Settings(home=tmp_path / "other")
    shutil.rmtree(without.run_dir("loans", after(DAY)) / "headroom")
    drift.run(params, without, without.run_dir("loans", after(DAY)), after(DAY))
    assert report(without, after(DAY)).headroom.code == "not_measured"


# --- texts --------------------------------------------------------------------------------------

TRIAGE = load_params("triage")
OCTOBER = datetime(2015, 10, 1, tzinfo=UTC)
TEAMS = len(load_fields("triage").classes)


def team_of(text: str) -> int:
    """The team that owns a report, by its first word."""
    return WORDS.index(text.split(maxsplit=1)[0]) % 3


def log_reports(settings: Settings, first: datetime, texts: list[str], name: str) -> None:
    """Log ten reports a day, answered without any idea, and their teams by their first words a month later."""
    answers, labels = [], []
    for number, text in enumerate(texts):
        moment = first + timedelta(days=number // 10)
        at, later = moment.isoformat(), (moment + timedelta(days=30)).isoformat()
        own = {"prediction_id": f"{name}-{number}", "received_at": at, "event_time": at}
        answer = {"request_id": name, "version": 1, "score": 1 / TEAMS, "prediction": 0, "row": {"text": text}}
        answers.append(own | answer | {"scores": [1 / TEAMS] * TEAMS})
        labels.append({**own, "label": team_of(text), "revision": 0, "event_time": later, "received_at": later})
    for kind, lines in (("predictions", answers), ("labels", labels)):
        folder = settings.prediction_log / "triage" / kind
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_text_that_a_probe_has_read_leaves_the_window(tmp_path):
    """Reports that were seen before the window, but for white space, are left out: they would be judged by memory."""
    settings = Settings(home=tmp_path / "state")
    served = datetime(2015, 4, 1, tzinfo=UTC)
    learned = [f"{text} {number}" for number, text in enumerate(some_texts(230, longest=8))]
    release_triage(settings, served, learned[:20])
    log_reports(settings, served, learned, "before")
    new = [f"{text} new {number}" for number, text in enumerate(some_texts(200, seed=1, longest=8))]
    again = [f"  {text}\t" for text in learned[:40]]
    log_reports(settings, datetime(2015, 6, 2, tzinfo=UTC), [*again, *new], "window")
    run_dir = settings.run_dir("triage", OCTOBER)
    profile.run(TRIAGE, settings, run_dir, OCTOBER)
    headroom.run(TRIAGE, settings, run_dir, OCTOBER)
    found = read_headroom(run_dir / "headroom")
    assert (found.code, found.family, found.rows) == ("measured", "logistic", 200)
    assert found.gain.low > found.price
    assert found.own_past.low < found.own_past.value < found.own_past.high
    assert [beside.metric for beside in found.metrics] == ["macro_f1"]


def release_triage(settings: Settings, as_of: datetime, texts: list[str]) -> None:
    """A champion that was trained on some texts, a year before."""
    run_dir = settings.run_dir("triage", as_of)
    rows = pl.DataFrame(
        {
            "id": [f"old-{number}" for number in range(len(texts))],
            "event_time": [as_of - timedelta(days=300)] * len(texts),
            "text": texts,
            "team": pl.Series([team_of(text) for text in texts], dtype=pl.Int8),
        }
    ).with_columns(pl.col("event_time").dt.cast_time_unit("us"))

    def trained(folder: Path) -> dict:
        rows.write_parquet(folder / "train.parquet")
        return {}

    def bundle(folder: Path) -> dict:
        (folder / "reference.parquet").write_bytes(b"")
        return {}

    for step, build, inputs in (("dataset", trained, {}), ("export", bundle, {"dataset": "dataset"})):
        storage.commit(run_dir / step, case="triage", as_of=as_of, key=step, inputs=inputs, build=build)
    order = {"case": "triage", "after": 0, "champion": 1, "candidate_key": "export", "action": "promote"}
    where = str((run_dir / "export").relative_to(settings.root))
    told = {"trigger": "initial", "reason": "test", "actor": "test", "as_of": as_of}
    ledger.append(settings.ledger, Order(bundle=where, **order, **told))
