"""What Prometheus reads. One registry per application: several of them may live in one process (tests).

Several workers behind one port must tell the same, whichever of them is asked. With ``PROMETHEUS_MULTIPROC_DIR``
(an empty folder at the start of the first) each keeps its values in a file there, and any of them answers for all.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.multiprocess import MultiProcessCollector

from pipelines.contracts import Stage
from pipelines.params import Slo
from serving.gateway.tracing import Course

__all__ = ["CONTENT_TYPE_LATEST", "Metrics"]

M = TypeVar("M", Counter, Histogram)
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_FINE = (
    *(0.001, 0.002, 0.003, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1),
    *(0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0),
)
"""Seconds of answers: at most half as much again from one to the next up to 0.3, as a percentile is guessed between."""
_ROWS = tuple(float(2**power) for power in range(11))
"""Rows of a call: up to parts.MAX_BATCH."""
SCORED = ("predict", "infer")
"""The routes whose answers are scores."""
GONE = 499
"""The status that is counted of a request whose client went away before it had its answer: nobody else is at fault."""
STAGES: tuple[Stage, ...] = ("full", "shadow", "canary", "soak")
"""Of a rollout by their numbers; ``full``: none is under way."""
KEPT_SECONDS = 3600.0
"""How long a version is told of that is neither champion nor previous release any more: longer than any rule looks."""
_PREFIX = "perennial_gateway_"
disable_created_metrics()  # type: ignore[no-untyped-call]  # one more series per counter, which nobody reads


class _Bound:
    """What requests of one case, route, version and status are counted in: finding it costs more than counting.

    ``count`` and the seconds of ``phases`` are not in their counters yet.
    """

    __slots__ = ("answer", "count", "phases", "requests", "seconds")

    def __init__(self, requests: Counter, seconds: Histogram, answers: Histogram | None) -> None:
        self.requests = requests.inc
        self.seconds = seconds.observe
        self.answer = None if answers is None else answers.observe
        self.count = 0
        self.phases: defaultdict[str, float] = defaultdict(float)


class Metrics:
    """The gateway's counters and gauges. Labels only take declared names, so no client can make new series."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        if self._folder:
            _forget_dead_workers(Path(self._folder))
        self._age: Callable[[], float] | None = None
        self._waiting: Callable[[], Mapping[str, int]] = dict
        self._slos: Mapping[str, Slo] = {}
        self._versions: dict[str, set[str]] = {}
        self._retired: dict[tuple[str, str], float] = {}
        self._bound: dict[tuple[str, str, int | None, int], _Bound] = {}
        self.requests = self._counter(
            "requests", "requests answered, by the version that was asked", "case", "route", "version", "status"
        )
        self.seconds = self._histogram("request_seconds", "time to the last byte of the answer", _BUCKETS, "route")
        self.answers = self._histogram(
            "answer_seconds",
            "whole requests that were answered with scores, by the version that gave them; empty: all were known",
            _FINE,
            "case",
            "version",
        )
        self.phases = self._counter(
            "phase_seconds", "what requests that were answered with scores spent in each phase", "case", "phase"
        )
        self.call_rows = self._histogram("call_rows", "rows that went to Triton in one call", _ROWS, "case")
        self.waiting = Gauge(
            f"{_PREFIX}calls_waiting",
            "calls of requests that wait for others' calls to Triton",
            ["case"],
            registry=self.registry,
            multiprocess_mode="livesum",
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
        self.figures = self._counter("figures", "business figures logged", "case")
        self.refused = self._counter(
            "refused_rows", "rows of refused requests, by the first problem found", "case", "reason", "field"
        )
        self.champion = self._gauge("champion_version", "the ledger's champion", "case")
        self.fallback = self._gauge(
            "fallback", "1 while the previous release, or a default, answers because the champion does not", "case"
        )
        self.fields_refused = self._gauge(
            "fields_refused", "1 while the champion is refused because of its bundle's fields", "case"
        )
        self.case_broken = self._gauge("case_broken", "1 while the case's folder cannot be used, see /readyz", "case")
        self.case_retired = self._gauge("case_retired", "1 while the ledger says that the case is retired", "case")
        self.ledger_damaged = self._gauge(
            "ledger_damaged", "1 while rows of the case are not what the ledger wrote, see /readyz", "case"
        )
        self.challenger = self._gauge("challenger_version", "the challenger of the case's rollout, 0: none", "case")
        self.challenger_refused = self._gauge(
            "challenger_refused", "1 while the challenger cannot be served here, so that the champion answers", "case"
        )
        self.rollout_stage = self._gauge(
            "rollout_stage", "how far the case's rollout is: 0 none, 1 shadow, 2 canary, 3 soak", "case"
        )
        self.rollout_weight = self._gauge("rollout_weight", "share of keys that meet the challenger", "case")
        self.arm_rows = self._counter(
            "arm_rows", "rows while a rollout is under way, by arm and what became of them", "case", "arm", "outcome"
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

    def _histogram(self, name: str, about: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return _kept(Histogram(_PREFIX + name, about, labels, buckets=buckets, registry=self.registry))

    def answered(self, case: str, route: str, status: int, course: Course, seconds: float) -> None:
        """Count and time a request of a case ("": none of ours)."""
        key = case, route, course.version, status
        bound = self._bound.get(key) or self._bind(*key)
        bound.count += 1
        bound.seconds(seconds)
        if bound.answer is not None:
            bound.answer(seconds)
            phases = bound.phases
            for name, spent in course.phases.items():
                phases[name] += spent

    def _bind(self, case: str, route: str, version: int | None, status: int) -> _Bound:
        named = "" if version is None else str(version)
        scored = case and route in SCORED and status == 200
        bound = self._bound[case, route, version, status] = _Bound(
            self.requests.labels(case, route, named, status),
            self.seconds.labels(route),
            self.answers.labels(case, named) if scored else None,
        )
        return bound

    def routed(self, case: str, versions: Iterable[int]) -> None:
        """These versions of a case may answer now; what was told of others is forgotten after a while."""
        now = {str(version) for version in versions}
        for version in self._versions.get(case, set()) - now:
            self._retired[case, version] = time.monotonic()
        for version in now:
            self._retired.pop((case, version), None)
        self._versions[case] = now

    def _told(self, labels: Mapping[str, str]) -> bool:
        """Whether a series is of no version, or of one that answers or has answered until lately."""
        case, version = labels.get("case", ""), labels.get("version", "")
        known = self._versions.get(case)
        return not version or known is None or version in known or (case, version) in self._retired

    def _forget_versions(self) -> None:
        late = time.monotonic() - KEPT_SECONDS
        for case, version in [key for key, moment in self._retired.items() if moment < late]:
            del self._retired[case, version]
            self._bound = {key: one for key, one in self._bound.items() if (key[0], str(key[2])) != (case, version)}
            if not self._folder:  # what lies in files is left out when it is read
                for metric in (self.requests, self.answers, self.rows, self.triton_errors):
                    metric.remove_by_labels({"case": case, "version": version})
                    metric.labels.cache_clear()  # type: ignore[union-attr]  # see _kept

    def show_rollout(self, case: str, stage: Stage, challenger: int, share: float, *, refused: bool) -> None:
        """Tell what of a case is under way."""
        self.rollout_stage.labels(case).set(STAGES.index(stage))
        self.challenger.labels(case).set(challenger)
        self.rollout_weight.labels(case).set(share)
        self.challenger_refused.labels(case).set(int(refused))

    def promise(self, slos: Mapping[str, Slo]) -> None:
        """What is promised of the cases that are served."""
        self._slos = slos

    def _promised(self) -> Iterator[GaugeMetricFamily]:
        seconds = GaugeMetricFamily(
            f"{_PREFIX}slo_seconds", "what the case promises of its answers", labels=["case", "quantile"]
        )
        errors = GaugeMetricFamily(
            f"{_PREFIX}slo_errors", "share of a case's requests that may go unanswered", labels=["case"]
        )
        for case, slo in self._slos.items():
            for quantile, most in (("0.95", slo.p95_ms), ("0.99", slo.p99_ms)):
                if most is not None:
                    seconds.add_metric([case, quantile], most / 1000)
            errors.add_metric([case], slo.errors)
        yield from (seconds, errors)

    def forget(self, case: str) -> None:
        """A case that is served no more has no champion, and nothing is wrong with it."""
        self.routed(case, ())
        own = (self.champion, self.fallback, self.fields_refused, self.case_broken, self.case_retired)
        for gauge in (*own, self.ledger_damaged):
            gauge.labels(case).set(0)
        self.show_rollout(case, "full", 0, 0.0, refused=False)

    def watch_poll(self, polled: Callable[[], float | None]) -> None:
        """Let the poll age follow ``polled``, the monotonic time of the last good poll."""

        def age() -> float:
            moment = polled()
            if moment is None:
                return -1.0
            return time.monotonic() - moment

        self._age = age

    def watch_waiting(self, waiting: Callable[[], Mapping[str, int]]) -> None:
        """Let the calls that wait follow ``waiting``, which counts them by case."""
        self._waiting = waiting

    def refresh(self) -> None:
        """Bring gauges up to date: called in every worker all the time, as only one of them is asked for all."""
        if self._age is not None:
            self.ledger_poll_age.set(self._age())
        waiting = self._waiting()
        for case in self._versions.keys() | waiting.keys():
            self.waiting.labels(case).set(waiting.get(case, 0))
        for (case, *_), bound in self._bound.items():
            bound.requests(bound.count)
            bound.count = 0
            for name, spent in bound.phases.items():
                self.phases.labels(case, name).inc(spent)
            bound.phases.clear()
        self._forget_versions()

    def text(self) -> bytes:
        """All series of all workers in Prometheus' text format."""
        self.refresh()
        return generate_latest(self)  # it asks for nothing but collect()

    def collect(self) -> Iterator[Any]:
        """All that is told: the counts of all workers, but of versions that are gone, and what is promised."""
        source = self.registry
        if self._folder:
            source = CollectorRegistry()
            MultiProcessCollector(source, self._folder)  # type: ignore[no-untyped-call]
        for family in source.collect():
            family.samples = [sample for sample in family.samples if self._told(sample.labels)]
            yield family
        yield from self._promised()


def _kept(metric: M) -> M:
    """The metric, whose children are found at once: to look for one takes longer than to count."""
    metric.labels = cache(metric.labels)  # type: ignore[method-assign]
    return metric


def _forget_dead_workers(folder: Path) -> None:
    """Drop the gauges of workers that were killed; what they counted stays counted."""
    folder.mkdir(parents=True, exist_ok=True)
    # Not by mark_process_dead, which fails where another worker that starts does the same.
    for path in folder.glob("gauge_live*.db"):
        if not Path("/proc", path.stem.rpartition("_")[2]).exists():
            path.unlink(missing_ok=True)
