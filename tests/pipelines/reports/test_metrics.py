"""pipelines/reports/metrics.py.

What Prometheus reads is what report and ledger say, and the alerting rules ask for nothing else.
"""

import re
import shutil
import subprocess
import threading
import urllib.error
import urllib.request
from datetime import timedelta
from pathlib import Path
from queue import Queue

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import create_engine

from pipelines import ledger, storage
from pipelines.alerts.rules import HELD_BACK_WINDOWS
from pipelines.contracts import AlertRule, FeatureDrift, Order
from pipelines.drift_report import Measure, Performance, WindowFigures
from pipelines.reports import metrics
from pipelines.settings import Settings
from tests.pipelines.alerts.found import DAY, NOW, PARAMS, WINDOW, alert, report

RULES = Path(__file__).parents[3] / "pipelines" / "alerts" / "prometheus.rules.yaml"
MOVED = FeatureDrift(
    feature='a"b', psi=0.5, debiased_psi=0.4, ks=None, ks_error=None, p_value=0.0, drifted=True, severity="severe"
)
FULL = report(
    state="CONFIRMED",
    action="alert",
    episode="e1",
    features=(MOVED,),
    labels={"drop": {"value": 0.2, "low": 0.1, "high": 0.3}},
    policy={
        "path": ["WATCH", "CONFIRMED"],
        "trigger": "performance",
        "verdict": "none",
        "alarmed": True,
        "held_back": 3,
        "held_by": "labels",
    },
    headroom={
        "code": "measured",
        "price": 0.02,
        "against": "past",
        "own_past": {"value": 0.3, "low": 0.1, "high": 0.5},
        "own_pooled": {"value": 0.08, "low": 0.05, "high": 0.11},
        "gain": {"value": -0.1, "low": -0.2, "high": 0.0},
        "grown": 4.5,
    },
    performance={
        "rolling": [
            {
                "start": (WINDOW.end - 21 * DAY).isoformat(),
                "end": (WINDOW.end - 20 * DAY).isoformat(),
                "version": 3,
                "rows": 400,
                "labelled": 360,
                "log_loss": 0.3,
                "low": 0.2,
                "high": 0.4,
            },
            {
                "start": (WINDOW.end - 16 * DAY).isoformat(),
                "end": (WINDOW.end - 15 * DAY).isoformat(),
                "version": 3,
                "rows": 400,
                "labelled": 280,
                "log_loss": 0.5,
                "low": 0.4,
                "high": 0.6,
            },
            {
                "start": WINDOW.start.isoformat(),
                "end": WINDOW.end.isoformat(),
                "version": 3,
                "rows": 400,
                "labelled": 0,
            },
        ],
        "estimate": {"rows": 400, "log_loss": 0.45, "error_rate": 0.2, "low": 0.4, "high": 0.5},
    },
)

NUMBERS = FULL.model_copy(
    update={
        "measure": Measure(loss="squared error", loss_unit="min²", metric="RMSE", unit="min"),
        "performance": Performance(
            rolling=(
                WindowFigures(
                    start=WINDOW.start,
                    end=WINDOW.end,
                    version=3,
                    rows=400,
                    labelled=300,
                    rmse=9.0,
                    rmse_low=8.0,
                    rmse_high=10.0,
                    mae=6.0,
                    mae_low=5.0,
                    mae_high=7.0,
                ),
            )
        ),
    }
)
"""The same of a case that predicts a number."""


