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
from collections.abc import Iterable
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, Self

TRACEPARENT = "traceparent"
Metadata = tuple[tuple[str, str], ...]
_FORM = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

log = logging.getLogger(__name__)


class Course:
    """One request: its caller's ``traceparent`` ("": none) and the seconds of its phases so far.

    ``version`` is the one that was asked for its rows last, None: none was.
    """

    __slots__ = ("began", "phases", "traceparent", "version")

    def __init__(self, traceparent: str = "", version: int | None = None) -> None:
        self.traceparent = traceparent
        self.began = time.perf_counter()
        self.phases: dict[str, float] = {}
        self.version = version

    def server_timing(self) -> str:
        """The header of that name (W3C Server Timing), in milliseconds: the phases and, until now, all of it."""
        spans = [f"{name};dur={1000 * seconds:.2f}" for name, seconds in self.phases.items()]
        spans.append(f"total;dur={1000 * (time.perf_counter() - self.began):.2f}")
        return ", ".join(spans)


_NOW: ContextVar[Course | None] = ContextVar("course", default=None)


class request:  # noqa: N801 - a context manager; as a generator it would take thrice the time, of every request
    """The course of a request until the block ends; a ``traceparent`` of another form counts as none."""

    __slots__ = ("_course", "_name", "_span", "_token")

    def __init__(self, name: str, traceparent: str) -> None:
        self._name = name
        self._course = Course(traceparent if traceparent and _FORM.fullmatch(traceparent) else "")

    def __enter__(self) -> Course:
        """Begin."""
        self._token = _NOW.set(self._course)
        self._span = _opened(self._name, self._course.traceparent)
        return self._course

    def __exit__(self, *error: object) -> None:
        """End."""
        if self._span is not None:
            self._span.__exit__(*error)
        _NOW.reset(self._token)


class phase:  # noqa: N801 - as above
    """Count the block's time as this phase of the request, if there is one."""

    __slots__ = ("_began", "_name", "_span")

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        """Begin."""
        self._began = time.perf_counter()
        self._span = _opened(self._name)

    def __exit__(self, *error: object) -> None:
        """End."""
        if self._span is not None:
            self._span.__exit__(*error)
        course = _NOW.get()
        if course is not None:
            took = time.perf_counter() - self._began
            course.phases[self._name] = course.phases.get(self._name, 0.0) + took


def asks(version: int | None) -> None:
    """Note which version the request's rows are given to; None: a default is answered, which is of none."""
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


def _opened(name: str, parent: str | None = None) -> Any:
    """A span that has begun, for whoever ends it: of a whole request if ``parent`` is given, which may be empty.

    None without a tracer.
    """
    tracer = _tracer()
    if tracer is None:
        return None
    from opentelemetry.propagate import extract
    from opentelemetry.trace import SpanKind

    if parent is None:
        span = tracer.start_as_current_span(name)
    else:
        context = extract({TRACEPARENT: parent} if parent else {})
        span = tracer.start_as_current_span(name, context=context, kind=SpanKind.SERVER)
    span.__enter__()
    return span


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
