"""The only home of ONNX Runtime: scores of a model bundle, computed as they will be served."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.encoding import Columns, encoder
from pipelines.errors import ConfigError, IntegrityError
from pipelines.fields import Fields
from pipelines.text import TOKENS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy as np
    from numpy.typing import NDArray

MODEL = "model.onnx"
OUTPUT = "score"
BATCH = 64
"""Texts of one call: more of them are not faster on a core, and need more memory."""
POOL = 4_096
"""Texts that are encoded, and sorted by their length, together."""


@lru_cache(maxsize=8)
def _session(path: str, _inode: int, _modified: int, threads: int) -> Any:
    """A session that does not spin: scoring shares its cores with a scheduler and a server."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        # ONNX Runtime's exceptions share no base below Exception; each of them means the file is not a model.
        raise IntegrityError(
            f"{path} cannot be loaded by ONNX Runtime ({error}): remove it and export it again"
        ) from error


def score(
    bundle: Path, tensors: Mapping[str, NDArray[Any]], *, model: str = MODEL, threads: int = 1
) -> NDArray[np.float64]:
    """Probabilities for the input tensors of a bundle: ``[B]`` of the positive class, or ``[B, K]`` of ``K`` classes.

    The tensors are those of :func:`pipelines.encoding.encoder`; ``model`` names another file of the bundle than
    the one that ships. The session, of ``threads`` threads, is kept per file. Raises ConfigError if the bundle
    has no model, IntegrityError if it cannot be loaded, does not take these tensors, or answers with anything
    but finite numbers.
    """
    import numpy as np

    path = bundle / model
    try:
        found = path.stat()
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist: run the step 'export' first") from error
    session = _session(str(path), found.st_ino, found.st_mtime_ns, threads)
    try:
        (answer,) = session.run([OUTPUT], dict(tensors))
    except Exception as error:
        raise IntegrityError(
            f"{path} does not take these tensors ({error}): encode with the fields of its own bundle"
        ) from error
    scores = np.asarray(answer, np.float64)
    wrong = int((~np.isfinite(scores)).sum())
    if wrong:
        raise IntegrityError(
            f"{path} answered {wrong} score(s) that are not finite: train again with a lower learning rate"
        )
    if scores.ndim == 2 and scores.shape[1] > 1:
        return scores
    return scores.reshape(-1)


def score_rows(
    bundle: Path, fields: Fields, columns: Columns, *, model: str = MODEL, threads: int = 1
) -> NDArray[np.float64]:
    """Scores ``[B]`` or ``[B, K]`` of rows given as columns of raw values, in their order (see :func:`score`).

    Encoded with ``fields`` and the bundle's own tokenizer. Texts go through the model sorted by length in
    batches of ``BATCH``, of which no more than ``POOL`` are encoded at a time. Raises DataError for values that
    the fields do not take, and what :func:`score` raises.
    """
    import numpy as np

    name = fields.inputs[0] if fields.text is None else fields.text.name
    encode = encoder(fields, bundle)
    if name in columns and not len(columns[name]):
        return _shaped(np.empty((0, fields.outputs)), fields)
    if fields.text is None or name not in columns:  # encoding says which column is missing
        return score(bundle, encode(columns), model=model, threads=threads)
    rows = len(columns[name])
    scores = np.empty((rows, fields.outputs))
    for start in range(0, rows, POOL):
        tensors = encode({own: column[start : start + POOL] for own, column in columns.items()})
        for positions, batch in by_length(tensors):
            answered = score(bundle, batch, model=model, threads=threads)
            scores[start + positions] = answered.reshape(len(positions), -1)
    return _shaped(scores, fields)


def _shaped(scores: NDArray[np.float64], fields: Fields) -> NDArray[np.float64]:
    """Scores ``[B, outputs]`` as ``[B]`` for a binary label."""
    if fields.classes:
        return scores
    return scores.reshape(-1)


def by_length(
    tensors: Mapping[str, NDArray[Any]], batch: int = BATCH
) -> Iterator[tuple[NDArray[np.intp], dict[str, NDArray[Any]]]]:
    """Padded token tensors ``[B, S]``, and what is beside them, in batches of rows of about one length.

    Yields ``(positions, their tensors)``, the token tensors cut to the batch's longest row.
    """
    import numpy as np

    lengths = tensors["attention_mask"].sum(1)
    order = np.argsort(lengths, kind="stable")
    for start in range(0, len(order), batch):
        positions = order[start : start + batch]
        width = max(1, int(lengths[positions].max()))
        yield positions, {name: _cut(name, tensor[positions], width) for name, tensor in tensors.items()}


def _cut(name: str, tensor: NDArray[Any], width: int) -> NDArray[Any]:
    import numpy as np

    return np.ascontiguousarray(tensor[:, :width]) if name in TOKENS else tensor
