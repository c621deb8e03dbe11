"""Airflow's REST API v2, as much of it as the loop, its tests and its demo need; Airflow itself is not imported."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

import httpx

from pipelines.errors import ConflictError, PerennialError, Unavailable
from pipelines.installation import typed
from pipelines.settings import Settings

FINISHED = ("success", "failed")
KINDS = ("training", "drift", "rollout", "rollback")
"""The DAGs of a case are named <case>_<kind>."""


class Airflow:
    """One Airflow by its address; a login where it wants one."""

    def __init__(self, url: str, username: str = "", password: str = "") -> None:
        """Without a username the server must treat everybody as an admin, as the embedded one does."""
        self.url = url.rstrip("/")
        self._login = {"username": username, "password": password} if username else None
        self._client = httpx.Client(base_url=self.url, timeout=30, trust_env=False)

    def call(self, method: str, path: str, **arguments: Any) -> Any:
        """One request below ``/api/v2``; the token is fetched when there is none or it has expired.

        A 5xx is asked again: with SQLite it is the audit line that did not get the lock, and nothing was done
        yet (airflow_config). A busy machine's answer that comes too late is asked for again too, twice and only where
        asking twice does no more than once: not by POST. Raises Unavailable if nothing answers, ConflictError on
        409, PerennialError with Airflow's own words otherwise.
        """
        late = 0
        try:
            for pause in (0.2, 0.5, 1.0, 2.0, 4.0, 0.0):
                try:
                    answer = self._ask(method, path, **arguments)
                except httpx.ReadTimeout:
                    late += 1
                    if method == "POST" or late > 2:
                        raise
                    continue
                if not answer.is_server_error:
                    break
                time.sleep(pause)
        except httpx.HTTPError as error:
            raise Unavailable(
                f"Airflow at {self.url} does not answer ({error}): is it up? see `{typed('status')}`"
            ) from error
        if answer.is_success:
            if answer.content:
                return answer.json()
            return None
        said = f"Airflow answered {answer.status_code} to {method} {path}: {answer.text[:500]}"
        if answer.status_code == httpx.codes.CONFLICT:
            raise ConflictError(said)
        raise PerennialError(said)

    def _ask(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        answer = self._client.request(method, f"/api/v2{path}", **arguments)
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            self._client.headers["Authorization"] = f"Bearer {self._token()}"
            answer = self._client.request(method, f"/api/v2{path}", **arguments)
        return answer

    def _token(self) -> str:
        if self._login is None:
            answer = self._client.get("/auth/token")
            said = "no username was given"
        else:
            answer = self._client.post("/auth/token", json=self._login)
            said = f"the login of {self._login['username']!r} was refused"
        if answer.is_client_error:
            raise PerennialError(
                f"Airflow at {self.url} answered {answer.status_code}: {said}; set PERENNIAL_AIRFLOW_USERNAME and "
                "_PASSWORD"
            )
        return str(answer.raise_for_status().json()["access_token"])

    def dags(self) -> list[dict[str, Any]]:
        """All DAGs that Airflow knows, paused ones too."""
        found: list[dict[str, Any]] = self.call("GET", "/dags", params={"limit": 100, "exclude_stale": True})["dags"]
        return found

    def import_errors(self) -> list[dict[str, Any]]:
        """The DAG files that did not load, with their messages."""
        found: list[dict[str, Any]] = self.call("GET", "/importErrors")["import_errors"]
        return found

    def pause(self, dag_id: str, *, paused: bool = True) -> None:
        """Pause a DAG, or let it run."""
        self.call("PATCH", f"/dags/{dag_id}", json={"is_paused": paused})

    def unpause(self, dag_id: str) -> None:
        """Let a DAG run; with a schedule, its last missed tick runs at once."""
        self.pause(dag_id, paused=False)

    def paused(self, dag_id: str) -> bool:
        """Whether a DAG is paused: runs that are asked for wait then."""
        return bool(self.call("GET", f"/dags/{dag_id}")["is_paused"])

    def trigger_dag(
        self, dag_id: str, run_id: str | None = None, conf: Mapping[str, Any] | None = None, note: str | None = None
    ) -> str:
        """Start a run and return its id; ConflictError if ``run_id`` exists already."""
        body = {"dag_run_id": run_id, "logical_date": None, "conf": dict(conf or {}), "note": note}
        return str(self.call("POST", f"/dags/{dag_id}/dagRuns", json=body)["dag_run_id"])

    def run(self, dag_id: str, run_id: str) -> dict[str, Any]:
        """One run: state, run_type, conf, times."""
        found: dict[str, Any] = self.call("GET", f"/dags/{dag_id}/dagRuns/{run_id}")
        return found

    def runs(self, dag_id: str = "~", **filters: Any) -> list[dict[str, Any]]:
        """All runs of a DAG (``~``: of all DAGs), oldest first; ``filters`` as in the REST API (``state=...``)."""
        found: list[dict[str, Any]] = []
        while True:
            page = self.call(
                "GET",
                f"/dags/{dag_id}/dagRuns",
                params={"limit": 100, "offset": len(found), "order_by": "id", **filters},
            )
            found += page["dag_runs"]
            if not page["dag_runs"] or len(found) >= page["total_entries"]:
                return found

    def tasks(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """The task instances of a run: task_id, state, try_number, start_date, end_date, duration."""
        found: list[dict[str, Any]] = self.call(
            "GET", f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances", params={"limit": 100}
        )["task_instances"]
        return found

    def xcom(self, dag_id: str, run_id: str, task_id: str, key: str = "return_value") -> Any:
        """What a task handed on."""
        return self.call(
            "GET",
            f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/{key}",
            params={"deserialize": True},
        )["value"]

    def log(self, dag_id: str, run_id: str, task_id: str, attempt: int = 1) -> str:
        """The log of one try of a task, one event per line."""
        content = self.call(
            "GET",
            f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/logs/{attempt}",
            params={"full_content": True},
        )["content"]
        return "\n".join(_log_line(line) for line in content)

    def clear(
        self, dag_id: str, run_id: str, task_ids: Iterable[str] | None = None, *, downstream: bool = True
    ) -> None:
        """Run a whole DAG run again, or only ``task_ids`` and what follows them."""
        if task_ids is None:
            self.call("POST", f"/dags/{dag_id}/dagRuns/{run_id}/clear", json={"dry_run": False})
            return
        body = {
            "dry_run": False,
            "dag_run_id": run_id,
            "task_ids": list(task_ids),
            "only_failed": False,
            "include_downstream": downstream,
        }
        self.call("POST", f"/dags/{dag_id}/clearTaskInstances", json={**body, "reset_dag_runs": True})

    def wait(self, dag_id: str, run_id: str, timeout: float = 300, *, interval: float = 0.5) -> dict[str, Any]:
        """The finished run (success or failed); Unavailable naming the tasks' states after ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            found = self.run(dag_id, run_id)
            if found["state"] in FINISHED:
                return found
            time.sleep(interval)
        states = {task["task_id"]: task["state"] for task in self.tasks(dag_id, run_id)}
        raise Unavailable(
            f"{dag_id} {run_id} did not end within {timeout:g} s: its tasks are {states}; look at the scheduler's log"
        )

    def wait_quiet(self, dag_ids: Iterable[str], timeout: float = 300, *, interval: float = 0.5) -> None:
        """Return when no run of ``dag_ids`` is queued or running; Unavailable after ``timeout`` seconds."""
        names = list(dag_ids)
        deadline = time.monotonic() + timeout
        while busy := [run["dag_run_id"] for name in names for run in self.runs(name, state=["queued", "running"])]:
            if time.monotonic() > deadline:
                raise Unavailable(f"still busy after {timeout:g} s: {', '.join(busy)}; look at the scheduler's log")
            time.sleep(interval)

    def wait_for_dags(self, names: Iterable[str], timeout: float = 60, *, interval: float = 0.5) -> None:
        """Return when the dag-processor has parsed all of ``names``.

        PerennialError with the import errors once no further one has come for ``timeout`` seconds: a busy machine
        takes its time.
        """
        wanted = set(names)
        deadline = time.monotonic() + timeout
        left = 0
        while missing := wanted - {dag["dag_id"] for dag in self.dags()}:
            if len(missing) != left:
                left = len(missing)
                deadline = time.monotonic() + timeout
            elif time.monotonic() > deadline:
                errors = [f"{e['filename']}: {e['stack_trace'].strip().splitlines()[-1]}" for e in self.import_errors()]
                raise PerennialError(
                    f"DAG(s) {', '.join(sorted(missing))} are not there after parsing: "
                    f"{'; '.join(errors) or 'look at the dag-processor log'}"
                )
            time.sleep(interval)


def client(settings: Settings) -> Airflow:
    """Airflow as the settings describe it, with a login where they have one."""
    password = ""
    if settings.airflow_password:
        password = settings.airflow_password.get_secret_value()
    return Airflow(settings.address("airflow_url"), settings.airflow_username, password)


def _log_line(line: str | dict[str, Any]) -> str:
    if isinstance(line, str):
        return line
    errors = [f"{error['exc_type']}: {error['exc_value']}" for error in line.get("error_detail") or []]
    return " | ".join([str(line.get("event", line)), *errors])
