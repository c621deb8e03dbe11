"""A small world to replay: nine days of the loans stream, labels after a day, a new rule from the third day on."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import yaml

from pipelines.case_files import CASES_ROOT
from pipelines.params_file import load_params
from pipelines.replay.run import Options, replay
from pipelines.reports import evidently
from pipelines.settings import Settings

SINCE = date(2020, 6, 8)
UNTIL = date(2020, 6, 17)
POLICIES = "never,drift,oracle"


NETWORK = {"hidden": [16], "embedding": 2, "dropout": 0.0}


def write_params(folder: Path, model: dict = NETWORK) -> Path:
    """``loans.yaml`` in ``folder``, to be used as PERENNIAL_PARAMS_DIR; returns the file."""
    values = yaml.safe_load((CASES_ROOT / "loans" / "params.yaml").read_text())
    values["label_delay_days"] = 1
    values["dataset"] |= {
        "window_days": 4,
        "min_rows": 100,
        "fallback_rows": 200,
        "holdout_share": 0.3,
        "min_holdout": 40,
    }
    values["model"] = model
    values["train"] |= {"epochs": 8, "batch_size": 32, "learning_rate": 0.01}
    values["gate"] |= {"draws": 200, "slices": [], "min_differing": 40}
    values["drift"] |= {"min_rows": 20, "min_new_labels": [400, 400, 0.0]}
    values["replay"] |= {"min_rows": 40}
    values["source"] |= {"rows_per_day": 100, "drift": "concept", "drift_at": "2020-06-10", "drift_every_days": None}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "loans.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def played(folder: Path, policies: str = POLICIES, until: date = UNTIL, model: dict = NETWORK) -> dict:
    """The summary of a replay with its state in ``folder``; no page of a drift run is drawn."""
    draw = evidently.draw
    evidently.draw = lambda *_: None
    try:
        return replay(
            load_params("loans", write_params(folder, model)),
            Settings(home=folder),
            Options(policies, SINCE, until),
            lambda _about: None,
        )
    finally:
        evidently.draw = draw
