"""evaluate: score the holdout with the bundle that would ship, and with the champion's, on ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipelines import ledger, runtime, storage
from pipelines.cases import load_fields
from pipelines.contracts import Manifest, Release
from pipelines.drift import reference
from pipelines.encoding import BUNDLE
from pipelines.errors import ConfigError
from pipelines.evaluation.metrics import metrics
from pipelines.evaluation.slices import slices
from pipelines.fields import Fields
from pipelines.line.facts import DatasetFacts, EvaluateFacts
from pipelines.line.step import Read, Run, Work
from pipelines.measures import class_f1, confusion

JUDGED_BY = frozenset({BUNDLE, "spec.json", reference.FILE})
"""Files of a bundle that say what it was made of and how it is watched."""

Score = Callable[[Path, pl.DataFrame, Fields], Any]
"""Scores ``[n]`` or ``[n, K]`` of a bundle for canonical rows."""


def work(run: Run, read: Read) -> Work:
    """Write ``scores.parquet`` (id, label, challenger, champion, declared slice columns).

    With classes a score is an array of all classes' probabilities, and the facts hold the challenger's ``confusion``.
    Where the dataset keeps rows from before the window, ``history`` says what each model still knows of them. The
    champion is the release before ``as_of``, scored anew on the same rows from its own bundle; a metric from another
    holdout would not be comparable. Raises IntegrityError if its bundle is missing.
    """
    return scored_by(_scores, run, read)


def scored_by(of: Score, run: Run, read: Read) -> Work:
    """:func:`work` with something else than ONNX Runtime, for bundles that hold no network (pipelines/replay)."""
    params, settings, run_dir = run.params, run.settings, run.dir
    fields = load_fields(params.case)
    dataset, export = DatasetFacts.of(read["dataset"]), read["export"]
    champion = ledger.champion_before(settings.ledger, params.case, run.as_of)

    def build(folder: Path, _key: str) -> EvaluateFacts:
        rows = pl.read_parquet(run_dir / "dataset" / "holdout.parquet")
        label = rows[fields.label].to_numpy()
        named = _named(rows, fields)
        masks = slices(named, params.gate.slices)
        bundle = None if champion is None else storage.find(settings.root / champion.bundle, champion.candidate_key)
        challenger = of(run_dir / "export", rows, fields)
        opponent = None if bundle is None else of(bundle, rows, fields)
        same_model = bundle is not None and _answers(storage.read_manifest(bundle)) == _answers(export)
        rate = dataset.base_rate
        base = np.tile(np.array(rate), (rows.height, 1)) if fields.classes else np.full(rows.height, rate)
        scored = rows.select(
            "id",
            pl.col(fields.label).alias("label"),
            _column("challenger", challenger, fields),
            _column("champion", opponent, fields, rows.height),
            *(named[name] for name in params.gate.slices),
        )
        scored.write_parquet(folder / "scores.parquet")
        return EvaluateFacts(
            n=rows.height,
            positives=rows.height - _commonest(label) if fields.classes else int(label.sum()),
            challenger=metrics(label, challenger),
            champion=None if opponent is None else metrics(label, opponent),
            base_rate={"rate": rate, **metrics(label, base)},
            slices={
                name: {
                    "n": int(mask.sum()),
                    "challenger": metrics(label[mask], challenger[mask]),
                    "champion": None if opponent is None else metrics(label[mask], opponent[mask]),
                }
                for name, mask in masks.items()
            },
            opponent=None if champion is None else _opponent(champion, same_model=same_model),
            **(_by_class(fields, label, challenger) if fields.classes else {}),
            **_history(run_dir, fields, bundle, of),
        )

    known = None if champion is None else champion.candidate_key
    return Work(build, {"champion": known, "fields": fields.hash})


def _opponent(champion: Release, *, same_model: bool) -> dict[str, Any]:
    return {
        "version": champion.champion,
        "candidate_key": champion.candidate_key,
        "seq": champion.seq,
        "same_model": same_model,
    }


def _answers(export: Manifest) -> dict[str, Any]:
    """All that a bundle's answers come from.

    What it is judged by later (its baseline of the labels known by then) is no part of that.
    """
    files = {name: sha256 for name, sha256 in export.files.items() if name not in JUDGED_BY}
    return {"files": files, "train": export.inputs.get("train")}


def _scores(bundle: Path, rows: pl.DataFrame, fields: Fields) -> Any:
    """Scores ``[n]`` or ``[n, K]`` of a bundle.

    Rows are encoded with the fields it was trained with, which may be older than the case's. Its classes are found by
    name: one that it does not know has probability 0.
    """
    from pipelines.export.bundle import read_fields

    own = read_fields(bundle)
    scores = runtime.score_rows(bundle, own, {name: rows[name].to_list() for name in own.names if name in rows.columns})
    if own.classes == fields.classes:
        return scores
    if not (own.classes and fields.classes):
        raise ConfigError(
            f"{bundle} has {len(own.classes)} classes, the case {len(fields.classes)}: a binary label and classes do "
            "not compare; give the new label a case of its own"
        )
    places = {name: position for position, name in enumerate(own.classes)}
    columns = [scores[:, places[name]] if name in places else np.zeros(len(scores)) for name in fields.classes]
    return np.stack(columns, axis=1)


def _column(name: str, scores: Any, fields: Fields, rows: int = 0) -> pl.Series:
    kind = pl.Array(pl.Float64, fields.outputs) if fields.classes else pl.Float64()
    return pl.Series(name, [None] * rows if scores is None else scores, dtype=kind)


def _named(rows: pl.DataFrame, fields: Fields) -> pl.DataFrame:
    """The rows with the names of their classes: ``gate.slices`` may name the label."""
    if not fields.classes:
        return rows
    return rows.with_columns(
        pl.col(fields.label).replace_strict(dict(enumerate(fields.classes)), return_dtype=pl.String)
    )


def _commonest(label: Any) -> int:
    if len(label):
        return int(np.bincount(label).max())
    return 0


def _by_class(fields: Fields, label: Any, scores: Any) -> dict[str, Any]:
    table = confusion(label, scores)
    return {"classes": list(fields.classes), "confusion": table.tolist(), "class_f1": class_f1(table)}


def _history(run_dir: Path, fields: Fields, champion: Path | None, of: Score) -> dict[str, Any]:
    """Metrics on the rows from before the window that neither model was trained on, if the dataset keeps any."""
    path = run_dir / "dataset" / "history.parquet"
    if not path.exists():
        return {}
    rows = pl.read_parquet(path)
    label = rows[fields.label].to_numpy()
    known = {"challenger": run_dir / "export", **({} if champion is None else {"champion": champion})}
    return {
        "history": {
            "n": rows.height,
            "champion": None,
            **{name: metrics(label, of(bundle, rows, fields)) for name, bundle in known.items()},
        }
    }
