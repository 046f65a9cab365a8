"""Sends a stage's requests when they are due, and decides what counts and when it is over. Runs in a worker's loop."""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from time import perf_counter

from textmill.contracts.load import ClosedLoop, Stage, TraceEntry
from textmill.contracts.loadtest import ErrorClass, NotSent, Phase
from textmill_inference.loadtest.clocks import Exchange
from textmill_inference.loadtest.orders import Order
from textmill_inference.loadtest.schedule import Arrival, arrivals, part, share
from textmill_inference.loadtest.tally import Tally
from textmill_inference.loadtest.traffic import Requests
from textmill_inference.loadtest.wire import Address, Wire

SWEEP_S = 0.1
PAUSE_S = 0.1
"""After a refused or reset connection a closed loop's client waits so long."""
_MOST_A_TURN = 64
"""Sent in one turn of the event loop, so that answers are read in between when the sender is behind."""
_UNHEARD = (ErrorClass.REFUSED, ErrorClass.RESET)


class Drive:
    """One worker's part of one stage. ``began`` is the stage's beginning, on ``time.perf_counter``."""

    def __init__(self, order: Order, requests: Requests, entries: Iterable[TraceEntry], began: float) -> None:
        stage = order.stage
        self.tally = Tally(order.run, began)
        self.wire = Wire(
            Address(order.host, order.port, order.tls, order.server_name, stage.target.verify_tls),
            stage.target.fresh_connections,
            stage.traffic.stream,
            lambda exchange: self.tally.sent(exchange.phase),
            self._done,
        )
        self._order, self._stage, self._requests = order, stage, requests
        self._head = request_head(order)
        self._loop = asyncio.get_running_loop()
        self._began = began
        self._counted_from = began + stage.warm_up_s
        self._counted_to = self._counted_from + stage.seconds
        self._stop_at = self._counted_to + stage.cool_down_s
        self._closed_loop = isinstance(stage.load, ClosedLoop)
        self._arrivals = _due(stage, entries, order.worker, order.workers)
        self._next: Arrival | None = None
        self._to_count = None if stage.requests is None else part(stage.requests, order.worker, order.workers)
        limit = stage.load.concurrency if isinstance(stage.load, ClosedLoop) else stage.max_in_flight
        self._limit = max(1, part(limit, order.worker, order.workers))
        self._number = order.worker
        self._open: dict[Exchange, None] = {}
        self._counted_open = 0
        self._stopped = False
        self._window_at_start: tuple[float, int, int] | None = None
        self.window: tuple[float, int, int] | None = None
        """Seconds, succeeded, tokens of the counted part."""
        self._over = asyncio.Event()

    @property
    def in_flight(self) -> int:
        return len(self._open)

    def overlaps_window(self, at: float, to: float) -> bool:
        return at < self._counted_to and to > self._counted_from

    async def run(self) -> None:
        """Until everything that counts has ended."""
        self._next = next(self._arrivals, None)
        self._at(self._counted_from, self._open_window)
        self._at(self._began, self._pump)
        self._at(self._began + SWEEP_S, self._sweep)
        await self._over.wait()
        self._end()

    # -- sending ---------------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Sends what is due, and comes again when the next is. Never early: latencies count from when it was due."""
        now = perf_counter()
        for _ in range(_MOST_A_TURN):
            if self._stopped:
                return
            if self._next is None:
                self._exhausted()
                return
            at_s, entry = self._next
            due = self._began + at_s
            if due > now:
                self._at(due, self._pump)
                return
            if due >= self._stop_at:
                self._stop()
                return
            self._launch(due, entry)
            self._next = next(self._arrivals, None)
        self._loop.call_soon(self._pump)

    def _again(self, due: float) -> None:
        """A closed loop's client sends its next request."""
        if not self._stopped:
            if due >= self._stop_at:
                self._stop()
            else:
                self._launch(due, None)

    def _launch(self, due: float, entry: TraceEntry | None) -> None:
        phase = self._phase(due)
        if phase is Phase.MEASURED and self._to_count is not None:
            if self._to_count == 0:
                self._counted_to = due
                self._stop_at = due + self._stage.cool_down_s
                if not self._stage.cool_down_s:
                    self._stop()
                    return
                phase = Phase.COOL_DOWN
            else:
                self._to_count -= 1
        self.tally.scheduled(phase)
        if len(self._open) >= self._limit:
            self.tally.not_sent(phase, NotSent.IN_FLIGHT)
            return
        body = self._requests.next(entry)
        exchange = Exchange(self._number, phase, due, self._head % (self._number, len(body)) + body)
        self._number += self._order.workers
        self._open[exchange] = None
        self._counted_open += phase is Phase.MEASURED
        self.wire.send(exchange, self.tally.sink(phase))

    def _phase(self, due: float) -> Phase:
        if due < self._counted_from:
            return Phase.WARM_UP
        return Phase.MEASURED if due < self._counted_to else Phase.COOL_DOWN

    # -- ends ------------------------------------------------------------------------------------------------------

    def _done(self, exchange: Exchange, times: dict[str, float]) -> None:
        del self._open[exchange]
        self._counted_open -= exchange.phase is Phase.MEASURED
        self.tally.ended(exchange, times)
        if self._stopped:
            self._check_over()
        elif self._closed_loop:
            # Not at once: the connection is still reading the answer that just ended.
            if exchange.error in _UNHEARD:
                self._loop.call_later(PAUSE_S, self._again, exchange.ended + PAUSE_S)
            else:
                self._loop.call_soon(self._again, exchange.ended)

    def _sweep(self) -> None:
        """Gives up what took too long."""
        now = perf_counter()
        timeout_s = self._stage.timeout_s
        for exchange in list(self._open):
            if now - exchange.scheduled < timeout_s:
                break  # they are in the order in which they were due
            if exchange.begun and now - exchange.begun >= timeout_s:
                self.wire.give_up(exchange)
                exchange.ended, exchange.error = now, ErrorClass.TIMEOUT
                exchange.detail = f"no whole answer within {timeout_s:g} s"
                self._done(exchange, {})
        self.wire.drop_idle()
        if not self._stopped and now >= self._stop_at:
            self._stop()
        if not self._over.is_set():
            self._at(now + SWEEP_S, self._sweep)

    def _exhausted(self) -> None:
        """No more arrivals: a trace is over. A closed loop's clients have all begun, and go on by themselves."""
        if not self._closed_loop:
            self._counted_to = min(self._counted_to, max(self._counted_from, perf_counter()))
            self._stop()

    def _stop(self) -> None:
        """Nothing is sent from now on."""
        self._stopped = True
        self._check_over()

    def _check_over(self) -> None:
        if not self._counted_open:
            self._close_window(perf_counter())
            self._over.set()

    def _end(self) -> None:
        """What is still open doesn't count: it is under way at the end, or was never begun."""
        for exchange in self._open:
            if not exchange.begun:
                self.tally.not_sent(exchange.phase, NotSent.ENDED)
        self.wire.close()

    def _open_window(self) -> None:
        self._window_at_start = (perf_counter(), self.tally.succeeded, self.tally.tokens)
        self._at(self._counted_to, self._window_due)

    def _window_due(self) -> None:
        """The counted part's time is up, unless a number of requests or a trace's end has cut it short already."""
        if perf_counter() >= self._counted_to:
            self._close_window(perf_counter())

    def _close_window(self, now: float) -> None:
        if self.window is None:
            began, succeeded, tokens = self._window_at_start or (now, 0, 0)
            self.window = (now - began, self.tally.succeeded - succeeded, self.tally.tokens - tokens)

    def _at(self, moment: float, call: Callable[[], None]) -> None:
        self._loop.call_later(max(0.0, moment - perf_counter()), call)


def _due(stage: Stage, entries: Iterable[TraceEntry], worker: int, workers: int) -> Iterator[Arrival]:
    """Of a closed loop: when its clients begin."""
    if not isinstance(stage.load, ClosedLoop):
        return share(arrivals(stage.load, entries), worker, workers)
    clients = stage.load.concurrency
    ramp_s = clients / 1_000 if stage.load.ramp_s is None else stage.load.ramp_s
    return ((client * ramp_s / clients, None) for client in range(worker, clients, workers))


def request_head(order: Order) -> bytes:
    """All of a request before its body, with room for its number and its length."""
    accept = "text/event-stream" if order.stage.traffic.stream else "application/json"
    lines = [
        f"POST {order.path} HTTP/1.1",
        f"Host: {order.host_header}",
        "Content-Type: application/json",
        f"Accept: {accept}",
        "User-Agent: textmill-loadtest",
        *([f"Authorization: Bearer {order.key}"] if order.key else []),
        *(["Connection: close"] if order.stage.target.fresh_connections else []),
    ]
    whole = "\r\n".join(line.replace("%", "%%") for line in lines)
    return f"{whole}\r\nX-Request-Id: {order.run}-%d\r\nContent-Length: %d\r\n\r\n".encode("latin-1")
