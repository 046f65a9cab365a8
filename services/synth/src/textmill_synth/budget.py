"""Keeps a job's spending under its caps, over all its attempts, so that no cap is ever passed.

Before each try of a call its dearest outcome is reserved; after it, the reservation becomes what the endpoint says it
used. A try that could only fit if those in flight turn out cheap waits for them; one that can't fit at all is refused.

What counts: every try that was answered, with the tokens the endpoint reports, hedges and failovers too. One that may
have been billed without an answer (a timeout, a broken connection, a reply without usage, a job that let go) counts in
full. One that was turned away (429, 5xx, 400, no connection) costs nothing, nor does a call found in the ledger.

Not covered: an endpoint that adds more than ``TEMPLATE_TOKENS`` to a prompt or generates past ``max_tokens``.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from math import inf
from types import TracebackType

from textmill.contracts.base import StoredContract
from textmill.contracts.datasets import BudgetCap, BudgetSpent
from textmill.contracts.synthesis import Budget, Prices
from textmill.errors import DependencyDown, JobFailed
from textmill.store import ObjectStore
from textmill_synth.llm.endpoint import Endpoint
from textmill_synth.llm.request import CallFailed, ChatRequest, Completion, Fault

TEMPLATE_TOKENS = 64
"""For the marks that an endpoint's chat template puts around a prompt."""
_BOOKED_AHEAD = 0.02
"""The share of a cap that is booked in one write. What a killed attempt had booked and not used is lost to the job."""
_TURNED_AWAY = ("llm_rate_limited", "llm_server_error", "llm_bad_request")


@dataclass(frozen=True)
class Charge:
    """Calls, and their tokens by direction."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: "Charge") -> "Charge":
        return Charge(
            self.calls + other.calls,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
        )

    def __sub__(self, other: "Charge") -> "Charge":
        return self + other * -1

    def __mul__(self, times: int) -> "Charge":
        return Charge(self.calls * times, self.prompt_tokens * times, self.completion_tokens * times)

    def covers(self, other: "Charge") -> bool:
        return all(mine >= needed for mine, needed in zip(astuple(self), astuple(other), strict=True))

    def cost(self, prices: Prices) -> float:
        return (self.prompt_tokens * prices.prompt + self.completion_tokens * prices.completion) / 1_000_000


def upper_bound(request: ChatRequest) -> Charge:
    """The most that one try can be billed for. No tokenizer makes more tokens than there are bytes.

    Half the bytes, as for English, isn't enough: SmolLM2 makes 0.64 tokens of a byte of Chinese.
    """
    return Charge(1, len(request.payload) + TEMPLATE_TOKENS, request.max_tokens)


class _Booked(StoredContract):
    calls: int
    prompt_tokens: int
    completion_tokens: int


class BudgetBook:
    """What each attempt of a job has spent at most, written ahead of the spending, one object an attempt."""

    def __init__(self, store: ObjectStore, job_id: str, attempt: str) -> None:
        self._store = store
        self._prefix = f"budgets/{job_id}/"
        self._key = f"{self._prefix}{attempt}.json"

    def others(self) -> Charge:
        """What the other attempts have booked. One listing, one GET an attempt."""
        total = Charge()
        for info in self._store.list(self._prefix):
            if info.key != self._key:
                booked = _Booked.model_validate_json(self._store.get(info.key))
                total += Charge(booked.calls, booked.prompt_tokens, booked.completion_tokens)
        return total

    def write(self, booked: Charge) -> None:
        self._store.put(self._key, _Booked(**asdict(booked)).to_json())


def open_budget(budget: Budget, store: ObjectStore, job_id: str, scratch: str) -> "BudgetGuard":
    """The guard of one attempt of a job; ``scratch`` is the attempt's own prefix, whose last part names it."""
    return BudgetGuard(budget, BudgetBook(store, job_id, scratch.rstrip("/").rsplit("/", 1)[-1]))


