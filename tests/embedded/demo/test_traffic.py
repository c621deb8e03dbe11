"""embedded/demo/traffic.py: what is posted to the gateway."""

import json
from datetime import UTC, datetime

import httpx
import polars as pl

from embedded.demo import traffic
from pipelines.fields import Fields, Number, Numeric

DELAYS = Fields("delays", (Numeric("hour"),), "delay", target=Number("minutes"))
NOON = datetime(2013, 3, 1, 12, tzinfo=UTC)


def test_a_truth_that_never_came_is_not_posted():
    """Of two flights one never arrived: the other's label is posted, as a number, and counted."""
    posted = []

    def answer(request: httpx.Request) -> httpx.Response:
        posted.append(json.loads(request.content)["labels"])
        return httpx.Response(200, json={"accepted": 1})

    frame = pl.DataFrame({"id": ["a", "b"], "delay": [None, -4.5], "label_time": [NOON, NOON]})
    tally = traffic.Tally()
    with httpx.Client(base_url="http://gateway", transport=httpx.MockTransport(answer)) as gateway:
        traffic.send_labels(gateway, DELAYS, frame, tally)
    assert posted == [[{"prediction_id": "b", "label": -4.5, "event_time": NOON.isoformat()}]]
    assert (tally.labels, tally.errors) == (1, 0)
