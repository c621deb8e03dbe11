"""The case churn can be loaded, and its rows keep its contract."""

from datetime import timedelta

from pipelines.cases import load_case, part
from pipelines.cases.delivery import from_source
from pipelines.cases.surveying import survey
from pipelines.cli.trying import newest
from pipelines.contracts import Window
from pipelines.data.contract import count_reasons, split
from pipelines.settings import read_settings


def test_the_case_can_be_loaded() -> None:
    """Nothing is wrong with its files."""
    assert [case.problem for case in survey(names=["churn"])] == [""]


def test_its_rows_keep_the_contract() -> None:
    """Of the rows of the newest training window as many can be used as dataset.max_bad_share asks for."""
    case, settings = load_case("churn"), read_settings()
    origin = from_source(part("churn", "source"), case.fields, case.params, settings)
    end = newest(case.params, settings)
    found = origin.read(Window(start=end - timedelta(days=case.params.dataset.window_days), end=end))
    good, bad = split(found.rows, case.fields)
    refused = bad.height + found.refused.height
    why = count_reasons(bad) | count_reasons(found.refused)
    assert refused <= case.params.dataset.max_bad_share * (good.height + refused), why
