"""Two versions of a case take turns as champion, for `make proof-serving`; a process of its own, beside the load.

``python -m benchmarks.proof.serving_turns CASE STOP TURNS`` with the state's settings in the environment. To Triton the
versions' files are newer at each turn, so that it loads them anew while they answer.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from pipelines import ledger
from pipelines.deploy import repository, triton
from pipelines.params_file import load_params
from pipelines.settings import Settings, read_settings
from pipelines.steps import release

PAUSE_SECONDS = 0.3


def turn(settings: Settings, case: str, number: int) -> None:
    """Release the version that does not serve, and have Triton load the files of both anew."""
    head = ledger.head(settings.ledger, case)
    assert head is not None
    params = load_params(case)
    other = next(version for version in (1, 2) if version != head.champion)
    release.run(params, settings, reason=f"turn {number}", actor="proof", version=other, despite_verdict=True)
    with repository.alone(settings.model_repository, case):
        for version in repository.staged(settings.model_repository, case):
            os.utime(settings.model_repository / case / str(version) / "model.onnx")
        triton.load(settings, case)


def main(case: str, stop: Path, turns: Path) -> None:
    """Take turns until ``stop`` exists; ``turns`` says how many there were."""
    settings = read_settings(actor="proof")
    number = 0
    while not stop.exists():
        turn(settings, case, number)
        number += 1
        turns.write_text(str(number))
        time.sleep(PAUSE_SECONDS)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
