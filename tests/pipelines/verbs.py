"""The steps of the line as tests call them: on a folder of the run's own choice, with what is said of the run."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pipelines.contracts import Manifest
from pipelines.line import order, runner
from pipelines.line.step import Run, Step
from pipelines.params import Params
from pipelines.settings import Settings


@dataclass(frozen=True)
class Verb:
    """A step."""

    step: Step

    @property
    def name(self) -> str:
        """The step's name."""
        return self.step.name

    def run(self, params: Params, settings: Settings, run_dir: Path, as_of: datetime, **said: Any) -> Manifest:
        """Run it in ``run_dir``, as the line's runner does."""
        own = run_dir == settings.run_dir(params.case, as_of)
        return runner.run(self.step, Run(params, settings, as_of, folder=None if own else run_dir, **said))


ingest = Verb(order.INGEST)
validate = Verb(order.VALIDATE)
dataset = Verb(order.DATASET)
train = Verb(order.TRAIN)
export = Verb(order.EXPORT)
evaluate = Verb(order.EVALUATE)
gate = Verb(order.GATE)
register = Verb(order.REGISTER)
rollout = Verb(order.ROLLOUT)
profile = Verb(order.PROFILE)
headroom = Verb(order.HEADROOM)
drift = Verb(order.DRIFT)
alert = Verb(order.ALERT)
report = Verb(order.REPORT)
