"""A logistic regression on the embeddings of an encoder that stays as it is.

It is the smoke test, and the first bar to beat.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import DataError
from pipelines.files import write_atomic
from pipelines.measures import row_log_loss, row_squared_error
from pipelines.params import TrainParams
from pipelines.text import pad

if TYPE_CHECKING:
    from pipelines.cases.encoder import Classifier

Floats = NDArray[np.float32]
Ids = Sequence[int] | NDArray[np.integer[Any]]

STRENGTHS = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)
"""Inverse regularisation strengths to choose from."""
NEWEST = 0.2
"""Share of the rows, from the end, on which the strength is chosen: rows come in time order."""


def fit_head(
    model: Classifier, tokens: Sequence[Ids], labels: NDArray[Any], params: TrainParams, cache: Path
) -> dict[str, Any]:
    """Fit ``model.head`` on the embeddings of ``tokens`` (ids of each row, in time order) by logistic regression.

    Of a model of a number by ridge regression, on what it standardises. ``labels`` [n] are positions of classes, 0 and
    1 for a model with one output, or numbers. The strength of the regularisation is the one with the lowest loss on the
    newest fifth, then all rows are fitted. Embeddings are kept in the folder ``cache``. Returns small facts. Raises
    DataError if the rows have one class only.
    """
    import torch
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    if hasattr(model, "standardise"):
        return _fit_number(model, tokens, np.asarray(labels, np.float64), params, cache)
    labels = np.asarray(labels).astype(np.int64)
    if len(np.unique(labels)) < 2:
        raise DataError(f"{len(labels)} rows of one class: a regression needs two; widen dataset.window_days")
    vectors, embedded = embeddings(model, tokens, cache, params.threads)
    # One scale for all columns keeps the strengths comparable between encoders; it is taken back below.
    spread = float(vectors.std()) or 1.0
    scaled = vectors.astype(np.float64) / spread

    def regression(strength: float, rows: slice) -> Any:
        weights = _weights(labels[rows], params.class_weights)
        return LogisticRegression(C=strength, max_iter=500).fit(scaled[rows], labels[rows], weights)

    cut = len(labels) - int(len(labels) * NEWEST)
    chosen = STRENGTHS[1]
    # One thread: sums in another order would be other weights.
    with threadpool_limits(1):
        if len(np.unique(labels[:cut])) > 1 and cut < len(labels):
            chosen = min(
                STRENGTHS, key=lambda strength: _log_loss(regression(strength, slice(cut)), scaled[cut:], labels[cut:])
            )
        fitted = regression(chosen, slice(None))
    weight, bias = _in_shape(fitted, model.head.out_features, scaled, len(labels))
    with torch.no_grad():
        model.head.weight.copy_(torch.from_numpy(weight / spread))
        model.head.bias.copy_(torch.from_numpy(bias))
    model.eval()
    return {"rows": len(labels), "embedded": embedded, "strength": chosen, "loss": _log_loss(fitted, scaled, labels)}


def _fit_number(
    model: Any, tokens: Sequence[Ids], labels: NDArray[np.float64], params: TrainParams, cache: Path
) -> dict[str, Any]:
    """The head of a number: ridge regression of squared error, its strength chosen on the newest fifth."""
    import torch
    from sklearn.linear_model import Ridge
    from threadpoolctl import threadpool_limits

    vectors, embedded = embeddings(model, tokens, cache, params.threads)
    spread = float(vectors.std()) or 1.0
    scaled = vectors.astype(np.float64) / spread
    model.fit_target(torch.from_numpy(labels))
    learned = model.standardise(torch.from_numpy(labels)).numpy().astype(np.float64)
    cut = len(labels) - int(len(labels) * NEWEST)

    def loss(strength: float, rows: slice, judged: slice) -> tuple[float, Any]:
        fitted = Ridge(alpha=1 / strength).fit(scaled[rows], learned[rows])
        return float(row_squared_error(learned[judged], fitted.predict(scaled[judged])).mean()), fitted

    chosen = STRENGTHS[1]
    with threadpool_limits(1):
        if 0 < cut < len(labels):
            chosen = min(STRENGTHS, key=lambda strength: loss(strength, slice(cut), slice(cut, None))[0])
        reached, fitted = loss(chosen, slice(None), slice(None))
    with torch.no_grad():
        model.head.weight.copy_(torch.from_numpy(fitted.coef_[None, :] / spread))
        model.head.bias.fill_(float(fitted.intercept_))
    model.eval()
    return {"rows": len(labels), "embedded": embedded, "strength": chosen, "loss": reached}


def _weights(labels: NDArray[np.int64], kind: str) -> NDArray[np.float64] | None:
    if kind == "none":
        return None
    counts = np.bincount(labels)[labels].astype(np.float64)
    power = -1.0
    if kind == "sqrt":
        power = -0.5
    weights = counts**power
    scaled: NDArray[np.float64] = weights / weights.mean()
    return scaled


def _log_loss(fitted: Any, rows: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Mean log-loss; a class that the regression never saw costs what a probability of 0 costs."""
    scores = fitted.predict_proba(rows)
    places = np.searchsorted(fitted.classes_, labels).clip(max=len(fitted.classes_) - 1)
    own = np.where(fitted.classes_[places] == labels, scores[np.arange(len(labels)), places], 0.0)
    return float(row_log_loss(np.ones(len(own)), own).mean())


