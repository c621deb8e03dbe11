"""Tables as people have them, to be looked at."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl

START = datetime(2024, 1, 1, tzinfo=UTC)


def customers(rows: int = 1_500, seed: int = 0, **more: Any) -> pl.DataFrame:
    """Rows of half a year, with a label that hangs on the age and the plan; ``more`` are columns beside."""
    rng = np.random.default_rng(seed)
    age, plan = rng.integers(18, 95, rows), rng.choice(["basic", "plus", "pro"], rows)
    churned = rng.random(rows) < 1 / (1 + np.exp(4 - age / 15 - (plan == "pro")))
    return pl.DataFrame(
        {
            "key": [f"k{row}" for row in range(rows)],
            "at": [START + timedelta(days=180 * row / rows) for row in range(rows)],
            "age": age,
            "plan": plan,
            **more,
            "churned": churned.astype(np.int8),
        },
        strict=False,
    )


def draws(rows: int = 1_500, seed: int = 1) -> np.random.Generator:
    """What columns beside are drawn from."""
    return np.random.default_rng([rows, seed])
