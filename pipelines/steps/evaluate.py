"""evaluate: score the holdout with the bundle that would ship, and with the champion's, on ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from pipelines import ledger, storage
from pipelines.cases import load_fields
from pipelines.contracts import Manifest, Release
from pipelines.drift import reference
from pipelines.encoding import BUNDLE
from pipelines.evaluation import baseline, holdout
from pipelines.evaluation.metrics import metrics_of
from pipelines.export import scoring
from pipelines.fields import Fields
from pipelines.line.facts import DatasetFacts, EvaluateFacts
from pipelines.line.step import Read, Run, Work
from pipelines.measures import slices

JUDGED_BY = frozenset({BUNDLE, "spec.json", reference.FILE})
"""Files of a bundle that say what it was made of and how it is watched."""

Score = Callable[[Path, pl.DataFrame, Fields], Any]
"""Scores ``[n]`` or ``[n, K]`` of a bundle for canonical rows."""


def work(run: Run, read: Read) -> Work:
    """Write ``scores.parquet`` (id, label, challenger, champion or else a baseline, declared slice columns).

    With classes a score is an array of all classes' probabilities, and the facts hold the challenger's ``confusion``.
    Where the dataset keeps rows from before the window, ``history`` says what each model still knows of them. The
    champion is the release before ``as_of``, scored anew on the same rows from its own bundle; a metric from another
    holdout would not be comparable. Raises IntegrityError if its bundle is missing.
    """
    return scored_by(scoring.score, run, read)


def scored_by(of: Score, run: Run, read: Read) -> Work:
    """:func:`work` with something else than ONNX Runtime, for bundles that hold no network (pipelines/replay)."""
    params, settings = run.params, run.settings
    fields = load_fields(params.case)
    metrics = metrics_of(fields)
    rate = DatasetFacts.of(read["dataset"]).base_rate
    champion = ledger.champion_before(settings.ledger, params.case, run.as_of)

    def build(folder: Path, _key: str) -> EvaluateFacts:
        rows = pl.read_parquet(run.dir / "dataset" / "holdout.parquet")
        train = pl.read_parquet(run.dir / "dataset" / "train.parquet", columns=baseline.reads(fields, params.gate))
        overall = baseline.constant(train, rate, fields, params.gate)
        simple = baseline.answers(train, rows, overall, fields, params.gate)
        label = rows[fields.label].to_numpy()
        masks = slices(holdout.with_class_names(rows, fields), params.gate.slice_fields, params.gate.bins)
        bundles = {"challenger": run.dir / "export"}
        opponent = None
        if champion is not None:
            bundles["champion"] = storage.find(settings.root / champion.bundle, champion.candidate_key)
            opponent = _opponent(champion, bundles["champion"], read["export"])
        scores = {name: of(bundle, rows, fields) for name, bundle in bundles.items()}
        ours = scores["challenger"]
        theirs = scores.get("champion")
        kept = holdout.scored(rows, fields, ours, theirs, simple, params.gate.slice_fields)
        kept.write_parquet(folder / "scores.parquet")
        return EvaluateFacts(
            n=rows.height,
            positives=holdout.positives(label, fields),
            challenger=metrics(label, ours),
            champion=holdout.measured(label, theirs, metrics),
            base_rate={"rate": overall, **metrics(label, simple)},
            baseline=baseline.told(fields, params.gate),
            slices=holdout.by_slice(label, ours, theirs, masks, metrics),
            opponent=opponent,
            **holdout.by_class(label, ours, fields),
            **_history(run.dir / "dataset" / "history.parquet", fields, bundles, of),
        )

    known = None if champion is None else champion.candidate_key
    return Work(build, {"champion": known, "fields": fields.hash})


def _opponent(champion: Release, bundle: Path, export: Manifest) -> dict[str, Any]:
    """The release that is compared with; ``same_model``: the challenger gives the same answers, whatever else it is."""
    return {
        "version": champion.champion,
        "candidate_key": champion.candidate_key,
        "seq": champion.seq,
        "same_model": _answers(storage.read_manifest(bundle)) == _answers(export),
    }


def _answers(export: Manifest) -> dict[str, Any]:
    """All that a bundle's answers come from.

    What it is judged by later (its baseline of the labels known by then) is no part of that.
    """
    files = {name: sha256 for name, sha256 in export.files.items() if name not in JUDGED_BY}
    return {"files": files, "train": export.inputs.get("train")}


def _history(path: Path, fields: Fields, bundles: dict[str, Path], of: Score) -> dict[str, Any]:
    """Metrics on the rows from before the window that neither model was trained on, if the dataset keeps any."""
    if not path.exists():
        return {}
    rows = pl.read_parquet(path)
    label = rows[fields.label].to_numpy()
    metrics = metrics_of(fields)
    found = {name: metrics(label, of(bundle, rows, fields)) for name, bundle in bundles.items()}
    return {"history": {"n": rows.height, "champion": None, **found}}
