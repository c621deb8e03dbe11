"""A case of texts and classes from the log to its verdict, and its drift.

The real steps around a bundle that reads word by word.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest

from pipelines import ledger, storage
from pipelines.contracts import Order, Verdict
from pipelines.data import log
from pipelines.drift.profile.counts import to_bytes
from pipelines.drift.profile.spec import load_spec, with_counts
from pipelines.drift.reference import FILE, reference_profile
from pipelines.drift_report import DriftReport, Explanation
from pipelines.errors import ConfigError
from pipelines.evaluation.metrics import row_log_loss
from pipelines.export.scoring import score
from pipelines.fields import Binary, Categorical, Classes
from pipelines.params_file import load_params
from pipelines.reports import evidently
from pipelines.settings import Settings
from tests.pipelines.data import loglines
from tests.pipelines.reported import CASE, FIELDS, START, reports, scores, serve, write_bundle
from tests.pipelines.verbs import dataset, drift, evaluate, gate, ingest, profile, validate

APRIL, JULY, AUGUST = (datetime(2015, month, 1, tzinfo=UTC) for month in (4, 7, 8))
HALF, ALL = (0, 1, 2, 3, 4), tuple(range(len(FIELDS.classes)))
_DEFAULTS = load_params(CASE)
SMALL = {
    "window_days": 100,
    "min_rows": 100,
    "max_rows": 300,
    "min_holdout": 20,
    "replay_share": 0.1,
    "history_rows": 80,
}
PARAMS = _DEFAULTS.model_copy(
    update={
        "training_rows": "log",
        "dataset": _DEFAULTS.dataset.model_copy(update=SMALL),
        "gate": _DEFAULTS.gate.model_copy(update={"slices": (FIELDS.label,), "min_slice_rows": 10, "draws": 200}),
    }
)


def put(settings, as_of, step, build, inputs=None):
    """A committed step folder."""
    key = storage.digest([step, as_of.isoformat()])
    return storage.commit(
        settings.run_dir(CASE, as_of) / step,
        case=CASE,
        as_of=as_of,
        key=key,
        inputs=inputs or {},
        build=lambda folder: build(folder) or {},
    )


def release(settings):
    """Version 1, which knows half of the teams, trained before the stream."""
    train, holdout = (reports(600, start=datetime(2014, 9, 1, tzinfo=UTC), seed=seed) for seed in (1, 2))

    def export(folder):
        write_bundle(folder, HALF)
        (folder / FILE).write_bytes(
            to_bytes(reference_profile(train, scores(folder, holdout), FIELDS, load_spec(FIELDS), holdout))
        )

    learned_from = put(settings, START, "dataset", lambda folder: train.write_parquet(folder / "train.parquet"))
    made = put(settings, START, "export", export, {"dataset": learned_from.key})
    bundle = settings.run_dir(CASE, START) / "export"
    named = {"case": CASE, "candidate_key": made.key, "bundle": str(bundle.relative_to(settings.root)), "as_of": START}
    ledger.append(
        settings.ledger,
        Order(after=0, champion=1, action="promote", trigger="initial", reason="test", actor="test", **named),
    )
    return bundle


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    """Two quarters of traffic, the second with longer reports and another commonest team.

    A run in August whose candidate knows all teams.
    """
    settings = Settings(home=tmp_path_factory.mktemp("classes"))
    champion = release(settings)
    serve(settings, champion, reports(600, seed=3), "first")
    serve(settings, champion, reports(600, start=APRIL, days=91, seed=4, words=16, common=8), "second")
    odd = reports(3, start=JULY, days=1, seed=5).with_columns(
        text=pl.Series(["\u200b \n", "x" * 20_001, "word1 fine"]),
        **{FIELDS.label: pl.Series([1, 1, 99], dtype=pl.Int8)},
    )
    serve(settings, champion, odd, "odd")
    for as_of in (APRIL, JULY):
        profile.run(PARAMS, settings, settings.run_dir(CASE, as_of), as_of)
        drift.run(PARAMS, settings, settings.run_dir(CASE, as_of), as_of)
    run_dir = settings.run_dir(CASE, AUGUST)
    for step in (ingest, validate, dataset):
        step.run(PARAMS, settings, run_dir, AUGUST)
    put(settings, AUGUST, "export", lambda folder: write_bundle(folder, ALL))
    for step in (evaluate, gate):
        step.run(PARAMS, settings, run_dir, AUGUST)
    return settings, run_dir


def facts(run_dir, step):
    """What a step said."""
    return storage.read_manifest(run_dir / step).facts


def rows(run_dir, step, name):
    """A step's frame."""
    return pl.read_parquet(run_dir / step / f"{name}.parquet")


