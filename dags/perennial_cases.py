"""The cases that cannot be read, as one import error on Airflow's front page; it builds no DAG.

The files beside it leave such a case out, so that a typo in one params.yaml stops that case and no other
(Airflow refuses to trigger any DAG of a file that has an import error).
"""

from perennial.airflow import require_readable_cases

require_readable_cases()
