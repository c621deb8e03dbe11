"""dataset: choose the labelled rows of this run, and split them into training rows and holdout."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipelines import ledger, storage
from pipelines.cases import load_fields
from pipelines.contracts import Manifest, Release
from pipelines.data import dataset
from pipelines.data.heap import Heap
from pipelines.data.repeats import hashes as hashes_in
from pipelines.data.rows_file import RowsFile, rows_file
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
        file = rows_file(run_dir / "validate" / "rows.parquet")
        # All rows by what decides on them; whole rows are read when it is known which ones are wanted.
        rows = file.look(("event_time", fields.label, *fields.repeats))
        found, older, rule = dataset.by_rule(rows, fields.label, as_of, params.dataset)
        chosen = dataset.thinned(found, params.dataset, ids=lambda some: file.ids(some["id"]))
        known = None if champion is None else _known(file, _trained_on(settings, champion), fields.repeats)
        split = dataset.split(chosen, older, params.dataset, known, fields.repeats)
        if split.train.is_empty():
            raise TooFewRows(
                f"{params.case}: none of {rows.height} rows before {as_of.isoformat()} can be trained on, "
                f"{chosen.height} have a label that has arrived: "
                f"labels take {params.label_delay_days:g} days; choose a later as_of, or send labels"
            )
        parts = {"train": split.train, "holdout": split.holdout}
        if params.dataset.history_rows:
            parts["history"] = split.history
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            for name, part in parts.items():
                heap = Heap(Path(scratch), name)
                file.take(part["id"], heap)
                heap.write(folder / f"{name}.parquet")
        counts: dict[str, Any] = dataset.balance(split, fields)
        if params.dataset.sampling == "hash" and chosen.height < found.height:
            counts["sampled"] = {"rows": chosen.height, "of": found.height}
        return DatasetFacts(
            rule=rule,
            rows_per_day=dataset.rows_per_day(rows, chosen),
            train_rows=split.train.height,
            holdout_rows=split.holdout.height,
            replayed_rows=split.replayed,
            history_rows=split.history.height,
            **counts,
            window=dataset.training_window(as_of, params.dataset),
            oldest=chosen["event_time"][0].isoformat(),
            newest=chosen["event_time"][-1].isoformat(),
            champion=None if champion is None else champion.champion,
            excluded_rows=split.excluded,
        )

    def freeze(_made: Manifest) -> None:
        # Before anything is trained: a training whose profiles cannot be compared with later ones would be in vain.
        freeze_spec(fields, settings, lambda: pl.scan_parquet(run_dir / "dataset" / TRAIN))

    return Work(build, {"champion": None if champion is None else champion.candidate_key}, follow=freeze)


def _trained_on(settings: Settings, champion: Release) -> list[Path]:
    """The files with the rows that the champion was trained on.

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
    return [folder / TRAIN for folder in made]


def _known(file: RowsFile, files: Sequence[Path], repeats: Sequence[str]) -> pl.DataFrame:
    """The rows of ``files``: which of our own ``file`` they are, by number, and what they have of ``repeats``.

    Found by a 64-bit hash of the id; that another row has the same is improbable, and leaving it out is safe.
    """
    hashes = np.unique(np.concatenate([own for path in files for own in hashes_in(path)]))
    found = [file.numbers_of(hashes).to_frame("id")]
    if repeats:
        asked = pl.selectors.by_name(*repeats, require_all=False)
        found += [pl.scan_parquet(path).select(asked).collect() for path in files]
    return pl.concat(found, how="diagonal_relaxed")
