"""Responses read as they come: pieces in order, a slow reader, a reader that leaves, connections that went stale."""

import asyncio
import ssl
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from textmill.http1 import ConnectFailed, ConnectionLost, HttpPool, Incoming

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


def run(handler: Handler, client: Callable[[HttpPool], Awaitable[None]], **options: object) -> None:
    async def both() -> None:
        server = await asyncio.start_server(handler, "127.0.0.1", 0)
        pool = HttpPool(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", **options)  # type: ignore[arg-type]
        try:
            async with asyncio.timeout(120):
                await client(pool)
        finally:
            pool.close()
            server.close()

    asyncio.run(both())


async def ask(pool: HttpPool, body: bytes = b"") -> Incoming:
    return await pool.stream(b"POST", "/", b"", body)


async def next_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    return head + await reader.readexactly(int(head.lower().split(b"content-length:")[1].split()[0]))


def test_pieces_come_as_they_are_sent_and_the_connection_is_kept() -> None:
    go = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            await next_request(reader)
            writer.write(CHUNKED + b"3\r\none\r\n")
            await go.wait()
            writer.write(b"3\r\ntwo\r\n0\r\n\r\n")

    async def client(pool: HttpPool) -> None:
        for _ in range(2):
            go.clear()
            incoming = await ask(pool)
            assert (incoming.status, incoming.headers) == (200, [(b"transfer-encoding", b"chunked")])
            assert await incoming.read() == b"one"
            assert not incoming.whole
            go.set()
            assert await incoming.read() == b"two"
            assert await incoming.read() == b""
            assert incoming.whole
            incoming.close()
            assert pool.idle == 1

    run(serve, client)


def test_a_slow_reader_stops_the_server() -> None:
    total, written = 64 * 1024 * 1024, [0]
    blocked = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await next_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % total)
        while written[0] < total:
            writer.write(b"x" * 65536)
            written[0] += 65536
            try:
                await asyncio.wait_for(asyncio.shield(asyncio.ensure_future(writer.drain())), 0.5)
            except TimeoutError:
                blocked.set()
                await writer.drain()

    async def client(pool: HttpPool) -> None:
        incoming = await ask(pool)
        await blocked.wait()
        assert written[0] < total // 2
        assert len(await incoming.read_all(total)) == total
        assert pool.idle == 1

    run(serve, client)


def test_closing_in_the_middle_closes_the_connection() -> None:
    gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await next_request(reader)
        writer.write(CHUNKED + b"3\r\none\r\n")
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await reader.readexactly(1)
        gone.set()

    async def client(pool: HttpPool) -> None:
        incoming = await ask(pool)
        await incoming.read()
        incoming.close()
        await gone.wait()
        assert pool.idle == 0
        with pytest.raises(ConnectionLost):
            await incoming.read()

    run(serve, client)


def test_what_came_before_a_break_is_handed_out_first() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await next_request(reader)
        writer.write(CHUNKED + b"3\r\none\r\n")
        await writer.drain()
        writer.close()

    async def client(pool: HttpPool) -> None:
        incoming = await ask(pool)
        await asyncio.sleep(0.05)
        assert await incoming.read() == b"one"
        with pytest.raises(ConnectionLost) as caught:
            await incoming.read()
        assert not caught.value.stale

    run(serve, client)


def test_a_connection_that_the_server_closed_for_being_idle_is_stale() -> None:
    """Only if not one byte of an answer came, and only on a connection that had been used."""
    replies = [OK, b"", b"HTTP/1.1 2", b""]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await next_request(reader)
            reply = replies.pop(0)
            writer.write(reply)
            if reply != OK:
                writer.close()
                return

    async def client(pool: HttpPool) -> None:
        (await ask(pool)).close()
        for stale in (True, False, False):
            with pytest.raises(ConnectionLost) as caught:
                await ask(pool)
            assert caught.value.stale is stale

    run(serve, client)


def test_connections_of_a_burst_are_closed_when_fewer_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    opened, now = [0], [1_000.0]
    monkeypatch.setattr("textmill.http1.time", SimpleNamespace(monotonic=lambda: now[0]))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opened[0] += 1
        try:
            while True:
                await next_request(reader)
                await asyncio.sleep(0.05)
                writer.write(OK)
        except (asyncio.IncompleteReadError, ConnectionError):
            opened[0] -= 1

    async def client(pool: HttpPool) -> None:
        await asyncio.gather(*(pool.post("/", b"", b"", 10) for _ in range(20)))
        assert (pool.idle, opened[0]) == (20, 20)
        for _ in range(2):  # one after the other, so one is enough
            now[0] += 0.3
            await pool.post("/", b"", b"", 10)
        assert pool.idle == 1
        while opened[0] > 1:
            await asyncio.sleep(0.01)

    run(serve, client, idle_s=0.5)


def test_a_large_request_goes_out_whole() -> None:
    got = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.extend(await next_request(reader))
        writer.write(OK)

    async def client(pool: HttpPool) -> None:
        incoming = await ask(pool, b"abcd" * 1_000_000)
        assert await incoming.read_all(10) == b"hi"
        incoming.close()

    run(serve, client)
    assert got.endswith(b"\r\n\r\n" + b"abcd" * 1_000_000)


@pytest.fixture
def authority(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for localhost that is its own authority, and its key."""
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    subprocess.run([*made, *names, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    return certificate, key


def test_tls_servers_are_asked_if_their_authority_is_trusted(authority: tuple[Path, Path]) -> None:
    certificate, key = authority

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await next_request(reader)
        writer.write(CHUNKED + b"3\r\none\r\n")
        writer.write(b"3\r\ntwo\r\n0\r\n\r\n")

    async def both() -> None:
        own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        own.load_cert_chain(certificate, key)
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=own)
        url = f"https://localhost:{server.sockets[0].getsockname()[1]}"
        with pytest.raises(ConnectFailed):
            await ask(HttpPool(url))
        pool = HttpPool(url, tls=ssl.create_default_context(cafile=certificate))
        incoming = await ask(pool)
        assert await incoming.read_all(100) == b"onetwo"
        pool.close()
        server.close()

    asyncio.run(both())
