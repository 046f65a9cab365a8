"""OpenTelemetry spans: off unless ``OTEL_EXPORTER_OTLP_ENDPOINT`` names a collector; then sent there as OTLP over HTTP.

A trace goes from process to process as W3C's ``traceparent``: in the headers of HTTP requests and Kafka messages, and
in each job itself, since a job outlives its message. Spans hold ids, counts and errors, never private text. While
tracing is off a span costs about a microsecond, and OpenTelemetry isn't even imported.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from textmill.errors import BadRequest

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

SpanKind = Literal["internal", "server", "client", "producer", "consumer"]
Value = str | int | float | bool
_PROTOCOL = "http/protobuf"
_UNTRACED = ("/healthz", "/health", "/readyz", "/metrics")
_tracer: "Tracer | None" = None
_provider: "TracerProvider | None" = None


def traces_url() -> str:
    """Where spans go, "" while tracing is off. The variables are OpenTelemetry's own.

    Raises:
        BadRequest: they ask for another protocol.
    """
    variables = os.environ
    if variables.get("OTEL_SDK_DISABLED", "").lower() == "true" or variables.get("OTEL_TRACES_EXPORTER") == "none":
        return ""
    base = variables.get("OTEL_EXPORTER_OTLP_ENDPOINT", "")
    url = variables.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or (base and base.rstrip("/") + "/v1/traces")
    for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if url and variables.get(name, _PROTOCOL) != _PROTOCOL:
            raise BadRequest(
                f"{name}={variables[name]}: textmill sends spans as {_PROTOCOL}; leave {name} out, and name the "
                "collector's HTTP port (usually 4318)"
            )
    return url


def configure(service: str) -> None:
    """Begin tracing as ``service`` (``OTEL_SERVICE_NAME`` wins), if the environment asks for it.

    Spans are sent from a thread of their own, and dropped while no collector takes them: it never holds work up.
    """
    global _tracer, _provider
    url = traces_url()
    if not url or _tracer is not None:
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    name = os.environ.get("OTEL_SERVICE_NAME") or f"textmill-{service}"
    _provider = TracerProvider(resource=Resource.create({"service.name": name}))
    _provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url, timeout=3)))
    _tracer = _provider.get_tracer("textmill")


def stop() -> None:
    """Send what is left, and trace no more. A process that ends does so by itself."""
    global _tracer, _provider
    if _provider is not None:
        _provider.shutdown()
    _tracer = _provider = None


def enabled() -> bool:
    return _tracer is not None


@contextmanager
def span(
    name: str, kind: SpanKind = "internal", parent: str | None = None, attributes: Mapping[str, Value] | None = None
) -> "Iterator[Span | None]":
    """A span around the block, current in it: None while tracing is off.

    ``parent`` is another process's ``traceparent``; without it, or with one that can't be read, the parent is the
    current span. An error that leaves the block is the span's.
    """
    if _tracer is None:
        yield None
        return
    from opentelemetry.trace import SpanKind as Kinds

    with _tracer.start_as_current_span(
        name, context=_context_of(parent), kind=Kinds[kind.upper()], attributes=attributes, record_exception=False
    ) as current:
        yield current


def _context_of(parent: str | None) -> "Context | None":
    if not parent:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": parent})


def note(attributes: Mapping[str, Value]) -> None:
    """Add to the current span. Names are of OpenTelemetry's semantic conventions, or begin with ``textmill.``."""
    if _tracer is not None:
        from opentelemetry.trace import get_current_span

        get_current_span().set_attributes(attributes)


def fail(code: str) -> None:
    """The current span ended badly. ``code`` is one of few (``error.type``); a message could quote a private text."""
    if _tracer is not None:
        from opentelemetry.trace import Status, StatusCode, get_current_span

        current = get_current_span()
        current.set_attribute("error.type", code)
        current.set_status(Status(StatusCode.ERROR))


def event(name: str) -> None:
    """A moment within the current span."""
    if _tracer is not None:
        from opentelemetry.trace import get_current_span

        get_current_span().add_event(name)


def traceparent() -> str | None:
    """The current span, for another process; None outside of one."""
    if _tracer is None:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent")


def header_line() -> bytes:
    """The current span as a line of an HTTP request's head, empty outside of one."""
    current = traceparent()
    return b"" if current is None else b"traceparent: %b\r\n" % current.encode()


def trace_id() -> str:
    """The current trace's, 32 hexadecimal digits; "" outside of one."""
    current = traceparent()
    return "" if current is None else current.split("-")[1]


class TraceRequests:
    """A server span for each HTTP request, in the trace that its ``traceparent`` names. Probes have none."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _UNTRACED:
            await self._app(scope, receive, send)
            return
        status = 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        method, path = scope["method"], scope["path"]
        parent = dict(scope["headers"]).get(b"traceparent", b"").decode("latin-1")
        with span(method, "server", parent, {"http.request.method": method, "url.path": path}) as current:
            try:
                await self._app(scope, receive, noted)
            finally:
                route = getattr(scope.get("route"), "path", "")
                if route and current is not None:
                    current.update_name(f"{method} {route}")
                    note({"http.route": route})
                note({"http.response.status_code": status})
                if status >= 500:
                    fail(str(status))
