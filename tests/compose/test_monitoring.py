"""Prometheus, Alertmanager and Grafana ask for what is there.

Services, series, labels, routes, sections of the documentation.
"""

import importlib.util
import json
import re
import shutil
import subprocess
from datetime import timedelta
from typing import get_args

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from pipelines.params import Slo
from pipelines.problems import ProblemCode
from pipelines.reports import metrics as loop
from pipelines.storage import canonical_json
from serving.gateway.metrics import Metrics
from serving.gateway.tracing import Course
from tests.compose.stackfile import ROOT, load, services
from tests.embedded.test_airflow_metrics import watching
from tests.pipelines.alerts.found import NOW, PARAMS
from tests.pipelines.reports.test_metrics import NUMBERS
from tests.pipelines.reports.test_metrics import settings as loop_settings  # noqa: F401 - a fixture

FOLDER = ROOT / "compose"
PROMETHEUS = yaml.safe_load((FOLDER / "prometheus/prometheus.yaml").read_text())
RULES = [ROOT / "pipelines/alerts/prometheus.rules.yaml", FOLDER / "prometheus/stack.rules.yaml"]
PORTS = {
    "gateway": 8090,
    "triton": 8002,
    "loop-metrics": 9109,
    "airflow-metrics": 9112,
    "alertmanager": 9093,
    "prometheus": 9090,
    "127.0.0.1": 9090,
}
OWN = {"up": {"job", "instance"}, "ALERTS": {"alertname", "alertstate", "severity", "case"}}
"""What Prometheus makes itself."""
_INFERENCE = {"model", "version"}
TRITON_SERIES = {
    f"nv_inference_{name}": _INFERENCE
    for name in ("request_success", "request_failure", "queue_duration_us", "count", "exec_count")
} | {
    "nv_inference_compute_infer_duration_us": _INFERENCE,
    "nv_inference_pending_request_count": _INFERENCE,
    "nv_cpu_utilization": set[str](),
    "nv_gpu_utilization": {"gpu_uuid"},
}
"""What Triton exports, as far as it is asked for; test_triton.py holds it against the real server."""
WORDS = {"and", "or", "unless", "on", "by", "without", "ignoring", "group_left", "group_right", "bool", "offset"}
ROUTES = [FOLDER / "alertmanager" / name for name in ("screen.yaml", "webhook.yaml")]


def _dashboards():
    spec = importlib.util.spec_from_file_location("dashboards", FOLDER / "grafana/dashboards.py")
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["dashboards"] = module
    spec.loader.exec_module(module)
    return module


DASHBOARDS = _dashboards()


