"""pipelines/replay: the parts that need no training.

Policies, ticks, the oracle, the frontier, the command's mistakes.
"""

import itertools
from datetime import UTC, date, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import cli
from pipelines.cases import load_fields
from pipelines.cli import commands
from pipelines.errors import ConfigError
from pipelines.params_file import load_params
from pipelines.replay import frontier, oracle, ticks
from pipelines.replay.policies import DEFAULT, POLICIES, due, parse, watching
from pipelines.replay.run import Options, total
from pipelines.reports.frontier import advice
from pipelines.settings import Settings

BANK, LOANS, TRIAGE = (load_params(case) for case in ("bank", "loans", "triage"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--policies", "weekly"],
            "choose from never, monthly, quarterly, half-yearly, drift, performance, headroom, headroom-alone, oracle",
        ),
        (["--policies", "headroom@cheap"], "the policy 'headroom@cheap' has no price: give nats of mean log-loss"),
        (["--policies", "headroom@-1"], "the policy 'headroom@-1' has no price"),
        (["--policies", "never@0.1"], "no policy 'never@0.1'"),
        (["--policies", "montly"], "did you mean 'monthly'?"),
        (["--policies", "oracle"], "the oracle chooses among what the others trained"),
        (["--since", "2008-08-15"], "starts with a month, not on 2008-08-15: give --since 2008-08-01"),
        (["--since", "2010-05-01"], "no whole month lies between 2010-05-01 and 2010-04-01"),
        (["--months", "3", "--until", "2009-01-01"], "say the same thing twice"),
    ],
)
def test_a_mistake_is_named_before_anything_is_played(arguments, words, tmp_path, monkeypatch, capfd):
    """Wrong options end with 2 and one line that says what to give instead, and leave no state behind."""
    monkeypatch.setenv("PERENNIAL_HOME", str(tmp_path))
    assert cli.main(["replay", "--case", "bank", *arguments]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert words in err.splitlines()[-1]
    assert not (tmp_path / "replay").exists()


@pytest.mark.parametrize(("option", "value"), [("--since", "yesterday"), ("--seeds", "1,a")])
def test_an_option_that_is_none_is_refused_by_the_parser(option, value, capfd):
    """A date that is none and a seed that is none are usage errors that quote them."""
    with pytest.raises(SystemExit):
        cli.main(["replay", "--case", "bank", option, value])
    assert value in capfd.readouterr().err


def test_schedules_fall_on_the_ends_of_months_quarters_and_half_years():
    """Monthly retrains after every month, quarterly after every third, half-yearly after every sixth.

    What watches drift has no schedule.
    """
    seen = ticks.cut(date(2008, 8, 1), date(2009, 2, 1), BANK.drift)
    assert [tick.label for tick in seen] == ["2008-08", "2008-09", "2008-10", "2008-11", "2008-12", "2009-01"]
    assert all(due(POLICIES["monthly"], tick) for tick in seen)
    assert [tick.label for tick in seen if due(POLICIES["quarterly"], tick)] == ["2008-09", "2008-12"]
    assert [tick.label for tick in seen if due(POLICIES["half-yearly"], tick)] == ["2008-12"]
    assert not any(due(POLICIES[name], tick) for tick in seen for name in ("never", "drift", "performance", "oracle"))


def test_a_tick_is_the_shorter_of_a_month_and_the_drift_window():
    """Days where drift is looked at daily, months else, of which those are judged that end a window."""
    days = ticks.cut(date(2020, 5, 30), date(2020, 6, 2), LOANS.drift)
    assert [(tick.label, tick.judged, tick.ends(1)) for tick in days] == [
        ("2020-05-30", True, False),
        ("2020-05-31", True, True),
        ("2020-06-01", True, False),
    ]
    months = ticks.cut(date(2014, 1, 1), date(2014, 7, 15), TRIAGE.drift)
    assert [tick.label for tick in months if tick.judged] == ["2014-03", "2014-06"]
    assert months[-1].window.end == datetime(2014, 7, 1, tzinfo=UTC)


def test_months_count_from_the_start_and_the_cases_own_stretch_is_the_default():
    """--months is so many calendar months; without options the replay block says from when to when."""
    assert ticks.stretch("bank", BANK.replay, None, None, 5) == (date(2008, 8, 1), date(2009, 1, 1))
    assert ticks.stretch("bank", BANK.replay, None, None, None) == (date(2008, 8, 1), date(2010, 4, 1))
    with pytest.raises(ConfigError, match="give --since"):
        ticks.stretch("mine", None, None, None, None)


def test_performance_sees_labels_alone():
    """Its drift parameters ignore every field, what is counted of a text, and the model's outputs.

    Those of drift ignore what the case does.
    """
    fields = load_fields("triage")
    blind = watching(POLICIES["performance"], TRIAGE, fields).drift
    assert {"text.words", "score", "prediction"} <= {*blind.ignore}
    own = watching(POLICIES["drift"], BANK, load_fields("bank"))
    assert own.drift.ignore == BANK.drift.ignore
    assert own.drift.triggers == blind.triggers == ("drift", "performance")


def test_a_price_in_a_policys_name_is_what_its_drift_runs_compare_with():
    """headroom@0.1 listens to what headroom listens to, at its own price; headroom goes by the parameters' price.

    A price that is written in another way is the same policy.
    """
    own, dear, alone = parse("headroom,headroom@0.1,headroom@1e-1,headroom-alone")
    fields = load_fields("bank")
    assert (own.name, dear.name) == ("headroom", "headroom@0.1")
    assert watching(own, BANK, fields) == BANK
    assert watching(alone, BANK, fields).drift.triggers == ("headroom",)
    assert watching(dear, BANK, fields) == BANK.model_copy(
        update={"headroom": BANK.headroom.model_copy(update={"price": 0.1})}
    )


def test_what_is_played_by_default_is_what_the_command_says():
    """The list in the command's help names every policy and headroom at other prices, and all of them are policies."""
    assert parse(commands.POLICIES) == parse(",".join(DEFAULT))
    assert [policy.name for policy in parse(commands.POLICIES)] == list(DEFAULT)
    assert set(POLICIES) < set(DEFAULT)


def test_policies_keep_their_order_and_come_once():
    """A list with spaces and repetitions is each policy once, as given."""
    assert [policy.name for policy in parse("oracle, drift,never,drift")] == ["oracle", "drift", "never"]


@settings(max_examples=60, deadline=None)
@given(
    losses=st.lists(st.lists(st.floats(0, 2), min_size=5, max_size=5), min_size=1, max_size=4),
    starts=st.lists(st.integers(1, 4), min_size=4, max_size=4),
    price=st.floats(0, 1),
)
def test_the_oracle_finds_the_least_of_all_paths(losses, starts, price):
    """No sequence of candidates that have been trained by then costs less than its own, which costs what it says."""
    table = {f"c{number}": values for number, values in enumerate(losses)}
    since = {name: 0 if name == "c0" else start for name, start in zip(table, [0, *starts], strict=False)}

    def cost(path):
        changes = (path[0] != "c0") + sum(one != other for one, other in itertools.pairwise(path))
        return sum(table[name][tick] for tick, name in enumerate(path)) + price * changes

    path, total = oracle.best(table, since, "c0", price)
    possible = itertools.product(table, repeat=5)
    assert all(since[name] <= tick for tick, name in enumerate(path))
    assert total == pytest.approx(cost(path))
    assert (
        total
        <= min(cost(other) for other in possible if all(since[name] <= tick for tick, name in enumerate(other))) + 1e-9
    )


def test_ticks_that_do_not_count_change_no_choice():
    """A tick without a loss is free for every candidate: the change waits until it pays."""
    path, total = oracle.best({"a": [1.0, None, 1.0], "b": [1.0, None, 0.2]}, {"a": 0, "b": 1}, "a", 0.3)
    assert (path, total) == (["a", "b", "b"], pytest.approx(1.5)) or (path, total) == (
        ["a", "a", "b"],
        pytest.approx(1.5),
    )


def test_figures_count_what_was_run_and_paid():
    """Skipped trainings cost nothing, ticks that do not count enter no mean.

    The price is spread over those that do.
    """
    done = {"outcome": "promoted", "decision": "promote", "seconds": 2.0}
    records = [
        {"rows": 100, "training": done},
        {"rows": 300, "training": done | {"outcome": "kept", "decision": "reject"}},
        {"rows": 5, "training": {"outcome": "skipped", "seconds": 0.0}},
    ]
    found = frontier.figures(
        records, [{"log_loss": 1.0, "roc_auc": 0.6}, {"log_loss": 0.5, "roc_auc": 0.8}, None], price=0.1
    )
    assert found["means"] == pytest.approx({"log_loss": 0.75, "roc_auc": 0.7})
    assert found["weighted"]["log_loss"] == pytest.approx(0.625)
    assert (found["retrains"], found["promotions"], found["skipped"], found["train_seconds"]) == (2, 1, 1, 4.0)
    assert found["verdicts"] == {"promote": 1, "reject": 1}
    assert found["total"] == pytest.approx(0.75 + 0.2 / 2)


def test_a_number_is_compared_by_its_squared_error():
    """Means, worst tick, choices and words are of squared errors, whose price is in squared units; RMSE is shown."""
    records = [
        {"rows": 10, "training": None},
        {"rows": 30, "training": {"outcome": "promoted", "decision": "promote", "seconds": 1.0}},
    ]
    scored = [{"rmse": rmse, "mse": rmse**2, "mae": 1.0, "r2": 0.5, "bias": 0.1} for rmse in (3.0, 5.0)]
    found = frontier.figures(records, scored, 2.0)
    assert found["means"] == {"mse": 17.0, "rmse": 4.0, "mae": 1.0}
    assert found["total"] == 17.0 + 2.0 * 1 / 2
    over = frontier.over_seeds([found], [[9.0, 25.0]], ["a", "b"])
    assert (over["worst"], over["mse_by_tick"]) == ({"tick": "b", "mse": 25.0}, [9.0, 25.0])
    other = over | {"retrains": 0.0, "means": {"mse": 18.5, "rmse": 4.2, "mae": 1.1}, "total": 18.5}
    chosen = frontier.recommended({"drift": over, "never": other}, 2.0, 2)
    assert (chosen["policy"], chosen["next"]) == ("drift", "never")
    policies = {name: one | {"by_schedule": None} for name, one in (("drift", over), ("never", other))}
    said = advice(
        {"policies": policies, "recommended": chosen, "price_unit": "min\u00b2 of mean squared error over one day"}
    )
    assert "at 2 min\u00b2 of mean squared error over one day a retraining: drift" in said
    assert "(mean squared error 17.000, 1 retrainings)" in said


def test_means_over_seeds_and_the_worst_tick_of_the_mean():
    """Figures are averaged over the seeds; the worst tick is that of the averaged losses, not of one seed."""
    one = {
        "means": {"log_loss": 1.0},
        "weighted": {"log_loss": 1.0},
        "retrains": 1,
        "promotions": 1,
        "skipped": 0,
        "train_seconds": 1.0,
        "total": 1.0,
    }
    two = one | {"means": {"log_loss": 2.0}, "retrains": 2}
    found = frontier.over_seeds([one, two], [[0.1, 3.0, None], [2.5, 0.2, None]], ["a", "b", "c"])
    assert (found["means"]["log_loss"], found["retrains"]) == (1.5, 1.5)
    assert found["worst"] == {"tick": "b", "log_loss": pytest.approx(1.6)}
    assert found["log_loss_by_tick"][2] is None


def test_the_line_of_the_schedules_bends_at_each_of_them_and_ends_with_the_last():
    """A policy is compared with the two schedules around it; beyond them, or with one schedule, with nothing."""
    fixed = [(18, 0.7), (0, 1.3), (6, 0.9), (3, 1.2), (3, 1.1)]
    found = [frontier.by_schedule(fixed, count) for count in (0, 1.5, 3, 12, 18, 19)]
    assert found == [pytest.approx(value) if value else value for value in (1.3, 1.2, 1.1, 0.8, 0.7, None)]
    assert frontier.by_schedule(fixed[:1], 18) is None


@settings(max_examples=100, deadline=None)
@given(
    points=st.dictionaries(
        st.sampled_from("abcdef"), st.tuples(st.integers(0, 12), st.integers(0, 20)), min_size=1, max_size=6
    ),
    price=st.floats(0, 50),
)
def test_the_choice_at_every_price_costs_least(points, price):
    """The choices cover all prices without a gap, and the one at any price has the least loss and price."""
    ticks = 10
    found = frontier.choices(points, ticks)
    assert found[0].since == 0
    assert found[-1].until is None
    assert all(one.until == other.since for one, other in itertools.pairwise(found))
    retrains = [points[choice.policy][0] for choice in found]
    assert retrains == sorted(retrains, reverse=True)
    chosen = next(choice for choice in found if choice.until is None or price <= choice.until)
    costs = {name: loss + price * count / ticks for name, (count, loss) in points.items()}
    assert costs[chosen.policy] == pytest.approx(min(costs.values()))


def figures_of(points, price, ticks):
    """Policies with ``(retrainings, mean log-loss)`` as a summary has them."""
    return {
        name: {"retrains": count, "means": {"log_loss": loss}, "total": loss + price * count / ticks}
        for name, (count, loss) in points.items()
    }


def test_the_recommendation_names_the_next_best_that_did_something_else():
    """Drift and performance with one history are one choice; the distance is that to the best of the others."""
    points = {"never": (0, 1.2), "drift": (2, 1.0), "performance": (2, 1.0), "monthly": (40, 0.9)}
    found = frontier.recommended(figures_of(points, 0.1, 20), 0.1, 20)
    assert (found["policy"], found["next"]) == ("drift", "monthly")
    assert found["better_by"] == pytest.approx(1.1 - 1.01)
    assert [choice["policy"] for choice in found["choices"]] == ["monthly", "drift", "never"]
    alone = frontier.recommended(figures_of({"never": (0, 1.2)}, 0.05, 20), 0.05, 20)
    assert (alone["policy"], alone["next"], alone["better_by"]) == ("never", None, None)


def test_the_advice_says_policy_price_reason_and_how_it_changes():
    """One paragraph: what to set, at what price, by how much it is better, and what other prices would choose."""
    points = {"never": (0, 1.2), "monthly": (40, 0.9), "quarterly": (13, 1.1), "headroom@0.05": (5, 0.95)}
    found = figures_of(points, 0.1, 42)
    for name, one in found.items():
        one["by_schedule"] = 1.16 if name == "headroom@0.05" else None
    summary = {
        "policies": found,
        "price_per_retrain": 0.1,
        "price_unit": "nats of mean log-loss over one month",
        "recommended": frontier.recommended(found, 0.1, 42),
    }
    assert advice(summary) == (
        "Recommended at 0.1 nats of mean log-loss over one month a retraining: headroom@0.05. Loss and price together "
        "are 0.962 (mean log-loss 0.950, 5 retrainings), 0.033 less than with monthly. To have it, set headroom.price "
        "to 0.05, with headroom among drift.triggers. Fixed schedules with as many retrainings would lie at 1.160: "
        "headroom@0.05 is 0.210 better. By the price of a retraining it is monthly below 0.060, headroom@0.05 from "
        "there to 2.100, never above 2.100."
    )


def test_equal_points_are_both_on_the_frontier():
    """Policies that did the very same are both on it.

    One that is beaten in one respect and equal in the other is not.
    """
    points = {"drift": (4, 0.8), "performance": (4, 0.8), "quarterly": (6, 0.8), "never": (0, 1.3)}
    assert frontier.on_frontier(points) == ["drift", "performance", "never"]


def test_windows_are_those_of_the_variant_that_is_played(tmp_path):
    """Where a case declares a variant for its replays, that one's drift windows make the ticks; a folder goes first."""
    own = TRIAGE
    daily = own.model_copy(update={"drift": own.drift.model_copy(update={"window": "day"})})
    options = Options("never", months=2)
    assert total(daily, Settings(home=tmp_path), options) == 2
    assert total(daily, Settings(home=tmp_path, params_dir=tmp_path), options) == 59
