"""Airflow's api-server answers to its own names, its pages are shown in no foreign frame.

Foreign pages write nothing. Embedded, everybody who reaches the port is an admin: without this any web page could get
there by a name of its own.
"""

from __future__ import annotations

from functools import cache

from airflow.configuration import conf
from airflow.plugins_manager import AirflowPlugin

from pipelines import hosts
from pipelines.settings import read_settings

OWN_FRAMES = ((b"x-frame-options", b"SAMEORIGIN"), (b"content-security-policy", b"frame-ancestors 'self'"))
"""Of every answer. Airflow shows pages of plugins and of login managers in frames on its own pages."""


@cache
def known() -> frozenset[str]:
    """The hosts in the addresses by which Airflow's tasks, our programs and people's browsers find it."""
    own = (conf.get("core", "execution_api_server_url", fallback=""), conf.get("api", "base_url", fallback=""))
    return hosts.of_urls(*own, read_settings().airflow_url)


@cache
def trusted() -> frozenset[str]:
    """The names in PERENNIAL_ALLOWED_HOSTS. ConfigError if they are none: every request then fails."""
    return hosts.listed(read_settings().allowed_hosts)


class PerennialHosts(AirflowPlugin):
    """The guard before everything that the api-server serves, the tasks' API included."""

    name = "perennial_hosts"
    fastapi_root_middlewares = [  # noqa: RUF012 - Airflow's own attribute
        {
            "name": "hosts",
            "middleware": hosts.HostGuard,
            "kwargs": {"known": known, "trusted": trusted, "headers": OWN_FRAMES},
        }
    ]
