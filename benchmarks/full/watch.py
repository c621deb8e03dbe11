"""What PROFILE=full's Prometheus knows: its targets, its rules, and every panel of the three dashboards."""

from __future__ import annotations

import subprocess
import time
from datetime import timedelta
from typing import Any

from benchmarks.full import panels
from embedded import http, postgres
from embedded.demo import traffic
from embedded.ports import HOST, Ports
from pipelines import cases
from pipelines.contracts import Window
from pipelines.params_file import load_params
from pipelines.provenance import wall_time
from pipelines.settings import Settings

CASE = "loans"
PATIENCE = 200.0
"""Rates look back two minutes, and Prometheus asks some targets once a minute."""


def watched(settings: Settings, ports: Ports) -> dict[str, Any]:
    """Targets, rules and panels, asked while rows are sent until each has what it can have.

    Then the dashboards are drawn.
    """
    url = f"http://{HOST}:{ports.prometheus}"
    deadline = time.monotonic() + PATIENCE
    while True:
        _send(settings)
        targets = http.call(f"{url}/api/v1/targets")["data"]["activeTargets"]
        rules = [rule for group in http.call(f"{url}/api/v1/rules")["data"]["groups"] for rule in group["rules"]]
        asked = panels.ask(url)
        down = [one["scrapePool"] for one in targets if one["health"] != "up"]
        not_ok = [rule["name"] for rule in rules if rule["health"] != "ok"]
        empty = [one for one in asked if not one["series"] and not one["absent"]]
        if not (down or not_ok or empty) or time.monotonic() > deadline:
            break
        time.sleep(3)
    print(
        (
            f"Prometheus: {len(targets)} targets, {len(down)} down; {len(rules)} rules, {len(not_ok)} not ok; "
            f"{len(asked)} queries, {len(empty)} empty"
        ),
        flush=True,
    )
    for path in panels.draw(url):
        print(f"drawn: {path.name}, {path.stat().st_size / 1024:.0f} KiB", flush=True)
    return {
        "targets": sorted(one["scrapePool"] for one in targets),
        "down": down,
        "rules": len(rules),
        "rules_not_ok": not_ok,
        "firing": sorted({rule["name"] for rule in rules if rule["state"] == "firing"}),
        "alertmanagers": len(http.call(f"{url}/api/v1/alertmanagers")["data"]["activeAlertmanagers"]),
        "panels": {
            "queries": len(asked),
            "with_data": sum(bool(one["series"]) for one in asked),
            "empty": [f"{one['dashboard']}: {one['panel']}, {one['legend']}" for one in empty],
            "empty_for_a_reason": {
                f"{one['dashboard']}: {one['panel']}, {one['legend']}": one["absent"]
                for one in asked
                if not one["series"] and one["absent"]
            },
        },
    }


def _send(settings: Settings) -> None:
    """A few rows through the gateway: a rate of what never moves is nothing to draw."""
    params = load_params(CASE)
    fields = cases.load_fields(CASE)
    now = wall_time()
    part = cases.part(CASE, "source")
    rows = part.rows(part.resolve(settings, params), Window(start=now, end=now + timedelta(hours=2)), params).head(20)
    with traffic.client(settings.gateway_url, settings.key_file) as gateway:
        for row in rows.select(fields.names).iter_rows(named=True):
            gateway.post(f"/v1/cases/{CASE}/predict", json={"rows": [row]})


def servers() -> dict[str, str]:
    """The versions of the servers that no Python package brings."""
    programs = {"postgresql": [str(postgres.find() / "postgres"), "--version"], "redis": ["redis-server", "--version"]}
    programs |= {name: [name, "--version"] for name in ("prometheus", "prometheus-alertmanager")}
    said = {name: subprocess.run(argv, capture_output=True, text=True, check=False) for name, argv in programs.items()}
    return {
        name: (done.stdout or done.stderr).splitlines()[0].split(" (branch")[0].split(" sha=")[0]
        for name, done in said.items()
    }
