"""What `make test-full` counts and draws, on small answers written down here."""

import math

import pytest

from benchmarks.full import demo as full_demo
from benchmarks.full import panels
from benchmarks.full import stack as full_stack


def test_what_is_there_once_differs():
    """A name that only one of two stacks has, or that says something else there, is counted and named."""
    found = full_demo._same({"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 4})
    assert found == {"count": 3, "equal": 1, "differ": ["b", "c"]}


@pytest.mark.parametrize(("count", "holds"), [(0, False), (1, True), (2, False)])
def test_exactly_one_is_neither_none_nor_two(count, holds):
    """A goal that wants one training run is missed by none as well as by two."""
    assert full_stack.exactly("training runs", count, 1)["holds"] is holds


def test_every_query_of_every_panel_is_asked(monkeypatch):
    """Each legend of each panel is one question, and whoever may find nothing is a panel that exists."""
    monkeypatch.setattr(panels, "_get", lambda _url, _path, **_parameters: [])
    asked = panels.ask("http://nowhere")
    boards = panels.dashboards()
    assert len(asked) == sum(
        len(panel.queries) for board in boards.DASHBOARDS for row in board.rows.values() for panel in row
    )
    assert {(one["dashboard"], one["panel"], one["legend"]) for one in asked if one["absent"]} == set(panels.ABSENT)


def test_a_line_is_broken_where_nothing_was_known():
    """Points that are further apart than a step are not joined; a legend takes its labels' values."""
    minutes, values = panels._drawn([[0.0, "1"], [10.0, "2"], [50.0, "3"]], (0.0, 1600.0))
    assert [math.isnan(value) for value in values] == [False, False, True, False]
    assert len(minutes) == len(values)
    assert panels._named("{{case}} limit {{name}}", {"case": "bank"}) == "bank limit"
