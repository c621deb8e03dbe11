"""pipelines/headroom/gain.py and the means below it: what a gain is, how sure, and how rarely chance makes one."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from pipelines.contracts import Mean
from pipelines.drift_report import Headroom
from pipelines.headroom.gain import Sample, log_e_value, measured
from pipelines.measures import around, clustered_mean, pooled, row_log_loss
from pipelines.params import HeadroomParams
from pipelines.storage import canonical_json

PARAMS = HeadroomParams()
PLAIN = HeadroomParams(against="champion")


def sample(rows: int, champion: float, probe: float, seed: int = 0, **more) -> Sample:
    """Rows of 30 days whose label is 1 with a chance of .3, answered with two constants."""
    label = (np.random.default_rng(seed).random(rows) < 0.3).astype(np.int64)
    return Sample(label, np.arange(rows) * 30 // rows, np.full(rows, champion), np.full(rows, probe), **more)


@pytest.mark.parametrize("days", [6, 30])
def test_the_e_value_expects_one_where_the_gain_is_its_price(days: int):
    """Over normal days whose mean gain is the price, however they spread, its mean is 1; of less gain it is less."""
    t = np.linspace(-60, 60, 6_001)
    e = np.exp([log_e_value(Mean(value=0.02 + at * 0.01, se=0.01, freedom=days - 1), 0.02) for at in t])
    for moved, most in ((0.0, 1.0005), (-0.5, 0.7), (-3.0, 0.1)):
        assert (e * scipy_stats.nct.pdf(t, days - 1, moved)).sum() * (t[1] - t[0]) < most
    assert (e * scipy_stats.t.pdf(t, days - 1)).sum() * (t[1] - t[0]) == pytest.approx(1, abs=0.01)


def test_rows_of_one_day_are_no_proof_by_themselves():
    """Three hundred rows that gain alike on a single one of ten days say no more than that day."""
    values, days = np.zeros(3_000), np.arange(3_000) // 300
    values[:300] = 1.0
    assert log_e_value(clustered_mean(values, days), 0.02) < math.log(3)


@pytest.mark.parametrize("freedom", [0, 5, 364])
def test_any_mean_has_an_e_value(freedom: int):
    """Means far above and below their price, and such without an error, have a finite one, more for more gain."""
    found = [log_e_value(Mean(value=v, se=se, freedom=freedom), 0.02) for v, se in ((-9, 0), (0.02, 0.01), (9, 0))]
    assert found == sorted(found)
    assert np.isfinite(found).all()


def test_days_that_differ_count_as_days():
    """Where days have good and bad luck of their own, nine in ten intervals of 90% hold the truth, as they say."""
    rng = np.random.default_rng(1)
    held, alone = 0, 0
    for _ in range(200):
        days = np.repeat(np.arange(20), 25)
        values = rng.normal(0, 0.3, 20)[days] + rng.normal(0, 0.5, days.size)
        found = around(clustered_mean(values, days), 0.9)
        held += found.low <= 0 <= found.high
        single = around(clustered_mean(values, np.zeros(days.size, np.int64)), 0.9)
        alone += single.low <= 0 <= single.high
    assert held >= 0.86 * 200
    assert alone < 0.7 * 200


def test_two_windows_say_more_than_one():
    """Of two windows the pooled mean lies nearer to the surer one, within a smaller error, and its interval holds."""
    rng, held = np.random.default_rng(2), 0
    for _ in range(200):
        means = [clustered_mean(rng.normal(0.05, 0.4, rows), np.arange(rows) // 20).model_copy() for rows in (200, 600)]
        both = pooled(means)
        assert both.se < min(mean.se for mean in means)
        assert both.freedom >= min(mean.freedom for mean in means)
        found = around(both, 0.9)
        held += found.low <= 0.05 <= found.high
    assert held >= 0.85 * 200


def test_a_mean_without_any_doubt_decides():
    """A window whose rows all gain the same has no error; pooled with another one it is all that counts."""
    assert pooled([Mean(value=0.5, se=0.0), Mean(value=0.1, se=0.2)]).value == pytest.approx(0.5)


def test_a_gain_is_the_difference_of_two_losses():
    """The gain is the mean loss of the champion minus the probe's, and the interval of a real gain excludes nothing."""
    rows = sample(900, champion=0.6, probe=0.3)
    found = measured(rows, PLAIN)
    both = [float(row_log_loss(rows.label, score).mean()) for score in (rows.champion, rows.probe)]
    assert found.gain.value == pytest.approx(both[0] - both[1])
    assert found.gain.low > PARAMS.price
    assert found.log_e > math.log(1e4)
    assert (found.rows, found.days, found.own_past) == (900, 30, None)
    assert found.errors.value == pytest.approx(1 - 2 * rows.label.mean())


