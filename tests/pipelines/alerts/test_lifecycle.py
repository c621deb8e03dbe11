"""pipelines/alerts/lifecycle.py: one alert and one notice for what goes on, another notice when it is over."""

from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.alerts.lifecycle import step
from pipelines.params import AlertParams
from tests.pipelines.alerts.found import ALERTS, NOW, alert

HOUR = timedelta(hours=1)


def run(series, params=ALERTS, silences=()):
    """Hourly runs: per hour the alerts there are and the notices that were sent.

    ``silences`` are (rule, from, to) in hours.
    """
    before = ()
    told = []
    hours = []
    for number, found in enumerate(series):
        moment = NOW + number * HOUR
        seen = [one.model_copy(update={"first_seen": moment, "last_seen": moment}) for one in found]
        silenced = {rule for rule, start, end in silences if start <= number < end}
        before, notices = step(before, seen, silenced, told, params, moment)
        told += [notice.at for notice in notices if notice.kind != "resolved"]
        hours.append((before, notices))
    return hours


def kinds(hours):
    """The notices by the hour they were sent in."""
    return {number: [notice.kind for notice in notices] for number, (_, notices) in enumerate(hours) if notices}


def test_a_week_of_hours_is_one_alert():
    """What is found every hour for a week is one alert, seen 168 times and told of once.

    It is told of once more when it is over.
    """
    hours = run([[alert()]] * 168 + [[]] * 5)
    assert kinds(hours) == {0: ["opened"], 169: ["resolved"]}
    [last] = hours[167][0]
    assert (last.count, last.first_seen, last.last_seen, last.state) == (168, NOW, NOW + 167 * HOUR, "open")
    [resolved] = hours[169][1][0].alerts
    assert (resolved.count, resolved.last_seen, resolved.state) == (168, NOW + 167 * HOUR, "resolved")
    assert hours[170][0] == ()


def test_what_flickers_is_one_alert():
    """An alert that is missing in single runs stays the one it was; after two runs without it, it is another one."""
    hours = run([[alert()], [], [alert()], [], [alert()], [], [], [alert()]])
    assert kinds(hours) == {0: ["opened"], 6: ["resolved"], 7: ["opened"]}
    assert hours[4][0][0].count == 3
    assert hours[7][0][0].first_seen == NOW + 7 * HOUR


def test_a_group_is_one_message():
    """Alerts of one episode that open at once are one notice of the worst one's severity.

    Another group is another notice, the worst first.
    """
    episode = [
        alert("drift_confirmed", "e1", group="e1"),
        alert("performance_dropped", "champion", group="e1", severity="critical"),
    ]
    [(_, notices)] = run([[alert(), *episode]])
    assert [(notice.group, notice.severity, [one.rule for one in notice.alerts]) for notice in notices] == [
        ("e1", "critical", ["performance_dropped", "drift_confirmed"]),
        ("volume_out_of_band", "warning", ["volume_out_of_band"]),
    ]


def test_worse_is_told_and_better_is_not():
    """An alert that gets more severe is told of again, once; one that gets less severe is not."""
    hours = run(
        [
            [alert(severity=severity)]
            for severity in ("info", "warning", "warning", "info", "critical", "warning", "critical")
        ]
    )
    assert kinds(hours) == {0: ["opened"], 1: ["raised"], 4: ["raised"]}
    assert hours[6][0][0].notified == "critical"


def test_no_more_notices_than_declared():
    """Beyond the limit alerts wait, the worst are told of first, and the others when there is room again."""
    params = AlertParams(max_notices=2, per_hours=3.0)
    found = [
        alert("quality_blocked", "age", group="a"),
        alert(group="b"),
        alert("labels_late", "coverage", group="c", severity="critical"),
    ]
    hours = run([found] * 5, params)
    assert [(notice.group, number) for number, (_, notices) in enumerate(hours) for notice in notices] == [
        ("c", 0),
        ("a", 0),
        ("b", 3),
    ]


def test_a_silence_counts_and_tells_nobody():
    """A silenced alert is counted.

    When the silence ends it is told of if it is still there, and one that ended in silence never is.
    """
    hours = run([[alert()]] * 6, silences=[("volume_out_of_band", 0, 4)])
    assert kinds(hours) == {4: ["opened"]}
    assert [one.state for (one,), _ in hours] == ["silenced"] * 4 + ["open"] * 2
    assert hours[5][0][0].count == 6
    assert kinds(run([[alert()]] * 2 + [[]] * 4, silences=[("volume_out_of_band", 0, 9)])) == {}


def test_a_silence_does_not_hide_the_end():
    """What was told of before it was silenced is told of when it is over."""
    assert kinds(run([[alert()]] * 3 + [[]] * 2, silences=[("volume_out_of_band", 1, 9)])) == {
        0: ["opened"],
        4: ["resolved"],
    }


POOL = [
    alert(),
    alert("quality_blocked", "age", severity="critical"),
    alert("labels_late", "coverage", severity="info", group="e1"),
]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sets(st.integers(0, 2)), max_size=30), st.integers(1, 3))
def test_whatever_is_found(series, resolve_after):
    """On any series: notices of one alert open and resolve in turn, no two have one name.

    None resolves what was not told.
    """
    hours = run(
        [[POOL[number] for number in sorted(found)] for found in series], AlertParams(resolve_after=resolve_after)
    )
    names = [notice.id for _, notices in hours for notice in notices]
    assert len(names) == len(set(names))
    for one in POOL:
        told = [
            notice.kind for _, notices in hours for notice in notices if one.key in {own.key for own in notice.alerts}
        ]
        assert told == ["opened", "resolved"] * (len(told) // 2) + ["opened"] * (len(told) % 2)


def test_the_first_run_needs_no_past():
    """Without anything found there is neither an alert nor a notice."""
    assert step((), (), (), (), ALERTS, NOW) == ((), ())


@pytest.mark.parametrize("times", [1, 3])
def test_resolving_takes_the_declared_runs(times):
    """An alert is resolved after the declared number of runs without it."""
    hours = run([[alert()]] + [[]] * 4, AlertParams(resolve_after=times))
    assert kinds(hours) == {0: ["opened"], times: ["resolved"]}
