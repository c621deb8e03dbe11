"""The benchmark of rollouts: its traffic, its peers, and a result file of several parts."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import record
from benchmarks.bench import rollout, rollout_ab
from benchmarks.bench.rollout_traffic import SHADOWED, Arm, Scenario, latencies, play, population, scores
from pipelines.guard.decide import course
from pipelines.params import Slo

SCENARIO = Scenario(requests=2000, weights=(0, 500, 5000), bursts=True)


def test_windows_have_the_traffic_of_their_scenario() -> None:
    """Both arms together have all requests, a shadow mirrors them, and the same seed gives the same windows."""
    windows = list(play(SCENARIO, np.random.default_rng(1)))
    for seen in windows:
        both = (seen.champion, seen.challenger)
        assert sum(side.answered + side.failed + side.refused for side in both) == 2000
        assert sum(side.requests for side in both) == 2000
    assert windows[0].mirrored.answered > 1800
    assert list(play(SCENARIO, np.random.default_rng(1))) == windows
    for shares in (latencies(18.0), latencies(240.0), scores(), scores(0.05)):
        assert shares.sum() == pytest.approx(1)
        assert (shares >= 0).all()
    assert scores(0.05).max() - scores().max() == pytest.approx(0.05)


@pytest.mark.parametrize("harm", [0.0, 0.05])
def test_losses_have_the_harm_that_is_asked_for(harm: float) -> None:
    """The challenger's mean is worse by that, and differences have about their spread."""
    champion, challenger = population(harm, np.random.default_rng(0), rollout.GATE, n=20_000)
    gap = challenger - champion
    assert gap.mean() == pytest.approx(harm, abs=1e-9)
    assert gap.std() == pytest.approx(0.32, abs=0.03)


def test_a_rollout_stops_where_the_guard_says() -> None:
    """Made in blocks or at once, the window is the same, and it is that of an answer after each window."""
    slow = replace(SCENARIO, weights=SHADOWED, fault=Arm(median_ms=240), begin=6)
    for seed in range(3):
        windows = list(play(slow, np.random.default_rng(seed)))
        stopped = course(windows, rollout.LIMITS).stopped(0.05)
        assert stopped is not None
        assert rollout.stop_of(slow, Slo(), np.random.default_rng(seed)) == stopped
    rollout.asked_again(windows, course(windows, rollout.LIMITS), Slo(), stopped)
    with pytest.raises(SystemExit, match="fail"):
        rollout.asked_again(windows, course(windows, rollout.LIMITS), Slo(), None)


def test_the_peers_see_what_is_plain() -> None:
    """Ten times the errors are refused by the z-tests and by the fixed limits."""
    bad = list(play(replace(SCENARIO, weights=(5000,) * 5, fault=Arm(errors=0.1)), np.random.default_rng(0)))
    assert rollout.z_tests(bad).any()
    assert rollout.fixed_limits(bad).all()


def test_units_on_arrival_are_not_the_mature_ones() -> None:
    """All three ways count the same units in the end; only the mature ones are equal for both arms each day."""
    positive = np.ones((2, rollout_ab.DAYS, rollout_ab.A_DAY), np.bool_)
    mature = rollout_ab.by_maturity(positive)
    assert len(mature) == rollout_ab.DAYS - rollout_ab.HORIZON
    assert all(look.champion == look.challenger for look in mature)
    for way in (rollout_ab.on_arrival, rollout_ab.unknown_is_none):
        assert any(look.champion != look.challenger for look in way(positive))


def test_a_part_leaves_the_others_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing one part again replaces its own rows and goals and keeps those of another, with who made them."""
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(rollout, "RESULTS", tmp_path)
    rollout.write("simulation", [{"part": "rollouts", "x": 1}], [record.goal("a", 1, 2)], 3, keep=True, runs=7)
    rollout.write("stack", [{"part": "shadow", "x": 2}], [record.goal("b", 1, 2)], 4, keep=True)
    rollout.write("simulation", [{"part": "rollouts", "x": 3}], [record.goal("a", 2, 2)], 5, keep=True, runs=8)
    rollout.write("stack", [{"part": "shadow", "x": 9}], [], 4, keep=False)
    made = json.loads((tmp_path / "rollout.json").read_text())
    assert made["rows"] == [{"part": "shadow", "x": 2}, {"part": "rollouts", "x": 3}]
    assert [(one["name"], one["value"]) for one in made["goals"]] == [("b", 1), ("a", 2)]
    assert set(made["parts"]) == {"simulation", "stack"}
    assert made["parts"]["simulation"]["runs"] == 8
