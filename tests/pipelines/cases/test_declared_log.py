"""``source: {kind: log}``: a case without any other history learns from what was logged, once that is enough."""

from __future__ import annotations

import pytest

from pipelines.cases import load_fields, part
from pipelines.cases.surveying import survey
from pipelines.contracts import Window
from pipelines.data import lake
from pipelines.errors import ConfigError, TooFewRows
from pipelines.params_file import load_params
from tests import shop
from tests.declarations import AS_OF, declare, settings
from tests.pipelines.data import loglines
from tests.pipelines.verbs import ingest


@pytest.fixture
def logged(home):
    """The shop's rows of its first days, to be logged."""
    declare(home, kind="files", url="shop.csv")
    module, params = part("shop", "source"), load_params("shop")
    rows = module.rows(module.resolve(settings(home), params), Window(start=params.period[0], end=AS_OF), params)
    declare(home, kind="log")
    return rows


def serve(home, rows, labels, segment):
    """Log rows, and the labels of some."""
    fields = load_fields("shop")
    loglines.write(settings(home), "shop", "predictions", segment, loglines.predictions(rows, fields))
    loglines.write(settings(home), "shop", "labels", segment, loglines.labels(labels, fields))


def run(home):
    """Ingest of all that was logged."""
    where = settings(home)
    return ingest.run(load_params("shop"), where, where.run_dir("shop", AS_OF), AS_OF)


def test_a_first_training_takes_what_was_logged_once_it_is_enough(home, logged):
    """Without a champion rows are those of the log with the labels that have arrived; until 250 have, it is skipped."""
    assert [case.problem for case in survey(settings(home), ["shop"])] == [""]
    with pytest.raises(TooFewRows, match=r"shop: 0 rows were logged.*a first training needs 250"):
        run(home)
    # 50 rows in a holdout of a fifth.
    serve(home, logged, logged.head(249), "a")
    with pytest.raises(TooFewRows, match=r"360 rows were logged.* 249 of them have a label that has arrived") as caught:
        run(home)
    assert "import shop --from ...` takes in those of what answers today" in str(caught.value)
    serve(home, logged.head(0), logged[249:300], "b")
    found = run(home)
    assert found.facts["origin"] == "log"
    assert found.facts["source"]["why"] == "the case declares it: source.kind is log"
    assert (found.facts["rows"], found.facts["labelled"]) == (360, 300)
    rows = lake.read_days(settings(home), found.facts["partitions"])
    assert rows["id"].to_list() == logged["id"].to_list()
    assert run(home) == found


def test_a_log_is_no_history_to_play(home, logged):
    """Who asks for the source's rows, as a replay does, is told that there are none."""
    source = part("shop", "source")
    with pytest.raises(ConfigError, match="no rows but those that the gateway has logged"):
        source.resolve(settings(home), load_params("shop"))


def test_a_log_has_no_source_beside_it(home):
    """Rows of the source after the first champion, or keys that say where they are, contradict the declaration."""
    declare(home, kind="log", url="a.csv")
    with pytest.raises(ConfigError, match="url: there is no such key"):
        load_params("shop")
    declare(home, kind="log")
    shop.edit(home / "cases" / "shop" / "params.yaml", ("training_rows: log\n", "training_rows: source\n"))
    with pytest.raises(ConfigError, match="training_rows: source asks for rows"):
        load_params("shop")
