"""OpenTelemetry traces, from the POST to the commit, where the environment asks for them.

    POST /v1/videos ─▶ attempt ─▶ fetch, encode, denoise, decode, store, commit
                       attempt (links to the first) ─▶ …

`OTEL_TRACES_EXPORTER` (otlp or console) or an `OTEL_EXPORTER_OTLP_ENDPOINT` switches them on, and
the rest of OpenTelemetry's own variables holds too; the SDK is the extra `otel`. Without, nothing
of it is imported. Between the processes the W3C `traceparent` goes by the job's record. Spans hold
no prompts, and of an exception its type only.
"""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

log = logging.getLogger(__name__)

MISSING = "The environment asks for OpenTelemetry, which is missing: pip install -e '.[otel]'"
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


class _Here:
    """What this process traces with; None: it does not."""

    provider: Any = None
    tracer: Any = None


_here = _Here()


def set_up(service: str) -> None:
    """Once for a process, after any fork. service: its name, unless OTEL_SERVICE_NAME says one."""
    kind = _exporter()
    if kind == "none":
        return
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

        if kind == "otlp":
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        log.warning(MISSING)
        return
    named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": service}
    provider = TracerProvider(resource=Resource.create(named))
    exporter = OTLPSpanExporter() if kind == "otlp" else ConsoleSpanExporter()
    provider.add_span_processor(BatchSpanProcessor(exporter))
    use(provider)


def use(provider: Any) -> None:
    """Trace with this provider from now on; None: no more."""
    _here.provider = provider
    _here.tracer = provider.get_tracer("troupe") if provider else None


def flush() -> None:
    """Send what is left, before the process ends."""
    if _here.provider is not None:
        _here.provider.force_flush(5000)


def _exporter() -> str:
    """otlp, console or none."""
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return "none"
    ends = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    usual = "otlp" if any(os.environ.get(name) for name in ends) else "none"
    asked = os.environ.get("OTEL_TRACES_EXPORTER") or usual
    if asked in {"otlp", "console", "none"}:
        return asked
    log.warning("OTEL_TRACES_EXPORTER=%s: only otlp, console and none are known here", asked)
    return "none"


@contextmanager
def span(name: str, parent: str = "", link: str = "", **attributes: str | int) -> Iterator[None]:
    """A span around a piece of work, current within it. parent, link: traceparents, or empty."""
    if _here.tracer is None:
        yield
        return
    from opentelemetry.trace import Link, Status, StatusCode, get_current_span

    links = [Link(get_current_span(_context(link)).get_span_context())] if link else []
    with _here.tracer.start_as_current_span(
        name,
        context=_context(parent) if parent else None,
        links=links,
        attributes=attributes,
        record_exception=False,  # its message may quote a prompt
        set_status_on_exception=False,
    ) as opened:
        try:
            yield
        except Exception as error:
            opened.set_status(Status(StatusCode.ERROR, type(error).__name__))
            raise


def note(**attributes: str | int) -> None:
    """Something more about the current span."""
    if _here.tracer is not None:
        from opentelemetry.trace import get_current_span

        get_current_span().set_attributes(attributes)


def carried(given: str | None = None) -> str:
    """The current span's traceparent, for another process. Where this one does not trace, what the
    client gave, if that is one."""
    if _here.tracer is None:
        return given if given and _TRACEPARENT.fullmatch(given) else ""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent", "")


def trace_id() -> str:
    """Of the current span; empty without one."""
    return carried()[3:35]


class Stages:
    """Spans one after the other, each below the span that is current when it begins."""

    def __init__(self) -> None:
        self._open: Any = None

    def enter(self, name: str) -> None:
        """The stage before is over."""
        self.end()
        if _here.tracer is not None:
            self._open = _here.tracer.start_span(name)

    def end(self) -> None:
        """The last one is over."""
        if self._open is not None:
            self._open.end()
            self._open = None


def _context(traceparent: str) -> Any:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": traceparent})
