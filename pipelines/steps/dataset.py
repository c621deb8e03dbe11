"""dataset: choose the labelled rows of this run, and split them into training rows and holdout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from pipelines import ledger, storage
from pipelines.cases import load_fields
from pipelines.contracts import Manifest, Release
from pipelines.data import dataset
from pipelines.drift.profile.spec import freeze_spec
from pipelines.errors import IntegrityError, TooFewRows
from pipelines.line.facts import DatasetFacts
from pipelines.line.step import Read, Run, Work
from pipelines.settings import Settings

TRAIN = "train.parquet"


def work(run: Run, _read: Read) -> Work:
    """Write ``train.parquet`` and ``holdout.parquet``, and where it is declared ``history.parquet``.

    The fact ``rows_per_day`` is the
    case's usual volume at that time, of all rows, for the drift step. The case's first one also freezes the scales of
    its profiles (:func:`pipelines.drift.profile.spec.freeze_spec`). The holdout may be empty (the gate is inconclusive
    then). Raises TooFewRows if there is no labelled row to train on, IntegrityError if the champion's own training rows
    cannot be found.
    """
    params, settings, run_dir, as_of = run.params, run.settings, run.dir, run.as_of
    fields = load_fields(params.case)
    champion = ledger.champion_before(settings.ledger, params.case, as_of)

    def build(folder: Path, _key: str) -> DatasetFacts:
        rows = pl.read_parquet(run_dir / "validate" / "rows.parquet")
        chosen, older, rule = dataset.choose(rows, fields.label, as_of, params.dataset)
        known = None
        if champion is not None:
            known = _trained_on(settings, champion, ("id", *fields.repeats))
        split = dataset.split(chosen, older, params.dataset, known, fields.repeats)
        if split.train.is_empty():
            raise TooFewRows(
                f"{params.case}: none of {rows.height} rows before {as_of.isoformat()} can be trained on, "
                f"{chosen.height} have a label that has arrived: "
                f"labels take {params.label_delay_days:g} days; choose a later as_of, or send labels"
            )
        split.train.write_parquet(folder / "train.parquet", compression="zstd")
        split.holdout.write_parquet(folder / "holdout.parquet", compression="zstd")
        if params.dataset.history_rows:
            split.history.write_parquet(folder / "history.parquet", compression="zstd")
        return DatasetFacts(
            rule=rule,
            rows_per_day=dataset.rows_per_day(rows, chosen),
            train_rows=split.train.height,
            holdout_rows=split.holdout.height,
            replayed_rows=split.replayed,
            history_rows=split.history.height,
            **dataset.balance(split, fields),
            window=dataset.training_window(as_of, params.dataset),
            oldest=chosen["event_time"][0].isoformat(),
            newest=chosen["event_time"][-1].isoformat(),
            champion=None if champion is None else champion.champion,
            excluded_rows=split.excluded,
        )

    def freeze(_made: Manifest) -> None:
        # Before anything is trained: a training whose profiles cannot be compared with later ones would be in vain.
        freeze_spec(fields, settings, lambda: pl.read_parquet(run_dir / "dataset" / TRAIN))

    return Work(build, {"champion": None if champion is None else champion.candidate_key}, follow=freeze)


def _trained_on(settings: Settings, champion: Release, columns: Sequence[str]) -> pl.DataFrame:
    """The rows the champion was trained on, with those of the ``columns`` that its declaration had.

    They lie beside its bundle. If its run was repeated with other parameters, folders that were set aside lie
    there too; the rows of all of them count, as leaving out too many is safe and too few is not.
    """
    run = settings.root / Path(champion.bundle).parent
    made = [
        path.parent
        for path in sorted(run.glob(f"dataset*/{storage.MANIFEST}"))
        if not path.parent.name.startswith(f"dataset.{storage.DAMAGED}")
    ]
    if not made:
        raise IntegrityError(
            f"{run}/dataset/train.parquet, the rows champion {champion.champion} was trained on, is missing: "
            "restore the run's folder"
        )
    for folder in made:
        storage.read_manifest(folder, verify={TRAIN})
    files = [pl.scan_parquet(folder / TRAIN) for folder in made]
    return pl.concat(
        [file.select(pl.selectors.by_name(*columns, require_all=False)).collect() for file in files],
        how="diagonal_relaxed",
    )
