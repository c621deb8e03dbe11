"""What is asked of the running containers.

Does it serve, who is let in, who reaches whom, what may be written, and what a kill does.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import yaml

from benchmarks.compose.engine import said
from benchmarks.compose.replay import CASE
from benchmarks.full.faults import until
from embedded.airflow import Airflow
from embedded.demo import traffic
from embedded.keys import MLFLOW_USER
from embedded.ports import HOST, Ports, variable
from pipelines import cases
from pipelines.errors import PerennialError, Unavailable

ROWS = 400
START_SECONDS = 1800.0
SETTLE_SECONDS = 600.0
RUN_SECONDS = 600.0
WEB = {
    "airflow-apiserver": "airflow",
    "mlflow": "mlflow",
    "gateway": "gateway",
    "prometheus": "prometheus",
    "alertmanager": "alertmanager",
    "grafana": "grafana",
}
"""A published service -> the name of its port."""
INSIDE = {
    "postgres": 5432,
    "redis": 6379,
    "mlflow": 5000,
    "triton": 8001,
    "gateway": 8090,
    "airflow-apiserver": 8080,
    "loop-metrics": 9109,
    "airflow-metrics": 9112,
    "prometheus": 9090,
    "alertmanager": 9093,
    "grafana": 3000,
}
"""Where a service listens in its networks."""
ASK = """
import json, socket, sys
from concurrent.futures import ThreadPoolExecutor
def reached(place):
    try:
        with socket.create_connection(place[1:], timeout=2) as connection:
            connection.sendall(b"\\n")
        return True
    except OSError:
        return False
places = json.loads(sys.argv[1])
with ThreadPoolExecutor(32) as pool:
    print(json.dumps([place[0] for place, found in zip(places, pool.map(reached, places)) if found]))
"""
"""Run inside of a container's network: which of the places ``[name, host, port]`` take a connection."""

LOAD = """
import json, sys, grpc
from pathlib import Path
from tritonclient.grpc import service_pb2 as pb, service_pb2_grpc
from pipelines.channel import OPTIONS, credentials
from pipelines.settings import read_settings
settings, case = read_settings(), sys.argv[1]
text = lambda x: pb.ModelRepositoryParameter(string_param=x)
raw = lambda x: pb.ModelRepositoryParameter(bytes_param=x)
model = next((Path(settings.home) / "model_repository" / case).glob("*/model.onnx")).read_bytes()
brought = {"config": text(json.dumps({"backend": "onnxruntime"})), "file:1/model.onnx": raw(model)}
code = {"config": text(json.dumps({"backend": "python"})), "file:1/model.py": raw(b"")}
plain = grpc.insecure_channel
ours = lambda place, options: grpc.secure_channel(place, credentials(settings.triton_client), options)
asked = (
    ("nobody loads", "refused", plain, case, {}),
    ("its client loads", "done", ours, case, {}),
    ("its client brings a model along", "refused", ours, "brought", brought),
    ("its client brings code along", "refused", ours, "code", code),
)
rows = []
for who, wanted, channel, name, parameters in asked:
    try:
        with channel(settings.address("triton_grpc"), OPTIONS) as open_channel:
            request = pb.RepositoryModelLoadRequest(model_name=name, parameters=parameters)
            service_pb2_grpc.GRPCInferenceServiceStub(open_channel).RepositoryModelLoad(request, timeout=60)
        rows.append({"who": f"Triton, {who}", "wanted": wanted, "status": "done"})
    except grpc.RpcError as error:
        rows.append({"who": f"Triton, {who}", "wanted": wanted, "status": "refused", "words": error.details()})
print(json.dumps(rows))
"""
"""Run where tasks run: who may make Triton load what.

The model that is brought along is a good one, so only the way is refused.
"""


