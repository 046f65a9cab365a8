"""What goes over the wire on both sides: sizes, headers, keep-alive, pipelining, methods, TLS to the engine."""

import json
import socket
import ssl
import subprocess
from urllib.parse import urlsplit

import pytest
from tests.inference.gateway.scripted import CHAT, body_of, post, read_all, whole, within

LARGEST = 32 * 1024 * 1024


def raw(gate, data, until=lambda got: False):
    """What comes back for these bytes, until the gateway closes or ``until`` holds."""
    with socket.create_connection(("127.0.0.1", urlsplit(gate.url).port), timeout=120) as wire:
        wire.sendall(data)
        got = b""
        while not until(got) and (more := wire.recv(65_536)):
            got += more
        return got


def request(body, *headers, method=b"POST", path=b"/v1/chat/completions"):
    lines = b"".join(b"%b\r\n" % header for header in (b"Host: x", b"Content-Length: %d" % len(body), *headers))
    return b"%b %b HTTP/1.1\r\n%b\r\n%b" % (method, path, lines, body)


def padded(size):
    """A body of so many bytes."""
    bare = body_of(pad="")
    return body_of(pad="x" * (size - len(bare)))


def test_a_body_of_32_mib_reaches_the_engine_and_one_byte_more_does_not(engine, gate):
    status, _ = within(gate, lambda pool: read_all(pool, padded(LARGEST)))
    assert (status, len(engine.requests[0].body)) == (200, LARGEST)
    status, data = within(gate, lambda pool: read_all(pool, padded(LARGEST + 1)))
    assert (status, json.loads(data)["error"]["code"]) == (413, "body_too_large")
    assert len(engine.requests) == 1


def test_a_body_without_a_length_is_bounded_too(engine, gate):
    piece = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
    head = b"POST %b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" % CHAT.encode()
    got = raw(gate, head + piece * 513, lambda got: b"body_too_large" in got)
    assert got.startswith(b"HTTP/1.1 413 ")
    assert engine.requests == []


def test_a_length_over_the_limit_is_refused_before_the_body_comes(engine, gate):
    head = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n"
    got = raw(gate, head % (CHAT.encode(), LARGEST + 1), lambda got: b"body_too_large" in got)
    assert got.startswith(b"HTTP/1.1 413 ")


def test_one_connection_serves_many_requests(engine, gate):
    async def three(pool):
        for _ in range(3):
            assert (await read_all(pool, body_of()))[0] == 200
        return pool.idle

    assert within(gate, three) == 1
    assert engine.connections == 1


def test_pipelined_requests_are_answered_in_order(engine, gate):
    async def echo(request, writer):
        writer.write(whole({"n": request.json["n"]}))

    engine.script = echo
    data = b"".join(request(body_of(n=n)) for n in range(5))
    got = raw(gate, data, lambda got: got.count(b'{"n": ') == 5)
    assert [int(part[:1]) for part in got.split(b'{"n": ')[1:]] == [0, 1, 2, 3, 4]


def test_an_engine_that_closes_after_each_answer_costs_no_request(engine, gate):
    async def close(request, writer):
        await engine.plain(request, writer)
        writer.close()

    engine.script = close

    async def ten(pool):
        return [(await read_all(pool, body_of()))[0] for _ in range(10)]

    assert within(gate, ten) == [200] * 10
    assert (len(engine.requests), engine.connections, gate.upstream.suspected) == (10, 10, 0)


def test_what_the_engine_sees_of_the_headers(engine, gate):
    headers = (
        b"X-Request-Id: abc-1\r\nTraceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n"
        b"Tracestate: a=b\r\nAuthorization: Bearer sk-secret\r\nCookie: c=d\r\nX-Other: e\r\nAccept-Encoding: gzip\r\n"
    )
    within(gate, lambda pool: read_all(pool, body_of(), headers))
    [seen] = engine.requests
    lines = dict(line.split(b": ", 1) for line in seen.head.lower().strip().split(b"\r\n")[1:])
    assert lines.pop(b"host").startswith(b"127.0.0.1:")
    assert lines == {
        b"content-type": b"application/json",
        b"x-request-id": b"abc-1",
        b"traceparent": b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        b"tracestate": b"a=b",
        b"content-length": str(len(seen.body)).encode(),
    }


def test_what_the_client_sees_of_the_headers(engine, gate):
    more = b"Retry-After: 7\r\nX-Own: 1\r\nX-Own: 2\r\nServer: engine\r\nKeep-Alive: timeout=5\r\nX-Request-Id: a\r\n"

    async def answer(request, writer):
        writer.write(whole({"error": {}}, more, 429))

    engine.script = answer

    async def headers(pool):
        incoming = await post(pool, body_of(), b"X-Request-Id: mine\r\n")
        incoming.close()
        return incoming.status, incoming.headers

    status, seen = within(gate, headers)
    assert status == 429
    assert [value for name, value in seen if name == b"x-own"] == [b"1", b"2"]
    assert [value for name, value in seen if name == b"x-request-id"] == [b"mine"]
    assert dict(seen)[b"retry-after"] == b"7"
    assert b"keep-alive" not in dict(seen)
    assert (b"server", b"engine") not in seen


@pytest.mark.parametrize("bad", [b"", b"x" * 129, b"two words"])
def test_a_request_id_that_is_none_is_replaced(engine, gate, bad):
    within(gate, lambda pool: read_all(pool, body_of(), b"X-Request-Id: %b\r\n" % bad))
    assert b"\r\nX-Request-Id: req_" in engine.requests[0].head


@pytest.mark.parametrize(
    ("method", "path", "status", "code", "allow"),
    [
        (b"GET", CHAT.encode(), b"405", b"method_not_allowed", b"allow: POST"),
        (b"POST", b"/v1/models", b"405", b"method_not_allowed", b"allow: GET"),
        (b"POST", b"/v1/embeddings", b"400", b"unsupported_endpoint", b""),
        (b"POST", b"/v1/responses", b"400", b"unsupported_endpoint", b""),
        (b"POST", b"/v1/audio/speech", b"400", b"unsupported_endpoint", b""),
    ],
)
def test_what_is_not_served_is_said_clearly(gate, method, path, status, code, allow):
    got = raw(gate, request(b"{}", method=method, path=path), lambda got: got.endswith(b"}}"))
    assert got.split(b" ")[1] == status
    assert code in got
    assert allow in got


def test_an_engine_behind_tls_and_a_path(engine, make_gate, tmp_path, make_engine):
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*made, *names, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own.load_cert_chain(certificate, key)
    secured = make_engine(own)
    gate = make_gate(tls=ssl.create_default_context(cafile=certificate))
    gate.upstream.url = secured.url + "/prefix"
    status, _ = within(gate, lambda pool: read_all(pool, body_of()))
    assert status == 200
    assert secured.requests[0].head.startswith(b"POST /prefix/v1/chat/completions HTTP/1.1\r\n")
