"""Candidates of model kind ``embedding``.

The encoder never changes, so a text is embedded once and a score is one matrix product. The scores are those of the
network up to rounding; a test holds them to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipelines import storage
from pipelines.cases import part
from pipelines.cases.embedding import embeddings
from pipelines.contracts import Manifest
from pipelines.drift.reference import Basis, write_reference
from pipelines.encoding import Columns, texts_of
from pipelines.fields import Fields
from pipelines.files import file_sha256
from pipelines.line import runner
from pipelines.line.facts import Facts
from pipelines.line.order import DATASET, EXPORT, TRAIN
from pipelines.line.step import Run
from pipelines.params import Params, TextModelParams
from pipelines.settings import Settings
from pipelines.steps import export
from pipelines.text import TOKENIZER, load_tokenizer, tokenise


@lru_cache(maxsize=1)
def _network(case: str, model: TextModelParams, fields: Fields) -> Any:
    return part(case, "model").build(model, fields)


@lru_cache(maxsize=1)
def _kept(cache: Path, case: str, model: TextModelParams, fields: Fields) -> dict[str, Any]:
    """Embeddings that this process has used, by tokenizer and texts.

    1 MB for 700 texts, and the oracle scores every candidate on the same ones.
    """
    del cache, case, model, fields
    return {}


def _vectors(
    params: Params, fields: Fields, model: TextModelParams, tokenizer: Path, texts: Sequence[str], cache: Path
) -> NDArray[np.float32]:
    """Embeddings float32 ``[n, H]`` of texts."""
    kept = _kept(cache, params.case, model, fields)
    key = storage.digest([file_sha256(tokenizer), list(texts)])
    if key not in kept:
        tokens = tokenise(load_tokenizer(tokenizer), texts)
        kept[key], _ = embeddings(_network(params.case, model, fields), tokens, cache, params.train.threads)
    found: NDArray[np.float32] = kept[key]
    return found


def scores(params: Params, fields: Fields, train: Path, columns: Columns, cache: Path) -> NDArray[np.float64]:
    """Probabilities ``[n]`` or ``[n, K]`` of the head in the folder ``train`` for texts.

    Their embeddings are kept in ``cache``.
    """
    import torch

    assert isinstance(params.model, TextModelParams)
    texts = texts_of(fields, columns)
    if not len(texts):
        return np.empty((0, fields.outputs) if fields.classes else 0)
    vectors = _vectors(params, fields, params.model, train / TOKENIZER, texts, cache)
    state = torch.load(train / "weights.pt", weights_only=True, mmap=True)
    logits = vectors.astype(np.float64) @ state["head.weight"].double().numpy().T + state["head.bias"].double().numpy()
    if not fields.classes:
        binary: NDArray[np.float64] = 1 / (1 + np.exp(-logits[:, 0]))
        return binary
    odds = np.exp(logits - logits.max(1, keepdims=True))
    of_classes: NDArray[np.float64] = odds / odds.sum(1, keepdims=True)
    return of_classes


def export_reference(run: Run, fields: Fields) -> Manifest:
    """Write the folder ``export`` with the reference that drift is measured against, as the export step does.

    No network is trained for it.
    """

    def write(folder: Path, basis: Basis) -> Facts:
        scores = of_rows(run.params, run.settings, run.dir / EXPORT.name, basis.holdout, fields)
        write_reference(folder, run.dir / DATASET.name / "train.parquet", scores, basis)
        return HeadFacts(holdout_rows=basis.holdout.height)

    work = export.written_by(write, run)
    work = replace(work, declared={**work.declared, "head": True})
    return runner.publish(EXPORT, run, runner.reads(EXPORT, run), work)


class HeadFacts(Facts):
    """What stands for a bundle without a network: how many rows its reference has scores of."""

    holdout_rows: int


def of_rows(
    params: Params, settings: Settings, bundle: Path, rows: pl.DataFrame, fields: Fields
) -> NDArray[np.float64]:
    """Scores of canonical rows by the head beside ``bundle``: what the evaluate step asks for."""
    columns = {name: rows[name].to_list() for name in fields.reads}
    return scores(params, fields, bundle.parent / TRAIN.name, columns, settings.root / "cache" / "embeddings")
