"""The DAGs of cases, for a file in Airflow's dags folder."""

from __future__ import annotations

import logging
from collections.abc import Collection

from airflow.sdk import DAG

from perennial.airflow.drift import drift
from perennial.airflow.rollback import rollback
from perennial.airflow.rollout import rollout
from perennial.airflow.run import readable_cases
from perennial.airflow.training import training
from pipelines.case_files import case_names, place_of
from pipelines.errors import ConfigError

KINDS = {"training": training, "drift": drift, "rollout": rollout, "rollback": rollback}
"""What makes each DAG of a case."""

log = logging.getLogger(__name__)


def dags(*cases: str, kinds: Collection[str] = tuple(KINDS)) -> dict[str, DAG]:
    """The DAGs of the named cases by their ids, or of all cases that can work; ``kinds`` of them.

    Raises ConfigError for a named case that is not there or cannot work: that is the file's import error, and its other
    cases have no DAGs either. Cases which shall not stop each other go into files of their own. Where none is named, a
    case that cannot work is left out: :func:`require_readable_cases` makes it the import error of another file, as
    Airflow starts no run of any DAG of a file that has one.
    """
    if unknown := [case for case in cases if place_of(case) is None]:
        raise ConfigError(
            f"there is no case {', '.join(unknown)}: choose of {', '.join(case_names())}, or let PERENNIAL_CASES of "
            "Airflow's processes name the folder that holds it"
        )
    good, broken = readable_cases(cases or None)
    if broken and cases:
        raise ConfigError(_said(broken))
    if broken:
        log.warning("%s", _said(broken))
    return {dag.dag_id: dag for params in good for dag in (KINDS[kind](params) for kind in kinds)}


def require_readable_cases() -> None:
    """Raise ConfigError, which names every case that cannot work: one import error on Airflow's front page."""
    broken = readable_cases()[1]
    if broken:
        raise ConfigError(_said(broken))


def _said(broken: dict[str, str]) -> str:
    return " | ".join(f"case {case} has no DAGs: {why}" for case, why in broken.items())
