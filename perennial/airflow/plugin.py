"""What an installed package adds to Airflow's processes: the guard of hosts, where ``[perennial] guard_hosts`` is on.

The stack's own Airflow has the guard from its folder of plugins, whatever is installed.
"""

from __future__ import annotations

from typing import Any

from airflow.configuration import conf
from airflow.plugins_manager import AirflowPlugin


def _middlewares() -> list[dict[str, Any]]:
    if not conf.getboolean("perennial", "guard_hosts", fallback=False):
        return []
    from perennial.airflow.hosts import PerennialHosts

    return PerennialHosts.fastapi_root_middlewares


class Perennial(AirflowPlugin):
    """Found by the entry point ``airflow.plugins``."""

    name = "perennial"
    fastapi_root_middlewares = _middlewares()
