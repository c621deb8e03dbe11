"""embedded/demo/plan.py: what is replayed, in windows that meet and never overlap."""

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from embedded.demo.plan import load_plan, scope, write_params
from embedded.demo.traffic import sampled
from pipelines.errors import ConfigError
from pipelines.params_file import load_params


def test_bank_replays_calendar_months():
    """The bank plan starts at the first champion's as_of and cuts calendar months in UTC."""
    plan = load_plan("bank", fast=False)
    assert plan.first_as_of == datetime(2008, 8, 1, tzinfo=UTC)
    assert plan.windows[0].start == plan.first_as_of
    assert plan.windows[-1].end == datetime(2010, 4, 1, tzinfo=UTC)
    assert len(plan.windows) == 20
    assert all(earlier.end == later.start for earlier, later in zip(plan.windows, plan.windows[1:], strict=False))


def test_fast_takes_the_declared_stretch():
    """FAST=1 replays April to September 2009 after the same first champion."""
    plan = load_plan("bank", fast=True)
    assert plan.first_as_of == datetime(2008, 8, 1, tzinfo=UTC)
    assert [window.start.month for window in plan.windows] == [4, 5, 6, 7, 8, 9]


def test_a_replay_ends_after_the_ticks_that_were_asked_for():
    """TICKS=3 replays the first three windows, more than there are replay all, and less than one is refused."""
    whole = load_plan("bank", fast=True)
    assert load_plan("bank", fast=True, ticks=3).windows == whole.windows[:3]
    assert load_plan("bank", fast=True, ticks=99) == whole
    with pytest.raises(ConfigError, match="a replay of 0 ticks"):
        load_plan("bank", fast=True, ticks=0)


def test_a_case_without_a_plan_says_what_is_missing():
    """A case that has no demo.yaml is told so by name."""
    with pytest.raises(ConfigError, match=r"nothere/demo\.yaml does not exist"):
        load_plan("nothere", fast=False)


def test_triage_replays_quarters_within_its_declared_scope(tmp_path):
    """Six calendar quarters, with the plan's overrides laid over the case's own parameters and everything else kept."""
    plan = load_plan("triage", fast=False)
    assert [(window.start.year, window.start.month) for window in plan.windows] == [
        (2015, 1),
        (2015, 4),
        (2015, 7),
        (2015, 10),
        (2016, 1),
        (2016, 4),
    ]
    params = write_params(plan, tmp_path)
    own = load_params("triage")
    assert load_params("triage", tmp_path / "triage.yaml") == params
    assert params.dataset == own.dataset.model_copy(update={"max_rows": 2500})
    assert params.gate == own.gate
    found = scope(plan, params)
    assert found["params"]["dataset.max_rows"] == 2500
    assert (found["traffic_rows_per_month"], found["rows_per_training"], found["seconds_per_training"]) == (
        300,
        2000,
        90,
    )


def test_a_plan_without_overrides_writes_nothing(tmp_path):
    """The bank is replayed with its own parameters, and no folder of parameters is left behind."""
    assert write_params(load_plan("bank", fast=False), tmp_path / "params") == load_params("bank")
    assert not (tmp_path / "params").exists()


def test_a_sample_takes_so_many_rows_of_every_month():
    """Busy months are thinned evenly, quiet ones are kept whole, and the sample is the same every time."""
    start = datetime(2015, 1, 1, tzinfo=UTC)
    times = [start + timedelta(hours=hour) for hour in range(31 * 24)] + [
        start + timedelta(days=31 + day) for day in range(20)
    ]
    rows = pl.DataFrame(
        {"id": [str(n) for n in range(len(times))], "event_time": times},
        schema_overrides={"event_time": pl.Datetime("us", "UTC")},
    )
    found = sampled(rows, 30)
    assert found.group_by(pl.col("event_time").dt.month(), maintain_order=True).len()["len"].to_list() == [30, 20]
    assert found.equals(sampled(rows, 30))
    assert sampled(rows, None).equals(rows)
