"""One run of one stage by worker processes, up to the point where all they know is in one place."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from textmill.contracts.load import ClosedLoop, Stage
from textmill.contracts.loadtest import Second
from textmill_inference.loadtest.gather import Gathering
from textmill_inference.loadtest.orders import Order
from textmill_inference.loadtest.workers import Fleet

GRACE_S = 10.0


@dataclass(frozen=True)
class Run:
    """``cancelled``: it was stopped before its end."""

    gathered: Gathering
    cancelled: bool


def run_workers(orders: Sequence[Order], on_news: Callable[[Second], None], stopping: Callable[[], bool]) -> Run:
    """Blocks. A lost worker ends the run: what the others would still measure counts for nothing.

    Raises ``Transient`` when the workers don't start.
    """
    stage = orders[0].stage
    gathered = Gathering(stage, [order.worker for order in orders])
    with Fleet(orders) as fleet:
        began = fleet.go(stopping)
        if began is None:
            return Run(gathered, cancelled=True)
        for worker, line in fleet.hear(began + longest_s(stage), stopping):
            record = gathered.workers[worker]
            if line is None:
                record.lost = True
                break
            if line.tick is not None:
                for second in gathered.take(line.tick):
                    on_news(second)
            if line.ended is not None:
                record.ended = line.ended
    for second in gathered.rest():
        on_news(second)
    unfinished = any(record.ended is None and not record.lost for record in gathered.workers.values())
    lost = any(record.lost for record in gathered.workers.values())
    return Run(gathered, cancelled=unfinished and not lost)


def longest_s(stage: Stage) -> float:
    """By when a healthy worker is done: the load, the last request's timeout, and some grace."""
    ramp_s = stage.load.ramp_s or 0.0 if isinstance(stage.load, ClosedLoop) else 0.0
    return ramp_s + stage.warm_up_s + stage.seconds + stage.cool_down_s + stage.timeout_s + GRACE_S
