"""Candidates, kept by what they were trained from: policies that train on the same rows share one training.

``<state>/replay/<case>/candidates/<key>`` holds ``train`` as the train step left it, ``runs/<dataset>/export`` as the
export step did for each holdout, and links to the dataset that it was trained from first and to its first bundle.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipelines import runtime, storage
from pipelines.contracts import Release
from pipelines.files import write_atomic
from pipelines.line import runner
from pipelines.line.order import DATASET, EXPORT, TRAIN
from pipelines.line.step import Run
from pipelines.replay import heads
from pipelines.replay.ticks import Tick
from pipelines.replay.world import World, link
from pipelines.settings import Settings
from pipelines.steps import train

LENGTH = 16
"""Hexadecimal digits of a key that name a folder."""
BUNDLE = "bundle"


@dataclass(frozen=True)
class Candidate:
    """A trained model. ``seconds`` is what its one training took, wall time."""

    key: str
    seconds: float


def dataset_key(world: World, settings: Settings, run_dir: Path, as_of: datetime) -> str:
    """What a training at ``run_dir`` would be made from.

    The training rows (ids, features, labels, their order) and all that trains them. Not the step's own key: that names
    the champion, whose rows leave the holdout only, and the log's partitions, which hold the answers of whoever served.
    """
    fields, run = world.fields, Run(world.params, settings, as_of, folder=run_dir)
    rows = pl.read_parquet(run_dir / DATASET.name / "train.parquet", columns=["id", *fields.reads, fields.label])
    work = train.work(run, runner.reads(TRAIN, run))
    inputs = {"rows": hashlib.sha256(rows.write_csv().encode()).hexdigest(), **work.inputs}
    return storage.step_key(TRAIN.name, TRAIN.version, inputs, runner.declared(TRAIN, run.params, work))[:LENGTH]


def trained(world: World, settings: Settings, run_dir: Path, as_of: datetime) -> Candidate:
    """Train on the dataset of ``run_dir``, or take the candidate that was made from the same.

    ``run_dir/train`` links to it.
    """
    key = dataset_key(world, settings, run_dir, as_of)
    folder = world.root / "candidates" / key
    if not (folder / TRAIN.name / storage.MANIFEST).exists():
        folder.mkdir(parents=True, exist_ok=True)
        link(folder / DATASET.name, run_dir / DATASET.name)
        runner.run(TRAIN, Run(world.params, settings, as_of, folder=folder))
    link(run_dir / TRAIN.name, folder / TRAIN.name)
    return read(world, key)


def read(world: World, key: str) -> Candidate:
    """A candidate that was trained."""
    made = storage.read_manifest(world.root / "candidates" / key / TRAIN.name)
    return Candidate(key, round(made.facts["cost"]["wall_hours"] * 3600, 1))


def served_by(settings: Settings, release: Release) -> str:
    """The key of the candidate that a release put into production."""
    return (settings.root / release.bundle).parent.joinpath(TRAIN.name).resolve().parent.name


def exported(world: World, settings: Settings, run_dir: Path, as_of: datetime) -> None:
    """The bundle of ``run_dir`` with its reference.

    The export step, or for a head its scores of the holdout and no network. Policies with the same candidate and the
    same dataset, holdout included, share it; ``run_dir/export`` links to it.
    """
    folder = (run_dir / TRAIN.name).resolve().parent
    shared = folder / "runs" / storage.read_manifest(run_dir / DATASET.name).key[:LENGTH]
    shared.mkdir(parents=True, exist_ok=True)
    link(shared / DATASET.name, run_dir / DATASET.name)
    link(shared / TRAIN.name, folder / TRAIN.name)
    run = Run(world.params, settings, as_of, folder=shared)
    if world.by_head:
        heads.export_reference(run, world.fields)
    else:
        runner.run(EXPORT, run)
        if not has_bundle(world, folder.name):
            link(folder / BUNDLE, shared / EXPORT.name)
    link(run_dir / EXPORT.name, shared / EXPORT.name)


def has_bundle(world: World, key: str) -> bool:
    """Whether a candidate can be scored."""
    return world.by_head or (world.root / "candidates" / key / BUNDLE / storage.MANIFEST).exists()


def scores(world: World, key: str, tick: Tick) -> NDArray[np.float64]:
    """Probabilities ``[n]`` or ``[n, K]`` of a candidate for the rows of a tick, computed once and kept."""
    folder = world.root / "candidates" / key
    rows = world.of(tick)
    # By the rows themselves: another source's rows of the same month are other rows.
    name = hashlib.sha256("\n".join(rows["id"]).encode()).hexdigest()[:LENGTH]
    path = folder / "scores" / f"{tick.label}-{name}.npy"
    if path.exists():
        kept: NDArray[np.float64] = np.load(path)
        return kept
    columns = {field: rows[field].to_list() for field in world.fields.reads}
    if world.by_head:
        found = heads.scores(
            world.params, world.fields, folder / TRAIN.name, columns, world.settings.root / "cache" / "embeddings"
        )
    else:
        found = runtime.score_rows(folder / BUNDLE, world.fields, columns)
    buffer = io.BytesIO()
    np.save(buffer, found)
    write_atomic(path, buffer.getvalue())
    return found
