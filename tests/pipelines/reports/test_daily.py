"""pipelines/reports/daily/: what the page makes of any names, of many features, and of each verdict."""

import re
from datetime import UTC, datetime, timedelta

import pytest

from pipelines.contracts import Interval, Release, Verdict
from pipelines.drift_report import CategoryChange, DriftReport
from pipelines.reports import daily
from pipelines.reports.daily import bars, heat, kept, questions, retrained
from pipelines.reports.daily.view import Judged, Past
from pipelines.reports.promises import Promise
from tests.pipelines.alerts.found import NOW, PARAMS, alert, report

EVIL = "<script>alert('x')</script>\"'&"


def feature(name: str, psi: float = 0.4, **other) -> dict:
    """One feature that moved."""
    common = {
        "psi": psi,
        "ks": None,
        "ks_error": None,
        "p_value": 0.0,
        "drifted": True,
        "severity": "severe",
        "ignored": False,
    }
    return {"feature": name, "debiased_psi": psi, **common} | other


def seen(**given) -> daily.View:
    """A view of a quiet window, but for what is given; ``report`` is laid over the quiet one."""
    own = DriftReport.model_validate(report(**given.pop("report", {})).model_dump(mode="json") | given.pop("raw", {}))
    past = (Past(as_of=NOW, report=own),)
    quiet = {
        "as_of": NOW,
        "report": own,
        "label_delay_days": 7.0,
        "policy": PARAMS.drift,
        "history": past,
        "heat": heat.windows(past, [one.feature for one in own.features]),
    }
    return daily.View(**quiet | given)


def page(**given) -> str:
    """The page of such a view, without links."""
    return daily.page(seen(**given), daily.Links())


def judged(decision: str, **given) -> Judged:
    """A verdict as the ledger keeps it."""
    evidence = {
        "metric": "log_loss",
        "n": 512,
        "positives": 40,
        "opponent": "champion",
        "lift": {"value": 0.06, "low": 0.03, "high": 0.09},
    }
    verdict = Verdict(decision=decision, rule="interval", reason="r", evidence=evidence, min_lift=0.005)
    return Judged(**{"as_of": NOW, "trigger": "drift", "hash": "h", "verdict": verdict} | given)


def released(**given) -> Release:
    """A release as the ledger keeps it."""
    common = {
        "case": "loans",
        "seq": 1,
        "champion": 1,
        "candidate_key": "k",
        "bundle": "b",
        "action": "promote",
        "trigger": "drift",
        "reason": "better",
        "actor": "ada",
        "mlflow_run": None,
        "verdict_hash": "x",
        "as_of": NOW,
        "recorded_at": NOW,
        "previous_hash": "",
        "hash": "y",
    }
    return Release(**common | given)


def test_names_and_values_are_escaped():
    """A feature, a value, a reason, a slice and an alert that look like HTML are shown as text.

    A runbook that is no web address is no link.
    """
    told = alert(about=EVIL, runbook="javascript:alert(1)")
    changes = (CategoryChange(feature=EVIL, value=EVIL, before=0.1, now=0.9),)
    slices = [{"field": EVIL, "value": EVIL, "rows": 80, "drop": {"value": 0.2, "low": 0.1, "high": 0.3}}]
    raw = {
        "features": [feature(EVIL)],
        "reason": EVIL,
        "diagnosis": {"why": EVIL, "performance": "dropped", "slices": slices},
    }
    text = page(raw=raw, alerts=(told,), changes=changes)
    assert "<script" not in text
    assert 'href="javascript' not in text
    assert text.count("&lt;script&gt;") >= 8


def test_the_embeddings_of_texts_are_told_beside():
    """The KL of a text's projections stands below what moved, with its threshold; without a text nothing does."""
    told = {"embeddings": {"kl": 0.2, "most": 0.4, "threshold": 0.15}}
    said = "is 0.200 nats in the mean, 0.400 at most; from 0.15 on they count as moved"
    assert said in page(raw={"diagnosis": told})
    assert "Embeddings of the texts" not in page(raw={"diagnosis": {"embeddings": None}})


