"""What the ticks of a replay share."""

from __future__ import annotations

from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedded.airflow import Airflow
from embedded.demo.plan import Plan
from embedded.demo.progress import Progress
from embedded.demo.scoring import Known
from embedded.demo.traffic import Tally
from pipelines.params import Params
from pipelines.settings import Settings

if TYPE_CHECKING:
    import httpx


@dataclass
class Replay:
    """Everything that the ticks share."""

    plan: Plan
    params: Params
    settings: Settings
    source: Any
    airflow: Airflow
    gateway: httpx.Client
    progress: Progress
    pool: ProcessPoolExecutor
    tally: Tally = field(default_factory=Tally)
    ticks: list[dict[str, Any]] = field(default_factory=list)
    ungated: list[Future[Path | None]] = field(default_factory=list)
    compared: list[Future[Known]] = field(default_factory=list)
    """What the models to compare with answer, computed beside the loop."""
