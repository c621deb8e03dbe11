"""report: one page for people about the drift window, its past and what was done; nothing hangs on it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from pipelines import feature_names, ledger, storage
from pipelines.cases import load_fields
from pipelines.contracts import Manifest, Release
from pipelines.drift import reference
from pipelines.drift.inputs.compare import compare
from pipelines.drift.profile.counts import Profile, merge, read
from pipelines.drift.profile.spec import load_spec, scale_of
from pipelines.drift.why.describe import describe
from pipelines.drift_report import DriftReport, read_report
from pipelines.errors import PerennialError
from pipelines.feature_names import BY_VERSION, SCORE, served
from pipelines.line.facts import ReportFacts
from pipelines.line.step import Read, Run, Work
from pipelines.params import Params
from pipelines.registry import monitoring
from pipelines.reports import daily
from pipelines.settings import Settings

log = logging.getLogger(__name__)

PAGE = "index.html"
COLUMNS = 31
"""Days or windows side by side on the page."""
ROWS = 30
"""Features on the page, of however many."""
DESCRIBED = 8
"""Features whose values are told, before and now."""
PROVENANCE = ("actor", "mlflow_run", "recorded_at", "hash", "previous_hash")
"""What a release carries beside what it is."""


def work(run: Run, read: Read) -> Work:
    """Write ``index.html``: self-contained, made from the drift report, earlier ones, the day profiles and the ledger.

    The key is made of what the page says: the verdict of a retraining that ended since, or an alert, gives another
    page.
    """
    params, settings, run_dir, as_of = run.params, run.settings, run.dir, run.as_of
    made, profiled = read["drift"], read["profile"]
    report = read_report(run_dir / "drift")
    past = _history(run_dir)
    told = _ledger(params, settings, report, as_of)
    view: dict[str, Any] = {
        "case": params.case,
        "as_of": as_of.isoformat(),
        "report": report.model_dump(mode="json"),
        "kind": params.drift.window,
        "label_delay_days": params.label_delay_days,
        "policy": params.drift.model_dump(mode="json"),
        "history": past,
        **told,
        **_profiles(params, settings, run_dir, report, past, profiled, as_of),
    }

    def build(folder: Path, _key: str) -> ReportFacts:
        page = daily.page(view, _links(params, settings, made, report))
        (folder / PAGE).write_text(page, encoding="utf-8")
        return ReportFacts(state=report.state.value, headline=daily.headline(view), bytes=len(page.encode()))

    # The answer says where MLflow shows the page, the manifest does not: the page counts, wherever MLflow is.
    publish = partial(_publish, run, view)
    return Work(build, {"view": _said(view)}, follow=publish)


def _said(view: Mapping[str, Any]) -> dict[str, Any]:
    """The view without who released and when, and in which run of MLflow.

    The page does not say it, and one history played twice differs in it.
    """

    def bare(release: Mapping[str, Any] | None) -> dict[str, Any] | None:
        return None if release is None else {name: value for name, value in release.items() if name not in PROVENANCE}

    return {**view, "releases": [bare(release) for release in view["releases"]], "champion": bare(view["champion"])}


def _publish(run: Run, view: Mapping[str, Any], manifest: Manifest) -> dict[str, str]:
    """The pages in MLflow, for people who come from there or from Airflow: ``{page, evidently}`` as addresses.

    Without MLflow nothing.
    """
    report, settings = view["report"], run.settings
    drawn = run.dir / "drift" / "drift.html"
    files = [run.dir / "report" / PAGE, *([drawn] if drawn.exists() else [])]
    tags = {
        name: str(report[name]) for name in ("state", "action", "episode", "model_version") if report[name] is not None
    }
    strongest = [one["debiased_psi"] for one in report["features"] if not one["ignored"]]
    metrics = {"rows": report["current_rows"], **({"largest_debiased_psi": max(strongest)} if strongest else {})}
    try:
        page = monitoring.publish(
            settings,
            case=run.case,
            as_of=run.as_of,
            key=manifest.key,
            files=files,
            tags={f"perennial.{name}": value for name, value in tags.items()}
            | {"mlflow.note.content": manifest.facts["headline"]},
            metrics=metrics,
            champion=None if view["champion"] is None else view["champion"]["mlflow_run"],
        )
    except (PerennialError, OSError) as error:
        log.warning("the page of %s stays where it is, MLflow has no copy: %s", run.case, error)
        return {}
    place = f"{settings.mlflow_url.rstrip('/')}/{page}/artifacts"
    return {"page": f"{place}/{PAGE}", **({"evidently": f"{place}/{drawn.name}"} if drawn.exists() else {})}


# --- what is looked at --------------------------------------------------------------------------


def _runs(run_dir: Path, step: str) -> Iterator[Path]:
    """The folders that ``step`` left in this run and in earlier ones of its case, newest first."""
    for folder in sorted(run_dir.parent.iterdir(), reverse=True):
        if folder.name <= run_dir.name and (folder / step / storage.MANIFEST).exists():
            yield folder / step


def _history(run_dir: Path) -> list[dict[str, Any]]:
    """The newest reports, one per window, oldest first, this run's the last."""
    found: dict[str, dict[str, Any]] = {}
    for folder in _runs(run_dir, "drift"):
        made = storage.read_manifest(folder)
        # Through the contract: an earlier release's report lacks what came later.
        report = read_report(folder).model_dump(mode="json")
        found.setdefault(report["window"]["end"], {**report, "as_of": made.as_of.isoformat()})
        if len(found) == COLUMNS:
            break
    return [found[end] for end in sorted(found)]