@pytest.fixture
def settings(tmp_path) -> Settings:
    """A case whose newest window opened an episode, under a champion of five days."""
    settings = Settings(home=tmp_path)
    url = settings.ledger
    folder = settings.run_dir("loans", NOW) / "drift"
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(storage.canonical_json(FULL))
    common = {"case": "loans", "candidate_key": "k", "bundle": "b", "reason": "r", "actor": "ada"}
    ledger.append(
        url, Order(**common, after=0, champion=3, action="promote", trigger="initial", as_of=WINDOW.end - 5 * DAY)
    )
    ledger.record_drift_state(
        url, case="loans", as_of=NOW, state={"as_of": NOW.isoformat(), "policy": {}}, evidence_hash="h"
    )
    ledger.open_episode(url, case="loans", episode="e1", as_of=NOW, evidence={"trigger": "performance"})
    ledger.record_verdict(
        url, case="loans", gate_key="g", as_of=NOW, trigger="performance", verdict={"decision": "reject"}
    )
    there = [
        alert(),
        alert("labels_late", "coverage", state="silenced"),
        alert("champion_old", "champion", state="resolved"),
    ]
    ledger.append_alerts(url, case="loans", seq=1, as_of=NOW, alerts=there, notices=[])
    ledger.note_delivery(url, case="loans", notice="n1", sink="webhook", attempt=1, event="failed")
    return settings


def read(text: str) -> dict:
    """Series and labels beside the case -> value, by Prometheus' own parser."""
    parsed = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = {name: value for name, value in sample.labels.items() if name != "case"}
            parsed[sample.name.removeprefix(metrics.PREFIX), *sorted(labels.values())] = sample.value
    return parsed


def test_what_is_known_is_told(settings):
    """Each part of the state comes out with the values that are stored.

    Drift per feature, policy, labels, performance, champion, retrainings and alerts.
    """
    found = read(metrics.render(settings, [PARAMS]))
    assert (found["drift_psi", 'a"b'], found["drift_detected", 'a"b'], found["drift_severity", 'a"b']) == (0.4, 1, 2)
    assert {key[1]: value for key, value in found.items() if key[0] == "policy_state"} == {
        state: float(state == "CONFIRMED") for state in metrics.STATES
    }
    assert [found["episode_open", trigger] for trigger in ("drift", "performance", "volume")] == [0, 1, 0]
    assert (found["labels_coverage_ratio",], found["performance_alarm",]) == (0.7, 1)
    assert [found["log_loss", bound] for bound in metrics.BOUNDS] == [0.5, 0.4, 0.6]
    assert found["log_loss_estimated", "value"] == 0.45
    assert found["log_loss_rise", "low"] == 0.1
    assert [found["headroom_gain", bound] for bound in metrics.BOUNDS] == [0.08, 0.05, 0.11]
    assert (found["headroom_measured",], found["headroom_log_e",]) == (1, 4.5)
    assert found["threshold", "headroom_price"] == PARAMS.headroom.price
    assert {key[1]: value for key, value in found.items() if key[0] == "headroom_held_back_windows" and value} == {
        "labels": 3
    }
    assert (found["champion_version",], found["champion_age_days",]) == (3, 5)
    assert found["window_end_timestamp_seconds",] == WINDOW.end.timestamp()
    assert (
        found["trainings", "performance", "reject"]
        == found["episodes", "performance"]
        == found["releases", "promote"]
        == 1
    )
    assert [found["alerts_open", severity] for severity in ("info", "warning", "critical")] == [0, 1, 0]
    assert found["alert_open", "volume_out_of_band", "warning"] == found["notices_undelivered", "webhook"] == 1
    assert len([key for key in found if key[0] == "alert_open"]) == 1


def test_a_case_without_a_past_has_its_declared_series(tmp_path):
    """Before the first champion there are limits and zeros, and nothing that would have to be made up."""
    found = read(metrics.render(Settings(home=tmp_path), [PARAMS]))
    assert (found["case_live",], found["threshold", "volume_high"], found["episodes", "drift"]) == (1, 5.0, 0)
    assert not [key for key in found if key[0].startswith(("champion", "window", "drift"))]


def test_a_report_that_is_gone_takes_only_its_own_series_along(settings):
    """Without the newest run's folder the ledger's series are still told."""
    shutil.rmtree(settings.root / "artefacts")
    found = read(metrics.render(settings, [PARAMS]))
    assert found["champion_version",] == 3
    assert ("window_rows",) not in found


