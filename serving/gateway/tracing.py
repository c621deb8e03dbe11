"""Where a request's time goes and which trace it belongs to: for its answer, the log, Triton and OpenTelemetry.

A caller's ``traceparent`` (W3C Trace Context, level 1) is kept as it came. Where ``OTEL_EXPORTER_OTLP_ENDPOINT`` (or
the variable for traces alone) names a collector and OpenTelemetry's SDK is installed, a request and its phases are
spans, and what Triton is told is the span of its inference. A collector that is away costs no request anything.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

TRACEPARENT = "traceparent"
_FORM = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

log = logging.getLogger(__name__)


@dataclass
class Course:
    """One request: its caller's ``traceparent`` ("": none) and the seconds of its phases so far."""

    traceparent: str = ""
    began: float = field(default_factory=time.perf_counter)
    phases: dict[str, float] = field(default_factory=dict)

    def server_timing(self) -> str:
        """The header of that name (W3C Server Timing), in milliseconds: the phases and, until now, all of it."""
        spans = {**self.phases, "total": time.perf_counter() - self.began}
        return ", ".join(f"{name};dur={1000 * seconds:.2f}" for name, seconds in spans.items())


_NOW: ContextVar[Course | None] = ContextVar("course", default=None)


@contextmanager
def request(name: str, traceparent: str) -> Iterator[Course]:
    """The course of a request until the block ends; a ``traceparent`` of another form counts as none."""
    course = Course(traceparent if _FORM.fullmatch(traceparent) else "")
    token = _NOW.set(course)
    try:
        with _span(name, course.traceparent):
            yield course
    finally:
        _NOW.reset(token)


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Count the block's time as this phase of the request, if there is one."""
    course = _NOW.get()
    began = time.perf_counter()
    try:
        with _span(name):
            yield
    finally:
        if course is not None:
            course.phases[name] = course.phases.get(name, 0.0) + time.perf_counter() - began


def given() -> str:
    """The caller's ``traceparent``, or nothing."""
    course = _NOW.get()
    return "" if course is None else course.traceparent


def handed_on() -> tuple[tuple[str, str], ...]:
    """What a call to another service carries: the span that is open, else what the caller gave."""
    parent = given()
    if _tracer() is not None:
        from opentelemetry.propagate import inject

        carrier: dict[str, str] = {}
        inject(carrier)
        parent = carrier.get(TRACEPARENT, parent)
    return ((TRACEPARENT, parent),) if parent else ()


def _span(name: str, parent: str | None = None) -> Any:
    """A span until the block ends: of a whole request if ``parent`` is given, which may be empty."""
    tracer = _tracer()
    if tracer is None:
        return nullcontext()
    from opentelemetry.propagate import extract
    from opentelemetry.trace import SpanKind

    if parent is None:
        return tracer.start_as_current_span(name)
    context = extract({TRACEPARENT: parent} if parent else {})
    return tracer.start_as_current_span(name, context=context, kind=SpanKind.SERVER)


@lru_cache(maxsize=1)
def _tracer() -> Any:
    """OpenTelemetry's tracer where a collector is named, else None."""
    if not any(os.environ.get(name) for name in _ENDPOINTS):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        log.warning("%s is set, but there are no spans (%s): install perennial[spans]", _ENDPOINTS[0], error)
        return None
    provider = TracerProvider(resource=Resource.create({"service.name": "perennial-gateway"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider.get_tracer("perennial.gateway")
