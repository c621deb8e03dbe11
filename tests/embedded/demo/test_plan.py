"""embedded/demo/plan.py: what is replayed, in windows that meet and never overlap."""

from datetime import UTC, datetime

import pytest

from embedded.demo.plan import load_plan
from pipelines.errors import ConfigError


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


def test_a_case_without_a_plan_says_what_is_missing():
    """A case that has no demo.yaml is told so by name."""
    with pytest.raises(ConfigError, match=r"nothere/demo\.yaml does not exist"):
        load_plan("nothere", fast=False)
