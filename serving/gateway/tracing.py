"""Where a request's time goes and which trace it belongs to: for its answer, the log, Triton and OpenTelemetry.

A caller's ``traceparent`` (W3C Trace Context, level 1) is kept as it came. Where ``OTEL_EXPORTER_OTLP_ENDPOINT`` (or
the variable for traces alone) names a collector and OpenTelemetry's SDK is installed, a request and its phases are
spans, and what Triton is told is the span of its inference. A collector that is away costs no request anything.

A request's phases are ``read``, ``queue`` (it waits for others' calls to Triton), ``encode``, ``triton`` and ``log``.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Self

TRACEPARENT = "traceparent"
Metadata = tuple[tuple[str, str], ...]
_FORM = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

log = logging.getLogger(__name__)


@dataclass
class Course:
    """One request: its caller's ``traceparent`` ("": none) and the seconds of its phases so far.

    ``version`` is the one that was asked for its rows last, None: none was.
    """

    traceparent: str = ""
    began: float = field(default_factory=time.perf_counter)
    phases: dict[str, float] = field(default_factory=dict)
    version: int | None = None

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


class phase:  # noqa: N801 - used as a function is; a generator would cost three times as much
    """Count the block's time as this phase of the request, if there is one."""

    __slots__ = ("_began", "_name", "_span")

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        self._span = None
        if _tracer() is not None:
            self._span = _span(self._name)
            self._span.__enter__()
        self._began = time.perf_counter()

    def __exit__(self, *about: object) -> None:
        spent = time.perf_counter() - self._began
        if self._span is not None:
            self._span.__exit__(*about)
        if (course := _NOW.get()) is not None:
            course.phases[self._name] = course.phases.get(self._name, 0.0) + spent


def asks(version: int) -> None:
    """Note which version the request's rows are given to."""
    if (course := _NOW.get()) is not None:
        course.version = version


def given() -> str:
    """The caller's ``traceparent``, or nothing."""
    course = _NOW.get()
    return "" if course is None else course.traceparent


class Turn:
    """A request until it has its scores: ``triton`` is when a call with rows of it is under way, ``queue`` the rest.

    Use it in a ``with`` of the request's own task. Whoever sends a call, in whichever task, says so by ``went`` and
    ``came``; of parts that are under way at a time none counts twice.
    """

    __slots__ = ("_context", "_course", "_open", "_since", "_span", "_under_way")

    def __enter__(self) -> Self:
        """It waits from now on."""
        self._course = _NOW.get()
        self._context = self._span = None
        if _tracer() is not None:
            from opentelemetry.context import get_current

            self._context = get_current()
        self._under_way = 0
        self._open = True
        self._since = time.perf_counter()
        return self

    def __exit__(self, kind: object, *_about: object) -> None:
        """It waits no more, for an answer or for anything."""
        if self._under_way:
            self._count("triton")
        elif kind is not None:
            self._count("queue")
        self._open = False

    def went(self) -> None:
        """A call with rows of it goes out."""
        self._under_way += 1
        if self._under_way == 1 and self._open:
            self._count("queue")
            if (tracer := _tracer()) is not None:
                self._span = tracer.start_span("triton", context=self._context)

    def came(self) -> None:
        """A call that went out has ended."""
        self._under_way -= 1
        if self._under_way == 0 and self._open:
            self._count("triton")

    def carries(self) -> Metadata:
        """What a call carries: the span that is open, else what the request's caller gave."""
        parent = self._course.traceparent if self._course is not None else ""
        if self._span is not None:
            from opentelemetry.propagate import inject
            from opentelemetry.trace import set_span_in_context

            carrier: dict[str, str] = {}
            inject(carrier, set_span_in_context(self._span))
            parent = carrier.get(TRACEPARENT, parent)
        return ((TRACEPARENT, parent),) if parent else ()

    def _count(self, name: str) -> None:
        """Let the time since the last change be of this phase."""
        now = time.perf_counter()
        spent = now - self._since
        self._since = now
        if self._course is not None:
            self._course.phases[name] = self._course.phases.get(name, 0.0) + spent
        if self._span is not None:
            self._span.end()
            self._span = None
        elif (tracer := _tracer()) is not None:
            ended = time.time_ns()
            began = ended - int(spent * 1e9)
            tracer.start_span(name, context=self._context, start_time=began).end(ended)


def carried(turns: Iterable[Turn]) -> Metadata:
    """What a call with rows of these requests carries: of the first that has something."""
    return next((found for turn in turns if (found := turn.carries())), ())


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
