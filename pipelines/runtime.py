"""The only home of ONNX Runtime: scores of a model bundle, computed as they will be served."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import ConfigError, IntegrityError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

MODEL = "model.onnx"
OUTPUT = "score"


@lru_cache(maxsize=8)
def _session(path: str, _inode: int, _modified: int) -> Any:
    """A session on one thread that does not spin: scoring shares its cores with a scheduler and a server."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        # ONNX Runtime's exceptions share no base below Exception; each of them means the file is not a model.
        raise IntegrityError(f"{path} cannot be loaded by ONNX Runtime ({error}): export it again") from error


def score(bundle: Path, tensors: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
    """Probabilities ``[B]`` of the positive class for the input tensors of :func:`pipelines.fields.encode`.

    The session is kept per model file. Raises ConfigError if the bundle has no model, IntegrityError if it
    cannot be loaded, does not take these tensors, or answers with anything but finite numbers.
    """
    import numpy as np

    path = bundle / MODEL
    try:
        found = path.stat()
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist: run the step 'export' first") from error
    session = _session(str(path), found.st_ino, found.st_mtime_ns)
    try:
        (answer,) = session.run([OUTPUT], dict(tensors))
    except Exception as error:
        raise IntegrityError(f"{path} does not take these tensors ({error}): encode with the fields of its own bundle") from error
    scores = np.asarray(answer, np.float64).reshape(-1)
    if not np.isfinite(scores).all():
        raise IntegrityError(f"{path} answered {int((~np.isfinite(scores)).sum())} score(s) that are not finite: train again with a lower learning rate")
    return scores
