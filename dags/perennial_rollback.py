"""Rollback: the release before the present one serves again, by hand and with a reason."""

from airflow.sdk import DAG, Param
from perennial_deadlines import ROLLBACK, deadline
from perennial_failures import tell_failure
from perennial_operators import StepOperator
from perennial_run import DEFAULTS, readable_cases

from pipelines.config import Params

ABOUT = """
Takes the newest release of **{case}** back: the version before it serves again within seconds, and the candidate
that was taken back is not promoted again by running its training run again. The same as
`python -m pipelines rollback --case {case} --reason ...`.
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
        params={"reason": Param(description="Why: kept in the ledger for good.", type="string", pattern=r"\S")},
        default_args=DEFAULTS,
        deadline=deadline(params.case, ROLLBACK),
        on_failure_callback=tell_failure(params.case),
        tags=["perennial", params.case, "rollback"],
    ) as dag:
        StepOperator(task_id="rollback", step="rollback", case=params.case)
    return dag


for found in readable_cases()[0]:
    globals()[f"{found.case}_rollback"] = rollback(found)