def test_two_hundred_features_stay_a_page():
    """Of many features the strongest are shown, and the page says of how many."""
    features = [feature(f"feature_{number:03d}", 2.0 - number / 100) for number in range(200)]
    text = page(raw={"features": features})
    assert f"the {bars.FEATURES} strongest of 200" in text
    assert f"{heat.ROWS} of 200 features" in text
    assert ("feature_029" in text, "feature_030" in text) == (True, False)
    assert len(text) < 200_000


@pytest.mark.parametrize(
    ("decision", "said"),
    [
        (
            "promote",
            (
                "Yes: the training of 10 Jun 2020, asked for because of drift, improved log-loss by +0.060 (+0.030 to "
                "+0.090) nats over the champion on 512"
            ),
        ),
        (
            "reject",
            "No: the training of 10 Jun 2020, asked for because of drift, was rejected, and the champion stayed: r.",
        ),
        (
            "inconclusive",
            (
                "Cannot be told: the training of 10 Jun 2020, asked for because of drift, was inconclusive, and the "
                "champion stayed: r."
            ),
        ),
    ],
)
def test_every_verdict_has_its_words(decision, said):
    """What the last training said is told in words, with its figure, its interval and its rows."""
    assert said in retrained.helped(seen(verdicts=(judged(decision),)))


GAIN = {
    "code": "measured",
    "window": {"start": "2020-06-02T00:00:00+00:00", "end": "2020-06-03T00:00:00+00:00"},
    "rows": 390,
    "answered": 200,
    "learned": 4000,
    "family": "boosting",
    "coverage": 0.4,
    "price": 0.02,
    "gain": {"value": 0.08, "low": 0.05, "high": 0.11},
    "own_past": {"value": 0.06, "low": 0.03, "high": 0.09},
    "errors": {"value": 0.012, "low": 0.0, "high": 0.024},
    "metrics": [{"metric": "roc_auc", "champion": 0.7, "probe": 0.75}],
}
"""What a probe found in a window."""


def test_the_page_says_what_a_retraining_would_gain():
    """The figure stands beside its price, with what it rests on, what is due to newer rows alone, and other units."""
    text = page(raw={"headroom": GAIN, "policy": {"would": ["headroom", "drift"]}})
    assert "A retraining now would gain 0.080 nats (0.050 to 0.110), it costs 0.02: it pays." in text
    assert "Measured by a probe (boosting, learned from 4,000 older labelled rows) on 390 rows" in text
    assert "Only 40% of the rows have a label: it is the gain on those." in text
    assert "Held against a probe that learned what the champion did, it is +0.060 (+0.030 to +0.090) nats." in text
    assert "Of 1,000 answers 12 fewer would be wrong. roc_auc: 0.750, the champion&#39;s 0.700." in text
    assert "Reason to retrain had: headroom, drift." in text
    text = page(raw={"headroom": GAIN | {"against": "past"}})
    assert "A retraining now would gain 0.060 nats (0.030 to 0.090), it costs 0.02: it pays." in text
    assert "390 rows that are newer than what v3 was trained on, from 2 Jun 2020 to 3 Jun 2020." in text
    assert "Against the champion&#39;s own answers, on 200 rows, it is +0.080 (+0.050 to +0.110) nats." in text
    alone = page(raw={"headroom": GAIN | {"against": "past", "gain": None, "metrics": []}})
    assert "A retraining now would gain 0.060 nats" in alone
    assert "own answers" not in alone


def test_a_gain_that_may_be_chance_is_not_sure():
    """A figure above its price does not pay while its rows are so few that chance could have made it."""
    assert "it costs 0.02: it is not sure that it pays." in page(raw={"headroom": GAIN | {"least": -0.01}})
    assert "it costs 0.02: it pays." in page(raw={"headroom": GAIN | {"least": 0.01}})