def test_bad_texts_and_labels_are_quarantined(line):
    """Rows that cannot be used leave the line with their reasons.

    A text of no visible character, one that is too long and a label that is no class.
    """
    _, run_dir = line
    assert rows(run_dir, "validate", "quarantine")["reasons"].to_list() == [
        "text: empty",
        "text: longer than 20000 characters",
        f"{FIELDS.label}: no class",
    ]
    assert facts(run_dir, "validate")["bad"] == 3


def test_the_dataset_is_thinned_replayed_and_counted(line):
    """At most max_rows of the window, a tenth of the training rows from before it, history that nobody was trained on.

    Its classes are told by name.
    """
    _, run_dir = line
    train, history = rows(run_dir, "dataset", "train"), rows(run_dir, "dataset", "history")
    said = facts(run_dir, "dataset")
    assert (said["rule"], said["train_rows"], said["replayed_rows"], said["holdout_rows"], said["history_rows"]) == (
        "window",
        267,
        27,
        60,
        80,
    )
    window = datetime.fromisoformat(said["window"]["start"])
    assert train.filter(pl.col("event_time") < window).height == 27
    assert history["event_time"].max() < window
    assert not set(history["id"]) & set(train["id"])
    counts = train[FIELDS.label].value_counts()
    assert said["class_counts"] == {
        name: int(counts.filter(pl.col(FIELDS.label) == at)["count"].sum()) for at, name in enumerate(FIELDS.classes)
    }
    assert said["positives"] == 267 - max(said["class_counts"].values())
    assert sum(said["base_rate"]) == pytest.approx(1)


def test_both_models_are_scored_by_class(line):
    """scores.parquet holds one probability per class, the facts the confusion matrix.

    History shows what each model knows of old rows.
    """
    _, run_dir = line
    scored, said = rows(run_dir, "evaluate", "scores"), facts(run_dir, "evaluate")
    assert scored.schema["challenger"] == scored.schema["champion"] == pl.Array(pl.Float64, len(FIELDS.classes))
    label, challenger = scored["label"].to_numpy(), scored["challenger"].to_numpy()
    assert said["challenger"]["log_loss"] == pytest.approx(row_log_loss(label, challenger).mean())
    assert said["challenger"]["accuracy"] == 1
    assert said["challenger"]["macro_f1"] == 1
    assert said["champion"]["accuracy"] < 0.6
    assert np.trace(said["confusion"]) == said["n"] == 60
    assert said["class_f1"] == [1.0 if at in label else None for at in ALL]
    assert said["history"]["n"] == 80
    assert said["history"]["challenger"]["accuracy"] == 1 > said["history"]["champion"]["accuracy"]


def test_the_gate_compares_losses_and_classes(line):
    """The better candidate is promoted on paired row log-loss, and a slice by the label is named by its class."""
    _, run_dir = line
    verdict = Verdict.model_validate_json((run_dir / "gate" / "verdict.json").read_bytes())
    assert (verdict.decision, verdict.rule, verdict.evidence.opponent) == ("promote", "lift", "champion")
    assert {piece.name for piece in verdict.evidence.slices} <= {f"{FIELDS.label}={name}" for name in FIELDS.classes}
    assert verdict.evidence.slices
    said = facts(run_dir, "evaluate")
    assert verdict.evidence.lift.value == pytest.approx(said["champion"]["log_loss"] - said["challenger"]["log_loss"])


def test_the_first_candidate_meets_the_base_rate_of_classes(line, tmp_path):
    """Without a champion the opponent is the training rows' share of each class."""
    _, run_dir = line
    settings = Settings(home=tmp_path)
    alone = settings.run_dir(CASE, AUGUST)

    def copied(folder):
        for name in ("train", "holdout"):
            rows(run_dir, "dataset", name).write_parquet(folder / f"{name}.parquet")
        return facts(run_dir, "dataset")

    put(settings, AUGUST, "dataset", copied)
    put(settings, AUGUST, "export", lambda folder: write_bundle(folder, ALL))
    for step in (evaluate, gate):
        step.run(PARAMS, settings, alone, AUGUST)
    verdict = Verdict.model_validate_json((alone / "gate" / "verdict.json").read_bytes())
    assert (verdict.decision, verdict.rule) == ("promote", "first_champion")
    assert "rate" not in verdict.evidence.champion
    assert facts(alone, "evaluate")["base_rate"]["rate"] == facts(run_dir, "dataset")["base_rate"]


def test_a_champion_of_other_classes_is_compared_by_name(tmp_path):
    """A bundle whose declaration lacked a class gives it no probability, whatever the order.

    One with a binary label is refused.
    """
    told = reports(20, seed=6)
    older = replace(FIELDS, target=Classes(FIELDS.classes[1:][::-1]))
    write_bundle(tmp_path, HALF[1:], older)
    given = score(tmp_path, told, FIELDS)
    assert (given[:, 0] == 0).all()
    known = np.isin(told[FIELDS.label].to_numpy(), HALF[1:])
    assert (given.argmax(1) == told[FIELDS.label].to_numpy())[known].all()
    binary = replace(FIELDS, target=Binary(), fields=(Categorical("a", ("b",)),))
    with pytest.raises(ConfigError, match="do not compare"):
        score(tmp_path, told.head(0), binary)