def _in_shape(
    fitted: Any, outputs: int, scaled: NDArray[np.float64], n: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights ``[K, H]`` and biases ``[K]`` of the head.

    A class without rows gets about one row's share of the probability.
    """
    coefficients = fitted.coef_
    intercepts = fitted.intercept_
    if outputs == 1:
        return coefficients, intercepts
    if len(fitted.classes_) == 2:  # two classes come as one row of log-odds
        coefficients = np.vstack([np.zeros_like(coefficients), coefficients])
        intercepts = np.concatenate([[0.0], intercepts])
    logits = scaled @ coefficients.T + intercepts
    highest = logits.max(1, keepdims=True)
    total = float((highest[:, 0] + np.log(np.exp(logits - highest).sum(1))).mean())
    weight = np.zeros((outputs, scaled.shape[1]))
    bias = np.full(outputs, total - math.log(n + outputs))
    weight[fitted.classes_] = coefficients
    bias[fitted.classes_] = intercepts
    return weight, bias


# --- embeddings, kept on disk -------------------------------------------------------------------


def embeddings(model: Classifier, tokens: Sequence[Ids], cache: Path, threads: int = 1) -> tuple[Floats, int]:
    """Embeddings float32 ``[n, H]`` of every row, and how many of them were computed and not found in ``cache``.

    Kept by encoder (sha256 of its weights) and by the row's ids, which text, tokenizer and truncation determine.
    """
    folder = cache / _encoder_sha256(model)[:16]
    keys = [hashlib.sha256(np.asarray(row, np.int64).tobytes()).digest() for row in tokens]
    known = dict(_kept(folder))
    missing = {key: row for key, row in zip(keys, tokens, strict=True) if key not in known}
    if missing:
        fresh = _embed(model, list(missing.values()), threads)
        known |= dict(zip(missing, fresh, strict=True))
        buffer = io.BytesIO()
        np.savez(buffer, keys=np.frombuffer(b"".join(missing), np.uint8).reshape(-1, 32), vectors=fresh)
        write_atomic(folder / f"{hashlib.sha256(b''.join(missing)).hexdigest()[:16]}.npz", buffer.getvalue())
    return np.stack([known[key] for key in keys]), len(missing)


def _kept(folder: Path) -> Iterator[tuple[bytes, Floats]]:
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as file:
            yield from zip((key.tobytes() for key in file["keys"]), file["vectors"], strict=True)


def _embed(model: Classifier, rows: Sequence[Ids], threads: int) -> Floats:
    """Embed one row at a time, each with one thread.

    Its bits then depend on nothing but itself, and a kept embedding is as good as a fresh one.
    """
    import torch

    model.eval()

    def one(row: Ids) -> Floats:
        torch.set_num_threads(1)
        inputs = {name: torch.from_numpy(tensor) for name, tensor in pad([list(row)]).items()}
        with torch.inference_mode():
            embedding: Floats = model.embed(**inputs)[0].numpy()
        return embedding

    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads) as pool:
            return np.stack(list(pool.map(one, rows)))
    finally:
        torch.set_num_threads(before)


def _encoder_sha256(model: Classifier) -> str:
    total = hashlib.sha256()
    for name, tensor in _tensors(model):
        total.update(name.encode())
        total.update(tensor)
    return total.hexdigest()


def _tensors(model: Classifier) -> Iterable[tuple[str, bytes]]:
    return ((name, tensor.numpy().tobytes()) for name, tensor in sorted(model.encoder.state_dict().items()))