def rules():
    """All alerting rules."""
    return [rule for path in RULES for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


QUERIES = [
    (f"{board.name}: {panel}, {legend}", query, legend)
    for board in DASHBOARDS.DASHBOARDS
    for panel, legend, query in DASHBOARDS.queries(board)
]
QUERIES += [(rule["alert"], rule["expr"], " ".join(rule["annotations"].values())) for rule in rules()]


def names(query):
    """The series that a query asks for, each with the labels that its braces name."""
    bare = re.sub(r"\b(by|on|without|ignoring|group_left|group_right)\s*\([^)]*\)", " ", query)
    bare = re.sub(r'(?<=[,(])\s*"[^"]*"', " ", bare)  # what a function is given as a text
    found = {}
    for match in re.finditer(r"([a-zA-Z_:][\w:]*)\s*(\(|\{([^}]*)\})?", re.sub(r"\[[^]]*\]", "", bare)):
        name, after, inside = match.groups()
        if after != "(" and name not in WORDS:
            found.setdefault(name, set()).update(re.findall(r"(\w+)\s*[=!]", inside or ""))
    return found


@pytest.fixture(scope="module")
def gateway():
    """The gateway's series: every counter, gauge and histogram of its registry.

    Each is touched once, and read back from its text.
    """
    metrics = Metrics()
    for metric in list(metrics.registry._collector_to_names):
        child = metric.labels(*("x" for _ in metric._labelnames)) if metric._labelnames else metric
        getattr(child, "observe" if metric._type == "histogram" else "inc")(1)
    metrics.promise({"x": Slo(p95_ms=20)})
    return series(metrics.text().decode())


@pytest.fixture
def exported(gateway, loop_settings):  # noqa: F811 - the fixture
    """``{series: labels}`` of all that is scraped, from the running code; of a case with a number, too."""
    told = series(loop.render(loop_settings, [PARAMS]))
    (loop_settings.run_dir("loans", NOW) / "drift" / "report.json").write_text(canonical_json(NUMBERS))
    return {
        **OWN,
        **TRITON_SERIES,
        **gateway,
        **told,
        **series(loop.render(loop_settings, [PARAMS])),
        **series(watching()[0].text().decode()),
    }


def series(text):
    """``{series: labels}`` of a text in Prometheus' format."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def test_every_query_asks_for_what_is_exported(exported):
    """Every series and label in a panel, its legend, an alert and its summary is exported by the code as it runs."""
    wrong = []
    for place, query, words in QUERIES:
        asked = names(query)
        assert asked, place
        known = {"instance", "job", "le"}.union(*(exported.get(name, set()) for name in asked))
        wrong += [f"{place}: no series {name}" for name in asked if name not in exported]
        wrong += [
            f"{place}: {name} has no label {label}"
            for name in asked
            for label in asked[name] - exported.get(name, set()) - {"job", "instance"}
        ]
        grouped = {
            label for part in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", query) for label in re.findall(r"\w+", part)
        }
        shown = set(re.findall(r"\{\{\s*(?:\$labels\.)?(\w+)\s*\}\}", words))
        wrong += [f"{place}: nothing has a label {label}" for label in (grouped | shown) - known - {"value"}]
    assert wrong == []


def test_no_series_of_the_loop_or_airflow_is_forgotten(exported):
    """Whatever the two exporters tell is drawn or watched somewhere, but for a few that only explain others."""
    asked = {name for _place, query, _words in QUERIES for name in names(query)}
    own = {loop.PREFIX + name for name in loop.SERIES} | {
        name for name in exported if name.startswith("perennial_airflow_")
    }
    unused = own - asked
    assert unused == {"perennial_airflow_collect_seconds", "perennial_episodes"}


def test_parentheses_are_closed():
    """Brackets of every query are balanced (promtool, where it is installed, reads them in full)."""
    for place, query, _words in QUERIES:
        for opened, closed in ("()", "{}", "[]"):
            assert query.count(opened) == query.count(closed), place


@pytest.mark.parametrize("name", [board.name for board in DASHBOARDS.DASHBOARDS])
def test_a_dashboard_is_what_its_code_says(name):
    """The file that Grafana is given is the one that the code writes, its panels do not overlap.

    They ask the source that is there.
    """
    [board] = [board for board in DASHBOARDS.DASHBOARDS if board.name == name]
    text = (FOLDER / f"grafana/dashboards/{name}.json").read_text()
    assert text == DASHBOARDS.text(board), "run python compose/grafana/dashboards.py"
    found = json.loads(text)
    places = set()
    for panel in found["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & places
        assert at["x"] + at["w"] <= 24
        places |= cells
        for target in panel.get("targets", ()):
            assert target["datasource"] == panel["datasource"] == {"type": "prometheus", "uid": "prometheus"}


def test_there_are_three_dashboards_and_no_more():
    """System, model and pipeline are provisioned from the folder that is mounted, under ids of their own."""
    files = sorted((FOLDER / "grafana/dashboards").glob("*.json"))
    assert [path.stem for path in files] == ["model", "pipeline", "system"]
    assert len({json.loads(path.read_text())["uid"] for path in files}) == 3
    [provider] = yaml.safe_load((FOLDER / "grafana/provisioning/dashboards/perennial.yaml").read_text())["providers"]
    mounts = {mount["target"]: mount["source"] for mount in services()["grafana"]["volumes"]}
    assert mounts[provider["options"]["path"]] == "./compose/grafana/dashboards"
    assert provider["allowUiUpdates"] is False


def test_data_sources_are_services():
    """Grafana's data sources are services on a network that it is on, at the ports that they listen on."""
    found = yaml.safe_load((FOLDER / "grafana/provisioning/datasources/perennial.yaml").read_text())["datasources"]
    assert {source["uid"] for source in found} == {"prometheus", "alertmanager"}
    for source in found:
        name, port = re.fullmatch(r"http://([a-z-]+):(\d+)", source["url"]).groups()
        assert PORTS[name] == int(port)
        assert set(services()[name]["networks"]) & set(services()["grafana"]["networks"])


def test_targets_are_services():
    """Every target is a service that Prometheus can reach, at the port of its metrics.

    Everything that exports is scraped.
    """
    targets = [
        target
        for job in PROMETHEUS["scrape_configs"]
        for config in job["static_configs"]
        for target in config["targets"]
    ]
    for target in targets:
        name, port = target.split(":")
        assert PORTS[name] == int(port)
        assert name == "127.0.0.1" or set(services()[name]["networks"]) & set(services()["prometheus"]["networks"])
    assert {target.split(":")[0] for target in targets} == set(PORTS) - {"prometheus"}
    assert [config["static_configs"][0]["targets"] for config in PROMETHEUS["alerting"]["alertmanagers"]] == [
        ["alertmanager:9093"]
    ]
    for job in PROMETHEUS["scrape_configs"]:
        assert _seconds(job.get("scrape_timeout", "10s")) <= _seconds(job.get("scrape_interval", "15s"))


def _seconds(text):
    return timedelta(**{{"s": "seconds", "m": "minutes"}[text[-1]]: int(text[:-1])})


def test_rules_are_mounted_where_they_are_looked_for():
    """Prometheus' configuration names exactly the rule files that are mounted beside it."""
    mounts = {
        mount["target"]: mount["source"] for mount in services()["prometheus"]["volumes"] if mount["type"] == "bind"
    }
    assert {f"/etc/prometheus/{path}" for path in PROMETHEUS["rule_files"]} == set(mounts) - {
        "/etc/prometheus/prometheus.yaml"
    }
    assert {ROOT / mounts[f"/etc/prometheus/{path}"] for path in PROMETHEUS["rule_files"]} == set(RULES)
    assert services()["prometheus"]["command"][0].partition("=")[2] in mounts


def test_a_rule_is_complete():
    """Every alert has a severity that is routed, a summary, and a runbook whose section exists.

    No name is given twice.
    """
    known = {"critical", "warning", "info"}
    headings = {}
    for rule in rules():
        assert rule["labels"]["severity"] in known, rule["alert"]
        path, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        if path not in headings:
            lines = (ROOT / path).read_text().splitlines()
            headings[path] = {
                re.sub(r"[^a-z0-9-]", "", line.lstrip("# ").lower().replace(" ", "-"))
                for line in lines
                if line.startswith("#")
            }
        assert anchor in headings[path], rule["annotations"]["runbook_url"]
        assert rule["annotations"]["summary"]
    assert len({rule["alert"] for rule in rules()}) == len(rules())


@pytest.mark.parametrize("path", ROUTES, ids=lambda path: path.stem)
def test_alertmanagers_routes_lead_somewhere(path):
    """Every route's receiver is defined, inhibitions name alerts that exist, and both files route alike."""
    found, other = (yaml.safe_load(one.read_text()) for one in (path, *(set(ROUTES) - {path})))
    receivers = {receiver["name"]: receiver for receiver in found["receivers"]}
    assert {found["route"]["receiver"], *(route["receiver"] for route in found["route"]["routes"])} == set(receivers)
    assert found["route"] == other["route"]
    alerts = {rule["alert"] for rule in rules()}
    for inhibition in found["inhibit_rules"]:
        for matcher in (*inhibition["source_matchers"], *inhibition["target_matchers"]):
            assert set(re.search(r'"(.+)"', matcher)[1].split("|")) <= alerts
    if path.stem == "webhook":
        assert receivers["people"]["slack_configs"][0]["api_url_file"] == "/run/secrets/alert_webhook"
        assert "alert_webhook" in services()["alertmanager"]["secrets"]
    else:
        assert all(set(receiver) == {"name"} for receiver in receivers.values())


def test_the_route_that_is_chosen_exists():
    """Alertmanager starts with a file of the folder that is mounted, by default and with ALERT_ROUTE=webhook."""
    for given, expected in (((), "screen"), ((("ALERT_ROUTE", "webhook"),), "webhook")):
        config = load(given=given)["services"]["alertmanager"]["command"][0]
        assert config == f"--config.file=/etc/alertmanager/{expected}.yaml"
        assert (FOLDER / "alertmanager" / f"{expected}.yaml").exists()


def test_refusals_are_those_of_rows():
    """What the rules on refused rows count are all codes of a problem with a row, not with a label or figure."""
    found = next(rule["expr"] for rule in rules() if rule["alert"] == "StackRowsRefused")
    reasons = set(re.search(r'reason=~"([^"]+)"', found)[1].split("|"))
    assert reasons == {*get_args(ProblemCode), "missing", "unknown_field", "shape"} - {"class", "name"}


REFUSED = 'perennial_gateway_refused_rows_total{{case="loans", reason="{}", field="{}"}}'
ANSWERED = 'perennial_gateway_rows_total{{case="loans", version="{}"}}'


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
@pytest.mark.parametrize(
    ("series", "alerts"),
    [
        ({REFUSED.format("category", "education"): 2, ANSWERED.format(1): 98}, ["StackRowsRefused"]),
        (
            {REFUSED.format("missing", "age"): 3, REFUSED.format("shape", ""): 3, ANSWERED.format(1): 94},
            ["StackManyRowsRefused", "StackRowsRefused"],
        ),
        ({REFUSED.format("type", "age"): 5}, ["StackManyRowsRefused", "StackRowsRefused"]),
        ({REFUSED.format("category", "education"): 1, ANSWERED.format(1): 60, ANSWERED.format(2): 60}, []),
        ({REFUSED.format("key", ""): 50, REFUSED.format("bounds", "label"): 50, ANSWERED.format(1): 50}, []),
    ],
    ids=["two", "six", "all", "few", "others"],
)
def test_refused_rows_are_told_within_minutes(series, alerts, tmp_path):
    """A hundredth of the rows is a warning and a twentieth critical, also where none is answered at all."""
    of = ("StackManyRowsRefused", "StackRowsRefused")
    asked = [
        {
            "expr": f'count(ALERTS{{alertname="{name}", alertstate="firing"}})',
            "eval_time": "40m",
            "exp_samples": [{"labels": "{}", "value": 1}] if name in alerts else [],
        }
        for name in of
    ]
    promtool({name: f"0+{rows}x60" for name, rows in series.items()}, asked, tmp_path)


def promtool(series, asked, folder):
    """Let promtool hold the stack's rules against ``series`` of a value a minute."""
    about = {
        "rule_files": [str(FOLDER / "prometheus/stack.rules.yaml")],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "promql_expr_test": asked,
            }
        ],
    }
    (folder / "test.yaml").write_text(yaml.safe_dump(about))
    command = ["promtool", "test", "rules", str(folder / "test.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


SLOS = {
    "bank": Slo(p95_ms=25, p99_ms=60, errors=0.001),
    "loans": Slo(p95_ms=300, p99_ms=1000, errors=0.05),
    "shop": Slo(errors=0.5),
}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
@pytest.mark.parametrize(
    ("slow", "very_slow", "errors", "alerts"),
    [
        (0, 0, 0, set()),
        (20, 0, 0, {"StackSloP95"}),
        (0, 3, 0, {"StackSloP99"}),
        (0, 0, 1, {"StackSloErrors"}),
        (20, 3, 1, {"StackSloP95", "StackSloP99", "StackSloErrors"}),
    ],
    ids=["kept", "p95", "p99", "errors", "all"],
)
def test_an_slo_that_is_not_kept_is_told_of_its_case_only(slow, very_slow, errors, alerts, tmp_path):
    """Three cases answer alike, of two versions each: who promised better is told of, and who promised less is not.

    Of 200 requests a minute and version ``slow`` take 45 ms, ``very_slow`` 90 ms, and some have no answer.
    """
    metrics = Metrics()
    metrics.promise(SLOS)
    for case in SLOS:
        for version in (1, 2):
            course = Course(version=version)
            for count, seconds in ((200 - slow - very_slow, 0.012), (slow, 0.045), (very_slow, 0.09)):
                for _ in range(count):
                    metrics.answered(case, "predict", 200, course, seconds)
            for _ in range(errors):
                metrics.answered(case, "infer", 503, course, 5.0)
            for _ in range(100):
                metrics.answered(case, "predict", 422, Course(), 0.001)
    series = {}
    for family in text_string_to_metric_families(metrics.text().decode()):
        for sample in family.samples:
            labels = ", ".join(f'{name}="{value}"' for name, value in sample.labels.items())
            steady = family.type == "gauge"
            series[f"{sample.name}{{{labels}}}"] = f"{sample.value}x60" if steady else f"0+{sample.value}x60"
    asked = [
        {
            "expr": f'count by (case) (ALERTS{{alertname="{name}", alertstate="firing"}})',
            "eval_time": eval_time,
            "exp_samples": [{"labels": '{case="bank"}', "value": 1}] if name in alerts and eval_time == "20m" else [],
        }
        for name in ("StackSloP95", "StackSloP99", "StackSloErrors")
        for eval_time in ("5m", "20m")
    ]
    promtool(series, asked, tmp_path)
