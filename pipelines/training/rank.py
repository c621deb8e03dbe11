"""One rank's whole life: ``python -m pipelines.training.rank FOLDER`` under a launcher, or forked from the agent."""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from pathlib import Path

import torch
import torch.distributed as dist

from pipelines.errors import PerennialError, Unavailable
from pipelines.faults import of_case
from pipelines.params import TrainParams
from pipelines.processes import die_with_parent
from pipelines.training.group import local_device, process_group
from pipelines.training.job import JOB, MODEL, ROWS, note, write_result
from pipelines.training.loop import optimise
from pipelines.training.rows import load_rows
from pipelines.training.stopping import asked_to_leave
from pipelines.training.strategies import home_of

TIMED_OUT = ("timed out", "timeout")


def preload(params: TrainParams) -> None:
    """Import what the ranks will need, once for all of them, before they are forked."""
    # _dynamo: every optimiser imports it when it is made, which took each rank two seconds.
    for name in ("torch._dynamo", "torch.nn.parallel"):
        import_module(name)
    import_module(f"pipelines.training.strategies.{home_of(params)}")


def main(folder: str, parent: int | None = None) -> None:
    """Do this rank's part of the job; rank 0 leaves the result in ``folder``, a failing rank a note of why."""
    die_with_parent(parent=parent)
    work = Path(folder)
    job = json.loads((work / JOB).read_text())
    params = TrainParams.model_validate_json(json.dumps(job["params"]))
    torch.set_num_threads(params.threads)
    name = f"rank-{os.environ['RANK']}"
    with asked_to_leave(params.hang_seconds) as leaving:
        try:
            device = local_device(job["device"])
            with process_group(device, params.hang_seconds):
                # Written by the process that started this one, in a folder of its own.
                model = torch.load(work / MODEL, weights_only=False)
                outcome = optimise(model, load_rows(work / ROWS), params, device=device, work=work, preempted=leaving)
                if dist.get_rank() == 0:
                    write_result(work, outcome, params)
                del model, outcome
        except PerennialError as error:
            note(work, name, error)
            raise
        except RuntimeError as error:
            if any(word in str(error).lower() for word in TIMED_OUT):
                hung = Unavailable(
                    f"{name} waited {params.hang_seconds:g} s for the others in vain: one of them hangs or is far "
                    "slower (train.hang_seconds); run the step again, it goes on at the last checkpoint"
                )
                note(work, name, hung)
            else:
                _note_case(work, name, error)
            raise
        except Exception as error:
            _note_case(work, name, error)
            raise


def _note_case(work: Path, name: str, error: Exception) -> None:
    """Leave word of an error that the case's own model raised: nobody else sees where."""
    if (told := of_case(error)) is not None:
        note(work, name, told)


if __name__ == "__main__":
    main(sys.argv[1])
