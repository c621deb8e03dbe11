"""Rollback: the release before the present one serves again, by hand and with a reason."""

from airflow.sdk import DAG, Param

from perennial.airflow.deadlines import ROLLBACK as WITHIN
from perennial.airflow.deadlines import deadline
from perennial.airflow.failures import tell_failure
from perennial.airflow.operators import StepOperator
from perennial.airflow.run import DEFAULTS
from pipelines.line.order import ROLLBACK
from pipelines.params import Params

ABOUT = """
Takes the newest release of **{case}** back: the version before it serves again within seconds, and the candidate
that was taken back is not promoted again by running its training run again. The same as
`python -m pipelines rollback --case {case} --reason ... [--from-version N]`.

`from_version` is the version to take back; if another one serves, nothing changes. Empty: what was promoted last,
once: starting this DAG twice does not go two back. To go further back, name the version that serves. The task's XCom
says what serves now (`serves`) and whether that changed. Forward again:
`python -m pipelines release --case {case} --version N --reason ...`.
"""


def rollback(params: Params) -> DAG:
    """The rollback DAG of one case."""
    with DAG(
        dag_id=f"{params.case}_rollback",
        description=f"Give {params.case} its previous champion back",
        doc_md=ABOUT.format(case=params.case),
        schedule=None,
        catchup=False,
        max_active_runs=1,
        params={
            "reason": Param(description="Why: kept in the ledger for good.", type="string", pattern=r"\S"),
            "from_version": Param(
                None,
                description="The version to take back: nothing changes if another one serves. Empty: "
                "what was promoted last, and that once. "
                "To go further back, name the version that serves.",
                type=["null", "integer"],
                minimum=1,
            ),
        },
        default_args=DEFAULTS,
        deadline=deadline(params.case, WITHIN),
        on_failure_callback=tell_failure(params.case),
        tags=["perennial", params.case, "rollback"],
    ) as dag:
        StepOperator(task_id=ROLLBACK.name, step=ROLLBACK, case=params.case)
    return dag
