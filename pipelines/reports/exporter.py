"""An exporter to Prometheus: gauges that are made anew at every scrape, and the server that answers with them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from pipelines.errors import PerennialError

METRICS, HEALTH = "/metrics", "/healthz"

Sample = tuple[str, Mapping[str, str], float]
"""A series' name behind its prefix, its labels and its value."""

log = logging.getLogger(__name__)


class _Families(Collector):
    """The form in which the client library takes what is not counted in this process."""

    def __init__(self, found: Iterable[Metric]) -> None:
        self.found = found

    def collect(self) -> Iterable[Metric]:
        """The families as they are."""
        return self.found


def exposition(prefix: str, series: Mapping[str, str], samples: Iterable[Sample]) -> bytes:
    """All ``series`` (by name: what they are about) as gauges in Prometheus' text format.

    >>> exposition("shop_", {"up": "1 if it is open"}, [("up", {"door": "a"}, True)]).decode().splitlines()[-1]
    'shop_up{door="a"} 1.0'
    """
    families = {name: Metric(prefix + name, about, "gauge") for name, about in series.items()}
    for name, labels, value in samples:
        families[name].add_sample(prefix + name, dict(labels), float(value))
    registry = CollectorRegistry()
    registry.register(_Families(families.values()))
    return generate_latest(registry)


def serve(text: Callable[[], bytes], host: str, port: int, ready: Callable[[int], None] = lambda _port: None) -> None:
    """Answer ``GET /metrics`` with ``text`` until the process is ended; 503 with the reason where it raises.

    ``/healthz`` says that this server lives. ``port`` 0 is a free one, told to ``ready``.
    """
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path not in (METRICS, HEALTH):
                self.send_error(404, f"ask for {METRICS}")
                return
            body = b"ok\n"
            kind = "text/plain"
            try:
                if path == METRICS:
                    body = text()
                    kind = CONTENT_TYPE_LATEST
            except (PerennialError, OSError, ValueError) as error:
                self.send_error(503, "no metrics", str(error))
                return
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, form: str, *arguments: Any) -> None:
            log.debug(form, *arguments)

    with ThreadingHTTPServer((host, port), Answer) as server:
        ready(server.server_port)
        server.serve_forever()
