"""A process like an Airflow task: torch and its compiler are imported, there is one thread.

Run it as ``python -m tests.pipelines.training.task FOLDER TROUBLE...``. For each trouble it trains on two ranks in
``FOLDER/TROUBLE`` until something happens, does to the folder what the trouble says, tries again where that is its own
business, and leaves what it saw in ``FOLDER/TROUBLE.json``.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

# numpy's and torch's pools would be threads.
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import torch._dynamo  # noqa: F401 - what every optimiser imports, once for all ranks of all tries

from pipelines.errors import PerennialError
from pipelines.training.fit import fit
from pipelines.training.launch import ONE_NODE, can_fork
from pipelines.training.loop import CHECKPOINTS
from pipelines.training.weights import weights_sha256
from tests.pipelines.training.models import TEXT, Troubled, texts

TWO = TEXT.model_copy(update={"ranks": 2, "checkpoint_every": 2, "hang_seconds": 20.0})
CHANGES: dict[str, dict[str, Any]] = {"none": {"checkpoint_every": None}, "sleep": {"hang_seconds": 2.0}}


def attempt(folder: Path, trouble: str) -> dict[str, Any]:
    """One try of a training with a trouble at the seventh step: its error, or its end.

    The checkpoints of steps 2, 4 and 6 are there by then.
    """
    kind, _, rank = trouble.partition("-")
    params = TWO.model_copy(update=CHANGES.get(trouble, {}))
    try:
        fitted = fit(
            lambda: Troubled(kind, 7, folder / trouble / "happened", int(rank) if rank.isdigit() else 1),
            texts(),
            params,
            folder / trouble / "work",
        )
    except PerennialError as error:
        return {
            "error": f"{type(error).__name__}: {error}",
            "checkpoints": sorted(path.name for path in (folder / trouble / "work" / CHECKPOINTS).iterdir()),
        }
    return {"sha256": weights_sha256(fitted.model), "resumed_from": fitted.facts["resumed_from"]}


def main(folder: Path, troubles: list[str]) -> None:
    """Go through the troubles."""
    for trouble in troubles:
        (folder / trouble).mkdir(exist_ok=True)
        tries = [{"forks": can_fork("cpu", ONE_NODE)}, attempt(folder, trouble)]
        if trouble == "term":
            shard = next((folder / trouble / "work" / CHECKPOINTS).glob("step-7/*.distcp"))
            shard.write_bytes(shard.read_bytes()[:-1] + b"?")
        if trouble in {"kill-0", "kill-1", "term"}:
            tries.append(attempt(folder, trouble))
        (folder / f"{trouble}.json").write_text(json.dumps(tries))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
