"""A model's answers to a frame of raw rows, for who has its files and no gateway.

MLflow's copy of a version answers by this module. It goes there with all that it imports
(:mod:`pipelines.registry.code`), so that what checks, encodes and scores a row is the gateway's own code, of the day of
the registration. It needs no more than :func:`requirements`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines import measures, runtime
from pipelines.encoding import BUNDLE, Columns, Encode, encoder
from pipelines.errors import DataError, IntegrityError
from pipelines.fields import EVENT_TIME, FIELDS, SCORES, Fields, Moment, Numeric, Vector, of_bundle
from pipelines.parts import MAX_BATCH, cut
from pipelines.problems import Problem, problem, problem_of_time, read_time
from pipelines.text import TOKENIZER, load_tokenizer

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

PREDICTION, SCORE, PROBLEM = "prediction", "score", "problem"
"""Columns of an answer; with classes there is :data:`pipelines.fields.SCORES`, too."""


def requirements(fields: Fields) -> tuple[str, ...]:
    """The packages that a model of these fields needs where it answers, beside MLflow's."""
    texts = () if fields.text is None else ("tokenizers",)
    times = ("msgspec",) if fields.moments else ()
    return ("numpy", "onnxruntime", "pandas", "pydantic", *texts, *times)


def columns(fields: Fields) -> dict[str, bool]:
    """The columns of a frame, and whether it must have them: the fields, and where it is read, the event time."""
    return dict.fromkeys(fields.names, True) | dict.fromkeys((EVENT_TIME,) if EVENT_TIME in fields.reads else (), False)


