"""A case's daily pages in MLflow: one run per drift window in the experiment ``<case>-monitoring``.

The run that trained the champion has a tag that leads there. A run bears the case's clock, so the experiment's table
is the case's history. Writing again changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from pipelines.drift_report import DriftReport
from pipelines.registry import live, rest
from pipelines.registry.client import connect
from pipelines.settings import Settings

PUBLISHED = "perennial.report"
"""Tag of a window's run: the key of the report that it holds."""
NEWEST = "perennial.monitoring"
"""Tag of a champion's training run: where the newest page about it is, below MLflow's URL, after its ``as_of``."""


def publish(
    settings: Settings,
    *,
    as_of: datetime,
    key: str,
    report: DriftReport,
    headline: str,
    files: Sequence[Path],
    champion: str | None,
) -> str:
    """Keep ``files``, the ``headline`` and the ``report``'s figures of the window judged at ``as_of`` in its run.

    Returns the run's page below MLflow's URL. ``champion`` is the id of the run that trained the version that served.
    Raises Unavailable within seconds if MLflow is down.
    """
    home = live.experiment(settings, f"{report.case}-monitoring")
    run = _run(settings, home, as_of)
    identity = run["info"]["run_id"]
    known = {tag["key"]: tag["value"] for tag in run.get("data", {}).get("tags", [])}
    page = f"#/experiments/{home}/runs/{identity}"
    if known.get(PUBLISHED) == key:
        return page
    with connect(settings) as client:
        for path in files:
            client.log_artifact(identity, str(path))
    moment = int(as_of.timestamp() * 1000)
    points = [{"key": name, "value": value, "step": 0, "timestamp": moment} for name, value in _metrics(report)]
    # The key last: a run that has it is whole.
    tags = {**_tags(report), live.NOTE: headline, PUBLISHED: key}
    said = [{"key": name, "value": value[: live.TEXT]} for name, value in tags.items()]
    rest.post(settings, "runs/log-batch", {"run_id": identity, "metrics": points, "tags": said})
    rest.post(settings, "runs/update", {"run_id": identity, "status": "FINISHED", "end_time": moment})
    if champion is not None:
        _point(settings, champion, f"{as_of.isoformat()} {page}")
    return page


def _tags(report: DriftReport) -> dict[str, str]:
    """What the policy said, as far as it is known."""
    said = {
        "state": report.state,
        "action": report.action,
        "episode": report.episode,
        "model_version": report.model_version,
    }
    return {f"perennial.{name}": str(value) for name, value in said.items() if value is not None}


def _metrics(report: DriftReport) -> Iterator[tuple[str, float]]:
    yield "rows", report.current_rows
    decisive = [one.debiased_psi for one in report.features if not one.ignored]
    if decisive:
        yield "largest_debiased_psi", max(decisive)
    found = report.headroom
    if (gain := found.decides) is not None:
        yield from (("headroom_gain", gain.value), ("headroom_low", gain.low), ("headroom_high", gain.high))
        yield "headroom_price", found.price


def _run(settings: Settings, home: str, as_of: datetime) -> dict[str, Any]:
    """The window's run, made if there is none; of two that were made at once the older one stays."""
    query = {
        "experiment_ids": [home],
        "filter": f"tags.`{live.AS_OF}` = '{as_of.isoformat()}'",
        "order_by": ["attributes.start_time ASC", "attributes.run_id ASC"],
    }
    if not (found := rest.post(settings, "runs/search", query).get("runs", [])):
        tags = [{"key": live.AS_OF, "value": as_of.isoformat()}]
        made = {
            "experiment_id": home,
            "run_name": f"{as_of:%Y-%m-%d %H:%M}",
            "start_time": int(as_of.timestamp() * 1000),
            "tags": tags,
        }
        own = rest.post(settings, "runs/create", made)["run"]["info"]["run_id"]
        found = rest.post(settings, "runs/search", query)["runs"]
        if found[0]["info"]["run_id"] != own:
            rest.post(settings, "runs/delete", {"run_id": own})
    first: dict[str, Any] = found[0]
    return first


def _point(settings: Settings, run: str, place: str) -> None:
    """Let a champion's run say where its newest page is; an older window's page does not take that back."""
    try:
        data = rest.get(settings, "runs/get", run_id=run)["run"]["data"]
    except rest.Refused as error:
        if error.code == rest.ABSENT:
            return
        raise
    before = next((tag["value"] for tag in data.get("tags", []) if tag["key"] == NEWEST), "")
    # Both begin with a time in ISO 8601 and UTC, so that text orders them.
    if before < place:
        rest.post(settings, "runs/set-tag", {"run_id": run, "key": NEWEST, "value": place})
