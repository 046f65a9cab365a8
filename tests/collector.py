"""A collector of traces on loopback, as OpenTelemetry's own would be: OTLP over HTTP in, spans to look at."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

KINDS = ("", "internal", "server", "client", "producer", "consumer")


@dataclass(frozen=True)
class Span:
    """As it was sent; ids in hexadecimal, ``parent_id`` "" for a root, ``failed`` for the status ERROR; since 1970."""

    service: str
    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    failed: bool
    attributes: dict[str, Any]
    events: tuple[str, ...]
    start_ns: int
    end_ns: int


class Collector:
    def __init__(self, url: str) -> None:
        self.url = url
        self._spans: list[Span] = []
        self._lock = threading.Lock()

    @property
    def environment(self) -> dict[str, str]:
        """What makes a process send its spans here, each within half a second."""
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": self.url, "OTEL_BSP_SCHEDULE_DELAY": "500"}

    def take(self, body: bytes) -> None:
        sent = ExportTraceServiceRequest.FromString(body)
        with self._lock:
            for resource in sent.resource_spans:
                service = _values(resource.resource.attributes).get("service.name", "")
                for scope in resource.scope_spans:
                    self._spans.extend(_span(service, one) for one in scope.spans)

    def spans(self, service: str = "", name: str = "") -> list[Span]:
        with self._lock:
            return [s for s in self._spans if service in ("", s.service) and name in ("", s.name)]

    def one(self, service: str = "", name: str = "") -> Span:
        found = self.spans(service, name)
        assert len(found) == 1, (service, name, self.spans())
        return found[0]


def _span(service: str, sent: Any) -> Span:
    return Span(
        service,
        sent.name,
        KINDS[sent.kind],
        sent.trace_id.hex(),
        sent.span_id.hex(),
        sent.parent_span_id.hex(),
        sent.status.code == 2,
        _values(sent.attributes),
        tuple(event.name for event in sent.events),
        sent.start_time_unix_nano,
        sent.end_time_unix_nano,
    )


def _values(attributes: Any) -> dict[str, Any]:
    return {item.key: getattr(item.value, item.value.WhichOneof("value")) for item in attributes}


@contextmanager
def collecting() -> Iterator[Collector]:
    """Until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if traces := self.path == "/v1/traces":  # the environment makes other servers send metrics here
                collector.take(body)
            self.send_response(200 if traces else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector = Collector(f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