def test_a_gain_that_was_not_measured_is_no_gain_of_zero(settings):
    """A window without a figure, as one of an earlier release, says so and has no gain; the limits are there."""
    old = FULL.model_dump(mode="json", exclude={"headroom"})
    (settings.run_dir("loans", NOW) / "drift" / "report.json").write_text(storage.canonical_json(old))
    found = read(metrics.render(settings, [PARAMS]))
    assert (found["headroom_measured",], ("headroom_gain", "value") in found) == (0, False)


def test_people_are_told_after_as_many_windows_from_outside():
    """Prometheus' rule of a retraining that is held back waits for as many windows as ours."""
    [group] = yaml.safe_load(RULES.read_text())["groups"]
    [rule] = [rule for rule in group["rules"] if rule["labels"]["rule"] == "headroom_blocked"]
    assert f"perennial_headroom_held_back_windows >= {HELD_BACK_WINDOWS}" in rule["expr"]


def test_the_rules_ask_for_what_is_exported():
    """Every rule parses, asks for exported series and declared thresholds only.

    Each has severity, rule and the runbook's section of a rule of ours.
    """
    [group] = yaml.safe_load(RULES.read_text())["groups"]
    exported = {metrics.PREFIX + name for name in metrics.SERIES}
    declared = {labels["name"] for name, labels, _ in metrics._declared(PARAMS) if name == "threshold"} | {
        "champion_days"
    }
    for rule in group["rules"]:
        asked = set(re.findall(r"perennial_\w+", rule["expr"]))
        assert asked <= exported, rule["alert"]
        assert asked, rule["alert"]
        assert set(re.findall(r'name="(\w+)"', rule["expr"])) <= declared
        assert rule["labels"]["severity"] in {"info", "warning", "critical"}
        assert rule["annotations"]["runbook_url"] == f"docs/runbooks.md#{rule['labels']['rule'].replace('_', '-')}"
    assert {rule["labels"]["rule"] for rule in group["rules"]} == set(AlertRule.__args__)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_prometheus_evaluates_the_rules(settings, tmp_path):
    """Prometheus' own tool accepts the rules, and on the series of a case in trouble fires those that are meant.

    It fires no other.
    """
    lines = [line for line in metrics.render(settings, [PARAMS]).splitlines() if line and not line.startswith("#")]
    series = [
        {"series": re.sub(r"^([^{]+\{.*\}) \S+$", r"\1", line), "values": f"{line.rpartition(' ')[2]}+0x20"}
        for line in lines
    ]
    wanted = {
        "PerennialDriftConfirmed",
        "PerennialPerformanceDropped",
        "PerennialHeadroomBlocked",
        "PerennialSinkBroken",
    }
    tests = [
        {"eval_time": "20m", "alertname": rule["alert"], "exp_alerts": []}
        for rule in yaml.safe_load(RULES.read_text())["groups"][0]["rules"]
        if rule["alert"] not in wanted
    ]
    fired = [
        {
            "expr": f'count(ALERTS{{alertname="{name}"}})',
            "eval_time": "20m",
            "exp_samples": [{"labels": "{}", "value": 1}],
        }
        for name in sorted(wanted)
    ]
    about = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": [{"interval": "1m", "input_series": series, "alert_rule_test": tests, "promql_expr_test": fired}],
    }
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(about))
    done = subprocess.run(
        ["promtool", "test", "rules", str(tmp_path / "test.yaml")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_metrics_are_served(settings):
    """GET /metrics answers with the text of the moment, anything else with 404, and a ledger that is away with 503."""
    port: Queue[int] = Queue()
    threading.Thread(
        target=metrics.serve, args=(settings, lambda: ([PARAMS], {}), "127.0.0.1", 0, port.put), daemon=True
    ).start()
    url = f"http://127.0.0.1:{port.get(timeout=30)}"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{url}/metrics", timeout=30) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        assert answer.read().decode() == metrics.render(settings, [PARAMS])
    with pytest.raises(urllib.error.HTTPError, match="404"):
        opener.open(f"{url}/", timeout=30)
    away = Settings(home=settings.root, ledger_url=f"sqlite:///{settings.root}")
    threading.Thread(
        target=metrics.serve, args=(away, lambda: ([PARAMS], {}), "127.0.0.1", 0, port.put), daemon=True
    ).start()
    with pytest.raises(urllib.error.HTTPError, match="503"):
        opener.open(f"http://127.0.0.1:{port.get(timeout=30)}/metrics", timeout=30)


def test_an_episode_of_another_champion_has_its_age_from_its_promotion(settings):
    """After a rollback the age is that of the training of the version that serves again, not of the rollback."""
    common = {"case": "loans", "candidate_key": "k", "bundle": "b", "reason": "r", "actor": "ada"}
    ledger.append(
        settings.ledger,
        Order(**common, after=1, champion=4, action="promote", trigger="drift", as_of=WINDOW.end - 2 * DAY),
    )
    ledger.append(
        settings.ledger,
        Order(
            **common, after=2, champion=3, action="rollback", trigger="manual", as_of=WINDOW.end - timedelta(hours=5)
        ),
    )
    assert read(metrics.render(settings, [PARAMS]))["champion_age_days",] == 5


@pytest.mark.parametrize(
    "statement",
    ["UPDATE releases SET hash = 'f'", "UPDATE verdicts SET verdict = CAST(x'ff00' AS TEXT)", "DELETE FROM releases"],
)
def test_a_damaged_row_costs_the_other_cases_nothing(settings, statement):
    """A row that the ledger did not write, or that is no text at all, breaks its own case in the metrics.

    The others keep their series.
    """
    other = PARAMS.model_copy(update={"case": "desk"})
    ledger.append(
        settings.ledger,
        Order(
            case="desk",
            candidate_key="k",
            bundle="b",
            reason="r",
            actor="a",
            after=0,
            champion=7,
            action="promote",
            trigger="initial",
            as_of=NOW,
        ),
    )
    engine = create_engine(settings.ledger)
    with engine.begin() as connection:
        connection.exec_driver_sql(statement + " WHERE \"case\" = 'loans'")
    engine.dispose()
    text = metrics.render(settings, [PARAMS, other])
    assert 'perennial_case_broken{case="loans"} 1.0' in text
    assert 'perennial_case_broken{case="desk"} 0.0' in text
    assert 'perennial_champion_version{case="desk"} 7.0' in text


def test_a_broken_case_costs_the_others_nothing(settings):
    """A case whose folder or whose stored report cannot be read has one series that says so.

    The others have all of theirs.
    """
    healthy = metrics.render(settings, [PARAMS])
    assert read(healthy)["case_broken",] == 0
    text = metrics.render(settings, [PARAMS], {"shop": "its schema.py is missing"})
    assert 'perennial_case_broken{case="shop"} 1.0' in text
    assert [line for line in text.splitlines() if 'case="shop"' not in line] == healthy.splitlines()
    other = PARAMS.model_copy(update={"case": "desk"})
    (settings.run_dir("loans", NOW) / "drift" / "report.json").write_text("{")
    text = metrics.render(settings, [PARAMS, other])
    assert 'perennial_case_broken{case="loans"} 1.0' in text
    assert 'perennial_case_broken{case="desk"} 0.0' in text
    assert 'perennial_case_live{case="desk"}' in text


def test_a_number_has_series_of_its_own(settings):
    """RMSE, MAE and the squared error's rise are told with their bounds, and no log-loss is."""
    path = settings.run_dir("loans", NOW) / "drift" / "report.json"
    path.write_text(storage.canonical_json(NUMBERS))
    found = read(metrics.render(settings, [PARAMS]))
    assert [found["rmse", bound] for bound in ("value", "low", "high")] == [9.0, 8.0, 10.0]
    assert found["mae", "value"] == 6.0
    assert found["squared_error_rise", "low"] == 0.1
    assert not [name for name, *_ in found if name.startswith("log_loss")]