@dataclass(frozen=True)
class Stack:
    """A checkout whose compose file is started: where, with which environment, on which ports."""

    checkout: Path
    env: Mapping[str, str]
    ports: Mapping[str, int]
    files: tuple[str, ...] = ("docker-compose.yaml",)

    def compose(self, *arguments: str, profiles: str = "*", given: str | None = None) -> str:
        """What `docker compose` printed, all ``profiles`` in view (empty: none); it reads ``given``."""
        named = [word for name in self.files for word in ("--file", str(self.checkout / name))]
        return said(
            "docker",
            "compose",
            *named,
            *(("--profile", profiles) if profiles else ()),
            *arguments,
            env=self.env,
            given=given,
        )

    def url(self, service: str) -> str:
        """Where a published service is on this machine."""
        return f"http://{HOST}:{self.ports[service]}"

    def secret(self, name: str) -> str:
        """A secret of the checkout."""
        return (self.checkout / "compose" / "secrets" / name).read_text()

    def airflow(self, user: str = "admin") -> Airflow:
        """Airflow's API as one of its users."""
        return Airflow(self.url("airflow-apiserver"), user, self.secret(f"airflow_{user}_password"))


def on_free_ports(
    checkout: Path, env: Mapping[str, str], project: str, files: tuple[str, ...] = ("docker-compose.yaml",)
) -> Stack:
    """A checkout's stack as a project of its own, on ports of its own."""
    ports = dict(zip(WEB, astuple(Ports.free()), strict=False))
    published = {variable(WEB[service]): str(port) for service, port in ports.items()}
    return Stack(checkout, {**env, **published, "COMPOSE_PROJECT_NAME": project}, ports, files)


def containers(stack: Stack) -> dict[str, dict[str, Any]]:
    """What the engine says of each container, by service."""
    ids = stack.compose("ps", "--all", "--quiet").split()
    found = json.loads(said("docker", "inspect", *ids, env=stack.env)) if ids else []
    return {one["Config"]["Labels"]["com.docker.compose.service"]: one for one in found}


