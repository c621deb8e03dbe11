"""The units of an experiment: each counts once, when it is mature, for the arm of its first answer."""

from datetime import UTC, datetime, timedelta

import pytest

from pipelines.data import units
from pipelines.data.units import Asked
from pipelines.errors import IntegrityError
from pipelines.segments import adopt
from pipelines.settings import Settings
from tests.pipelines.data import loglines

BEGAN = datetime(2026, 3, 1, 12, tzinfo=UTC)
ASKED = Asked([(BEGAN, 5000)], None, "label", timedelta(hours=10), "any")
REVENUE = Asked([(BEGAN, 5000)], "customer", "revenue", timedelta(hours=10), "sum")


def at(hours: float) -> str:
    """A moment so long after the experiment began."""
    return (BEGAN + timedelta(hours=hours)).isoformat()


def answered(name: str, hours: float, arm: str | None = "champion", customer: str | None = None, **other) -> dict:
    """A line of the prediction log."""
    line = {
        "prediction_id": name,
        "request_id": "r",
        "event_time": "2020-01-01T00:00:00+00:00",
        "received_at": at(hours),
        "version": 1,
        "score": 0.5,
        "prediction": 1,
        "row": {"age": 30, "customer": customer},
    }
    return line | ({} if arm is None else {"arm": arm}) | other


def labelled(name: str, label: float, hours: float, revision: int = 0) -> dict:
    """A line of labels."""
    return {
        "prediction_id": name,
        "label": label,
        "revision": revision,
        "event_time": "2020-01-01T00:00:00+00:00",
        "received_at": at(hours),
    }


def figure(name: str, value: float, hours: float, revision: int = 0, of: str = "revenue") -> dict:
    """A line of figures."""
    line = labelled(name, 0, hours, revision)
    del line["label"]
    return line | {"name": of, "value": value}


def found(settings: Settings, asked: Asked, hours: float) -> dict[str, tuple]:
    """Arm, stretch and value of each unit, as seen so long after the beginning."""
    frame = units.read(settings, "loans", asked, BEGAN + timedelta(hours=hours))
    return {row["unit"].partition(" ")[2]: (row["arm"], row["stretch"], row["value"]) for row in frame.to_dicts()}


@pytest.fixture
def settings(tmp_path):
    """A state folder whose gateway writes nothing more."""
    return Settings(home=tmp_path)


def test_a_unit_counts_when_it_is_mature_with_what_was_known_by_then(settings):
    """Before the horizon it has no value; afterwards the value stays, whatever labels and corrections come later.

    Without any label by then it has none, ever.
    """
    loglines.write(settings, "loans", "predictions", "a", [answered(name, 1) for name in "abc"])
    lines = [
        labelled("a", 0, 2),
        labelled("a", 1, 3, revision=1),
        labelled("a", 0, 2.5, revision=1),
        labelled("b", 1, 10.5),
        labelled("b", 0, 11.5, revision=9),
        labelled("c", 1, 12),
    ]
    loglines.write(settings, "loans", "labels", "a", lines)
    none = ("champion", 0, None)
    assert found(settings, ASKED, 10.9) == {"a": none, "b": none, "c": none}
    now = {"a": ("champion", 0, 0.0), "b": ("champion", 0, 1.0), "c": none}
    assert found(settings, ASKED, 11) == found(settings, ASKED, 99) == now


def test_a_customer_counts_once_for_the_arm_of_its_first_answer(settings):
    """Figures of all its predictions within the horizon are added up, also of those that the other arm answered."""
    lines = [
        answered("late", 9, "challenger", "ann"),
        answered("first", 1, "champion", "ann", version=9),
        answered("beyond", 11, "champion", "ann"),
        answered("bob", 2, "challenger", "bob"),
        answered("nobody", 2, "challenger"),
    ]
    loglines.write(settings, "loans", "predictions", "a", lines)
    paid = [figure("first", 2, 3), figure("late", 5, 10), figure("late", 7, 10, 1), figure("beyond", 50, 11)]
    paid += [figure("bob", 9, 3, of="cost"), figure("nobody", -1, 3)]
    loglines.write(settings, "loans", "figures", "a", paid)
    assert found(settings, REVENUE, 20) == {
        "ann": ("champion", 0, 9.0),
        "bob": ("challenger", 0, 0.0),
        "nobody": ("challenger", 0, -1.0),
    }


def test_who_met_no_arm_or_came_before_is_no_unit(settings):
    """Rows beside a rollout, of before it, and of the first minute after the weight moved begin no unit."""
    minute = 1 / 60
    lines = [
        answered("outside", 1, None),
        answered("before", -1),
        answered("at-once", 0.9 * minute),
        answered("soon", 1.1 * minute),
        answered("moving", 5 + 0.5 * minute),
        answered("moved", 6, "challenger"),
    ]
    loglines.write(settings, "loans", "predictions", "a", lines)
    asked = Asked([(BEGAN, 5000), (BEGAN + timedelta(hours=5), 6000)], None, "revenue", timedelta(hours=1), "sum")
    assert found(settings, asked, 9) == {"soon": ("champion", 0, 0.0), "moved": ("challenger", 1, 0.0)}


def test_labels_of_a_customer_are_one_value(settings):
    """Of yes and no it is yes if any is; of numbers it is their mean; a prediction answered twice is one."""
    lines = [answered("a", 1, customer="ann"), answered("b", 2, customer="ann"), answered("a", 3, customer="ann")]
    loglines.write(settings, "loans", "predictions", "a", lines)
    loglines.write(settings, "loans", "labels", "a", [labelled("a", 0, 4), labelled("b", 1, 5)])
    for fold, value in (("any", 1.0), ("mean", 0.5)):
        asked = Asked([(BEGAN, 5000)], "customer", "label", timedelta(hours=10), fold)
        assert found(settings, asked, 20) == {"ann": ("champion", 0, value)}


def test_lines_that_cannot_be_read_cost_the_others_nothing(settings):
    """A damaged line is left out; a sealed segment that has changed is an error, as everywhere."""
    path = loglines.write(settings, "loans", "predictions", "a", [answered("a", 1), answered("b", 2)], b'{"predic')
    path.write_bytes(path.read_bytes().replace(b'"received_at": "2026', b'"received_at": "x026', 1))
    loglines.write(settings, "loans", "predictions", "b", [answered("c", 1)])
    assert set(found(settings, ASKED, 20)) == {"b", "c"}
    path.rename(path.with_name("a.jsonl.open"))
    assert adopt(path.parent) == 1
    path.write_bytes(path.read_bytes().replace(b"champion", b"chimpion"))
    with pytest.raises(IntegrityError, match="not what was written"):
        found(settings, ASKED, 20)


def test_without_traffic_there_are_no_units(settings):
    """No segment at all is an empty frame of the same form."""
    frame = units.read(settings, "loans", REVENUE, BEGAN)
    assert (frame.height, dict(frame.schema)) == (0, units.SCHEMA)
