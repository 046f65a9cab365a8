"""The HTTP client for many small exchanges, against a real socket that answers as it is told."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from textmill.http1 import ConnectFailed, ConnectionLost, HttpPool, Response

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


class Server:
    """Writes ``replies`` in order, one for each request read; closes the connection after them when told."""

    def __init__(self, *replies: bytes, closes: bool = False) -> None:
        self.replies, self.closes = list(replies), closes
        self.requests: list[bytes] = []
        self.connections = 0

    async def __aenter__(self) -> str:
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}/v1"

    async def __aexit__(self, *error: object) -> None:
        self.server.close()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while self.replies:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                break
            length = int(head.lower().split(b"content-length:")[1].split()[0])
            self.requests.append(head + await reader.readexactly(length))
            writer.write(self.replies.pop(0))
            await writer.drain()
            if self.closes:
                break
        writer.close()


def post(server: Server, count: int = 1, max_bytes: int = 1_000) -> list[Response | BaseException]:
    """So many exchanges, one after the other."""

    async def run() -> list[Response | BaseException]:
        async with server as url:
            pool, got = HttpPool(url), list[Response | BaseException]()
            for _ in range(count):
                try:
                    async with asyncio.timeout(60):
                        got.append(await pool.post("/v1/x", b"A: b\r\n", b"body", max_bytes))
                except (OSError, TimeoutError) as exc:
                    got.append(exc)
            pool.close()
            return got

    return asyncio.run(run())


def test_sends_a_whole_request_and_keeps_the_connection() -> None:
    server = Server(OK, OK)
    first, second = post(server, 2)
    assert isinstance(first, Response)
    assert (first.status, first.body, first.headers["content-length"]) == (200, b"hi", "2")
    assert first == second
    assert server.connections == 1
    assert server.requests[0].startswith(b"POST /v1/x HTTP/1.1\r\nHost: 127.0.0.1:")
    assert server.requests[0].endswith(b"\r\nA: b\r\nContent-Length: 4\r\n\r\nbody")


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nh\r\n1\r\ni\r\n0\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK,
        b"HTTP/1.1 200 OK\r\ncontent-length:2\r\n\r\nhi",
    ],
)
def test_reads_each_framing(reply: bytes) -> None:
    server = Server(reply, reply)
    for response in post(server, 2):
        assert isinstance(response, Response)
        assert (response.status, response.body) == (200, b"hi")
    assert server.connections == 1


def test_a_body_without_a_length_ends_with_the_connection() -> None:
    [response] = post(Server(b"HTTP/1.1 200 OK\r\nX: y\r\n\r\nhi", closes=True))
    assert isinstance(response, Response)
    assert response.body == b"hi"


def test_connection_close_is_heeded() -> None:
    server = Server(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi", OK)
    assert all(isinstance(response, Response) for response in post(server, 2))
    assert server.connections == 2


@pytest.mark.parametrize(
    "reply", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi", b"not HTTP at all\r\n\r\n", b"HTTP/1.1 200"]
)
def test_a_broken_response_is_a_lost_connection(reply: bytes) -> None:
    [error] = post(Server(reply, closes=True))
    assert isinstance(error, ConnectionLost)


def test_a_body_past_the_bound_is_cut_and_its_connection_not_used_again() -> None:
    server = Server(b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n" + b"x" * 5000, OK)
    first, second = post(server, 2, max_bytes=100)
    assert isinstance(first, Response)
    assert len(first.body) > 100
    assert isinstance(second, Response)
    assert second.body == b"hi"
    assert server.connections == 2


def test_a_cancelled_exchange_closes_its_connection_and_harms_no_other() -> None:
    server = Server(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", OK)

    async def run() -> Response:
        async with asyncio.timeout(60), server as url:
            pool = HttpPool(url)
            late = asyncio.create_task(pool.post("/v1/x", b"", b"body", 1_000))
            while not server.requests:
                await asyncio.sleep(0.01)
            late.cancel()
            with pytest.raises(asyncio.CancelledError):
                await late
            fine = await pool.post("/v1/x", b"", b"body", 1_000)
            pool.close()
            return fine

    assert asyncio.run(run()).body == b"hi"
    assert server.connections == 2


def test_what_comes_unasked_ends_the_connection() -> None:
    server = Server(OK + OK, OK)
    assert [r.body for r in post(server, 2) if isinstance(r, Response)] == [b"hi", b"hi"]
    assert server.connections == 2


def test_no_server_is_no_connection() -> None:
    async def run() -> None:
        async with (server := Server()) as url:
            pass
        await server.server.wait_closed()
        await HttpPool(url).post("/", b"", b"", 10)

    with pytest.raises(ConnectFailed):
        asyncio.run(run())


@pytest.mark.parametrize("url", ["ftp://example.org", "example.org", "http://"])
def test_no_url_of_a_server_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="not a URL of an HTTP server"):
        HttpPool(url)