def test_a_probe_that_is_the_champion_gains_nothing():
    """Equal answers are a gain of exactly nothing, and never evidence for one."""
    found = measured(sample(900, champion=0.3, probe=0.3), PLAIN)
    assert (found.gain.low, found.gain.value, found.gain.high) == (0.0, 0.0, 0.0)
    assert found.log_e < 0


def test_the_second_figure_compares_two_probes():
    """Newer rows help a probe, and so would help the champion, also where that is of a family that no probe beats."""
    rows = sample(900, champion=0.3, probe=0.35, past=np.full(900, 0.6))
    found = measured(rows, PARAMS)
    assert found.gain.high < 0 < PARAMS.price < found.own_past.low
    assert (found.against, found.decides) == ("past", found.own_past)
    assert found.log_e > math.log(1e4)
    own = measured(rows, PLAIN)
    assert (own.against, own.decides, own.own_past) == ("champion", found.gain, found.own_past)
    assert own.log_e < 0


def test_a_probe_of_a_better_family_promises_nothing():
    """Where the champion is of a worse family than the probe, and newer rows give nothing, the gain is none."""
    found = measured(sample(900, champion=0.6, probe=0.3, past=np.full(900, 0.3)), PARAMS)
    assert found.gain.low > PARAMS.price
    assert (found.decides.low, found.decides.high) == (0.0, 0.0)


def test_rows_that_the_champion_did_not_answer_count_for_the_probes_alone():
    """A champion that has just come is judged on its own rows once they are enough; two probes can be on all."""
    rows = sample(900, champion=0.6, probe=0.3, past=np.full(900, 0.5))
    rows.champion[:850] = np.nan
    found = measured(rows, PARAMS)
    assert (found.rows, found.answered, found.gain, found.metrics) == (900, 50, None, ())
    assert found.decides.low > PARAMS.price
    few = measured(rows, PLAIN)
    assert (few.code, few.rows, few.decides) == ("few_rows", 50, None)
    rows.champion[:200] = 0.3
    found = measured(rows, PLAIN)
    assert (found.rows, found.answered, found.decides) == (250, 250, found.gain)


def test_without_a_probe_of_the_champions_time_nothing_is_decided():
    """Where what the champion learned from is gone, the champion's figure is shown and decides nothing."""
    found = measured(sample(900, champion=0.6, probe=0.3), PARAMS)
    assert found.gain.low > PARAMS.price
    assert (found.decides, found.log_e) == (None, 0.0)
    assert "no probe of its time" in found.why


def test_slices_with_enough_rows_have_a_gain_of_their_own():
    """The gain of each value with ``min_rows`` rows; together they make up the whole, and small ones make no claim."""
    groups = {"colour": np.repeat(["red", "blue", "green"], [500, 390, 10])}
    found = measured(sample(900, champion=0.6, probe=0.3, groups=groups), PLAIN)
    assert [(one.field, one.value, one.rows) for one in found.slices] == [
        ("colour", "blue", 390),
        ("colour", "red", 500),
    ]


def test_classes_are_compared_by_their_own_metric():
    """With classes macro-F1 stands beside nats; where one class is all there is no AUC, and the gain is there."""
    label, days = np.arange(300) % 3, np.arange(300) // 10
    sure, flat = np.eye(3)[label] * 0.7 + 0.1, np.full((300, 3), 1 / 3)
    [beside] = measured(Sample(label, days, flat, sure), PARAMS).metrics
    assert (beside.metric, beside.probe) == ("macro_f1", 1.0)
    one = Sample(np.ones(300, np.int64), days, np.full(300, 0.5), np.full(300, 0.9))
    assert measured(one, PARAMS).metrics == ()


def test_chance_makes_no_gain_above_its_price():
    """Two models of the same quality, 300 rows a window: no window has a lower end above the default price."""
    rng = np.random.default_rng(3)
    days, found = np.arange(300) // 10, []
    for _ in range(150):
        logit = rng.normal(-0.5, 1.2, 300)
        label = (rng.random(300) < 1 / (1 + np.exp(-logit))).astype(np.int64)
        champion, probe = (1 / (1 + np.exp(-logit - rng.normal(0, 0.25, 300))) for _ in range(2))
        found.append(measured(Sample(label, days, champion, probe), PLAIN))
    assert max(one.gain.low for one in found) < PARAMS.price
    assert max(one.log_e for one in found) < math.log(1e3)


def test_what_was_measured_is_json_and_comes_back():
    """The figures stand in a file as they are, to the last digit."""
    found = measured(sample(400, 0.6, 0.3, past=np.full(400, 0.4), groups={"colour": np.repeat("red", 400)}), PARAMS)
    assert Headroom.model_validate_json(canonical_json(found)) == found