@pytest.mark.parametrize(
    ("low", "value", "high", "said"),
    [
        (0.01, 0.04, 0.07, "it costs 0.02: it is not sure that it pays."),
        (0.0, 0.01, 0.02, "it costs 0.02: it does not pay."),
        (-0.09, -0.06, -0.03, "A retraining now would lose 0.060 nats (0.030 to 0.090)."),
    ],
)
def test_every_gain_has_its_words(low, value, high, said):
    """Whether it pays is said by the lower end; a probe that is worse than the champion is a loss."""
    assert said in page(raw={"headroom": GAIN | {"gain": {"value": value, "low": low, "high": high}}})


def test_a_gain_that_is_not_known_says_why():
    """Where nothing was measured the page says what was in the way; where nobody asked it says nothing."""
    told = {"code": "no_labels", "why": "none of the 400 rows that the champion answered has a label yet"}
    assert f"What a retraining would gain is not known: {told['why']}." in page(raw={"headroom": told})
    assert "retraining would gain" not in page()


def test_gains_are_drawn_over_time():
    """A point with its interval for every window, the price as a level, and where a retraining was asked for."""
    past = []
    for number in range(3, 8):
        window = {"start": f"2020-06-0{number}T00:00:00+00:00", "end": f"2020-06-0{number + 1}T00:00:00+00:00"}
        asked = {"action": "retrain", "policy": {"trigger": "headroom"}} if number == 5 else {}
        own = {"window": window, "headroom": GAIN | {"window": window}, "model_version": 1 + (number > 5), **asked}
        told = DriftReport.model_validate(report().model_dump(mode="json") | own)
        past.append(Past(as_of=NOW, report=told))
    text = page(raw={"headroom": GAIN}, history=tuple(past))
    chart = text[text.index('aria-label="what a retraining would gain') : text.rindex("</svg>")]
    assert (chart.count("<circle"), chart.count("<polyline"), chart.count("<title>what a retraining costs")) == (
        5,
        2,
        1,
    )
    assert "judged with 7 Jun 2020, v2: a retraining would gain 0.080 nats (0.050 to 0.110) on 390 rows" in chart
    assert "6 Jun 2020: retrained because a probe of newer rows did better" in chart


@pytest.mark.parametrize(("triggers", "said"), [(("drift",), "a drop."), (("headroom",), "a gain above its price.")])
def test_what_is_watched_says_what_a_retraining_needs(triggers, said):
    """Only a case that listens to headroom is told that a gain retrains, too."""
    policy = PARAMS.drift.model_copy(update={"triggers": triggers})
    answers = dict(questions.answers(seen(raw={"state": "WATCH", "reason": "age moved"}, policy=policy)))
    assert answers["What now?"].endswith(said)


def test_a_retraining_that_a_probe_asked_for_is_told_as_such():
    """Where nothing moved and the model holds the headline says why it was retrained all the same."""
    asked = {"state": "RETRAINING", "action": "retrain", "policy": {"trigger": "headroom"}}
    assert daily.headline(seen(raw=asked)).endswith(": newer rows would do better, and a retraining was started")
    drifted = asked | {"policy": {"trigger": "drift"}}
    assert daily.headline(seen(raw=drifted)).endswith(": a retraining was started")


def promise(value: float, **given) -> Promise:
    """What a probe promised a day before, give or take .03 nats, where a retraining costs .02."""
    gain = Interval(value=value, low=value - 0.03, high=value + 0.03)
    return Promise(**{"as_of": NOW, "gain": gain, "price": 0.02, "against": "past"} | given)


