"""The page of a rollout: of rows, traffic, guard and experiment, as one file that loads nothing."""

from __future__ import annotations

import json
import re
from datetime import timedelta

import pytest

from pipelines import ledger
from pipelines.arms import latency_bin
from pipelines.cli import main, rolling, rollout_page
from pipelines.contracts import Order
from pipelines.deploy import stages
from pipelines.guard.decide import decide
from pipelines.reports import staged
from pipelines.steps import tick
from tests.pipelines.candidates import CASE
from tests.pipelines.data import loglines
from tests.pipelines.deploy.test_stages import candidate
from tests.pipelines.steps.test_experiment import HOUR, alone, begun, plan, served, ticked
from tests.pipelines.steps.test_tick import params


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """A state folder without services."""
    return alone(tmp_path, monkeypatch)


def counted(since, minute: int, arm: str, version: int, ms: float, rows: int = 300, failed: int = 0) -> dict:
    """A line of traffic: requests of one row that took so many milliseconds."""
    at = since + timedelta(minutes=minute)
    return {
        "begin": at.isoformat(),
        "end": (at + timedelta(minutes=1)).isoformat(),
        "arm": arm,
        "version": version,
        "requests": rows,
        "outcomes": {"ok": rows - failed, "error": failed},
        "latency": {str(latency_bin(ms)): rows},
        "scores": {"9": rows - failed},
    }


def texts(page: str) -> str:
    """The page's words."""
    return re.sub(r"\s+", " ", re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.DOTALL))


def test_the_page_of_a_challenger_that_was_taken_back(settings):
    """It says by whom and why, how many rows it answered before, both arms' latencies, and every row of the ledger."""
    declared = {"steps": [0.5, 1.0]}
    since = begun(settings, declared)
    for name, arm, version, ms in (("a", "champion", 1, 18), ("b", "challenger", 2, 240)):
        lines = [counted(since, minute, arm, version, ms, failed=version) for minute in range(20)]
        loglines.write(settings, CASE, "traffic", name, lines)
    head = ledger.head(settings.ledger, CASE)
    said = stages.Said(actor="guard", reason="<b>slow</b>", now=since + 21 * HOUR / 60, as_of=head.as_of)
    order = stages.abort(head, said)
    ledger.append(settings.ledger, order)
    view = rollout_page.gather(params(declared), settings, since + HOUR)
    assert (view.last.action, view.compared, view.waits) == ("abort", None, "")
    page = staged.page(view)
    assert "Version 2 was taken back by the guard" in texts(page)
    assert "&lt;b&gt;slow" in page
    assert "<b>slow" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_the_page_counts_whom_the_challenger_answered(settings):
    """Rows and latencies of both arms are those of the whole windows since it was opened."""
    declared = {"steps": [0.5, 1.0]}
    since = begun(settings, declared)
    for name, arm, version, ms in (("a", "champion", 1, 18), ("b", "challenger", 2, 240)):
        lines = [counted(since, minute, arm, version, ms, failed=version) for minute in range(20)]
        loglines.write(settings, CASE, "traffic", name, lines)
    view = rollout_page.gather(params(declared), settings, since + HOUR)
    champion, challenger = view.sides
    assert (champion.answered, champion.failed, challenger.answered, challenger.failed) == (5980, 20, 5960, 40)
    assert 18 <= champion.p50 <= champion.p99 < 21
    assert 240 <= challenger.p50 < 277
    assert view.guarded.verdict == "fail"
    assert view.guarded.course[-1][1] > view.guarded.limit
    told = texts(staged.page(view))
    assert "6,000 of 12,000 rows since it was opened (50.0%) met version 2; 40 of them had no answer" in told
    assert "it answers 50% of all keys" in told


def test_the_page_of_an_experiment(settings):
    """Estimate and interval are drawn over time, beside the units of both arms and what would end it."""
    declared = plan(outcome="revenue", units=4000)
    since = begun(settings, declared)
    served(settings, since, 0.2, 0.3, units=1000, figures=True)
    ticked(settings, declared, since + 5 * HOUR)
    view = rollout_page.gather(params(declared), settings, since + 5 * HOUR)
    found = view.compared
    assert (found.arms[1].mature, found.arms[1].waiting, found.null) == (500, 0, 0.0)
    assert found.course[-1].low < found.course[-1].value < found.course[-1].high
    page = staged.page(view)
    told = texts(page)
    assert "The experiment: revenue, higher is better" in told
    assert "4,000 mature units without a difference, of which there are 1,000: the champion stays" in told
    assert page.count("<svg") >= 2
    assert "Next: the answer of its experiment." in told


