"""A preflight's forecast holds, its calls aren't paid for again, and what the base model knows can be left out."""

import hashlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import pyarrow.parquet as pq
import pytest
from corpora import context, put_corpus, settings, zhouyi_job, zhouyi_questions, zhouyi_texts
from fastapi.testclient import TestClient
from fault_llm import FaultLlm, Say, Status, answer_from_passage

from textmill.contracts.base import new_id
from textmill.contracts.datasets import Counts, DatasetManifest, Record
from textmill.contracts.documents import Passage, Span
from textmill.contracts.jobs import PreflightJob, SynthJob
from textmill.contracts.preflight import Interval, PreflightManifest
from textmill.contracts.synthesis import Budget, Prices
from textmill.errors import JobFailed, NotFound
from textmill.http import create_app
from textmill.jobs import Jobs
from textmill.store import MemoryStore
from textmill_synth.known import Lesson, is_right
from textmill_synth.pilot import chosen
from textmill_synth.preflight import PreflightHandler
from textmill_synth.preflight_api import preflights_router
from textmill_synth.strategies.base import Answer
from textmill_synth.topics import Phrasing, Topic
from textmill_synth.worker import SynthHandler

PRICES = Prices(prompt=2.0, completion=8.0)


@pytest.fixture
def llm() -> Iterator[FaultLlm]:
    """Writes from what it is shown, and knows nothing by itself."""
    with FaultLlm(answer=lambda p: answer_from_passage(p) if "The answer is" in p else "Nobody knows.") as server:
        yield server


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def preflight_of(job: SynthJob, **changes: object) -> PreflightJob:
    options = job.model_dump(exclude={"kind", "dataset_id", "job_id", "submitted_at", "then"})
    return PreflightJob.model_validate({**options, **changes})


def fly(job: PreflightJob, store: MemoryStore, llm: FaultLlm, **changes: object) -> PreflightManifest:
    output = PreflightHandler(settings(llm.url, **changes))(job, context(store))
    store.put(output.manifest_key, PreflightManifest.model_validate(output.manifest).to_json())
    assert output.manifest_key == f"preflights/{job.preflight_id}/manifest.json"
    return PreflightManifest.model_validate(output.manifest)


def run(job: SynthJob, store: MemoryStore, llm: FaultLlm) -> DatasetManifest:
    return DatasetManifest.model_validate(SynthHandler(settings(llm.url))(job, context(store)).manifest)


# -- forecast ----------------------------------------------------------------------------------------------------------

WORDS = ["harbour", "lantern", "granite", "orchard", "meadow", "copper", "willow", "timber", "anchor", "velvet"]


def uneven_texts(count: int) -> dict[str, str]:
    """One passage a text, from a sentence to some forty, each with its own number."""
    draw = Random(7)
    return {
        f"The {draw.choice(WORDS)} of house {number}": " ".join(
            f"House {number} keeps the {draw.choice(WORDS)} and the {draw.choice(WORDS)} in room {room}."
            for room in range(1, 2 + int(draw.lognormvariate(1.8, 0.8)))
        )
        for number in range(count)
    }