def _ledger(params: Params, settings: Settings, report: DriftReport, as_of: datetime) -> dict[str, Any]:
    """Releases, verdicts, episodes and open alerts up to ``as_of``."""
    case, url = params.case, settings.ledger
    releases = [release for release in ledger.releases(url, case) if release.as_of <= as_of]
    verdicts = [row for row in ledger.verdicts(url, case) if datetime.fromisoformat(row["as_of"]) <= as_of]
    # Of those without a count only the first judgement of a window knew, which another one has taken the place of.
    stand = [alert for alert in ledger.alerts(url, case) if alert.count and alert.first_seen <= as_of]
    alerts = [alert for alert in stand if alert.state != "resolved" or alert.last_seen >= as_of]
    return {
        "releases": [release.model_dump(mode="json") for release in releases],
        "champion": _champion(releases, report),
        "verdicts": [{name: row[name] for name in ("as_of", "trigger", "hash", "verdict")} for row in verdicts],
        "episodes": [
            {"episode": row["episode"], "as_of": row["as_of"]}
            for row in ledger.episodes(url, case)
            if datetime.fromisoformat(row["as_of"]) <= as_of
        ],
        "alerts": [alert.model_dump(mode="json") for alert in alerts],
    }


def _champion(releases: Sequence[Release], report: DriftReport) -> dict[str, Any] | None:
    """The newest release of the version that the window was compared with."""
    own = [release for release in releases if release.champion == report.model_version]
    return own[-1].model_dump(mode="json") if own else None