def test_the_command_writes_the_page(settings, monkeypatch, capsys):
    """`rollout report` says where the page is; of a case without any rollout it says what to declare."""
    monkeypatch.setenv("PERENNIAL_HOME", str(settings.root))
    assert main(["rollout", "report", "--case", CASE]) == 2
    assert "had no rollout in stages yet: declare one" in capsys.readouterr().err
    begun(settings, plan())
    assert main(["rollout", "report", "--case", CASE]) == 0
    said = json.loads(capsys.readouterr().out)
    page = settings.root / "reports" / CASE / "rollout.html"
    assert (said["page"], said["headline"]) == (str(page), "Version 2 is on trial: it answers 50% of all keys")
    assert "no difference yet" in page.read_text().lower()


def test_the_page_of_a_rollout_that_was_taken_back_says_what_the_guard_said_then(settings):
    """The row that ended it changes no window before it: what the guard saw stays as it was."""
    declared = {"steps": [0.5, 1.0]}
    since = begun(settings, declared)
    for name, arm, version, failed in (("a", "champion", 1, 0), ("b", "challenger", 2, 12)):
        loglines.write(
            settings, CASE, "traffic", name, [counted(since, at, arm, version, 18, failed=failed) for at in range(20)]
        )
    before = rollout_page.gather(params(declared), settings, since + HOUR / 2)
    head = ledger.head(settings.ledger, CASE)
    said = stages.Said(actor="ada", reason="slow", now=since + HOUR / 2, as_of=head.as_of)
    row = ledger.append(settings.ledger, stages.abort(head, said))
    of = tick.whose(ledger.chain(settings.ledger, CASE), row.trial, stages.plan_of(row.trial).guard)
    looked = tick.look(params(declared), settings, of, stages.plan_of(row.trial).guard, since + HOUR / 2)
    assert decide(looked.seen, stages.plan_of(row.trial).guard).reason == before.guarded.reason


@pytest.mark.parametrize(
    ("declared", "action", "serves", "told"),
    [
        ({"soak_minutes": 60}, "rollback", 1, "Version 2 was taken back by ada after"),
        ({"soak_minutes": 60}, "release", 1, "Version 2 was taken back by ada after"),
        ({"steps": [0.5, 1.0]}, "rollback", 1, "Version 2 was taken back by ada after"),
        ({"steps": [0.5, 1.0]}, "release", 2, "Version 2 serves"),
    ],
)
def test_the_page_of_a_rollout_that_a_person_ended_past_it(settings, declared, action, serves, told):
    """`rollback` and `release` end a rollout by a row that is none of it: page and status show it, with who and why."""
    since = begun(settings, declared)
    head = ledger.head(settings.ledger, CASE)
    own = candidate(serves).model_dump(exclude={"version", "reason", "by_hand", "trigger", "as_of"})
    more = {"action": action, "trigger": "manual", "reason": "complaints", "actor": "ada", "as_of": head.as_of}
    ledger.append(settings.ledger, Order(case=CASE, after=head.seq, champion=serves, **own, **more))
    view = rollout_page.gather(params(declared), settings, since + HOUR)
    assert staged.headline(view).startswith(told)
    assert (view.last.action, view.last.share, view.last.why) == (action, float(serves == 2), "complaints")
    page = texts(staged.page(view))
    assert "complaints" in page
    assert ("before it was taken back" in page) == (serves == 1)
    assert rolling.status(params(declared), settings)["rows"][-1]["why"] == "complaints"


def test_the_page_of_an_experiment_that_a_person_ended_counts_nobody_afterwards(settings):
    """Who is answered, or known, after the row that ended it is none of the experiment's units."""
    declared = plan()
    begun(settings, declared)
    head = ledger.head(settings.ledger, CASE)
    own = candidate(1).model_dump(exclude={"version", "reason", "by_hand", "trigger", "as_of"})
    more = {"action": "release", "trigger": "manual", "reason": "complaints", "actor": "ada", "as_of": head.as_of}
    end = ledger.append(settings.ledger, Order(case=CASE, after=head.seq, champion=1, **own, **more)).recorded_at
    served(settings, end, 0.2, 0.3)
    found = rollout_page.gather(params(declared), settings, end + 5 * HOUR).compared
    assert [arm.begun for arm in found.arms] == [0, 0]
    assert found.verdict == "no difference yet"


def test_a_rollout_by_hand_ends_with_all_keys(settings):
    """Its last row is a `release`: page and status show it with all keys, as they do a promotion."""
    declared = {"steps": [0.5, 1.0]}
    since = begun(settings, declared, by_hand=True)
    head = ledger.head(settings.ledger, CASE)
    said = stages.Said(actor="ada", reason="go", now=since, as_of=head.as_of)
    ledger.append(settings.ledger, stages.advance(head, said))
    view = rollout_page.gather(params(declared), settings, since + HOUR)
    assert [(one.action, one.share) for one in view.events] == [("open", 0.5), ("release", 1.0)]
    assert staged.headline(view) == "Version 2 serves"
    assert [row["share"] for row in rolling.status(params(declared), settings)["rows"]] == [0.5, 1.0]