class Metered(FaultLlm):
    """Bills by length. One answer in five, by the prompt's hash, is cut off, so that it is asked for again."""

    def _said(self, received: object) -> Say:
        messages = received.body["messages"]  # type: ignore[attr-defined]
        prompt = "".join(message["content"] for message in messages)
        slipped = hashlib.sha256(prompt.encode()).digest()[0] % 5 == 0
        sentence = (re.findall(r"House \d+ keeps [^.]*\.", prompt) or ["Nobody knows."])[-1]
        return Say("It is hard to" if slipped else sentence, "stop", len(prompt) // 4, 3 if slipped else 14)


def holds(interval: Interval, value: float) -> bool:
    assert interval.low is not None
    assert interval.high is not None
    return interval.low <= value <= interval.high


def test_the_forecast_holds_the_figures_of_the_real_run(store: MemoryStore) -> None:
    corpus_id = put_corpus(store, uneven_texts(90), heading=True)
    budget = Budget(prices=PRICES)
    job = SynthJob(corpus_id=corpus_id, budget=budget, extractive_fallback=False)
    with Metered() as llm:
        real = run(job, store, llm)
        paid = llm.paid
        flown = [fly(preflight_of(job, passages=20, seed=seed), store, llm) for seed in range(20)]
        value_calls = sum(2 * f.value.asked for f in flown if f.value)
        assert llm.paid - paid <= value_calls, "the pilots themselves found all their calls in the ledger"
    cost = (real.cost.prompt_tokens * PRICES.prompt + real.cost.completion_tokens * PRICES.completion) / 1e6
    for figure, truth in (
        ("calls", real.calls),
        ("prompt_tokens", real.cost.prompt_tokens),
        ("completion_tokens", real.cost.completion_tokens),
        ("cost", cost),
        ("accepted", real.counts.accepted),
    ):
        held = sum(holds(getattr(f.forecast, figure), truth) for f in flown)
        assert held >= 14, f"{figure}: {held} of 20 intervals of 90 %"
        mean = sum(getattr(f.forecast, figure).expected for f in flown) / len(flown)
        assert mean == pytest.approx(truth, rel=0.1)
    assert all(f.forecast.seconds is None for f in flown), "nothing was paid for, so nothing was timed"


def test_a_pilot_of_all_passages_is_no_forecast(llm: FaultLlm, store: MemoryStore) -> None:
    job = zhouyi_job(store, 3)
    found = fly(preflight_of(job, passages=1_000), store, llm)
    assert (found.passages, found.concerned, found.corpus_passages) == (3, 3, 3)
    assert found.forecast.calls == Interval(expected=9, low=9, high=9)
    assert "no forecasts" in found.notes[0]
    assert run(job, store, llm).calls == 0


def test_the_job_pays_for_nothing_that_the_pilot_asked(llm: FaultLlm, store: MemoryStore) -> None:
    job = zhouyi_job(store, 10)
    found = fly(preflight_of(job, passages=4), store, llm)
    assert found.counts == Counts(requested=12, accepted=12)
    assert found.counts_by_strategy["qa"].accepted == 12
    assert found.value is not None
    assert found.calls == 12 + 2 * found.value.asked
    before = llm.paid
    manifest = run(job, store, llm)
    assert (manifest.calls, manifest.calls_reused) == (18, 12)
    assert llm.paid - before == 18


def test_only_passages_that_something_is_asked_of_are_tried_and_counted(llm: FaultLlm, store: MemoryStore) -> None:
    job = zhouyi_job(store, 4)
    dull = {f"dull-{n}": f"Nothing is asked of paragraph {n}." for n in range(40)}
    corpus_id = put_corpus(store, {**zhouyi_texts("en", 4), **dull})
    found = fly(preflight_of(job, corpus_id=corpus_id, passages=2), store, llm)
    assert (found.passages, found.concerned, found.corpus_passages) == (2, 4, 44)
    assert found.forecast.calls.expected == 12


def test_a_corpus_of_which_nothing_is_asked_fails_before_it_costs_anything(llm: FaultLlm, store: MemoryStore) -> None:
    corpus_id = put_corpus(store, {"a": "Nothing of interest stands here."})
    job = PreflightJob(corpus_id=corpus_id, question_sets=(zhouyi_questions("en"),))
    with pytest.raises(JobFailed, match="nothing is asked of any of the 1 passages"):
        fly(job, store, llm)
    assert llm.paid == 0


def test_the_passages_tried_are_spread_over_the_corpus_and_drawn_by_the_seed() -> None:
    places = list(range(0, 1_000, 10))
    assert chosen(places, 4, 1) == chosen(places, 4, 1)
    assert chosen(places, 4, 1) != chosen(places, 4, 2)
    assert [place // 250 for place in chosen(places, 4, 3)] == [0, 1, 2, 3]
    assert chosen(places, 500, 0) == places


def test_rejects_and_dead_letters_are_in_the_yield(llm: FaultLlm, store: MemoryStore) -> None:
    llm.faults = {0: Status(400), 1: Say("It has ninety-nine lines.")}
    job = zhouyi_job(store, 2, extractive_fallback=False)
    found = fly(preflight_of(job), store, llm, concurrency=1)
    assert (found.counts.requested, found.counts.accepted, found.counts.dead_lettered) == (6, 4, 1)
    assert sum(found.counts.rejected_by_reason.values()) == found.counts.rejected == 1


def test_a_budget_that_ends_the_pilot_is_said_and_never_passed(llm: FaultLlm, store: MemoryStore) -> None:
    job = zhouyi_job(store, 4, budget=Budget(max_calls=5))
    found = fly(preflight_of(job), store, llm)
    assert llm.paid == 5
    assert found.counts_by_strategy["qa"].dead_lettered == 7
    assert found.budget_spent is not None
    assert (found.budget_spent.calls, found.budget_spent.ended_by) == (5, "max_calls")
    assert found.value is not None
    assert found.value.unanswered == found.value.asked
    assert "refused by the budget" in found.notes[-1]


# -- value check -------------------------------------------------------------------------------------------------------


@dataclass
class Base:
    """A base model that knows hexagram 1 by heart, reads what it is shown, and is at a loss at questions of lines."""

    def __call__(self, prompt: str) -> str:
        shown = re.search(r"Text: (.*)\n\nQuestion: (.*)", prompt)
        if shown is not None:
            return "I could not say." if "lines" in shown[2] else shown[1]
        if "hexagram 1," in prompt or "hexagram 1?" in prompt or "Qian" in prompt:
            known = "It has Heaven below and Heaven above. All six lines are solid."
            return f"{known} It stands for strength that never tires."
        return "Nobody knows."


def test_what_the_base_model_knows_is_told_apart_from_what_it_can_learn(llm: FaultLlm, store: MemoryStore) -> None:
    job = zhouyi_job(store, 3)
    with FaultLlm(answer=Base()) as base:
        found = fly(preflight_of(job, base_url=base.url, base_model="little"), store, llm)
        assert {request["model"] for request in base.requests} == {"little"}
        assert base.paid == 18
    value = found.value
    assert value is not None
    assert (value.base_model, value.asked, value.known, value.unanswered) == ("little", 9, 3, 0)
    assert (value.learnable, value.neither) == (4, 2), "of hexagrams 2 and 3 all but the lines"
    assert llm.paid == 9, "the forecast's calls are the writer's alone"
    assert found.forecast.calls.expected == 9


def test_a_job_leaves_out_exactly_what_is_known(llm: FaultLlm, store: MemoryStore) -> None:
    job = zhouyi_job(store, 3)
    with FaultLlm(answer=Base()) as base:
        found = fly(preflight_of(job, base_url=base.url), store, llm)
    known = {(item.passage_id, item.question_id) for item in found.known}
    assert len(known) == 3
    everything = asked(run(job, store, llm), store)
    same_texts = zhouyi_job(store, 3, leave_out_known=found.preflight_id)
    assert same_texts.corpus_id != job.corpus_id
    manifest = run(same_texts, store, llm)
    assert asked(manifest, store) == everything - known
    assert manifest.counts.requested == 6


def asked(manifest: DatasetManifest, store: MemoryStore) -> set[tuple[str, str]]:
    table = pq.read_table(io.BytesIO(store.get(manifest.records_keys["train"])))
    return {(r.passage_id, r.question_id) for r in map(Record.model_validate, table.to_pylist())}


def test_a_job_that_leaves_out_by_an_unknown_preflight_is_refused(llm: FaultLlm, store: MemoryStore) -> None:
    with pytest.raises(NotFound, match="no preflight 'pre_"):
        run(zhouyi_job(store, 1, leave_out_known=new_id("pre")), store, llm)


def test_a_base_model_that_is_not_served_leaves_the_forecast_standing(llm: FaultLlm, store: MemoryStore) -> None:
    with FaultLlm(always=Status(404)) as nowhere:
        found = fly(preflight_of(zhouyi_job(store, 2), base_url=nowhere.url, base_model="none"), store, llm)
    assert found.value is None
    assert found.known == []
    assert "the base model none can't be asked" in found.notes[-1]
    assert found.counts.accepted == 6


def lesson(answer: str, question: str, language: str = "en", key: str = "") -> Lesson:
    text = f"{key} {answer}"
    passage = Passage(
        passage_id="p", document_id="d", document_sha256="0" * 64, index=0, text=text, language=language,
        heading=None, span=Span(char_start=0, char_end=1, byte_start=0, byte_end=1), exact=True,
    )  # fmt: skip
    topic = Topic("q", (Phrasing("plain", question),), key=(0, len(key)) if key else None)
    return Lesson(passage, Answer(topic, answer, (0, len(text))))


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("The lighthouse of Fern Island was finished in 1821, of granite.", True),
        ("It was finished in 1921, of granite.", False),
        ("When was the lighthouse of Fern Island finished, and of what?", False),
        ("", False),
    ],
)
def test_without_a_key_the_content_decides(said: str, right: bool) -> None:
    question = "When was the lighthouse of Fern Island finished, and of what?"
    assert is_right(said, lesson("The lighthouse of Fern Island was finished of granite in 1821.", question)) is right