class BudgetGuard:
    """Belongs to one event loop. Use as ``async with``: entering reads what earlier attempts spent, leaving writes
    what this one did. Raises ``DependencyDown`` when the book can't be written: no call is made that isn't booked.

    Without a cap it counts what this attempt spends, and keeps no book.
    """

    def __init__(self, budget: Budget, book: BudgetBook) -> None:
        self._budget = budget
        self._capped = any(cap < inf for _, _, cap in _measured(budget, Charge()))
        self._book = book
        self._earlier = Charge()
        self._spent = Charge()
        self._held = Charge()
        self._abandoned = Charge()
        self._booked = Charge()
        self._settled = asyncio.Event()
        self._booking = asyncio.Lock()
        self._refused = 0
        self._ended_by: BudgetCap | None = None

    async def __aenter__(self) -> "BudgetGuard":
        if self._capped:
            self._earlier = await asyncio.to_thread(self._book.others)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        """An outage must not eat the budget: what it cut short isn't charged, however often the job comes back."""
        if isinstance(error, DependencyDown):
            self._spent -= self._abandoned
        if self._booked.calls:
            await asyncio.to_thread(self._book.write, self._spent)

    def wrap(self, endpoint: Endpoint) -> Endpoint:
        """For ``open_llm``: the endpoint, asked as long as the budget lasts."""
        return BudgetedEndpoint(endpoint, self) if self._budget != Budget() else endpoint

    @property
    def spent(self) -> BudgetSpent | None:
        """Of the whole job so far; None where neither caps nor prices were given. Calls in flight don't count yet."""
        if self._budget == Budget():
            return None
        total = self._earlier + self._spent
        return BudgetSpent(
            calls=total.calls,
            prompt_tokens=total.prompt_tokens,
            completion_tokens=total.completion_tokens,
            cost=total.cost(self._budget.prices),
            refused=self._refused,
            ended_by=self._ended_by,
        )

    async def reserve(self, most: Charge) -> None:
        """Hold ``most`` until ``settle``. Raises ``CallFailed`` ("budget_spent") when a cap leaves no room for it."""
        while self._cap_in_the_way(self._earlier + self._spent + self._held + most):
            alone = self._cap_in_the_way(self._earlier + self._spent + most)
            if alone is not None:
                self._refuse(alone)
            await self._settled.wait()
        self._held += most
        try:
            await self._book_ahead(most)
        except BaseException:
            self.settle(most, Charge())
            raise

    def settle(self, most: Charge, used: Charge, abandoned: bool = False) -> None:
        """Turn a reservation into what was used. ``abandoned``: the caller let go, and ``used`` is a guess."""
        self._held -= most
        self._spent += used
        self._abandoned += used if abandoned else Charge()
        self._settled.set()
        self._settled = asyncio.Event()

    def _cap_in_the_way(self, total: Charge) -> BudgetCap | None:
        return next((cap for cap, value, most in _measured(self._budget, total) if value > most), None)

    def _refuse(self, cap: BudgetCap) -> None:
        self._refused += 1
        self._ended_by = self._ended_by or cap
        raise CallFailed(
            "budget_spent",
            f"not asked: the next call could pass {cap} = {getattr(self._budget, cap):g}; submit the job anew with a "
            "larger budget, the calls that are paid for are taken from the ledger",
        )

    async def _book_ahead(self, most: Charge) -> None:
        """Book this call and as many like it as fit into ``_BOOKED_AHEAD`` of each cap, with one write."""
        if not self._capped:
            return
        async with self._booking:
            needed = self._spent + self._held
            if self._booked.covers(needed):
                return
            shares = [_BOOKED_AHEAD * cap / one for _, one, cap in _measured(self._budget, most) if one]
            ahead = needed + most * int(min([*shares, 256.0]))
            booked = needed if self._cap_in_the_way(self._earlier + ahead) else ahead
            await asyncio.to_thread(self._book.write, booked)
            self._booked = booked


@dataclass(frozen=True)
class BudgetedEndpoint:
    """An ``Endpoint`` that asks another one as long as the budget lasts."""

    endpoint: Endpoint
    guard: BudgetGuard

    @property
    def url(self) -> str:
        return self.endpoint.url

    async def attempt(self, request: ChatRequest, deadline_s: float) -> Completion | Fault:
        """Raises ``CallFailed`` ("budget_spent") without asking, or what the endpoint raises."""
        most = upper_bound(request)
        await self.guard.reserve(most)
        used, abandoned = most, False
        try:
            outcome = await self.endpoint.attempt(request, deadline_s)
            used = _charged(outcome, most)
            return outcome
        except asyncio.CancelledError:
            abandoned = True
            raise
        except JobFailed:
            used = Charge()
            raise
        finally:
            self.guard.settle(most, used, abandoned)


def _charged(outcome: Completion | Fault, most: Charge) -> Charge:
    if isinstance(outcome, Fault):
        return Charge() if outcome.kind in _TURNED_AWAY or not outcome.sent else most
    if outcome.prompt_tokens or outcome.completion_tokens:
        return Charge(1, outcome.prompt_tokens, outcome.completion_tokens)
    return most


def _measured(budget: Budget, charge: Charge) -> Sequence[tuple[BudgetCap, float, float]]:
    """Each cap's name, what the charge comes to in its terms, and the cap; infinite where there is none."""
    tokens = charge.prompt_tokens + charge.completion_tokens
    return (
        ("max_calls", charge.calls, inf if budget.max_calls is None else budget.max_calls),
        ("max_tokens", tokens, inf if budget.max_tokens is None else budget.max_tokens),
        ("max_cost", charge.cost(budget.prices), inf if budget.max_cost is None else budget.max_cost),
    )
