"""Train an estimator: from encoded rows to the fitted estimator in a folder, in this process."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines import measures
from pipelines.encoding import encode, texts_of
from pipelines.estimators import fitting
from pipelines.estimators.families import Running
from pipelines.estimators.fitting import Fitted, Labelled, Stopping
from pipelines.estimators.onnx import learned_sha256
from pipelines.estimators.words import tokenizer
from pipelines.fields import Fields, Scale
from pipelines.params import EstimatorParams, TrainParams
from pipelines.text import TOKENIZER, load_tokenizer, pad, tokenise
from pipelines.training import metrics
from pipelines.training.launch import Beside


def train(
    model: EstimatorParams,
    train: TrainParams,
    fields: Fields,
    columns: Mapping[str, list[Any]],
    scales: Mapping[str, Scale],
    folder: Path,
    beside: Beside,
) -> dict[str, Any]:
    """Fit, and leave the estimator and (texts) its tokenizer in ``folder``; returns the facts.

    With ``train.patience`` the newest ``train.validation_share`` of the rows says when to stop, and is not learned
    from. Raises what :func:`pipelines.estimators.fitting.fit` raises, and ConfigError if there is no graph of what was
    learned: better known before it is judged.
    """
    rows = Labelled(encoded(model, fields, columns, scales, folder), np.asarray(columns[fields.label]))
    with beside():
        learned_from, stopping = _split(rows, train)
        fitted = fitting.fit(model, fields, learned_from, Running(train.seed, train.threads), stopping)
    curve = list(fitted.curve) or [_loss(fitted, learned_from, fields)]
    if fitted.curve:
        lines = [{"step": step, "validation_loss": loss} for step, loss in enumerate(curve, start=1)]
        (folder / metrics.FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    fitting.save(fitted, folder / fitting.FILE)
    return {
        "strategy": "estimator",
        "precision": "fp32",
        "stopped": "finished",
        "steps": len(curve),
        "epochs": 1,
        "curve": curve,
        "resumed_from": None,
        "family": model.family,
        "weights_sha256": learned_sha256(fitted, fields),
    }


def encoded(
    model: EstimatorParams,
    fields: Fields,
    columns: Mapping[str, list[Any]],
    scales: Mapping[str, Scale],
    folder: Path,
) -> dict[str, NDArray[Any]]:
    """The training rows, encoded as everywhere; of texts the tokenizer is made here, and left in ``folder``."""
    tensors = encode(fields, columns, scales) if fields.has_table else {}
    if fields.text is None:
        return tensors
    texts = texts_of(fields, columns)
    path = folder / TOKENIZER
    tokenizer(texts, model.words).save(str(path))
    return pad(tokenise(load_tokenizer(path), texts)) | tensors


def _split(rows: Labelled, train: TrainParams) -> tuple[Labelled, Stopping | None]:
    """The rows to learn from, and the newest ones that say when to stop, if that is asked for."""
    if train.patience is None:
        return rows, None
    cut = len(rows.labels) - max(1, int(len(rows.labels) * train.validation_share))
    return _part(rows, slice(cut)), Stopping(_part(rows, slice(cut, None)), train.patience)


def _part(rows: Labelled, which: slice) -> Labelled:
    return Labelled({name: tensor[which] for name, tensor in rows.tensors.items()}, rows.labels[which])


def _loss(fitted: Fitted, rows: Labelled, fields: Fields) -> float:
    """The mean loss on the rows that were learned from: of a number the squared error, else log-loss."""
    answered: NDArray[np.float64] = fitting.answers(fitted, rows.tensors)
    score = answered if fields.classes else answered[:, 0]
    return float(measures.row_loss(rows.labels, score, number=fields.number is not None).mean())
