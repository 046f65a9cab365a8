"""The sockets, against a server that plays what it is told. All in one event loop."""

import asyncio
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import uvloop
from tests.inference.loadtest.scripted import GOOD, STREAM, Scripted, answer

from textmill.contracts.loadtest import ErrorClass, Phase
from textmill_inference.loadtest import wire as wire_module
from textmill_inference.loadtest.answer import TokenSink
from textmill_inference.loadtest.clocks import Exchange
from textmill_inference.loadtest.wire import Address, Wire, server_timing

REQUEST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
SINK = TokenSink(lambda tokens: None, lambda us, times: None)


class Driver:
    """Sends exchanges one after the other, or at once, and keeps what ends."""

    def __init__(self, address: Address, fresh: bool = False, stream: bool = True) -> None:
        self.wire = Wire(address, fresh, stream, lambda exchange: None, self._done)
        self.ended: list[Exchange] = []
        self.times: dict[str, float] = {}
        self._more = asyncio.Event()

    async def one(self) -> Exchange:
        (exchange,) = await self.several(1)
        return exchange

    async def several(self, number: int) -> list[Exchange]:
        wanted = len(self.ended) + number
        for _ in range(number):
            self.wire.send(Exchange(len(self.ended), Phase.MEASURED, 0.0, REQUEST), SINK)
        async with asyncio.timeout(60):
            while len(self.ended) < wanted:
                self._more.clear()
                await self._more.wait()
        return self.ended[-number:]

    def _done(self, exchange: Exchange, times: dict[str, float]) -> None:
        self.ended.append(exchange)
        self.times |= times
        self._more.set()


def on(
    script: list[bytes | None],
    act: Callable[[Driver, Scripted], Awaitable[None]],
    fresh: bool = False,
    stream: bool = True,
    port: int | None = None,
) -> Scripted:
    """Plays ``script`` and acts against it."""
    server = Scripted(answers=script)

    async def main() -> None:
        listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
        server.port = listener.sockets[0].getsockname()[1]
        driver = Driver(Address("127.0.0.1", port or server.port), fresh, stream)
        try:
            async with asyncio.timeout(120):
                await act(driver, server)
        finally:
            driver.wire.close()
            listener.close()

    uvloop.run(main())
    return server


def one_of(script: list[bytes | None], **more: bool) -> tuple[Exchange, Driver]:
    kept: list[tuple[Exchange, Driver]] = []

    async def act(driver: Driver, server: Scripted) -> None:
        kept.append((await driver.one(), driver))

    on(script, act, **more)
    return kept[0]


def test_an_exchange_has_all_its_clocks_in_order() -> None:
    exchange, _ = one_of([GOOD])
    assert exchange.error is None
    assert 0 < exchange.begun <= exchange.sent <= exchange.first_byte <= exchange.first_token
    assert exchange.first_token <= exchange.last_token <= exchange.ended
    assert 0 < exchange.connect_s <= exchange.sent - exchange.begun
    assert (exchange.tokens, exchange.prompt_tokens, exchange.chunks) == (2, 3, 2)


def test_a_connection_is_kept() -> None:
    async def act(driver: Driver, server: Scripted) -> None:
        first, second = await driver.one(), await driver.one()
        assert (server.connections, len(server.requests)) == (1, 2)
        assert first.connect_s > 0
        assert second.connect_s == 0

    on([GOOD], act)


def test_each_request_may_have_a_fresh_one() -> None:
    async def act(driver: Driver, server: Scripted) -> None:
        assert [(await driver.one()).error for _ in range(3)] == [None] * 3
        assert server.connections == 3
        while driver.wire.connections:  # none is left open
            await asyncio.sleep(0.01)

    on([GOOD], act, fresh=True)


def test_what_is_sent_at_once_gets_connections_of_its_own_which_are_used_again() -> None:
    async def act(driver: Driver, server: Scripted) -> None:
        await driver.several(5)
        await driver.several(5)
        assert server.connections == 5

    on([GOOD], act)


def test_no_more_connections_are_dialled_at_once_than_a_backlog_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire_module, "MOST_DIALS", 2)

    async def act(driver: Driver, server: Scripted) -> None:
        assert {exchange.error for exchange in await driver.several(20)} == {None}

    on([GOOD], act)


def test_an_idle_connection_is_dropped_before_the_server_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire_module, "IDLE_S", -1.0)

    async def act(driver: Driver, server: Scripted) -> None:
        await driver.several(2)
        driver.wire.drop_idle()
        assert (await driver.one()).error is None
        assert server.connections == 3

    on([GOOD], act)