def _profiles(
    params: Params,
    settings: Settings,
    run_dir: Path,
    report: DriftReport,
    past: Sequence[Mapping[str, Any]],
    made: Manifest,
    as_of: datetime,
) -> dict[str, Any]:
    """What the counts say.

    ``heat`` (columns and rows), ``moved`` (values before and now), ``served`` (rows by version).
    """
    fields = load_fields(params.case)
    spec = load_spec(fields, settings.profile_file(params.case))
    current = merge((read(settings.root / day["path"]) for day in made.facts["days"]), made.facts["spec"])
    answered = {
        feature.version: column.n + sum(column.missing)
        for feature, column in ((feature_names.read(name), column) for name, column in current.columns.items())
        if feature.of == SCORE and feature.version is not None
    }
    found: dict[str, Any] = {
        "served": [{"version": version, "rows": rows} for version, rows in sorted(answered.items())]
    }
    champion = ledger.champion_before(settings.ledger, params.case, as_of)
    order = [feature.feature for feature in report.features]
    bundle = (
        None
        if champion is None
        else storage.find(settings.root / champion.bundle, champion.candidate_key, verify={reference.FILE})
    )
    before = None if bundle is None else read(bundle / reference.FILE)
    if before is None or before.spec != spec.version:
        return {**found, "heat": windows(past, order), "moved": []}
    found["moved"] = []
    for name in order[:DESCRIBED]:
        now = current.columns.get(served(name, report.model_version))
        told = None if now is None else describe(before.columns[name], now, scale_of(spec, name))
        if told is not None:
            found["moved"].append({"feature": name, **told})
    days = _days(settings, run_dir, report.window.end.date(), spec.version)
    enough = sum(day["rows"] >= params.drift.min_rows for day in days)
    if params.drift.window != "day" and 2 * enough <= sum(day["rows"] > 0 for day in days):
        return {**found, "heat": windows(past, order)}
    shown = order[:ROWS] or [name for name in before.columns if name not in BY_VERSION][:ROWS]
    narrow = replace(before, columns={name: before.columns[name] for name in shown})
    values: dict[str, list[float | None]] = {name: [] for name in shown}
    for day in days:
        profile = read(settings.root / day["path"]) if day["path"] else Profile(spec.version, 0, {})
        psi = {
            one.feature: one.debiased_psi
            for one in compare(narrow, profile, fields, spec, params.drift, report.model_version)
        }
        for name, row in values.items():
            row.append(psi.get(name))
    columns = [{"end": day["date"], "rows": day["rows"], "version": report.model_version} for day in days]
    return {
        **found,
        "heat": {
            "unit": "day",
            "columns": columns,
            "rows": [{"feature": name, "values": row} for name, row in values.items()],
            "of": len(order),
        },
    }


def windows(past: Sequence[Mapping[str, Any]], order: Sequence[str]) -> dict[str, Any]:
    """The heat map of whole windows: what each run found against the champion that served then."""
    columns = [
        {"end": one["window"]["end"], "rows": one["current_rows"], "version": one["model_version"]} for one in past
    ]
    seen = [{feature["feature"]: feature["debiased_psi"] for feature in one["features"]} for one in past]
    # Where this window has no values (it is empty), the order is that of the newest one that has.
    names = list(dict.fromkeys([*order, *(name for one in reversed(seen) for name in one)]))
    rows = [{"feature": name, "values": [one.get(name) for one in seen]} for name in names[:ROWS]]
    return {"unit": "window", "columns": columns, "rows": rows, "of": len(names)}


def _days(settings: Settings, run_dir: Path, end: date, spec: str) -> list[dict[str, Any]]:
    """The last days before ``end``, oldest first, ``{date, rows, path}``: profiled by the newest run that did.

    Path None: no rows.
    """
    first = end - timedelta(days=COLUMNS)
    found: dict[str, dict[str, Any]] = {}
    for folder in _runs(run_dir, "profile"):
        facts = storage.read_manifest(folder, verify=False).facts
        if datetime.fromisoformat(facts["window"]["end"]).date() <= first:
            break
        if facts["spec"] == spec:
            found |= {
                day["date"]: day
                for day in facts["days"]
                if day["date"] not in found and (settings.root / day["path"]).exists()
            }
    known = sorted(found)
    start = max(first, date.fromisoformat(known[0])) if known else end
    days = [str(start + timedelta(days=number)) for number in range((end - start).days)]
    return [found.get(day, {"date": day, "rows": 0, "path": None}) for day in days]


def _links(params: Params, settings: Settings, made: Manifest, report: DriftReport) -> dict[str, str]:
    """Where to read on. They say *where* and so are no part of the key."""
    case, mlflow, airflow = params.case, settings.mlflow_url.rstrip("/"), settings.airflow_url.rstrip("/")
    links = {"history": f"{airflow}/dags/{case}_drift"} if airflow else {}
    if mlflow and report.model_version is not None:
        links["model"] = f"{mlflow}/#/models/{case}/versions/{report.model_version}"
    if airflow and report.episode is not None:
        links["training"] = f"{airflow}/dags/{case}_training/runs/drift__{report.episode}"
    if made.facts.get("page") == "drift.html":
        links["evidently"] = "../drift/drift.html"
    return links
