"""What PROFILE=full's Prometheus knows: its targets, its rules, and every panel of the three dashboards."""

from __future__ import annotations

import subprocess
import time
from datetime import datetime, timedelta
from typing import Any

from benchmarks.full import panels
from embedded import http, postgres
from embedded.demo import traffic
from embedded.ports import HOST, Ports
from pipelines import cases, ledger
from pipelines.cli import rolling
from pipelines.contracts import Window
from pipelines.params_file import load_params
from pipelines.provenance import wall_time
from pipelines.settings import Settings

CASE = "loans"
PATIENCE = 200.0
"""Rates look back two minutes, and Prometheus asks some targets once a minute."""
ROWS = 20


def watched(settings: Settings, ports: Ports, case: str) -> dict[str, Any]:
    """Targets, rules and panels, asked while rows are sent until each has what it can have.

    Meanwhile the first champion of ``case``, which a demo has played, is rolled out once more, as a person would do it.
    Then the dashboards are drawn.
    """
    url = f"http://{HOST}:{ports.prometheus}"
    newest = ledger.head(settings.ledger, case)
    assert newest is not None
    sent = {CASE: _rows(settings, CASE, wall_time()), case: _rows(settings, case, newest.as_of - timedelta(days=30))}
    rolling.run(load_params(case), settings, "start", "both arms are drawn", version=1, preset="safe")
    deadline = time.monotonic() + PATIENCE
    while True:
        for name, rows in sent.items():
            _send(settings, name, rows)
        targets = http.call(f"{url}/api/v1/targets")["data"]["activeTargets"]
        rules = [rule for group in http.call(f"{url}/api/v1/rules")["data"]["groups"] for rule in group["rules"]]
        asked = panels.ask(url)
        down = [one["scrapePool"] for one in targets if one["health"] != "up"]
        not_ok = [rule["name"] for rule in rules if rule["health"] != "ok"]
        empty = [one for one in asked if not one["series"] and not one["absent"]]
        # The exporter looks once a minute: with nothing on trial there is nothing to see in the pictures.
        told = panels.finds(url, f'perennial_rollout_weight{{case="{case}"}} > 0')
        if (told and not (down or not_ok or empty)) or time.monotonic() > deadline:
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


def _rows(settings: Settings, case: str, start: datetime) -> list[dict[str, Any]]:
    """The features of a few rows of the case's own since then."""
    params = load_params(case)
    part = cases.part(case, "source")
    rows = part.rows(part.resolve(settings, params), Window(start=start, end=start + timedelta(days=30)), params)
    found: list[dict[str, Any]] = rows.head(ROWS).select(cases.load_fields(case).names).to_dicts()
    return found


def _send(settings: Settings, case: str, rows: list[dict[str, Any]]) -> None:
    """Ask for each row by itself: a rate of what never moves is nothing to draw."""
    with traffic.client(settings.gateway_url, settings.key_file) as gateway:
        for row in rows:
            gateway.post(f"/v1/cases/{case}/predict", json={"rows": [row]})


def servers() -> dict[str, str]:
    """The versions of the servers that no Python package brings."""
    programs = {"postgresql": [str(postgres.find() / "postgres"), "--version"], "redis": ["redis-server", "--version"]}
    programs |= {name: [name, "--version"] for name in ("prometheus", "prometheus-alertmanager")}
    said = {name: subprocess.run(argv, capture_output=True, text=True, check=False) for name, argv in programs.items()}
    return {
        name: (done.stdout or done.stderr).splitlines()[0].split(" (branch")[0].split(" sha=")[0]
        for name, done in said.items()
    }