def trained(days_ago: int, decision: str, promised: float | None, lift: float) -> Judged:
    """A training of some days ago, what was promised of it, and what it delivered."""
    of = judged(decision, as_of=NOW - timedelta(days=days_ago))
    evidence = of.verdict.evidence.model_copy(update={"lift": Interval(value=lift, low=lift - 0.03, high=lift + 0.03)})
    verdict = of.verdict.model_copy(update={"evidence": evidence})
    return of.model_copy(update={"verdict": verdict, "promise": None if promised is None else promise(promised)})


def test_promises_stand_beside_what_came_of_them():
    """The last training is told in a sentence, all with a promise in a table and over a diagonal, one by one."""
    verdicts = (
        trained(40, "promote", 0.08, 0.06),
        trained(20, "promote", None, 0.5),
        trained(0, "reject", 0.04, -0.02),
    )
    text = page(verdicts=verdicts)
    assert "The training of 10 Jun 2020: on 10 Jun 2020 a probe promised 0.040 nats (0.010 to 0.070) over one" in text
    assert (
        "Of 2 trainings with a promise 1 gained more than they cost; on average 0.060 nats were promised and 0.020"
        in text
    )
    assert text.count("an older probe") == 2
    assert "+0.500" not in text[text.index("What was promised") : text.index("What the policy decided")]
    chart = kept.draw(kept.kept(seen(verdicts=verdicts)))
    [newest, oldest] = chart.points
    assert (newest.x < oldest.x, newest.y > oldest.y, newest.decision) == (True, True, "reject")
    for point in chart.points:
        assert chart.left <= point.left < point.x < point.right <= chart.right
        assert chart.top <= point.high < point.y < point.low <= chart.bottom


def test_what_is_said_of_a_number_is_in_its_unit():
    """Promises are in squared units, lifts in the metric's; neither stands beside the other, and nothing is in nats."""
    of = judged("promote")
    evidence = of.verdict.evidence.model_copy(update={"metric": "rmse"})
    verdict = of.verdict.model_copy(update={"evidence": evidence})
    told = of.model_copy(update={"verdict": verdict, "promise": promise(0.08, unit="min²")})
    measure = {"loss": "squared error", "loss_unit": "min²", "metric": "RMSE", "unit": "min"}
    view = seen(verdicts=(told,), raw={"measure": measure, "action": "retrain"})
    assert kept.kept(view) == []
    text = daily.page(view, daily.Links())
    assert "a probe promised 0.080 min² (0.050 to 0.110) over one" in text
    assert "rmse by +0.060 (+0.030 to +0.090) min, 512 rows" in text
    assert "log-loss, nats" not in daily.page(view.model_copy(update={"verdicts": ()}), daily.Links())


def test_a_first_champion_is_said_to_be_better_than_its_baseline():
    """The page names what the first model beat, as the verdict does."""
    of = judged("promote", trigger="initial")
    told = {"opponent": "base_rate", "baseline": "base rate by education"}
    verdict = of.verdict.model_copy(update={"evidence": of.verdict.evidence.model_copy(update=told)})
    text = page(verdicts=(of.model_copy(update={"verdict": verdict}),))
    assert "over the training rows&#39; base rate by education on 512 held-out rows" in text


def test_a_promise_that_is_kept_lies_on_the_diagonal():
    """Both sides have one scale: what was delivered as promised is as far to the right as it is high."""
    chart = kept.draw(kept.kept(seen(verdicts=(trained(9, "promote", 0.1, 0.1), trained(0, "promote", 0.02, 0.02)))))
    for point in chart.points:
        assert point.x - chart.left == pytest.approx(chart.bottom - point.y)


def test_where_nothing_was_promised_the_page_says_why_or_nothing():
    """A first champion had nobody to gain on; a state from before the probe has no such section."""
    first = judged("promote", trigger="initial")
    evidence = first.verdict.evidence.model_copy(update={"opponent": "base_rate"})
    verdict = first.verdict.model_copy(update={"evidence": evidence})
    verdicts = (first.model_copy(update={"verdict": verdict}),)
    told = page(verdicts=verdicts, raw={"headroom": {"code": "few_rows", "why": "few"}})
    assert "no gain was promised: there was no champion to gain on." in told
    assert "What was promised, and what came of it" not in page(verdicts=verdicts)
    one = page(verdicts=(trained(0, "promote", 0.08, 0.06),))
    assert "The one training with a promise gained more than it cost" in one
    assert '<svg class="square"' not in one


