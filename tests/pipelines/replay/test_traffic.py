"""pipelines/replay/traffic.py: what a replay writes into the log in the gateway's place."""

import json
from datetime import UTC, datetime, timedelta

import polars as pl

from pipelines.contracts import Window
from pipelines.fields import Fields, Number, Numeric
from pipelines.replay import traffic
from pipelines.replay.ticks import Tick
from pipelines.settings import Settings

DELAYS = Fields("delays", (Numeric("hour"),), "delay", target=Number("minutes"))
MARCH = datetime(2013, 3, 1, tzinfo=UTC)


def test_labels_are_logged_in_the_tick_in_which_they_arrive(tmp_path):
    """Neither a label of the tick after nor one that never came stands in the log."""
    tick = Tick(Window(start=MARCH, end=MARCH + timedelta(days=2)), "2013-03", judged=True)
    arrived = pl.Series("label_time", [MARCH + timedelta(days=day) for day in (1, 1, 3)]).cast(pl.Datetime("us", "UTC"))
    rows = pl.DataFrame({"id": ["here", "never", "later"], "delay": [12.0, None, 3.0], "label_time": arrived})
    settings = Settings(home=tmp_path)
    traffic.log_labels(settings, DELAYS, tick, rows, MARCH)
    (path,) = (settings.prediction_log / "delays" / "labels").glob("*.jsonl")
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["prediction_id"], line["label"]) for line in found] == [("here", 12.0)]
