"""The worlds of `make bench-alarms` in which headroom is watched, and how its triggers are counted."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.alarms.headroom import JUMP, SLOPE, Cell, Deployment, World, cells, goals, triggered


@pytest.mark.parametrize("kind", ["table", "classes", "text"])
def test_the_meaning_turns_by_so_many_nats_as_is_said(kind):
    """What a champion of the old weights loses by the angle of a jump, and of each month of a slow decline."""
    world = World(kind, np.random.default_rng(0))
    sample = np.random.default_rng(1).standard_normal((20_000, 8))
    for nats in (SLOPE, 5 * SLOPE, JUMP):
        assert world._lost(sample, world.angle(nats)) == pytest.approx(nats, rel=0.15)


def test_windows_hold_their_rows_and_sessions_share_their_labels():
    """Each kind of traffic has the declared rows, in order of their days; rows of a session have one label."""
    rng = np.random.default_rng(0)
    for traffic in ("iid", "diurnal", "sessions"):
        cell = Cell("table", traffic, 300)
        drawn = World("table", np.random.default_rng(0)).draw(rng, cell, 2)
        assert drawn.frame.height == drawn.label.size == 300
        assert drawn.days.min() >= 60
        assert drawn.days.max() < 90
        assert (np.diff(drawn.days) >= 0).all()
        same = drawn.frame["z0"].to_numpy()[1:] == drawn.frame["z0"].to_numpy()[:-1]
        assert same.any() == (traffic == "sessions")
        assert (np.diff(drawn.label)[same] == 0).all()


def test_a_concept_that_turns_is_found_by_headroom_and_stable_traffic_is_left_alone():
    """On the project's own probe and policy: of eight windows the later ones ask, and none of the stable ones."""
    turned = list(Deployment(Cell("table", "iid", 1_000, "concept"), 0).windows(6, 0.02))
    assert triggered(turned, "headroom").index(True) in {1, 2, 3, 4}
    assert turned[0].headroom.own_past.value == 0  # nothing is newer yet than what the champion learned from
    stable = list(Deployment(Cell("table", "iid", 1_000), 0).windows(4, 0.02))
    assert not any(triggered(stable, "headroom"))


def test_every_size_of_every_kind_is_stable_and_shifts_once():
    """Nine cells of each size without a shift, nine with one, and the bound on false triggers is of the nine."""
    found = cells()
    assert len(found) == len({cell.name for cell in found}) == 54
    one = {"rows": 200, "shift": "none", "windows": 400, "rules": {"headroom": {"alarms": 0}}}
    [held] = goals([one] * 9)
    assert (held["holds"], held["value"]) == (True, pytest.approx(3 / 3600, rel=0.01))
    [missed] = goals([one] * 8 + [one | {"rules": {"headroom": {"alarms": 4}}}])
    assert not missed["holds"]