@dataclass(frozen=True)
class Model:
    """A version: its bundle's folder, fields and encoding. ``longest`` is the tokenizer's truncation (0: no texts)."""

    folder: Path
    fields: Fields
    encode: Encode
    longest: int

    def predict(self, frame: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """The answers to a frame of raw rows, in its order and with its index.

        Columns: ``prediction`` (0 or 1, the class's name, or the number) and, unless a number is predicted, ``score``,
        the probability of 1 or of that class; with classes ``scores``, the probabilities of all in declared order; and
        ``problem``. That is null, or says why a row is not answered, as the gateway would refuse it: prediction and
        scores are null then, and the other rows are answered. NaN, NaT and NA are null, other columns are not looked
        at. Without an event time a row happens now. Raises DataError if a column is missing.
        """
        del params
        read = columns(self.fields)
        missing = [name for name, needed in read.items() if needed and name not in frame.columns]
        if missing:
            raise DataError(f"{self.fields.case}: column(s) {', '.join(missing)} missing: send {', '.join(read)}")
        sent = {name: _as_sent(frame[name]) for name in read if name in frame.columns}
        problems = [self._problem(row) for row in _rows(sent, len(frame))]
        good = np.flatnonzero([found is None for found in problems])
        return _frame(self.fields, self._scores(sent, good), good, problems, frame.index)

    def _problem(self, row: Mapping[str, Any]) -> Problem | None:
        """Why the gateway would refuse a row, or None."""
        for field in self.fields.fields:
            if (found := problem(field, row[field.name])) is not None:
                return found
        moment = row.get(EVENT_TIME)
        return None if moment is None else problem_of_time(EVENT_TIME, "event_time", moment)

    def _scores(self, sent: Mapping[str, Sequence[Any]], good: NDArray[np.intp]) -> NDArray[np.float64]:
        """The scores ``[n, outputs]`` of the good rows, scored in inferences as the gateway's."""
        scores = np.empty((len(good), self.fields.outputs))
        now = datetime.now(UTC)  # noqa: TID251 - a row without an event time happens when it is asked for
        for start in range(0, len(good), MAX_BATCH):
            places = good[start : start + MAX_BATCH].tolist()
            read = {name: [column[place] for place in places] for name, column in sent.items()}
            values = {field.name: [_as_read(field, one) for one in read[field.name]] for field in self.fields.fields}
            values[EVENT_TIME] = [_utc(one) or now for one in read.get(EVENT_TIME, [None] * len(places))]
            scores[start : start + len(places)] = self.scores(values)
        return scores

    def scores(self, values: Columns) -> NDArray[np.float64]:
        """The scores ``[n, outputs]`` of columns of raw values as the gateway decodes them, cut into inferences as its.

        Raises DataError for values that the encoding refuses.
        """
        tensors = self.encode(values)
        scores = np.empty((len(next(iter(tensors.values()))), self.fields.outputs))
        for part in cut(tensors, self.longest):
            answers = runtime.score(self.folder, part.tensors)
            scores[np.asarray(part.rows)] = answers.reshape(len(part.rows), -1)
        return scores


def load(folder: Path) -> Model:
    """The model of a bundle: ``model.onnx``, ``bundle.json``, ``fields.json``, with texts ``tokenizer.json``.

    Raises IntegrityError if they are not of one another.
    """
    fields = of_bundle(folder)
    said = json.loads((folder / BUNDLE).read_text()).get("fields_hash")
    if said != fields.hash:
        raise IntegrityError(
            f"{folder}: {FIELDS} declares other fields ({fields.hash[:12]}) than the model was trained with "
            f"({str(said)[:12]}): get the version from MLflow again"
        )
    longest = 0 if fields.text is None else int(load_tokenizer(folder / TOKENIZER).truncation["max_length"])
    return Model(folder, fields, encoder(fields, folder), longest)


def _load_pyfunc(path: str) -> Model:
    """MLflow's way to load a model, ``path`` is its data."""
    return load(Path(path))


def _rows(sent: Mapping[str, Sequence[Any]], count: int) -> list[dict[str, Any]]:
    return [{name: column[place] for name, column in sent.items()} for place in range(count)]


def _as_sent(column: pd.Series[Any]) -> list[Any]:
    """The values of a column as a JSON body would have them: null for what is missing, times as texts."""
    null = column.isna().tolist()
    return [None if missing else _value_sent(value) for value, missing in zip(column.tolist(), null, strict=True)]


def _value_sent(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, datetime):
        return value.isoformat()
    return list(value) if isinstance(value, tuple) else value


def _as_read(field: Any, value: Any) -> Any:
    """An allowed value as the gateway decodes it: every number is a float, every time in UTC."""
    if value is None:
        return None
    if isinstance(field, Numeric):
        return float(value)
    if isinstance(field, Vector):
        return [float(one) for one in value]
    return _utc(value) if isinstance(field, Moment) else value


def _utc(text: str | None) -> datetime | None:
    moment = None if text is None else read_time(text)
    return None if moment is None else moment.astimezone(UTC)


def _frame(
    fields: Fields, scores: NDArray[np.float64], good: NDArray[np.intp], problems: Sequence[Problem | None], index: Any
) -> pd.DataFrame:
    import pandas as pd

    found: dict[str, Sequence[Any]] = {PREDICTION: scores[:, 0].tolist()}
    if fields.classes:
        names = [fields.classes[place] for place in measures.decided(scores)]
        found = {PREDICTION: names, SCORE: scores.max(1).tolist(), SCORES: scores.tolist()}
    elif fields.number is None:
        found = {PREDICTION: measures.decided(scores[:, 0]).tolist(), SCORE: scores[:, 0].tolist()}
    answered = {name: _spread(values, good, len(problems)) for name, values in found.items()}
    told = [None if one is None else str(one) for one in problems]
    plain = len(good) == len(problems) and not fields.classes
    # As objects nulls stay what they are: other columns would make NaN of them, which is no JSON.
    kinds = {name: object for name in found if not (plain and len(good))} | {PROBLEM: object}
    made = {**answered, PROBLEM: told}
    return pd.DataFrame({name: pd.Series(column, index, kinds.get(name)) for name, column in made.items()})


def _spread(values: Sequence[Any], good: NDArray[np.intp], rows: int) -> list[Any]:
    """The values of the good rows in their places, null in the others."""
    spread: list[Any] = [None] * rows
    for place, value in zip(good.tolist(), values, strict=True):
        spread[place] = value
    return spread
