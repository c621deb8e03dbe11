"""Reports for the triage case's real steps.

Texts, a bundle that reads them word by word, and what the gateway would log.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from pipelines import runtime
from pipelines.cases import load_fields
from pipelines.fields import Fields, frame_schema, to_json
from pipelines.settings import Settings
from tests.pipelines.data import loglines
from tests.pipelines.export.texts import WORDS, write_tokenizer

CASE = "triage"
FIELDS = load_fields(CASE)
START = datetime(2015, 1, 1, tzinfo=UTC)
DELAY = timedelta(days=30)


def reports(
    count: int, *, start: datetime = START, days: int = 90, seed: int = 0, words: int = 6, common: int = 3
) -> pl.DataFrame:
    """Canonical labelled rows: a report holds its team's word among ``words`` others and its own number.

    ``common`` is the commonest team.
    """
    rng = np.random.default_rng(seed)
    mix = np.where(np.arange(len(FIELDS.classes)) == common, 3.0, 1.0)
    teams = rng.choice(len(mix), count, p=mix / mix.sum())
    # All of a day in its first hour: the log keeps a file per hour.
    moments = [start + timedelta(days=position * days // count, seconds=position) for position in range(count)]
    others = rng.choice(WORDS[40:], (count, words))
    return pl.DataFrame(
        {
            "id": [f"{seed}-{number:04d}" for number in range(count)],
            "event_time": moments,
            "text": [
                f"{' '.join(row)} word{team} nr{seed}-{number}"
                for number, (team, row) in enumerate(zip(teams, others, strict=True))
            ],
            FIELDS.label: teams,
            "label_time": [moment + DELAY for moment in moments],
        },
        schema=frame_schema(FIELDS),
    )


def write_bundle(folder: Path, known: tuple[int, ...], fields: Fields = FIELDS) -> None:
    """A bundle of ``fields`` that knows the words of the teams ``known``, and takes all others for any.

    ``known`` are positions in the case's classes.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    table = np.zeros((len(WORDS), fields.outputs), np.float32)
    for team in known:
        table[WORDS.index(f"word{team}"), fields.classes.index(FIELDS.classes[team])] = 4.0
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["found"]),
        helper.make_node("Cast", ["attention_mask"], ["there"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["there", "last"], ["weight"]),
        helper.make_node("Mul", ["found", "weight"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "tokens"], ["logits"], keepdims=0),
        helper.make_node("Softmax", ["logits"], ["score"], axis=1),
    ]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "seq"])
        for name in ("input_ids", "attention_mask")
    ]
    output = helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch", fields.outputs])
    constants = {"table": table, "last": np.array([2]), "tokens": np.array([1])}
    graph = helper.make_graph(
        nodes, "words", inputs, [output], [numpy_helper.from_array(value, name) for name, value in constants.items()]
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), folder / "model.onnx"
    )
    write_tokenizer(folder)
    (folder / "fields.json").write_text(json.dumps(to_json(fields)))
    (folder / "bundle.json").write_text(json.dumps({"fields_hash": fields.hash}))


def scores(bundle: Path, rows: pl.DataFrame) -> np.ndarray:
    """Probabilities ``[n, K]`` of a bundle."""
    return runtime.score_rows(bundle, FIELDS, {"text": rows["text"].to_list()})


def serve(settings: Settings, bundle: Path, rows: pl.DataFrame, segment: str) -> None:
    """Log the answers of version 1 to ``rows``, and their labels when they arrive."""
    given = scores(bundle, rows)
    lines = [
        line | {"score": float(own.max()), "prediction": int(own.argmax()), "scores": own.tolist()}
        for line, own in zip(loglines.predictions(rows, FIELDS), given, strict=True)
    ]
    loglines.write(settings, CASE, "predictions", segment, lines)
    loglines.write(settings, CASE, "labels", segment, loglines.labels(rows, FIELDS))
