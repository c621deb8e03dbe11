"""LitServe's arm of `make bench-serving`, in the peers' environment: one worker process that joins what waits.

`python -m benchmarks.bench.serving_lit <port>`. Its types are read at run time, so they are no strings here.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

import litserve
from pydantic import BaseModel

from benchmarks.bench.serving_peers import MOST_TOGETHER, Model, bundle, row_model
from pipelines.fields import from_json

# LitServe hands bodies to its worker by pickle, which has to find their classes here.
Row: Any = row_model(from_json(json.loads((bundle() / "fields.json").read_text())), __name__)


class Body(BaseModel):
    """A request."""

    rows: list[Row]


class Api(litserve.LitAPI):  # type: ignore[misc] # litserve is Any to mypy
    """The bundle."""

    def setup(self, device: str) -> None:  # noqa: ARG002 - LitServe's signature
        """Once in the worker."""
        self.model = Model(bundle())

    def decode_request(self, request: Body) -> Any:
        """The rows of a request."""
        return [row.model_dump() for row in request.rows]

    def batch(self, inputs: Sequence[Any]) -> Any:
        """Of several requests."""
        return list(inputs)

    def predict(self, x: Any) -> Any:
        """Each request's answers."""
        found = iter(self.model.answers([row for rows in x for row in rows]))
        return [[next(found) for _ in rows] for rows in x]

    def unbatch(self, output: Any) -> Any:
        """As they came."""
        return output

    def encode_response(self, output: Any) -> Any:
        """The reply."""
        return {"rows": output}


if __name__ == "__main__":
    server = litserve.LitServer(
        Api(max_batch_size=MOST_TOGETHER, batch_timeout=0.0), accelerator="cpu", workers_per_device=1, fast_queue=True
    )
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        num_api_servers=1,
        generate_client_file=False,
        log_level="error",
        access_log=False,
    )
