"""pipelines/reports/promises.py: which figure was promised of a training, and how it is told beside what came."""

from datetime import timedelta
from pathlib import Path

import pytest

from pipelines import ledger, storage
from pipelines.contracts import Evidence, Interval, Order, Verdict
from pipelines.drift_report import FILE, Counted, DriftReport, Headroom
from pipelines.reports import daily
from pipelines.reports.promises import promised, told
from pipelines.settings import Settings
from tests.pipelines.alerts.found import DAY, NOW, PARAMS, report

LIFT = Interval(value=0.06, low=0.03, high=0.09)
GAIN = Interval(value=0.08, low=0.05, high=0.11)


def watched(home: Path, days_ago: int, gain: float | None = 0.08, **other) -> Path:
    """The folder of a run in which a drift run told of a gain (None: of none)."""
    headroom = Headroom(code="no_labels")
    if gain is not None:
        headroom = Headroom(code="measured", price=0.02, gain=Interval(value=gain, low=gain - 0.03, high=gain + 0.03))
    return left(home, days_ago, report(headroom=headroom, **other))


def left(home: Path, days_ago: int, found: DriftReport) -> Path:
    """The folder of a run, with what its drift step left."""
    as_of = NOW - days_ago * DAY
    run_dir = Settings(home=home).run_dir("loans", as_of)

    def build(folder: Path) -> dict:
        (folder / FILE).write_text(storage.canonical_json(found))
        return {}

    storage.commit(run_dir / "drift", case="loans", as_of=as_of, key=str(days_ago), inputs={}, build=build)
    return run_dir


def test_a_drift_run_promises_of_the_training_that_it_asks_for(tmp_path):
    """The figure is that of the very run, over the last windows and by the figure that decides."""
    watched(tmp_path, 1, 0.5)
    pooled = {"own_past": {"value": 0.3, "low": 0.1, "high": 0.5}, "own_pooled": GAIN, "against": "past"}
    asking = left(tmp_path, 0, report(headroom={"code": "measured", "price": 0.02, "unit": "min²", **pooled}))
    found = promised(asking, "headroom", champion=3)
    assert (found.as_of, found.gain, found.price, found.against, found.unit) == (NOW, GAIN, 0.02, "past", "min²")


def test_a_training_by_schedule_has_the_newest_figure_from_before(tmp_path):
    """A training that no drift run asked for is promised what was known before it, not what is found beside it."""
    watched(tmp_path, 9, 0.3)
    watched(tmp_path, 2, 0.08)
    beside = watched(tmp_path, 0, 0.5)
    found = promised(beside, "schedule", champion=3)
    assert (found.as_of, found.gain.value) == (NOW - 2 * DAY, 0.08)
    elsewhere = Settings(home=tmp_path).run_dir("loans", NOW - timedelta(hours=30))
    assert promised(elsewhere, "manual", champion=3) == found


@pytest.mark.parametrize(
    ("given", "trigger", "champion"),
    [({}, "initial", None), ({}, "headroom", 4), ({"gain": None}, "headroom", 3)],
    ids=["no champion", "another champion", "not measured"],
)
def test_what_was_not_measured_of_this_champion_is_no_promise(tmp_path, given, trigger, champion):
    """Without an opponent, of another one, and without a figure nothing was promised."""
    watched(tmp_path, 1)
    assert promised(watched(tmp_path, 0, **given), trigger, champion) is None


def test_what_an_asking_run_left_is_gone_with_its_folder(tmp_path):
    """An older figure does not stand in for that of the run that asked; reports of earlier releases have none."""
    watched(tmp_path, 1)
    assert promised(Settings(home=tmp_path).run_dir("loans", NOW), "drift", champion=3) is None
    assert promised(left(tmp_path, 0, report()), "drift", champion=3) is None


def test_the_page_gathers_every_promise_with_its_verdict(tmp_path):
    """Each verdict has what was promised over the champion from strictly before it; the first one had nobody."""
    settings = Settings(home=tmp_path)
    watched(tmp_path, 8, 0.3, model_version=2)
    watched(tmp_path, 3, 0.1)
    run_dir = watched(tmp_path, 0)
    common = {"case": "loans", "candidate_key": "k", "bundle": "b", "reason": "r", "actor": "ada", "action": "promote"}
    seen = Evidence(metric="log_loss", n=512, positives=40, opponent="base_rate", lift=LIFT)
    for after, (days_ago, trigger) in enumerate([(9, "initial"), (8, "headroom"), (2, "manual"), (0, "headroom")]):
        as_of, version = NOW - days_ago * DAY, min(after, 2) + 2
        opponent = "champion" if after else "base_rate"
        evidence = seen.model_copy(update={"opponent": opponent})
        verdict = Verdict(decision="promote", rule="r", reason="r", evidence=evidence, min_lift=0.0)
        key = f"g{after}"
        ledger.record_verdict(
            settings.ledger, case="loans", gate_key=key, as_of=as_of, trigger=trigger, verdict=verdict
        )
        if after < 2:  # the last two trainings released nothing
            order = Order(**common, after=after, champion=version, trigger=trigger, as_of=as_of)
            ledger.append(settings.ledger, order)
    view = daily.gather(PARAMS, settings, run_dir, NOW, report(), Counted())
    promises = [judged.promise and judged.promise.gain.value for judged in view.verdicts]
    assert promises == [None, 0.3, 0.1, 0.08]
    assert "What was promised, and what came of it" in daily.page(view, daily.Links())


def test_promise_and_delivery_are_one_sentence(tmp_path):
    """What was promised when and by which figure stands beside what the holdout showed, and what is missing is said."""
    seen = Evidence(metric="log_loss", n=512, positives=40, opponent="champion", lift=LIFT)
    promise = promised(watched(tmp_path, 0), "headroom", champion=3)
    assert told(promise, seen) == (
        "On 10 Jun 2020 a probe promised 0.080 nats (0.050 to 0.110) over the champion's answers; the candidate "
        "delivered 0.060 (0.030 to 0.090) over the champion on 512 held-out rows."
    )
    past = promise.model_copy(update={"against": "past"})
    assert "over one of the champion's time" in told(past, seen)
    assert told(past, seen.model_copy(update={"lift": None})).endswith("what the candidate delivered is not known.")
    ranks = told(promise, seen.model_copy(update={"metric": "roc_auc"}))
    assert ranks.endswith("the gate decides by roc_auc, so what was delivered is not known in nats.")
    minutes = told(promise.model_copy(update={"unit": "min²"}), seen.model_copy(update={"metric": "rmse"}))
    assert minutes == (
        "On 10 Jun 2020 a probe promised 0.080 min² (0.050 to 0.110) over the champion's answers; the gate decides by "
        "rmse, so what was delivered is not known in min²."
    )
    first = seen.model_copy(update={"opponent": "base_rate"})
    assert told(None, first) == "No gain was promised: there was no champion to gain on."
