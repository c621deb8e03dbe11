"""BentoML's arm of `make bench-serving`, in the peers' environment: one worker, its adaptive batching on.

`bentoml serve benchmarks.bench.serving_bento:Bundle`. Its types are read at run time, so they are no strings here.
"""

import json
from typing import Any

import bentoml

from benchmarks.bench.serving_peers import MOST_TOGETHER, Model, bundle, row_model
from pipelines.fields import from_json

Row: Any = row_model(from_json(json.loads((bundle() / "fields.json").read_text())))


@bentoml.service(workers=1, traffic={"timeout": 60}, logging={"access": {"enabled": False}})
class Bundle:
    """The bundle in process."""

    def __init__(self) -> None:
        self.model = Model(bundle())

    @bentoml.api(batchable=True, max_batch_size=MOST_TOGETHER)  # type: ignore[untyped-decorator]
    def predict(self, rows: list[Row]) -> list[dict[str, Any]]:
        """The answers to rows, of several requests."""
        return self.model.answers([row.model_dump() for row in rows])
