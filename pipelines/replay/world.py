"""What the policies of one replay share: parameters, the rows of every tick, the candidates and their scores."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import polars as pl

from pipelines import storage
from pipelines.case_files import folder_of, own_profile
from pipelines.cases import load_fields, part
from pipelines.cases.code import code_sha256
from pipelines.cases.homes import share
from pipelines.cases.sources import Source
from pipelines.contracts import Window
from pipelines.data.lake import content_sha256
from pipelines.errors import ConfigError
from pipelines.fields import Fields
from pipelines.files import file_sha256
from pipelines.line.order import HEADROOM, REGISTER, ROLLOUT, TRAINING, WATCHING
from pipelines.line.step import Step
from pipelines.params import Params
from pipelines.params_file import load_params
from pipelines.replay.policies import Policy, watching
from pipelines.replay.ticks import Tick
from pipelines.settings import Settings, read_settings

VERSION = 1
"""Raise it when a replay's outcome changes for reasons that stand in no step's version.

Older homes are left alone then.
"""
PLAYED = tuple(step for step in (*TRAINING, *WATCHING) if isinstance(step, Step) and step not in {REGISTER, ROLLOUT})
"""The steps that a replay runs: there is nothing to register with, nor to roll out to."""


@dataclass(frozen=True)
class World:
    """One replay. ``rows`` are the canonical rows of all ticks with their labels and when those arrive."""

    params: Params
    fields: Fields
    settings: Settings
    source: Source
    ticks: tuple[Tick, ...]
    rows: pl.DataFrame

    @property
    def first(self) -> datetime:
        """When the first champion is trained: at the start of the first tick."""
        return self.ticks[0].window.start

    @property
    def root(self) -> Path:
        """``<state>/replay/<case>``."""
        return self.settings.root / "replay" / self.params.case

    @property
    def by_head(self) -> bool:
        """Whether a candidate is a head on embeddings that are computed once, instead of a whole network.

        A number's head is exported as a network is: its answer needs what the network keeps of the number.
        """
        return self.params.model.kind == "embedding" and not self.params.compares and self.fields.number is None

    @property
    def _read(self) -> str | None:
        """What was read of a database, which has no file to know it by; generated rows are as declared."""
        return content_sha256(self.rows) if self.source.kind == "real" else None

    def of(self, tick: Tick) -> pl.DataFrame:
        """The canonical rows of a tick."""
        return self.rows.filter(pl.col("event_time").is_between(tick.window.start, tick.window.end, closed="left"))

    def home(self, policy: Policy) -> Settings:
        """A policy's own state: ledger, log and runs.

        They lie under a name that holds all that its history depends on but where it ends.
        """
        scales = own_profile(self.params.case)  # without one every policy's first training freezes the same
        elsewhere, steps = {"replay", "schedule", "resources", "alerts"}, PLAYED
        if not policy.headroom:
            elsewhere.add(HEADROOM.name)
            steps = tuple(step for step in PLAYED if step != HEADROOM)
        declared = {
            "version": VERSION,
            "policy": [policy.name, policy.every, policy.watches],
            "params": watching(policy, self.params, self.fields).model_dump(mode="json", exclude=elsewhere),
            "fields": self.fields.features_hash,
            "code": code_sha256(self.params.case),
            "profile": None if scales is None else file_sha256(scales),
            "source": self.source.sha256 or self._read,
            "first": self.ticks[0].label,
            "steps": {step.name: step.version for step in steps},
        }
        folder = self.root / f"{policy.name}-{storage.digest(declared)[:12]}"
        share(self.params, self.settings, folder)
        return read_settings(**{**self.settings.model_dump(), "home": folder, "ledger_url": ""})


def build(params: Params, settings: Settings, ticks: tuple[Tick, ...]) -> World:
    """Read the rows of all ticks from the case's source. Raises ConfigError if it has none there."""
    source_of = part(params.case, "source")
    source = source_of.resolve(settings, params)
    whole = Window(start=ticks[0].window.start, end=ticks[-1].window.end)
    rows = source_of.rows(source, whole, params)
    if rows.is_empty():
        raise ConfigError(
            f"{params.case}: the source has no rows from {ticks[0].label} to {ticks[-1].label}: "
            "choose another --since or --until"
        )
    return World(params, load_fields(params.case), settings, source, ticks, rows)


def variant(params: Params, settings: Settings) -> Params:
    """The parameters of the variant that the case declares for replays, unless PERENNIAL_PARAMS_DIR says otherwise."""
    name = params.replay.variant if params.replay else None
    if name is None or settings.params_dir is not None:
        return params
    return load_params(params.case, folder_of(params.case) / "variants" / name / f"{params.case}.yaml")


def played(params: Params, seed: int | None, price: float) -> Params:
    """The parameters with a training seed, if one is given, and with what a retraining costs."""
    params = params.model_copy(update={"headroom": params.headroom.model_copy(update={"price": price})})
    if seed is None:
        return params
    return params.model_copy(update={"train": params.train.model_copy(update={"seed": seed})})


def link(path: Path, target: Path) -> None:
    """Let ``path`` be a link to the folder ``target``, whatever link was there."""
    if path.is_symlink():
        if path.readlink() == target:
            return
        path.unlink()
    path.symlink_to(target, target_is_directory=True)
