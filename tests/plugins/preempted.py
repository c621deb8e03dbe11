"""A train task as Airflow runs it, for a test that ends it. ``python -m tests.plugins.preempted FOLDER``.

The step is a training of a tiny model on two ranks, recorded as the real step records it; the seventh step takes
a second. What came of it goes to ``FOLDER/answer.json``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType, SimpleNamespace

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
FOLDER = Path(sys.argv[1])
os.environ |= {
    "AIRFLOW_HOME": str(FOLDER / "airflow"),
    "PERENNIAL_HOME": str(FOLDER),
    "PERENNIAL_MLFLOW_URL": sys.argv[2],
}
sys.path.append(str(Path(__file__).parents[2] / "plugins"))

from perennial.airflow.operators import StepOperator  # noqa: E402 - finds its settings in the environment
from pipelines.line.facts import Facts  # noqa: E402
from pipelines.line.order import TRAIN  # noqa: E402
from pipelines.line.step import Work  # noqa: E402
from pipelines.registry import live  # noqa: E402
from pipelines.training.fit import fit  # noqa: E402
from pipelines.training.weights import weights_sha256  # noqa: E402
from tests.pipelines.training.models import TEXT, Troubled, texts  # noqa: E402

AS_OF = datetime(2009, 5, 1, tzinfo=UTC)
ALONE = replace(TRAIN, reads=(), params=(), runs_case=False)
TWO = TEXT.model_copy(update={"ranks": 2, "checkpoint_every": 4, "hang_seconds": 20.0})


def work(run, _read):
    """In the place of pipelines.steps.train.work."""
    unfinished = run.dir / ".train.k1"

    def build(_folder, _key):
        with live.recording(
            run.settings, live.Training("bank", run.as_of, "preempted", {}, {}), unfinished
        ) as recording:
            about = {"beside": recording.beside}
            fitted = fit(lambda: Troubled("wait", 7, FOLDER / "happened"), texts(), TWO, unfinished, **about)
            return Facts(
                sha256=weights_sha256(fitted.model),
                resumed_from=fitted.facts["resumed_from"],
                mlflow_page=recording.run.page,
            )

    return Work(build)


def main() -> None:
    """Execute the operator with Airflow's own answer to SIGTERM."""
    module = ModuleType("pipelines.steps.train")
    module.work = work
    sys.modules["pipelines.steps.train"] = module
    task = StepOperator(task_id="train", step=ALONE, case="bank")
    signal.signal(signal.SIGTERM, lambda *_: task.on_kill())
    dag_run = SimpleNamespace(
        data_interval_end=None, logical_date=None, run_after=AS_OF, run_type="manual", triggering_user_name="ada"
    )
    try:
        answer = task.execute({"params": {"as_of": AS_OF.isoformat()}, "dag_run": dag_run, "ti": None})
    except Exception as error:  # noqa: BLE001 - the test looks at it
        answer = {"error": f"{type(error).__name__}: {error}", "retry": "AirflowFail" not in type(error).__name__}
    (FOLDER / "answer.json").write_text(json.dumps({**answer, "link": task.links["MLflow run"]}))


if __name__ == "__main__":
    main()