def test_a_slice_that_is_no_column_is_named(line):
    """A mistake in gate.slices says which columns there are."""
    settings, run_dir = line
    wrong = PARAMS.model_copy(update={"gate": PARAMS.gate.model_copy(update={"slices": ("colour",)})})
    with pytest.raises(ConfigError, match="'colour'"):
        evaluate.run(wrong, settings, run_dir, AUGUST)


def test_texts_drift_by_their_words_and_predictions(line):
    """A quiet quarter moves nothing.

    Longer reports of another mix move words and predictions, and the loss with them.
    """
    settings, _ = line
    quiet, moved = (
        DriftReport.model_validate_json((settings.run_dir(CASE, at) / "drift" / "report.json").read_bytes())
        for at in (APRIL, JULY)
    )
    shown = {"text.unknown", "text.tokens", "entropy", *(f"text.projection{number}" for number in range(1, 9))}
    assert {feature.feature for feature in quiet.features} == {"text.words", "prediction", "score", *shown}
    assert {feature.feature for feature in quiet.features if feature.ignored} == shown
    assert 0 < quiet.diagnosis.embeddings.kl < moved.diagnosis.embeddings.kl
    assert (quiet.state, quiet.model_version, quiet.current_rows) == ("STABLE", 1, 600)
    assert {"text.words", "prediction"} <= {feature.feature for feature in moved.features if feature.drifted}
    assert quiet.labels.errors > 0
    assert abs(quiet.labels.drop.value) < 0.2
    assert moved.labels.drop.low > 0
    # The new team is one that the champion does not know, and its scores say so: the rule from text to team is what it
    # was.
    assert (moved.policy.kind, moved.diagnosis.performance) == ("covariate", "dropped")
    assert all(one.inside for one in moved.performance.earlier)
    assert quiet.explanation == Explanation()
    assert moved.explanation.auc.low > 0.5
    assert moved.explanation.words


@pytest.mark.slow
def test_the_page_draws_the_numbers_of_a_text(line, tmp_path):
    """What people look at shows how long the reports were, against the champion's training rows."""
    settings, _ = line
    moved = DriftReport.model_validate_json((settings.run_dir(CASE, JULY) / "drift" / "report.json").read_bytes())
    trained_on = settings.run_dir(CASE, START) / "dataset" / "train.parquet"
    sides = (
        pl.read_parquet(trained_on, columns=list(FIELDS.names)),
        log.read_predictions(settings, CASE, moved.window),
    )
    counted = [with_counts(frame, FIELDS) for frame in sides]
    path = tmp_path / "drift.html"
    assert evidently.page(path, lambda: tuple(counted), ["text.words"], FIELDS, PARAMS.drift) == ("drift.html", None)
    assert "text.words" in (tmp_path / "drift.html").read_text()


def test_labels_speak_without_scores(tmp_path):
    """If the log has no probabilities of all classes, errors count and the loss is silent.

    Impossible labels are left out.
    """
    other = Settings(home=tmp_path)
    champion = release(other)
    told = reports(400, seed=3).with_columns(
        pl.when(pl.int_range(pl.len()) < 5).then(99).otherwise(pl.col(FIELDS.label)).cast(pl.Int8).alias(FIELDS.label)
    )
    given = scores(champion, told)
    lines = [
        line | {"score": float(own.max()), "prediction": int(own.argmax())}
        for line, own in zip(loglines.predictions(told, FIELDS), given, strict=True)
    ]
    loglines.write(other, CASE, "predictions", "a", lines)
    loglines.write(other, CASE, "labels", "a", loglines.labels(told, FIELDS))
    profile.run(PARAMS, other, other.run_dir(CASE, APRIL), APRIL)
    drift.run(PARAMS, other, other.run_dir(CASE, APRIL), APRIL)
    seen = DriftReport.model_validate_json((other.run_dir(CASE, APRIL) / "drift" / "report.json").read_bytes()).labels
    arrived = told.filter((pl.col("label_time") <= APRIL) & (pl.col(FIELDS.label) < 99))
    wrong = given.argmax(1)[: told.height] != told[FIELDS.label].to_numpy()
    assert seen.rows == arrived.height
    assert seen.errors == int(
        wrong[(told["label_time"] <= APRIL).to_numpy() & (told[FIELDS.label] < 99).to_numpy()].sum()
    )
    assert seen.drop is None