def test_chinese_answers_and_keys_are_compared_too() -> None:
    taught = lesson("灯塔建于一八二一年，用花岗岩砌成。", "灯塔用什么砌成？", "zh")
    assert is_right("灯塔建于一八二一年，用花岗岩砌成。", taught)
    assert not is_right("灯塔用什么砌成？用木头。", taught)
    assert is_right("I think line 2 it is.", lesson("Only line 2 is solid.", "Which?", key="line 2"))
    assert not is_right("Line 21.", lesson("Only line 2 is solid.", "Which?", key="line 2"))


# -- API ---------------------------------------------------------------------------------------------------------------


def test_a_preflight_is_submitted_and_read_over_http(llm: FaultLlm, store: MemoryStore) -> None:
    jobs = Jobs(store, ring=lambda kind, job_id: None, bury=lambda kind, message: None)
    app = create_app("synth", jobs=jobs, kinds=["preflight"], checks={})
    app.include_router(preflights_router(store, jobs))
    client = TestClient(app)
    job = preflight_of(zhouyi_job(store, 2))
    assert client.post("/v1/preflights", json=job.model_dump(mode="json")).status_code == 202
    assert client.get(f"/v1/preflights/{job.preflight_id}").status_code == 404
    found = fly(job, store, llm)
    assert PreflightManifest.model_validate(client.get(f"/v1/preflights/{job.preflight_id}").json()) == found
    unknown = job.model_copy(update={"leave_out_known": new_id("pre"), "job_id": new_id("job")})
    assert client.post("/v1/preflights", json=unknown.model_dump(mode="json")).status_code == 404
