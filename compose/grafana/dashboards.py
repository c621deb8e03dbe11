"""The three dashboards as code.

`python compose/grafana/dashboards.py` writes dashboards/*.json, which Grafana is provisioned with. A panel is a title,
a unit and its queries; what Grafana wants beside that is the same for all. The metrics are those of
serving/gateway/metrics.py, pipelines/reports/metrics.py, embedded/airflow_metrics.py and Triton.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "dashboards"
SOURCE = {"type": "prometheus", "uid": "prometheus"}
WIDTH = 8
HEIGHT = 8
COLUMNS = 3
CASE = '{case=~"$case"}'


@dataclass(frozen=True)
class Panel:
    """One drawing: queries by the legend of their lines; ``kind`` as Grafana calls it."""

    title: str
    unit: str
    queries: dict[str, str]
    about: str = ""
    kind: str = "timeseries"


@dataclass(frozen=True)
class Dashboard:
    """Rows of panels; ``cases`` adds the choice of a case."""

    name: str
    title: str
    rows: dict[str, tuple[Panel, ...]]
    cases: bool = False
    tags: tuple[str, ...] = field(default=("perennial",))


_CHALLENGED = 'perennial_gateway_arm_rows_total{case=~"$case", arm="challenger"}'


def _quantile(share: float) -> str:
    return (
        f"histogram_quantile({share}, sum by (le) "
        f'(rate(perennial_gateway_request_seconds_bucket{{route="predict"}}[2m])))'
    )


def _of_answers(share: float) -> str:
    return (
        f"histogram_quantile({share}, sum by (case, version, le) "
        f"(rate(perennial_gateway_answer_seconds_bucket{CASE}[2m])))"
    )


def _promised(share: float) -> str:
    return f'max by (case) (perennial_gateway_slo_seconds{{case=~"$case", quantile="{share}"}})'


_FAILED = 'perennial_gateway_requests_total{case=~"$case", route=~"predict|infer", status=~"5.."}'
_REFUSED = 'perennial_gateway_requests_total{case=~"$case", route=~"predict|infer", status=~"4.."}'
_ASKED = 'perennial_gateway_requests_total{case=~"$case", route=~"predict|infer", status=~"2..|5.."}'


def _or_none(query: str, label: str) -> str:
    """The query, and where it finds nothing a zero whose legend says so.

    No error yet is a figure too, no data is not.
    """
    return f'{query} or on () label_replace(vector(0), "{label}", "none", "", "")'


def _per(what: str, each: str, by: str = "model, version") -> str:
    return f"sum by ({by}) (rate({what}[2m])) / (sum by ({by}) (rate({each}[2m])) > 0)"


SYSTEM = Dashboard(
    "system",
    "Perennial: system",
    {
        "Gateway": (
            Panel("Requests", "reqps", {"{{route}}": "sum by (route) (rate(perennial_gateway_requests_total[2m]))"}),
            Panel(
                "Errors",
                "percentunit",
                {
                    "5xx": (
                        'sum(rate(perennial_gateway_requests_total{status=~"5.."}[2m])) / '
                        "sum(rate(perennial_gateway_requests_total[2m])) or vector(0)"
                    ),
                    "4xx": (
                        'sum(rate(perennial_gateway_requests_total{status=~"4.."}[2m])) / '
                        "sum(rate(perennial_gateway_requests_total[2m])) or vector(0)"
                    ),
                },
                "Share of all answers.",
            ),
            Panel(
                "Latency of predictions",
                "s",
                {"p50": _quantile(0.5), "p95": _quantile(0.95), "p99": _quantile(0.99)},
                "Time to the last byte.",
            ),
            Panel(
                "Rows scored",
                "short",
                {"{{case}} {{version}}": "sum by (case, version) (rate(perennial_gateway_rows_total[2m]))"},
                "Rows per second.",
            ),
            Panel(
                "Saturation of the gateway",
                "short",
                {"requests in flight": "sum(rate(perennial_gateway_request_seconds_sum[2m]))"},
                "Mean number of requests in flight (Little's law): rate times duration.",
            ),
            Panel(
                "Refused rows",
                "short",
                {
                    "{{case}} {{reason}}": _or_none(
                        "sum by (case, reason) (rate(perennial_gateway_refused_rows_total[2m]))", "case"
                    )
                },
            ),
        ),
        "Answers that are kept": (
            Panel(
                "Prediction log",
                "short",
                {"{{case}} {{kind}}": "sum by (case, kind) (rate(perennial_gateway_log_lines_total[2m]))"},
                "Lines per second.",
            ),
            Panel(
                "Failed writes of the log",
                "short",
                {"{{case}}": _or_none("sum by (case) (increase(perennial_gateway_log_errors_total[10m]))", "case")},
            ),
            Panel(
                "Ledger as the gateway sees it",
                "s",
                {
                    "age of the last poll": "perennial_gateway_ledger_poll_age_seconds",
                    "failed polls": "increase(perennial_gateway_ledger_errors_total[10m])",
                },
            ),
        ),
        "Triton": (
            Panel(
                "Inferences",
                "reqps",
                {"{{model}} {{version}}": "sum by (model, version) (rate(nv_inference_request_success[2m]))"},
            ),
            Panel(
                "Queue time",
                "µs",
                {"{{model}} {{version}}": _per("nv_inference_queue_duration_us", "nv_inference_request_success")},
                "Per request.",
            ),
            Panel(
                "Batch size",
                "short",
                {"{{model}} {{version}}": _per("nv_inference_count", "nv_inference_exec_count")},
                "Rows per execution.",
            ),
            Panel(
                "Compute time",
                "µs",
                {"{{model}} {{version}}": _per("nv_inference_compute_infer_duration_us", "nv_inference_exec_count")},
                "Per execution.",
            ),
            Panel(
                "Failures",
                "reqps",
                {"{{model}} {{version}}": "sum by (model, version) (rate(nv_inference_request_failure[2m]))"},
            ),
            Panel(
                "Saturation of Triton",
                "short",
                {
                    "{{model}} pending": "sum by (model) (nv_inference_pending_request_count)",
                    "processors": "nv_cpu_utilization",
                    "GPU {{gpu_uuid}}": "nv_gpu_utilization",
                },
                "Requests that wait, and the share of the machine that is busy.",
            ),
        ),
        "Monitoring itself": (
            Panel("Targets", "bool_on_off", {"{{job}}": "min by (job) (up)"}, kind="stat"),
            Panel(
                "Firing alerts",
                "short",
                {
                    "{{alertname}} {{case}}": _or_none(
                        'count by (alertname, case, severity) (ALERTS{alertstate="firing"})', "alertname"
                    )
                },
            ),
            Panel(
                "Fallback",
                "bool_on_off",
                {"{{case}}": "max by (case) (perennial_gateway_fallback)"},
                "1 while the previous version, or the declared default, answers.",
                "stat",
            ),
        ),
    },
)

MODEL = Dashboard(
    "model",
    "Perennial: models",
    {
        "What serves": (
            Panel("Champion", "none", {"{{case}}": f"perennial_champion_version{CASE}"}, kind="stat"),
            Panel(
                "Age of the champion",
                "d",
                {"{{case}}": f"perennial_champion_age_days{CASE}"},
                "From its training to the end of the newest window.",
                "stat",
            ),
            Panel("Rollout stage", "none", {"{{case}} {{stage}}": f"perennial_rollout_stage{CASE} == 1"}, kind="stat"),
            Panel(
                "Policy",
                "none",
                {"{{case}} {{state}}": f"perennial_policy_state{CASE} == 1"},
                "The drift policy's state.",
                "stat",
            ),
            Panel("Open alerts", "none", {"{{case}} {{severity}}": f"perennial_alerts_open{CASE}"}, kind="stat"),
            Panel(
                "Which version answers",
                "short",
                {"{{case}} {{version}}": f"sum by (case, version) (rate(perennial_gateway_rows_total{CASE}[2m]))"},
            ),
        ),
        "Rollouts": (
            Panel(
                "Version on trial",
                "none",
                {"{{case}}": f"perennial_rollout_version{CASE}"},
                "Also in its soak; 0: no rollout is under way.",
                "stat",
            ),
            Panel(
                "Share of the challenger",
                "percentunit",
                {"{{case}}": f"perennial_rollout_weight{CASE}"},
                "Of the keys; 0 in shadow, and where no rollout is under way.",
            ),
            Panel(
                "Rows of both arms",
                "short",
                {
                    "{{case}} {{arm}} {{outcome}}": (
                        f"sum by (case, arm, outcome) (rate(perennial_gateway_arm_rows_total{CASE}[2m]))"
                    )
                },
                "A second, while a rollout is under way, by what became of them; shadow: after the reply.",
            ),
            Panel(
                "Evidence against the challenger",
                "short",
                {"{{case}}": f"perennial_rollout_e_value{CASE}"},
                "The guard's e-value at the newest row of the rollout: at 20 it is taken back.",
            ),
            Panel(
                "Moves of a day",
                "short",
                {
                    "{{case}} {{action}}": _or_none(
                        f"sum by (case, action) (delta(perennial_rollout_moves{CASE}[1d])) > 0", "case"
                    )
                },
                "Rows of rollouts that changed no champion: opened, advanced, held, taken back.",
            ),
            Panel(
                "Rows that a challenger answered",
                "short",
                {"{{case}}": f"sum by (case) (increase({_CHALLENGED}[1d]))"},
                "Of a day: what met a version that was on trial.",
            ),
            Panel(
                "Challenger refused here",
                "bool_on_off",
                {"{{case}}": f"max by (case) (perennial_gateway_challenger_refused{CASE})"},
                "1 while the gateway cannot serve the challenger, so that the champion answers its keys.",
                "stat",
            ),
        ),
        "Answers and their SLO": (
            Panel(
                "p50 of answers",
                "s",
                {"{{case}} {{version}}": _of_answers(0.5)},
                "Whole requests that were answered with scores, by the version that gave them.",
            ),
            Panel(
                "p95 of answers",
                "s",
                {"{{case}} {{version}}": _of_answers(0.95), "{{case}} promised": _promised(0.95)},
                "The line is the case's serving.slo.p95_ms.",
            ),
            Panel(
                "p99 of answers",
                "s",
                {"{{case}} {{version}}": _of_answers(0.99), "{{case}} promised": _promised(0.99)},
                "The line is the case's serving.slo.p99_ms.",
            ),
            Panel(
                "Requests without an answer",
                "percentunit",
                {
                    "{{case}} {{version}}": (
                        f"sum by (case, version) (rate({_FAILED}[2m])) / on (case) group_left () "
                        f"sum by (case) (rate({_ASKED}[2m]))"
                    ),
                    "{{case}} promised": f"max by (case) (perennial_gateway_slo_errors{CASE})",
                },
                "5xx by the version that was asked, as a share of the case's requests but for refused ones. "
                "The line is the case's serving.slo.errors.",
            ),
            Panel(
                "Refused requests",
                "reqps",
                {"{{case}} {{status}}": _or_none(f"sum by (case, status) (rate({_REFUSED}[2m]))", "case")},
                "4xx: what the client must change.",
            ),
            Panel(
                "Where the time goes",
                "s",
                {
                    "{{case}} {{phase}}": (
                        f"sum by (case, phase) (rate(perennial_gateway_phase_seconds_total{CASE}[2m])) / on (case) "
                        f"group_left () sum by (case) (rate(perennial_gateway_answer_seconds_count{CASE}[2m]))"
                    )
                },
                "Mean of an answered request, as its Server-Timing says it.",
            ),
            Panel(
                "Rows in a call to Triton",
                "short",
                {
                    "{{case}} mean": (
                        f"sum by (case) (rate(perennial_gateway_call_rows_sum{CASE}[2m])) / "
                        f"sum by (case) (rate(perennial_gateway_call_rows_count{CASE}[2m]))"
                    ),
                    "{{case}} p95": (
                        "histogram_quantile(0.95, sum by (case, le) "
                        f"(rate(perennial_gateway_call_rows_bucket{CASE}[2m])))"
                    ),
                },
                "Rows that waited together go together: more of them the busier the case is.",
            ),
            Panel(
                "Calls that wait",
                "short",
                {"{{case}}": f"sum by (case) (perennial_gateway_calls_waiting{CASE})"},
                "For others' calls to Triton, at the moment of the scrape.",
            ),
        ),
        "Drift": (
            Panel(
                "Drift per feature",
                "short",
                {
                    "{{case}} {{feature}}": f"perennial_drift_psi{CASE}",
                    "{{case}} limit {{name}}": 'perennial_threshold{case=~"$case", name=~"psi_warn|psi_severe"}',
                },
                "Debiased PSI against the champion's reference, in nats.",
            ),
            Panel("Features that moved", "short", {"{{case}}": f"sum by (case) (perennial_drift_detected{CASE})"}),
            Panel(
                "Severity",
                "short",
                {"{{case}} {{feature}}": _or_none(f"perennial_drift_severity{CASE} > 0", "case")},
                "1 warn, 2 severe.",
            ),
            Panel(
                "Volume",
                "short",
                {
                    "{{case}}": f"perennial_volume_ratio{CASE}",
                    "{{case}} limit {{name}}": 'perennial_threshold{case=~"$case", name=~"volume_low|volume_high"}',
                },
                "Rows of the newest window against the reference's volume.",
            ),
            Panel("Broken fields", "short", {"{{case}}": f"perennial_quality_problems{CASE}"}),
            Panel(
                "Refused rows",
                "percentunit",
                {
                    "{{case}} {{of}}": f"perennial_refused_ratio{CASE}",
                    "{{case}} limit {{name}}": 'perennial_threshold{case=~"$case", name=~"refused_warn|refused_block"}',
                },
                "Of the rows that came in the newest window, and in its worst hours.",
            ),
            Panel(
                "Open episodes",
                "short",
                {"{{case}} {{trigger}}": _or_none(f"perennial_episode_open{CASE} == 1", "case")},
            ),
        ),
        "Performance": (
            Panel(
                "Log-loss",
                "short",
                {
                    "{{case}} {{bound}}": f"perennial_log_loss{CASE}",
                    "{{case}} estimated, {{bound}}": f"perennial_log_loss_estimated{CASE}",
                },
                "Of the newest window with labels, and as estimated where labels are missing; in nats.",
            ),
            Panel(
                "Errors of predicted numbers",
                "short",
                {
                    "{{case}} RMSE, {{bound}}": f"perennial_rmse{CASE}",
                    "{{case}} MAE, {{bound}}": f"perennial_mae{CASE}",
                },
                "Of the newest window with labels, in the number's unit.",
            ),
            Panel(
                "Rise over the holdout",
                "short",
                {
                    "{{case}} {{bound}}": f"perennial_log_loss_rise{CASE}",
                    "{{case}} squared error, {{bound}}": f"perennial_squared_error_rise{CASE}",
                    "{{case}} limit": 'perennial_threshold{case=~"$case", name="log_loss_rise"}',
                },
            ),
            Panel(
                "What a retraining would gain",
                "short",
                {
                    "{{case}} {{bound}}": f"perennial_headroom_gain{CASE}",
                    "{{case}} price": 'perennial_threshold{case=~"$case", name="headroom_price"}',
                },
                "Nats of log-loss (of a number: squared units) per row, by a probe of newer rows; beside it the price.",
            ),
            Panel(
                "Gain in the sum of many windows",
                "short",
                {
                    "{{case}}": f"perennial_headroom_log_e{CASE}",
                    "{{case}} limit": 'perennial_threshold{case=~"$case", name="headroom_log_e"}',
                },
                "Log of the e-CUSUM against a gain that is no more than its price.",
            ),
            Panel(
                "Retrainings held back",
                "short",
                {"{{case}} {{held_by}}": _or_none(f"perennial_headroom_held_back_windows{CASE} > 0", "case")},
                "Windows in a row in which a retraining would have paid and none was asked for.",
            ),
            Panel(
                "Labels that arrived",
                "percentunit",
                {
                    "{{case}}": f"perennial_labels_coverage_ratio{CASE}",
                    "{{case}} limit": 'perennial_threshold{case=~"$case", name="coverage"}',
                },
            ),
        ),
        "Training and its cost": (
            Panel(
                "Trainings",
                "short",
                {"{{case}} {{trigger}} {{decision}}": f"perennial_trainings{CASE}"},
                "Verdicts so far.",
            ),
            Panel("Releases", "short", {"{{case}} {{action}}": f"perennial_releases{CASE}"}),
            Panel(
                "Cost",
                "short",
                {"{{case}} {{what}}": f"perennial_training_cost{CASE}"},
                "Of all trainings so far: hours, and money at the declared price.",
            ),
        ),
    },
    cases=True,
)

PIPELINE = Dashboard(
    "pipeline",
    "Perennial: pipeline",
    {
        "Airflow": (
            Panel(
                "Components",
                "bool_on_off",
                {"{{component}}": "perennial_airflow_component_healthy", "API": "perennial_airflow_up"},
                kind="stat",
            ),
            Panel(
                "Heartbeats",
                "s",
                {"{{component}}": "time() - perennial_airflow_component_heartbeat_timestamp_seconds"},
                "Seconds since the last one.",
            ),
            Panel(
                "DAG files that do not load", "short", {"import errors": "perennial_airflow_import_errors"}, kind="stat"
            ),
        ),
        "Queue": (
            Panel("Tasks by state", "short", {"{{state}}": 'perennial_airflow_tasks{state!~"success|failed"}'}),
            Panel("Waiting for a worker", "short", {"{{queue}}": "perennial_airflow_queued_tasks"}),
            Panel("Pool slots", "short", {"{{pool}} {{state}}": 'perennial_airflow_pool_slots{state!="open"}'}),
        ),
        "Durations": (
            Panel("DAG runs", "s", {"{{dag}}": "perennial_airflow_dag_run_seconds"}, "The newest finished run."),
            Panel("Tasks", "s", {"{{dag}} {{task}}": "perennial_airflow_task_seconds"}, "In the newest finished run."),
            Panel(
                "Running since",
                "s",
                {"{{dag}}": _or_none("perennial_airflow_dag_running_seconds", "dag")},
                "The oldest run that is not done.",
            ),
        ),
        "Failures": (
            Panel(
                "Failed runs",
                "bool_on_off",
                {"{{dag}}": "perennial_airflow_dag_run_failed"},
                "1 if the newest finished run failed.",
            ),
            Panel(
                "Failed tasks",
                "short",
                {
                    "{{dag}} {{task}}": _or_none("perennial_airflow_task_failed == 1", "dag"),
                    "all so far": 'perennial_airflow_tasks{state="failed"}',
                },
            ),
            Panel(
                "Tries",
                "short",
                {"{{dag}} {{task}}": _or_none("perennial_airflow_task_tries > 1", "dag")},
                "Tasks that needed more than one.",
            ),
            Panel(
                "Runs", "short", {"{{dag}} {{state}}": "perennial_airflow_dag_runs > 0"}, "All that Airflow remembers."
            ),
            Panel(
                "Last run",
                "s",
                {"{{dag}}": "time() - perennial_airflow_dag_run_ended_timestamp_seconds"},
                "Seconds since the newest run ended.",
            ),
            Panel("Paused", "bool_on_off", {"{{dag}}": "perennial_airflow_dag_paused"}, kind="stat"),
        ),
    },
)
DASHBOARDS = (SYSTEM, MODEL, PIPELINE)


def queries(dashboard: Dashboard, cases: str = ".*") -> Iterator[tuple[str, str, str]]:
    """Panel, legend and query of everything on a dashboard, the choice of a case filled in.

    What Prometheus itself can be asked.
    """
    for panels in dashboard.rows.values():
        for panel in panels:
            for legend, query in panel.queries.items():
                yield panel.title, legend, query.replace("$case", cases)


def grafana(dashboard: Dashboard) -> dict[str, Any]:
    """The dashboard in Grafana's own form."""
    placed: list[dict[str, Any]] = []
    y = 0
    for row, panels in dashboard.rows.items():
        placed.append(
            {
                "type": "row",
                "title": row,
                "collapsed": False,
                "gridPos": {"x": 0, "y": y, "w": 24, "h": 1},
                "panels": [],
            }
        )
        for number, panel in enumerate(panels):
            place = {"x": number % COLUMNS * WIDTH, "y": y + 1 + number // COLUMNS * HEIGHT, "w": WIDTH, "h": HEIGHT}
            placed.append(_panel(panel, place))
        y += 1 + -(-len(panels) // COLUMNS) * HEIGHT
    choice = {
        "name": "case",
        "label": "Case",
        "type": "query",
        "datasource": SOURCE,
        "query": "label_values(perennial_case_live, case)",
    }
    choice |= {
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }
    return {
        "uid": f"perennial-{dashboard.name}",
        "title": dashboard.title,
        "tags": list(dashboard.tags),
        "timezone": "utc",
        "schemaVersion": 41,
        "editable": False,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [choice] if dashboard.cases else []},
        "panels": [{"id": number, **panel} for number, panel in enumerate(placed, 1)],
    }


def _panel(panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    targets = [
        {"refId": chr(ord("A") + number), "datasource": SOURCE, "expr": query, "legendFormat": legend}
        for number, (legend, query) in enumerate(panel.queries.items())
    ]
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "options": {"textMode": "value_and_name"}
        if panel.kind == "stat"
        else {"legend": {"displayMode": "list", "placement": "bottom"}},
        "targets": targets,
    }


def text(dashboard: Dashboard) -> str:
    """The file that Grafana reads."""
    return json.dumps(grafana(dashboard), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for one in DASHBOARDS:
        (FOLDER / f"{one.name}.json").write_text(text(one))