def waiting(stack: Stack) -> list[str]:
    """What is not as it should be yet.

    Long-running services that are not healthy, one-shot ones that have not ended with 0.
    """
    left = []
    for name, one in containers(stack).items():
        state = one["State"]
        stays = one["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped"
        if not stays and state["Status"] == "exited" and state["ExitCode"]:
            raise Unavailable(
                f"{name} ended with "
                f"{state['ExitCode']}:\n{stack.compose('logs', '--no-log-prefix', '--tail', '30', name)}"
            )
        good = (
            state["Running"] and state.get("Health", {"Status": "healthy"})["Status"] == "healthy"
            if stays
            else state["Status"] == "exited"
        )
        left += [] if good else [name]
    return left


def settled(stack: Stack) -> None:
    """Wait until everything is as it should be."""
    try:
        until(lambda: not waiting(stack), "healthy containers", SETTLE_SECONDS)
    except Unavailable as error:
        names = waiting(stack)
        raise Unavailable(f"{error}: {', '.join(names)}\n{stack.compose('logs', '--tail', '40', *names)}") from error


def up(stack: Stack, profiles: str = "") -> float:
    """`make compose-up` until everything is as it should be; the seconds that it took."""
    began = time.monotonic()
    said(
        "make",
        "--directory",
        stack.checkout,
        "compose-up",
        f"PROFILES={profiles}",
        env=stack.env,
        seconds=START_SECONDS,
    )
    settled(stack)
    return time.monotonic() - began


def served(stack: Stack, name: str) -> dict[str, Any]:
    """A few hundred rows of this hour are answered and their labels taken.

    Which versions answered, and what the log has afterwards.
    """
    part = cases.part(CASE, "source")
    fields = cases.load_fields(CASE)
    now = datetime.now(UTC)
    rows = part.generate(now.date(), rows_per_day=ROWS, seed=len(name)).with_columns(
        id=pl.format("{}-{}", pl.lit(name), pl.int_range(pl.len())),
        event_time=pl.lit(now) - pl.duration(minutes=5),
        label_time=pl.lit(now) - pl.duration(minutes=1),
    )
    tally = traffic.Tally()
    with traffic.client(stack.url("gateway"), stack.checkout / "compose" / "secrets" / "gateway_api_key") as http:
        traffic.send_rows(http, fields, rows, tally)
        traffic.send_labels(http, fields, rows, tally)
    if tally.errors:
        raise Unavailable(
            f"{tally.errors} of {tally.requests} requests were refused: "
            f"{stack.compose('logs', '--tail', '30', 'gateway')}"
        )
    versions = sorted({version for version, *_ in tally.answers.values()})
    return {"rows": len(tally.answers), "labels": tally.labels, "versions": versions, "logged": logged(stack)}


def logged(stack: Stack) -> int:
    """Rows in the prediction log, as its volume has them."""
    count = (
        "find /srv/perennial/prediction_log/*/predictions -name '*.jsonl' -o -name '*.jsonl.open' | xargs cat | wc -l"
    )
    return int(stack.compose("exec", "-T", "gateway", "sh", "-c", count))


def ledger_of(stack: Stack) -> dict[str, Any]:
    """What the ledger says: releases, verdicts and alerts of the case."""
    told = (
        "import json; from pipelines import ledger; from pipelines.settings import read_settings; "
        "url = read_settings().ledger; "
    )
    told += (
        f"print(json.dumps([[r.champion for r in ledger.releases(url, {CASE!r})], [v['verdict']['decision'] for v "
        f"in ledger.verdicts(url, {CASE!r})]]))"
    )
    releases, verdicts = json.loads(_python(stack, "airflow-scheduler", told))
    return {"releases": releases, "verdicts": verdicts, "alerts": _alerts(stack)}


def _alerts(stack: Stack) -> list[dict[str, Any]]:
    """The loop's own alerts of the case, open or resolved."""
    found = json.loads(
        stack.compose(
            "exec", "-T", "airflow-scheduler", "python", "-m", "pipelines", "alerts", "--case", CASE, "--json"
        )
    )
    return list(found["alerts"])


def _python(stack: Stack, service: str, code: str, *arguments: str) -> str:
    return stack.compose("exec", "-T", service, "python", "-c", code, *arguments).strip().splitlines()[-1]


def drifted(stack: Stack, as_of: datetime, run_id: str) -> dict[str, Any]:
    """One drift run, triggered as a person would: its state and those of its tasks, and where they ran.

    Of a task that failed, the end of its log.
    """
    airflow = stack.airflow()
    dag = f"{CASE}_drift"
    ended = airflow.wait(dag, airflow.trigger_dag(dag, run_id, {"as_of": as_of.isoformat()}), RUN_SECONDS)
    tasks = airflow.tasks(dag, run_id)
    return {
        "state": ended["state"],
        "tasks": {task["task_id"]: task["state"] for task in tasks},
        "hosts": sorted({task["hostname"] for task in tasks if task["hostname"]}),
        "failed": {task["task_id"]: _log_of(airflow, dag, run_id, task) for task in tasks if task["state"] == "failed"},
    }


def _log_of(airflow: Airflow, dag: str, run_id: str, task: dict[str, Any]) -> str:
    """The end of a task's log; a task that was killed may have left none."""
    try:
        return airflow.log(dag, run_id, task["task_id"], task["try_number"])[-2000:]
    except PerennialError as error:
        return str(error)


def first_run(stack: Stack) -> dict[str, float]:
    """Seconds of each task of the run that made the first champion."""
    airflow = stack.airflow()
    dag = f"{CASE}_training"
    run = airflow.runs(dag)[0]["dag_run_id"]
    return {task["task_id"]: round(task["duration"], 1) for task in airflow.tasks(dag, run) if task["duration"]}


def doors(stack: Stack) -> list[dict[str, Any]]:
    """Who is let in and who is not.

    A row for each door and caller, with the status that is wanted and the one that came.
    """
    airflow, mlflow, gateway = (stack.url(name) for name in ("airflow-apiserver", "mlflow", "gateway"))
    admin, watcher = (
        {"username": user, "password": stack.secret(f"airflow_{user}_password")} for user in ("admin", "watcher")
    )
    predict = f"{gateway}/v1/cases/{CASE}/predict"
    search = f"{mlflow}/api/2.0/mlflow/experiments/search?max_results=1"
    rows = []
    with httpx.Client(timeout=30, trust_env=False) as http:

        def ask(who: str, wanted: int, method: str, url: str, **arguments: Any) -> httpx.Response:
            answer = http.request(method, url, **arguments)
            rows.append({"who": who, "wanted": wanted, "status": answer.status_code})
            return answer

        ask("Airflow, nobody", 401, "GET", f"{airflow}/api/v2/dags")
        ask("Airflow, a wrong password", 401, "POST", f"{airflow}/auth/token", json={**admin, "password": "wrong"})
        ask("Airflow, admin", 201, "POST", f"{airflow}/auth/token", json=admin)
        token = ask("Airflow, watcher", 201, "POST", f"{airflow}/auth/token", json=watcher).json()["access_token"]
        run: dict[str, Any] = {"dag_run_id": "by_watcher", "logical_date": None, "conf": {}}
        ask(
            "Airflow, watcher starts a run",
            403,
            "POST",
            f"{airflow}/api/v2/dags/{CASE}_drift/dagRuns",
            json=run,
            headers={"Authorization": f"Bearer {token}"},
        )
        ask("MLflow, nobody", 401, "GET", search)
        ask("MLflow, a wrong password", 401, "GET", search, auth=(MLFLOW_USER, "wrong"))
        ask("MLflow, its user", 200, "GET", search, auth=(MLFLOW_USER, stack.secret("mlflow_password")))
        ask("the gateway, nobody", 401, "POST", predict, json={"rows": []})
        ask("the gateway, a wrong key", 401, "POST", predict, json={"rows": []}, headers={"X-API-Key": "wrong"})
        for name, url, refusal in (
            ("Airflow", f"{airflow}/api/v2/version", 421),
            ("MLflow", search, 403),
            ("the gateway", f"{gateway}/healthz", 421),
        ):
            ask(f"{name}, another name", refusal, "GET", url, headers={"Host": "evil.example"})
    refused: list[dict[str, Any]] = json.loads(_python(stack, "airflow-scheduler", LOAD, CASE))
    return rows + refused


def reach(stack: Stack, outside: str | None) -> dict[str, Any]:
    """Who reaches whom, asked from inside of each container's network, by name and by every address.

    And who reaches the ``outside``. ``wrong`` names the pairs that are not as the networks of the file say; a service
    of the network ``out`` reaches the world, nobody else.
    """
    found = {name: one for name, one in containers(stack).items() if one["State"]["Running"]}
    networks = {name: one["NetworkSettings"]["Networks"] for name, one in found.items()}
    places = [[name, name, port] for name, port in INSIDE.items() if name in found]
    places += [
        [name, net["IPAddress"], port]
        for name, port in INSIDE.items()
        if name in found
        for net in networks[name].values()
    ]
    places += [["the world", outside, 80]] if outside else []
    wrong = []
    asked = 0
    world = []
    for name, one in found.items():
        asking = [
            "docker",
            "run",
            "--rm",
            "--network",
            f"container:{one['Id']}",
            "--entrypoint",
            "python",
            "perennial/gateway:0.2.0",
        ]
        reached = set(
            json.loads(
                said(*asking, "-c", ASK, json.dumps([place for place in places if place[0] != name]), env=stack.env)
            )
        )
        wanted = {
            other for other in INSIDE if other in found and other != name and set(networks[other]) & set(networks[name])
        }
        leads_out = any(net.endswith("_out") for net in networks[name])
        wanted |= {"the world"} if outside and leads_out else set()
        wrong += [f"{name} reaches {other}" for other in sorted(reached - wanted)] + [
            f"{name} does not reach {other}" for other in sorted(wanted - reached)
        ]
        world += [name] if "the world" in reached else []
        asked += len({place[0] for place in places} - {name})
    return {"pairs": asked, "wrong": wrong, "reach_the_world": world if outside else None}


def held(stack: Stack) -> dict[str, Any]:
    """What each container may do.

    Its user, capabilities, a write on its root (tried as root), and the secrets that it sees; what is not as it should
    be.
    """
    given = yaml.safe_load((stack.checkout / "docker-compose.yaml").read_text())["services"]
    texts = {path.name: path.read_text() for path in (stack.checkout / "compose" / "secrets").iterdir()}
    wrong = []
    looked = 0
    for name, one in containers(stack).items():
        if not one["State"]["Running"]:
            continue
        looked += 1
        inside = ["docker", "exec", one["Id"], "sh", "-c"]
        status = dict(
            line.split(":\t")
            for line in said(*inside, "cat /proc/1/status", env=stack.env).splitlines()
            if ":\t" in line
        )
        written = subprocess.run(
            ["docker", "exec", "--user", "0", one["Id"], "sh", "-c", "touch /perennial"],
            env=stack.env,
            capture_output=True,
            text=True,
            check=False,
        )
        seen = set(said(*inside, "ls /run/secrets 2>/dev/null || true", env=stack.env).split())
        told = said("docker", "top", one["Id"], "-eo", "pid,args", env=stack.env)
        wrong += [f"{name}: runs as root"] if status["Uid"].split()[0] == "0" else []
        wrong += [f"{name}: has capabilities"] if int(status["CapEff"], 16) else []
        wrong += [f"{name}: may gain privileges"] if status["NoNewPrivs"].strip() != "1" else []
        wrong += [f"{name}: its root can be written"] if "Read-only file system" not in written.stderr else []
        wrong += (
            [f"{name}: sees the secrets {', '.join(sorted(seen))}"]
            if seen != set(given[name].get("secrets", ()))
            else []
        )
        wrong += [
            f"{name}: {secret} stands in a command line"
            for secret, text in texts.items()
            if len(text) > 8 and text in told
        ]
    return {"containers": looked, "wrong": wrong}


def killed(stack: Stack) -> dict[str, Any]:
    """The main process of every long-running container is ended with SIGKILL, one after the other.

    How long until all are healthy again, as new processes.
    """
    before = {name: one["State"]["Pid"] for name, one in containers(stack).items() if one["State"]["Running"]}
    began = time.monotonic()
    for pid in before.values():
        os.kill(pid, signal.SIGKILL)  # `docker kill` would count as a person's stop, after which nothing starts again

    def again() -> bool:
        found = containers(stack)
        return all(
            found[name]["State"]["Running"] and found[name]["State"]["Pid"] != pid for name, pid in before.items()
        )

    until(again, "containers that start again", SETTLE_SECONDS)
    settled(stack)
    return {"processes": len(before), "healthy_after_seconds": round(time.monotonic() - began, 1)}


def targets(stack: Stack) -> dict[str, Any]:
    """What Prometheus scrapes and evaluates: targets that are down, rules without an answer, alerts that fire."""
    url = stack.url("prometheus")
    with httpx.Client(base_url=url, timeout=10, trust_env=False) as http:

        def down() -> list[str]:
            return [
                one["scrapePool"]
                for one in http.get("/api/v1/targets").json()["data"]["activeTargets"]
                if one["health"] != "up"
            ]

        until(lambda: not down(), "Prometheus' targets", 180)
        rules = [rule for group in http.get("/api/v1/rules").json()["data"]["groups"] for rule in group["rules"]]
        count = len(http.get("/api/v1/targets").json()["data"]["activeTargets"])
    return {
        "targets": count,
        "rules": len(rules),
        "rules_not_ok": [rule["name"] for rule in rules if rule["health"] == "err"],
        "firing": sorted({rule["name"] for rule in rules if rule.get("state") == "firing"}),
    }


def used(stack: Stack) -> dict[str, Any]:
    """Memory that all containers hold at this moment, in GiB, and the largest of them."""
    lines = said(
        "docker",
        "stats",
        "--no-stream",
        "--format",
        "{{.Name}} {{.MemUsage}}",
        *(one["Id"] for one in containers(stack).values() if one["State"]["Running"]),
        env=stack.env,
    )
    held = {name: _gib(text) for name, text in re.findall(r"^(\S+) (\S+) /", lines, re.MULTILINE)}
    return {"gib": round(sum(held.values()), 2), "largest": dict(sorted(held.items(), key=lambda one: -one[1])[:4])}


def _gib(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(\w+)", text).groups()  # type: ignore[union-attr]
    return round(float(number) * {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}[unit] / 2**30, 3)
