"""No cap is passed, whatever happens at once; what was paid for is kept, and a killed attempt's spending is counted."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest
from corpora import context, settings, zhouyi_job
from fault_llm import Fault as Planted
from fault_llm import FaultLlm, Garbage, Hang, Status
from pydantic import ValidationError

from textmill.contracts.base import new_id
from textmill.contracts.datasets import BudgetSpent, DatasetManifest, Message, Reject
from textmill.contracts.jobs import SynthJob
from textmill.contracts.synthesis import Budget, Prices
from textmill.errors import DependencyDown
from textmill.store import MemoryStore
from textmill_synth.budget import BudgetBook, BudgetedEndpoint, BudgetGuard, Charge, upper_bound
from textmill_synth.ledger import Ledger
from textmill_synth.llm import CallFailed, ChatRequest, Completion
from textmill_synth.llm.request import Fault
from textmill_synth.worker import SynthHandler

USED = Charge(1, 100, 10)


def request(number: int) -> ChatRequest:
    return ChatRequest("model", [Message(role="user", content=f"question {number}")], 0.0, 32)


BOUND = upper_bound(request(100))


@dataclass
class FakeEndpoint:
    """Answers when ``gate`` is open; ``faults`` are returned by the number of the try."""

    gate: asyncio.Event = field(default_factory=asyncio.Event)
    faults: dict[int, Fault] = field(default_factory=dict)
    usage: Charge = USED
    calls: int = 0
    url: str = "http://fake"

    async def attempt(self, request: ChatRequest, deadline_s: float) -> Completion | Fault:
        number = self.calls
        self.calls += 1
        await self.gate.wait()
        if number in self.faults:
            return self.faults[number]
        return Completion("yes", "stop", self.usage.prompt_tokens, self.usage.completion_tokens)


def guard(store: MemoryStore, budget: Budget, job_id: str = "job_1", attempt: str = "1-1") -> BudgetGuard:
    return BudgetGuard(budget, BudgetBook(store, job_id, attempt))


@dataclass(frozen=True)
class OneTry:
    """An ``Llm`` without a second try."""

    endpoint: BudgetedEndpoint

    async def complete(self, request: ChatRequest) -> Completion:
        outcome = await self.endpoint.attempt(request, 5.0)
        assert isinstance(outcome, Completion)
        return outcome


async def outcomes(endpoint: BudgetedEndpoint, numbers: range) -> list[str]:
    async def one(number: int) -> str:
        try:
            outcome = await endpoint.attempt(request(number), 5.0)
        except CallFailed as exc:
            return exc.kind
        return outcome.text if isinstance(outcome, Completion) else outcome.kind

    return await asyncio.gather(*map(one, numbers))


def ask_all(
    budget: Budget, count: int, llm: FakeEndpoint | None = None, store: MemoryStore | None = None, **book: str
) -> tuple[list[str], FakeEndpoint, BudgetSpent]:
    """All at once, with all answers coming at the same moment."""

    async def run() -> tuple[list[str], FakeEndpoint, BudgetSpent]:
        fake = llm or FakeEndpoint()
        async with guard(store or MemoryStore(), budget, **book) as kept:
            task = asyncio.create_task(outcomes(BudgetedEndpoint(fake, kept), range(100, 100 + count)))
            await asyncio.sleep(0.05)
            fake.gate.set()
            said = await task
            assert kept.spent is not None
            return said, fake, kept.spent

    return asyncio.run(run())


def test_no_more_calls_are_made_than_the_cap_allows_however_many_come_at_once() -> None:
    said, llm, spent = ask_all(Budget(max_calls=7), 200)
    assert llm.calls == said.count("yes") == spent.calls == 7
    assert said.count("budget_spent") == spent.refused == 193
    assert spent.ended_by == "max_calls"


def test_tokens_never_pass_the_cap_and_calls_in_flight_that_turn_out_cheap_make_room() -> None:
    cap = 20 * (USED.prompt_tokens + USED.completion_tokens)
    said, _, spent = ask_all(Budget(max_tokens=cap), 200)
    assert spent.prompt_tokens + spent.completion_tokens <= cap
    at_once = cap // (BOUND.prompt_tokens + BOUND.completion_tokens)
    assert at_once < said.count("yes"), "reservations alone would allow fewer"
    room = cap - spent.prompt_tokens - spent.completion_tokens
    assert room < BOUND.prompt_tokens + BOUND.completion_tokens, "stopped only when the next call might not fit"
    assert spent.ended_by == "max_tokens"


def test_the_cost_is_counted_by_direction_and_never_passes_its_cap() -> None:
    prices = Prices(prompt=1.0, completion=10.0)
    said, _, spent = ask_all(Budget(max_cost=0.005, prices=prices), 200)
    assert spent.cost == pytest.approx(said.count("yes") * (100 * 1.0 + 10 * 10.0) / 1e6)
    assert 0.004 < spent.cost <= 0.005
    assert spent.ended_by == "max_cost"


def test_a_cost_cap_without_prices_is_refused() -> None:
    with pytest.raises(ValidationError, match="needs 'prices'"):
        Budget(max_cost=1.0)


def test_a_refusal_names_the_cap_and_what_to_do() -> None:
    async def run() -> None:
        async with guard(MemoryStore(), Budget(max_calls=0)) as kept:
            await BudgetedEndpoint(FakeEndpoint(), kept).attempt(request(1), 5.0)

    with pytest.raises(CallFailed, match="max_calls = 0; submit the job anew with a larger budget"):
        asyncio.run(run())


FATES = [
    (Fault("llm_timeout", "no answer in time"), BOUND),
    (Fault("llm_bad_response", "200, garbage"), BOUND),
    (Fault("llm_connection", "cut off"), BOUND),
    (Fault("llm_connection", "refused", sent=False), Charge()),
    (Fault("llm_rate_limited", "429"), Charge()),
    (Fault("llm_server_error", "500"), Charge()),
]


@pytest.mark.parametrize(("fault", "charged"), FATES)
def test_a_try_without_an_answer_is_charged_for_what_it_may_have_cost(fault: Fault, charged: Charge) -> None:
    said, _, spent = ask_all(Budget(max_calls=3), 1, FakeEndpoint(faults={0: fault}))
    assert said == [fault.kind]
    assert Charge(spent.calls, spent.prompt_tokens, spent.completion_tokens) == charged


def test_a_reply_without_usage_is_charged_in_full() -> None:
    _, _, spent = ask_all(Budget(max_calls=3), 1, FakeEndpoint(usage=Charge()))
    assert (spent.prompt_tokens, spent.completion_tokens) == (BOUND.prompt_tokens, BOUND.completion_tokens)


def test_failed_and_cancelled_calls_leave_no_reservation_behind() -> None:
    async def run() -> int:
        llm = FakeEndpoint()
        async with guard(MemoryStore(), Budget(max_calls=10)) as kept:
            budgeted = BudgetedEndpoint(llm, kept)
            tasks = [asyncio.create_task(budgeted.attempt(request(n), 5.0)) for n in range(100, 130)]
            async with asyncio.timeout(60):
                while llm.calls < 10:
                    await asyncio.sleep(0.01)
            for task in tasks[3:]:
                task.cancel()
            llm.gate.set()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(e) for e in ended[:3]] == [Completion] * 3
            assert kept.spent is not None
            assert kept.spent.calls == 10, "three answers, and seven that may have been billed"
            with pytest.raises(CallFailed, match="max_calls"):
                await budgeted.attempt(request(1), 5.0)
            return llm.calls

    assert asyncio.run(run()) == 10


def killed(
    store: MemoryStore,
    budget: Budget,
    work: Callable[[BudgetedEndpoint], Awaitable[object]],
    llm: FakeEndpoint,
    attempt: str,
) -> None:
    """An attempt that never leaves its guard, like a process that was killed."""

    async def run() -> None:
        kept = await guard(store, budget, attempt=attempt).__aenter__()
        await work(BudgetedEndpoint(llm, kept))

    asyncio.run(run())


@pytest.mark.parametrize("cap", [5, 40, 1_000])
def test_killed_attempts_together_never_pass_the_cap(cap: int) -> None:
    store, llm, budget = MemoryStore(), FakeEndpoint(), Budget(max_calls=cap)
    llm.gate.set()
    for attempt in range(1, 30):
        killed(store, budget, lambda it: outcomes(it, range(100, 100 + cap // 3 + 1)), llm, f"1-{attempt}")
    assert 0.75 * cap <= llm.calls <= cap


def test_an_attempt_that_ends_well_gives_back_what_it_booked_and_did_not_use() -> None:
    store, budget = MemoryStore(), Budget(max_calls=1_000)
    ask_all(budget, 10, store=store)
    _, _, spent = ask_all(budget, 5, store=store, attempt="1-2")
    assert spent.calls == 15
    _, _, elsewhere = ask_all(budget, 5, store=store, job_id="job_2")
    assert elsewhere.calls == 5


def test_an_outage_does_not_eat_the_budget_however_often_the_job_comes_back() -> None:
    store, budget = MemoryStore(), Budget(max_calls=20)

    async def run(attempt: int) -> None:
        async with guard(store, budget, attempt=f"1-{attempt}") as kept:
            llm = FakeEndpoint()
            in_flight = asyncio.create_task(outcomes(BudgetedEndpoint(llm, kept), range(100, 110)))
            async with asyncio.timeout(60):
                while not llm.calls:
                    await asyncio.sleep(0.01)
            in_flight.cancel()
            await asyncio.gather(in_flight, return_exceptions=True)
            raise DependencyDown("the endpoint is gone")

    for attempt in range(1, 10):
        with pytest.raises(DependencyDown):
            asyncio.run(run(attempt))
    said, _, _ = ask_all(budget, 20, store=store, attempt="1-10")
    assert said == ["yes"] * 20


def test_what_the_ledger_knows_is_free_and_never_refused() -> None:
    store = MemoryStore()

    async def run(budget: Budget, count: int) -> tuple[int, int, int]:
        llm = FakeEndpoint()
        llm.gate.set()
        job_id = new_id("job")
        refused = 0
        kept = guard(store, budget, job_id)
        async with kept, Ledger(store, OneTry(BudgetedEndpoint(llm, kept))) as ledger:
            for number in range(count):
                try:
                    await ledger.ask(request(number), "ab", "prompt@1")
                except CallFailed:
                    refused += 1
        return llm.calls, ledger.calls_reused, refused

    assert asyncio.run(run(Budget(max_calls=4), 10)) == (4, 0, 6)
    assert asyncio.run(run(Budget(max_calls=0), 4)) == (0, 4, 0)
    assert asyncio.run(run(Budget(max_calls=6), 10)) == (6, 4, 0)


# -- whole jobs --------------------------------------------------------------------------------------------------------


def run(job: SynthJob, store: MemoryStore, llm: FaultLlm, attempt: int = 1, **changes: object) -> DatasetManifest:
    output = SynthHandler(settings(llm.url, **changes))(job, context(store, attempt))
    return DatasetManifest.model_validate(output.manifest)


def test_a_job_at_its_cap_keeps_what_it_paid_for_and_loses_no_row(llm: FaultLlm) -> None:
    store = MemoryStore()
    job = zhouyi_job(store, 10, budget=Budget(max_calls=11), extractive_fallback=False)
    manifest = run(job, store, llm)
    assert llm.paid == manifest.calls == 11
    assert (manifest.counts.requested, manifest.counts.accepted, manifest.counts.dead_lettered) == (30, 11, 19)
    assert manifest.budget_spent is not None
    assert (manifest.budget_spent.calls, manifest.budget_spent.ended_by) == (11, "max_calls")
    reasons = [Reject.model_validate_json(line).reason for line in store.get(manifest.rejects_key).splitlines()]
    assert reasons == ["budget_spent"] * 19


def test_a_job_with_a_larger_budget_makes_only_the_missing_calls(llm: FaultLlm) -> None:
    store = MemoryStore()
    run(zhouyi_job(store, 10, budget=Budget(max_calls=11)), store, llm)
    manifest = run(zhouyi_job(store, 10, budget=Budget(max_calls=100)), store, llm)
    assert (manifest.calls, manifest.calls_reused, llm.paid) == (19, 11, 30)
    assert manifest.counts.accepted == manifest.counts.requested == 30
    assert manifest.budget_spent is not None
    assert (manifest.budget_spent.calls, manifest.budget_spent.ended_by) == (19, None)


def test_a_restarted_job_has_what_its_first_attempt_left(llm: FaultLlm) -> None:
    store = MemoryStore()
    job = zhouyi_job(store, 10, budget=Budget(max_calls=20))
    llm.faults = {n: Status(503) for n in range(12, 500)}
    with pytest.raises(DependencyDown):
        run(job, store, llm, concurrency=1)
    llm.faults = {}
    manifest = run(job, store, llm, attempt=2)
    assert llm.paid <= 20
    assert manifest.calls + manifest.calls_reused == 20
    assert manifest.counts_by_strategy["qa"].dead_lettered == 10


@pytest.mark.parametrize("fault", [Status(429, "0"), Status(500), Garbage(), Hang()])
def test_under_faults_no_more_is_paid_than_the_cap_and_all_rows_are_settled(llm: FaultLlm, fault: Planted) -> None:
    store = MemoryStore()
    llm.faults = dict.fromkeys(range(0, 60, 3), fault)
    manifest = run(zhouyi_job(store, 10, budget=Budget(max_calls=15)), store, llm)
    assert llm.paid <= 15
    assert manifest.counts_by_strategy["qa"].requested == 30
    assert manifest.budget_spent is not None
    assert llm.paid <= manifest.budget_spent.calls <= 15


def test_a_job_without_a_budget_has_none_to_report_and_keeps_no_book(llm: FaultLlm) -> None:
    store = MemoryStore()
    assert run(zhouyi_job(store, 1), store, llm).budget_spent is None
    priced = run(zhouyi_job(store, 2, budget=Budget(prices=Prices(prompt=1.0))), store, llm)
    assert priced.budget_spent is not None
    assert priced.budget_spent.cost == pytest.approx(300 / 1e6)
    assert list(store.list("budgets/")) == []