@pytest.mark.parametrize(
    ("rule", "reason", "said"),
    [
        (
            "cooling",
            "nothing is done until 2020-06-15T00:00:00+00:00",  # as earlier releases wrote it
            "Nothing is done until 15 Jun 2020: it is the cooldown after the last retraining.",
        ),
        (
            "retrained",
            "retrained and promoted; cooldown of 7 days",
            "Nothing is done until 15 Jun 2020: retrained and promoted; cooldown of 7 days.",
        ),
    ],
)
def test_a_cooldown_is_told_once(rule, reason, said):
    """During a cooldown the page says once until when nothing is done, with the day as people write it."""
    policy = {"rule": rule, "cooldown_until": NOW + timedelta(days=5)}
    answers = dict(questions.answers(seen(raw={"state": "COOLDOWN", "reason": reason, "policy": policy})))
    assert answers["What now?"] == said


def test_the_metric_is_drawn_with_what_happened_to_it():
    """Every labelled window is a point with its interval.

    Releases and verdicts are on the same time line, late labels a grey field.
    """
    rolling = [
        {
            "start": f"2020-06-0{n}T00:00:00+00:00",
            "end": f"2020-06-0{n + 1}T00:00:00+00:00",
            "version": 1 + (n > 3),
            "rows": 400,
            "labelled": 400 if n < 6 else 0,
        }
        | {"coverage": 1.0 if n < 6 else 0.0, "delay_days": 2.0 if n < 6 else None}
        | (
            {"log_loss": 0.3 + n / 10, "low": 0.2 + n / 10, "high": 0.4 + n / 10}
            if n < 6
            else {"log_loss": None, "low": None, "high": None}
        )
        for n in range(1, 8)
    ]
    release = released(champion=2, as_of=datetime(2020, 6, 4, tzinfo=UTC))
    rejected = judged("reject", as_of=datetime(2020, 6, 6, tzinfo=UTC))
    text = page(raw={"performance": {"rolling": rolling}}, releases=(release,), verdicts=(rejected,))
    chart = text[text.index("<svg") : text.index("</svg>")]
    assert chart.count("<circle") == 5
    assert chart.count("<polyline") == 2
    assert "5 Jun 2020, v2: log-loss 0.800 nats (0.700 to 0.900), 400 of 400 rows labelled" in chart
    assert "4 Jun 2020: v2, better" in chart
    assert "6 Jun 2020: rejected, r" in chart
    assert "labels not in yet" in chart
    assert re.search(
        r"7 Jun 2020</td><td>v2</td><td class=\"n\">400</td><td class=\"n\">0 \(0%\)</td><td class=\"n\">-</td>", text
    )


def test_rows_that_nobody_answered_are_no_versions_figures():
    """Windows of rows that were answered by a default, or by nobody, are not shown as a version's.

    Imported rows that somebody answered are.
    """
    window = {"start": "2020-06-01T00:00:00+00:00", "end": "2020-06-02T00:00:00+00:00", "delay_days": 2.0}
    known = {"rows": 400, "labelled": 400, "coverage": 1.0, "log_loss": 0.3, "low": 0.2, "high": 0.4}
    nobody = {"rows": 30, "labelled": 20, "coverage": 0.66, "log_loss": None, "low": None, "high": None}
    one = {**window, **known, "version": 1}
    assert "<td>v0</td>" not in page(raw={"performance": {"rolling": [{**window, **nobody, "version": 0}, one]}})
    assert "<td>v0</td>" in page(raw={"performance": {"rolling": [{**window, **known, "version": 0}, one]}})
