"""What `perennial status` says of the gateway's answers, by the gateway's own metrics."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from embedded import stack
from embedded.__main__ import main
from embedded.answers import answered, percentile
from pipelines.params import Slo
from serving.gateway.metrics import Metrics
from serving.gateway.tracing import Course


@pytest.fixture
def metrics(monkeypatch):
    """Of bank versions 3 and 4 have answered, 4 slowly and 1 request in 50 not at all; loans promises nothing."""
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    found = Metrics()
    found.promise({"bank": Slo(p99_ms=50, errors=0.001), "loans": Slo()})
    for case, version, count, seconds in (("bank", 3, 900, 0.005), ("bank", 4, 80, 0.09), ("loans", 1, 10, 0.9)):
        for _ in range(count):
            found.answered(case, "predict", 200, Course(version=version), seconds)
    for _ in range(20):
        found.answered("bank", "infer", 503, Course(version=4), 5.0)
    found.answered("bank", "predict", 422, Course(), 0.001)
    return found


def test_percentiles_are_those_of_prometheus():
    """They lie on a straight line through a bucket, from nought in the first; of the endless one its begin is told."""
    buckets = [(0.01, 50.0), (0.02, 90.0), (0.1, 90.0), (float("inf"), 100.0)]
    assert percentile(buckets, 0.25) == pytest.approx(0.005)
    assert percentile(buckets, 0.7) == pytest.approx(0.015)
    assert percentile(buckets, 0.9) == pytest.approx(0.02)
    assert percentile(buckets, 0.99) == 0.1


def test_each_case_is_held_against_its_own_promise(metrics):
    """A version that is too slow is told of, beside one that is not; refusals are nobody's failure."""
    fast, slow, loans = answered(metrics.text().decode())

    assert [(one.case, one.version, one.answers) for one in (fast, slow, loans)] == [
        ("bank", "3", 900),
        ("bank", "4", 80),
        ("loans", "1", 10),
    ]
    assert fast.seconds["0.99"] <= 0.006
    assert 0.08 < slow.seconds["0.5"] <= 0.1
    assert (slow.failed, slow.may_fail, loans.failed) == (0.02, 0.001, 0)
    assert (slow.promised, loans.promised) == ({"0.99": 0.05}, {})
    assert answered(Metrics().text().decode()) == []


def test_status_shows_what_is_not_kept(metrics, tmp_path, capsys, monkeypatch):
    """Below the services stand the answers of each version, with the promise where it is broken."""

    class Gateway(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(metrics.text())

        def log_message(self, *_arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Gateway)
    Thread(target=server.serve_forever, daemon=True).start()
    row = {"service": "gateway", "state": "healthy", "address": f"http://127.0.0.1:{server.server_port}"}
    monkeypatch.setattr(stack, "status", lambda _home: [row | {"pid": "1", "log": ""}])
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["status", "--home", str(tmp_path)]) == 0
    server.shutdown()
    server.server_close()

    said = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["bank", "3", "900", "5", "ms", "6", "ms", "6", "ms", "2.00%", "(promised:", "0.10%)"] in said
    assert ["loans", "1", "10", "750", "ms", "975", "ms", "995", "ms", "0.00%"] in said
    [slow] = [line for line in said if line[:2] == ["bank", "4"]]
    assert slow[-6:-3] == ["(promised:", "50", "ms)"]
    assert main(["status", "--home", str(tmp_path)]) == 0
    assert "answers" not in capsys.readouterr().out, "the gateway is away: the services say so"
