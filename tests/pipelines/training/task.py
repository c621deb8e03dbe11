"""A process like an Airflow task: torch is imported, there is one thread. It trains on two ranks: ``... FOLDER``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# numpy's and torch's pools would be threads.
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

from pipelines.errors import PerennialError
from pipelines.training.fit import fit
from pipelines.training.launch import ONE_NODE, can_fork
from tests.pipelines.training.models import TEXT, Troubled, texts


def main(folder: Path) -> None:
    """Train until something happens; the error is this process's answer."""
    print("one thread" if can_fork("cpu", ONE_NODE) else "threads", flush=True)  # noqa: T201
    params = TEXT.model_copy(update={"ranks": 2, "checkpoint_every": 2, "hang_seconds": 20.0})
    try:
        fit(lambda: Troubled("wait", 7, folder / "happened"), texts(), params, folder / "work")
    except PerennialError as error:
        print(f"{type(error).__name__}: {error}")  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]))
