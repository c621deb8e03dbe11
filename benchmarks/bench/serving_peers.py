"""Peers of the gateway in `make bench-serving`: the same graph, in process, behind a web framework.

Plain FastAPI with pydantic, as `uvicorn --factory benchmarks.bench.serving_peers:create_app`; LitServe and BentoML
beside in serving_lit.py and serving_bento.py. ``BENCH_BUNDLE`` is the bundle's folder. They check rows with a pydantic
model of the declared fields and encode them by the project's own functions, so that answers are the same; they know no
keys, keep no log and follow no releases.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, create_model

from pipelines.encoding import encoder
from pipelines.fields import Categorical, Fields, Flag, Numeric, from_json

MOST_TOGETHER = 64
"""Requests that a peer may join in one call, where it can."""


class Model:
    """A bundle in process: one thread of ONNX Runtime that does not spin, as Triton's instance has."""

    def __init__(self, folder: Path) -> None:
        import onnxruntime

        self.fields = from_json(json.loads((folder / "fields.json").read_text()))
        self.encode = encoder(self.fields, folder)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )

    def answers(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """What is foretold for rows, as the gateway answers it."""
        columns = {name: [row[name] for row in rows] for name in self.fields.reads}
        scores: NDArray[np.float32] = self.session.run(["score"], self.encode(columns))[0]
        if self.fields.number is not None:
            return [{"prediction": float(score)} for score in scores[:, 0]]
        if not self.fields.classes:
            return [{"prediction": int(score >= 0.5), "score": float(score)} for score in scores[:, 0]]
        best = scores.argmax(1)
        return [
            {"prediction": self.fields.classes[place], "score": float(own[place])}
            for place, own in zip(best.tolist(), scores, strict=True)
        ]


def row_model(fields: Fields, module: str = __name__) -> type[BaseModel]:
    """A pydantic model ``Row`` of the declared fields: vocabularies, bounds, what may be null.

    Pickle finds it as ``module``'s.
    """
    return create_model("Row", __module__=module, **{field.name: _declared(field) for field in fields.fields})


def _declared(field: Any) -> Any:
    kind: Any = str
    if isinstance(field, Categorical):
        kind = str if field.other else Literal[field.values]
    elif isinstance(field, Flag):
        kind = bool
    elif isinstance(field, Numeric):
        kind = Annotated[float, Field(ge=field.low, le=field.high, allow_inf_nan=False)]
    else:
        kind = Annotated[str, Field(min_length=1, max_length=getattr(field, "max_chars", None))]
    return (kind | None, None) if field.missing else (kind, ...)


def bundle() -> Path:
    """The bundle that is served."""
    return Path(os.environ["BENCH_BUNDLE"])


def create_app() -> Any:
    """Plain FastAPI: a table is scored where it is read, a text, which takes milliseconds, in a thread."""
    from fastapi import FastAPI

    model = Model(bundle())
    row = row_model(model.fields)
    body = create_model("Body", rows=(list[row], Field(min_length=1, max_length=10_000)))  # type: ignore[valid-type]
    app = FastAPI()

    async def predict(body: Any) -> dict[str, Any]:
        rows = [one.model_dump() for one in body.rows]
        found = model.answers(rows) if model.fields.text is None else await asyncio.to_thread(model.answers, rows)
        return {"rows": found}

    predict.__annotations__["body"] = body
    app.post("/predict", response_model=None)(predict)

    @app.get("/ready")
    def ready() -> dict[str, bool]:
        return {"ready": True}

    return app