def test_connection_close_is_heeded() -> None:
    async def act(driver: Driver, server: Scripted) -> None:
        assert [(await driver.one()).error for _ in range(2)] == [None] * 2
        assert server.connections == 2

    on([answer(STREAM, headers="Connection: close\r\n")], act)


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (None, ErrorClass.RESET),
        (Scripted.cut, ErrorClass.RESET),
        (GOOD[:-40] + Scripted.cut, ErrorClass.BROKEN_STREAM),
        (answer(STREAM[:90]), ErrorClass.BROKEN_STREAM),
        (answer(b"no", "429 Too Many Requests"), ErrorClass.TOO_MANY),
        (answer(b"no", "404 Not Found"), ErrorClass.CLIENT_ERROR),
        (answer(b"no", "502 Bad Gateway"), ErrorClass.SERVER_ERROR),
        (answer(b"", "307 Moved", headers="Location: http://127.0.0.1:1/\r\n"), ErrorClass.WRONG_CONTENT),
        (answer(b"<html>", kind="text/html"), ErrorClass.WRONG_CONTENT),
        (b"SSH-2.0-OpenSSH_9.6\r\n", ErrorClass.WRONG_CONTENT),
    ],
)
def test_errors_have_their_class_and_the_next_request_goes_on(said: bytes | None, error: ErrorClass) -> None:
    async def act(driver: Driver, server: Scripted) -> None:
        failed, then = await driver.one(), await driver.one()
        assert (failed.error, then.error) == (error, None)
        assert failed.done
        assert len(server.requests) == 2  # nothing was tried again, no redirect followed

    on([said, GOOD], act)


def test_a_refused_connection_is_an_error_not_an_exception() -> None:
    async def act(driver: Driver, server: Scripted) -> None:
        exchange = await driver.one()
        assert exchange.error is ErrorClass.REFUSED
        assert "refused" in exchange.detail.lower()
        assert not exchange.own_limit

    on([GOOD], act, port=1)


def test_what_was_given_up_says_nothing_any_more() -> None:
    async def act(driver: Driver, server: Scripted) -> None:
        exchange = Exchange(0, Phase.MEASURED, 0.0, REQUEST)
        driver.wire.send(exchange, SINK)
        while not server.requests:
            await asyncio.sleep(0.01)
        driver.wire.give_up(exchange)
        assert (await driver.one()).error is None
        assert len(driver.ended) == 1

    on([Scripted.hang, GOOD], act)


def test_an_interim_response_is_passed_over() -> None:
    exchange, _ = one_of([b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + GOOD])
    assert (exchange.error, exchange.status) == (None, 200)


def test_a_body_may_end_with_its_connection() -> None:
    unframed = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + STREAM + Scripted.cut
    assert one_of([unframed])[0].error is None


def test_chunks_of_the_transfer_may_cut_events() -> None:
    pieces = [STREAM[at : at + 7] for at in range(0, len(STREAM), 7)]
    body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert one_of([head + body])[0].tokens == 2


def test_bytes_that_nobody_asked_for_end_the_connection() -> None:
    async def act(driver: Driver, server: Scripted) -> None:
        assert (await driver.one()).error is None
        while driver.wire.connections:
            await asyncio.sleep(0.01)
        assert (await driver.one()).error is None
        assert server.connections == 2

    on([GOOD + b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n"], act)


def test_a_request_larger_than_the_sockets_buffer_arrives_whole() -> None:
    body = b"x" * 8_000_000
    big = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body

    async def act(driver: Driver, server: Scripted) -> None:
        driver.wire.send(Exchange(0, Phase.MEASURED, 0.0, big), SINK)
        while not driver.ended:
            await asyncio.sleep(0.01)
        assert driver.ended[0].error is None
        assert server.requests[0] == big

    on([GOOD], act)


def test_the_servers_own_times_are_read() -> None:
    _, driver = one_of([answer(STREAM, headers="Server-Timing: queue;dur=1.5, miss, db;desc=x;dur=2\r\n")])
    assert driver.times == {"header_queue": 1.5, "header_db": 2.0}
    assert server_timing("a;dur=x, ;dur=1") == {}


def test_tls_is_spoken_and_a_stranger_refused(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate]
    subject = ["-days", "1", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*command, *subject], check=True, capture_output=True)
    server = Scripted()

    async def main() -> tuple[Exchange, Exchange]:
        import ssl

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        listener = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=context)
        port = listener.sockets[0].getsockname()[1]
        asyncio.get_running_loop().set_exception_handler(lambda loop, told: None)  # the server's, of a broken handshake
        try:
            strict = Driver(Address("127.0.0.1", port, tls=True, name="localhost"))
            lenient = Driver(Address("127.0.0.1", port, tls=True, name="localhost", verify_tls=False))
            return await strict.one(), await lenient.one()
        finally:
            listener.close()

    strict, lenient = uvloop.run(main())
    assert (strict.error, lenient.error) == (ErrorClass.REFUSED, None)
    assert "certificate" in strict.detail
    assert len(server.requests) == 1
