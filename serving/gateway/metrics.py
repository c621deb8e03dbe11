"""What Prometheus reads. One registry per application: several of them may live in one process (tests).

Several workers behind one port must tell the same, whichever of them is asked. With ``PROMETHEUS_MULTIPROC_DIR``
(an empty folder at the start of the first) each keeps its values in a file there, and any of them answers for all.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

__all__ = ["CONTENT_TYPE_LATEST", "Metrics"]

M = TypeVar("M", Counter, Histogram)
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_PREFIX = "perennial_gateway_"
disable_created_metrics()  # type: ignore[no-untyped-call]  # one more series per counter, which nobody reads


class Metrics:
    """The gateway's counters and gauges. Labels only take declared names, so no client can make new series."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        if self._folder:
            _forget_dead_workers(Path(self._folder))
        self._age: Callable[[], float] | None = None
        self.requests = self._counter("requests", "requests answered", "case", "route", "status")
        self.seconds = _kept(
            Histogram(
                f"{_PREFIX}request_seconds",
                "time to the last byte of the answer",
                ["route"],
                buckets=_BUCKETS,
                registry=self.registry,
            )
        )
        self.rows = self._counter("rows", "rows scored and logged, by the version that answered", "case", "version")
        self.repeated = self._counter(
            "repeated_rows", "rows answered from the log because their prediction_id was known", "case"
        )
        self.cached = self._counter(
            "cached_rows", "rows answered with a score that their version gave before, where a case keeps any", "case"
        )
        self.defaults = self._counter(
            "default_rows", "rows answered and logged with the case's declared default, as no release could", "case"
        )
        self.labels = self._counter("labels", "labels logged", "case")
        self.refused = self._counter(
            "refused_rows", "rows of refused requests, by the first problem found", "case", "reason", "field"
        )
        self.champion = self._gauge("champion_version", "the ledger's champion", "case")
        self.fallback = self._gauge(
            "fallback", "1 while the previous release answers because the champion does not", "case"
        )
        self.fields_refused = self._gauge(
            "fields_refused", "1 while the champion is refused because of its bundle's fields", "case"
        )
        self.case_broken = self._gauge("case_broken", "1 while the case's folder cannot be used, see /readyz", "case")
        self.case_retired = self._gauge("case_retired", "1 while the ledger says that the case is retired", "case")
        self.ledger_damaged = self._gauge(
            "ledger_damaged", "1 while rows of the case are not what the ledger wrote, see /readyz", "case"
        )
        self.inside = Gauge(
            f"{_PREFIX}requests_inside",
            "requests that are being answered now",
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self.log_lines = self._counter("log_lines", "lines written before their reply", "case", "kind")
        self.log_errors = self._counter("log_errors", "failed writes, syncs and renames of the log", "case", "kind")
        self.triton_errors = self._counter("triton_errors", "inferences that failed", "case", "version")
        self.ledger_errors = self._counter("ledger_errors", "polls of the ledger that failed")
        self.ledger_poll_age = self._gauge(
            "ledger_poll_age_seconds", "seconds since the ledger was last read; -1 before the first time"
        )

    def _counter(self, name: str, about: str, *labels: str) -> Counter:
        return _kept(Counter(_PREFIX + name, about, labels, registry=self.registry))

    def _gauge(self, name: str, about: str, *labels: str) -> Gauge:
        return Gauge(_PREFIX + name, about, labels, registry=self.registry, multiprocess_mode="livemax")

    def answered(self, case: str, route: str, status: int, seconds: float) -> None:
        """Count a request, whatever became of it; ``case`` is empty if there is none of its name."""
        self.requests.labels(case, route, status).inc()
        self.seconds.labels(route).observe(seconds)

    def forget(self, case: str) -> None:
        """A case that is served no more has no champion, and nothing is wrong with it."""
        own = (self.champion, self.fallback, self.fields_refused, self.case_broken, self.case_retired)
        for gauge in (*own, self.ledger_damaged):
            gauge.labels(case).set(0)

    def watch_poll(self, polled: Callable[[], float | None]) -> None:
        """Let the poll age follow ``polled``, the monotonic time of the last good poll."""

        def age() -> float:
            moment = polled()
            if moment is None:
                return -1.0
            return time.monotonic() - moment

        self._age = age

    def refresh(self) -> None:
        """Bring the poll age up to date: called in every worker all the time, as only one of them is asked for all."""
        if self._age is not None:
            self.ledger_poll_age.set(self._age())

    def text(self) -> bytes:
        """All series of all workers in Prometheus' text format."""
        self.refresh()
        if not self._folder:
            return generate_latest(self.registry)
        everybody = CollectorRegistry()
        MultiProcessCollector(everybody, self._folder)  # type: ignore[no-untyped-call]
        return generate_latest(everybody)


def _kept(metric: M) -> M:
    """The metric, whose children are found at once: to look for one takes longer than to count."""
    metric.labels = cache(metric.labels)  # type: ignore[method-assign]
    return metric


def _forget_dead_workers(folder: Path) -> None:
    """Drop the gauges of workers that were killed; what they counted stays counted."""
    folder.mkdir(parents=True, exist_ok=True)
    for pid in {path.stem.rpartition("_")[2] for path in folder.glob("gauge_live*.db")}:
        if not Path("/proc", pid).exists():
            mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]
