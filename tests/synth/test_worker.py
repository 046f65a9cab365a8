"""Whole synth jobs against a real server: conservation under each fault, the ledger's promises, splits, lineage."""

import io
import json
from collections import Counter
from collections.abc import Iterator

import pyarrow.parquet as pq
import pytest
from corpora import context, put_corpus, settings, zhouyi_job, zhouyi_questions, zhouyi_texts
from fault_llm import Drip, Fault, FaultLlm, Garbage, Hang, Say, Stall, Status, answer_from_passage

from textmill.contracts.base import new_id
from textmill.contracts.datasets import Cost, Counts, DatasetManifest, Record, Reject, Tool
from textmill.contracts.jobs import SynthJob
from textmill.contracts.preflight import Forecast, Interval, KnownItem, PreflightManifest
from textmill.contracts.synthesis import Judge, QualityOptions, Question, QuestionSet
from textmill.errors import BadRequest, Cancelled, DependencyDown, JobFailed, NotFound
from textmill.store import MemoryStore
from textmill.worker import JobContext
from textmill_synth.known import preflight_key
from textmill_synth.settings import SynthSettings
from textmill_synth.topics import normal_form
from textmill_synth.worker import DROPS, RECORDS, REQUESTED, RUNGS, SynthHandler


def run(job: SynthJob, store: MemoryStore, llm: FaultLlm, attempt: int = 1, **changes: object) -> DatasetManifest:
    output = SynthHandler(settings(llm.url, **changes))(job, context(store, attempt))
    assert output.manifest_key == f"datasets/{job.dataset_id}/manifest.json"
    return DatasetManifest.model_validate(output.manifest)


def records(store: MemoryStore, manifest: DatasetManifest, *splits: str) -> list[Record]:
    keys = [manifest.records_keys[split] for split in splits or ("train", "eval", "heldout")]  # type: ignore[index]
    tables = [pq.read_table(io.BytesIO(store.get(key))) for key in keys]
    return [Record.model_validate(row) for table in tables for row in table.to_pylist()]


def rejects(store: MemoryStore, manifest: DatasetManifest) -> list[Reject]:
    return [Reject.model_validate_json(line) for line in store.get(manifest.rejects_key).splitlines()]


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.mark.parametrize("language", ["en", "zh"])
def test_answers_of_the_llm_become_records_with_their_history(llm: FaultLlm, store: MemoryStore, language: str) -> None:
    manifest = run(zhouyi_job(store, 3, language), store, llm)  # type: ignore[arg-type]
    assert manifest.counts.requested == manifest.counts.accepted == 9
    assert (manifest.calls, manifest.calls_reused) == (9, 0)
    assert manifest.cost.prompt_tokens == 900
    ways = len(zhouyi_questions(language).questions[0].ask)  # type: ignore[arg-type]
    assert manifest.records == {"train": 9 * ways, "eval": 0, "heldout": 18}
    for record in records(store, manifest):
        assert record.strategy == "qa"
        assert record.language == language
        assert all(key in record.answer for key in record.key_facts)
        assert record.answer in record.evidence
        assert "And more" not in record.answer
        assert record.model == "smollm2-135m"
        assert record.prompt_version is not None
        assert store.exists(f"prompts/{record.prompt_version}.j2")


FAULTS = [Status(500), Status(429, "0"), Garbage(), Hang(), Stall(), Drip(), Say("", "stop"), Say("It has", "length")]


@pytest.mark.parametrize("fault", FAULTS)
def test_every_answer_asked_for_is_settled_under_each_fault(llm: FaultLlm, store: MemoryStore, fault: Fault) -> None:
    llm.faults = dict.fromkeys((0, 2, 3, 5), fault)
    manifest = run(zhouyi_job(store, 2), store, llm, deadline_s=1.0)
    qa, passage = manifest.counts_by_strategy["qa"], manifest.counts_by_strategy.get("passage")
    assert qa.requested == 6
    assert qa.accepted + qa.rejected + qa.dead_lettered == 6
    answered = {(r.passage_id, r.question_id) for r in records(store, manifest)}
    assert len(answered) == 6, "the fallback settles what the LLM failed at"
    assert (passage.accepted if passage else 0) == 6 - qa.accepted
    assert len(rejects(store, manifest)) == qa.rejected + qa.dead_lettered


def test_a_call_that_fails_every_time_is_a_dead_letter(llm: FaultLlm, store: MemoryStore) -> None:
    llm.always = Status(400)
    manifest = run(zhouyi_job(store, 1), store, llm)
    assert manifest.counts_by_strategy["qa"].dead_lettered == 3
    assert manifest.counts_by_strategy["passage"].accepted == 3
    assert {reject.reason for reject in rejects(store, manifest)} == {"llm_bad_request"}


def test_wrong_answers_are_rejected_with_reason_and_raw_response(llm: FaultLlm, store: MemoryStore) -> None:
    llm.answer = lambda prompt: "It has Fire below and Lake above, all 8 lines. And more"
    manifest = run(zhouyi_job(store, 2), store, llm)
    counts = manifest.counts_by_strategy["qa"]
    assert counts.rejected == 6
    assert sum(counts.rejected_by_reason.values()) == 6
    for reject in rejects(store, manifest):
        assert reject.raw_response.endswith("And more")
        assert reject.call_id is not None
    assert {r.strategy for r in records(store, manifest)} == {"passage"}
    assert all(r.answer == r.evidence and r.call_id is None for r in records(store, manifest))


def test_without_the_fallback_rejected_stays_rejected(llm: FaultLlm, store: MemoryStore) -> None:
    llm.faults = {0: Say("It has ninety-nine lines.")}
    manifest = run(zhouyi_job(store, 2, extractive_fallback=False), store, llm)
    assert (manifest.counts.requested, manifest.counts.accepted, manifest.counts.rejected) == (6, 5, 1)


def test_a_dataset_without_a_record_fails_and_names_its_rejects(llm: FaultLlm, store: MemoryStore) -> None:
    llm.always = Say("no")
    job = zhouyi_job(store, 1, extractive_fallback=False)
    with pytest.raises(JobFailed, match="truncated"):
        run(job, store, llm)
    assert store.get(f"datasets/{job.dataset_id}/attempt-1-1/rejects.jsonl").count(b"\n") == 3


def test_an_unreachable_endpoint_pauses_the_job(store: MemoryStore) -> None:
    with FaultLlm() as gone:
        pass
    with pytest.raises(DependencyDown):
        run(zhouyi_job(store, 1), store, gone)


def test_a_restarted_job_pays_nothing_twice(llm: FaultLlm, store: MemoryStore) -> None:
    job = zhouyi_job(store, 3)
    llm.faults = {n: Status(503) for n in range(5, 500)}
    with pytest.raises(DependencyDown):
        run(job, store, llm, concurrency=1)
    assert llm.paid == 5
    llm.faults = {}
    manifest = run(job, store, llm, attempt=2)
    assert (manifest.calls, manifest.calls_reused, llm.paid) == (4, 5, 9)
    again = run(job, store, llm, attempt=3)
    assert (again.calls, again.calls_reused, llm.paid) == (0, 9, 9)
    assert records(store, again) == records(store, manifest)
    assert store.get(again.records_keys["train"]) == store.get(manifest.records_keys["train"])
    assert again.records_keys != manifest.records_keys


def test_one_more_document_costs_one_document(llm: FaultLlm, store: MemoryStore) -> None:
    run(zhouyi_job(store, 4), store, llm)
    manifest = run(zhouyi_job(store, 5), store, llm)
    assert (manifest.calls, manifest.calls_reused, llm.paid) == (3, 12, 15)


class StoppingContext(JobContext):
    """Is cancelled as soon as it hears of progress."""

    def progress(
        self, stage: str, done: float = 0, total: float | None = None, unit: str = "", **figures: float
    ) -> None:
        self.stop(Cancelled("planted"))


def test_a_stopped_job_lets_go_and_keeps_what_it_paid(llm: FaultLlm, store: MemoryStore) -> None:
    job = zhouyi_job(store, 10)
    llm.delay_s = 0.1
    with pytest.raises(Cancelled):
        SynthHandler(settings(llm.url, concurrency=1))(job, StoppingContext(store, 1, "scratch/job_x/1-1/"))
    paid = llm.paid
    assert 3 <= paid < 30
    llm.delay_s = 0.0
    manifest = run(job, store, llm, attempt=2)
    assert manifest.calls_reused >= paid - 1, "the call in flight at the stop may be lost, no other"
    assert manifest.calls + manifest.calls_reused == 30


def test_no_document_and_no_held_out_wording_is_on_both_sides(llm: FaultLlm, store: MemoryStore) -> None:
    manifest = run(zhouyi_job(store, 12, eval_fraction=0.3), store, llm)
    documents = {
        split: {r.document_id for r in records(store, manifest, split)} for split in ("train", "eval", "heldout")
    }
    assert documents["train"]
    assert documents["eval"]
    assert not documents["train"] & documents["eval"]
    assert documents["heldout"] == documents["train"]
    asked = {split: {normal_form(r.question) for r in records(store, manifest, split)} for split in documents}
    assert not asked["train"] & asked["heldout"]
    assert not asked["train"] & asked["eval"]
    assert {r.way.split("-")[0] for r in records(store, manifest, "heldout")} == {"held"}
    assert {r.way.split("-")[0] for r in records(store, manifest, "train", "eval")} == {"ask"}


def test_the_order_is_mixed_and_depends_on_the_seed(llm: FaultLlm, store: MemoryStore) -> None:
    def order(seed: int) -> list[str]:
        manifest = run(zhouyi_job(store, 4, seed=seed), store, llm)
        return [r.passage_id for r in records(store, manifest, "train")]

    first = order(0)
    assert first == order(0)
    assert first != order(1)
    longest = max(Counter(_runs(first)).elements())
    assert longest < len(first) / 4, "no batch is all one topic"


def _runs(values: list[str]) -> Iterator[int]:
    length = 0
    for before, value in zip([None, *values], values, strict=False):
        length = length + 1 if value == before else 1
        yield length


@pytest.mark.parametrize(
    ("language", "encoding"), [("en", "utf-8"), ("en", "utf-16-le"), ("zh", "utf-8"), ("zh", "gb18030")]
)
def test_evidence_spans_lead_back_to_the_bytes(llm: FaultLlm, store: MemoryStore, language: str, encoding: str) -> None:
    text = "\n\n".join(t.strip() for t in zhouyi_texts(language, 3).values())  # type: ignore[arg-type]
    corpus_id = put_corpus(store, {"all.md": text}, language, encoding)  # type: ignore[arg-type]
    job = SynthJob(corpus_id=corpus_id, question_sets=(zhouyi_questions(language),), context="sentence")  # type: ignore[arg-type]
    found = records(store, run(job, store, llm))
    assert len({r.evidence for r in found}) == 9
    for record in found:
        raw, span = store.get(f"raw/{record.document_sha256}"), record.evidence_span
        assert raw[span.byte_start : span.byte_end].decode(encoding) == record.evidence
        assert raw.decode(encoding)[span.char_start : span.char_end] == record.evidence


def test_the_summary_strategy_in_text_form(llm: FaultLlm, store: MemoryStore) -> None:
    llm.answer = lambda prompt: 'content:"Shi, the Army"\nsummary:"It stands for discipline under a trusted leader."'
    texts = {"07": zhouyi_texts("en", 7)["07-shi.md"]}
    job = SynthJob(corpus_id=put_corpus(store, texts), strategies=("summary",))
    manifest = run(job, store, llm)
    assert manifest.records == {"train": 18, "eval": 0, "heldout": 2}
    questions = {r.question for r in records(store, manifest, "train")}
    assert "What does Shi, the Army stand for?" in questions


def test_a_slipped_summary_is_rejected_and_never_repaired(llm: FaultLlm, store: MemoryStore) -> None:
    llm.answer = lambda prompt: 'content:"Shi"\nsummary:"It stands for discipline."\ninterpretation:"An army."'
    corpus_id = put_corpus(store, zhouyi_texts("en", 7), heading=True)
    manifest = run(SynthJob(corpus_id=corpus_id, strategies=("summary", "passage")), store, llm)
    assert manifest.counts_by_strategy["summary"].rejected_by_reason == {"format": 7}
    assert manifest.counts_by_strategy["passage"].accepted == 7


def test_json_is_asked_for_where_the_endpoint_follows_it(llm: FaultLlm, store: MemoryStore) -> None:
    def answer(prompt: str) -> str:
        if "lighthouse" in prompt:
            return json.dumps({"content": "Fern Island", "summary": "The lighthouse was built in 1821."})
        said = "It stands for discipline under a trusted leader."
        return json.dumps({"answer": said, "evidence": said})

    llm.answer = answer
    question = zhouyi_questions("en")
    only_meaning = question.model_copy(update={"questions": question.questions[2:]})
    corpus_id = put_corpus(store, {"07": zhouyi_texts("en", 7)["07-shi.md"]})
    manifest = run(SynthJob(corpus_id=corpus_id, question_sets=(only_meaning,)), store, llm, response_mode="auto")
    assert manifest.counts_by_strategy["qa"].accepted == 1
    assert all("response_format" in request for request in llm.requests)


@pytest.mark.parametrize("said", ["not json", '{"content": "same", "summary": "same"}'])
def test_auto_finds_a_model_that_does_not_follow_a_schema(llm: FaultLlm, store: MemoryStore, said: str) -> None:
    llm.faults = {0: Say(said)}
    manifest = run(zhouyi_job(store, 1), store, llm, response_mode="auto")
    assert manifest.counts_by_strategy["qa"].accepted == 3
    assert ["response_format" in request for request in llm.requests] == [True, False, False, False]


def test_auto_finds_an_endpoint_that_takes_no_schema_but_json(llm: FaultLlm, store: MemoryStore) -> None:
    said = "It stands for discipline under a trusted leader."
    probed = json.dumps({"content": "Fern Island", "summary": "The lighthouse was built in 1821."})
    llm.faults = {0: Status(400), 1: Say(probed)}
    llm.answer = lambda prompt: json.dumps({"answer": said, "evidence": said})
    corpus_id = put_corpus(store, {"07": zhouyi_texts("en", 7)["07-shi.md"]})
    questions = zhouyi_questions("en")
    only_meaning = questions.model_copy(update={"questions": questions.questions[2:]})
    manifest = run(SynthJob(corpus_id=corpus_id, question_sets=(only_meaning,)), store, llm, response_mode="auto")
    assert manifest.counts_by_strategy["qa"].accepted == 1
    assert [r["response_format"]["type"] for r in llm.requests] == ["json_schema", "json_object", "json_object"]  # type: ignore[index]


def test_auto_finds_an_endpoint_without_json(llm: FaultLlm, store: MemoryStore) -> None:
    llm.faults = dict.fromkeys((0, 1), Status(400))
    manifest = run(zhouyi_job(store, 1), store, llm, response_mode="auto")
    assert manifest.counts_by_strategy["qa"].accepted == 3
    assert ["response_format" in request for request in llm.requests] == [True, True, False, False, False]


def test_one_question_with_two_answers_is_a_conflict(llm: FaultLlm, store: MemoryStore) -> None:
    corpus_id = put_corpus(store, {"Introduction": "It is red.\n\nIt is blue."}, heading=True)
    manifest = run(SynthJob(corpus_id=corpus_id, strategies=("passage",)), store, llm)
    assert (manifest.counts.accepted, manifest.counts.rejected_by_reason) == (1, {"conflict": 1})
    assert rejects(store, manifest)[0].raw_response == "It is blue."


def test_a_system_prompt_leads_each_record(llm: FaultLlm, store: MemoryStore) -> None:
    manifest = run(zhouyi_job(store, 1, system_prompt="You know the Zhouyi."), store, llm)
    assert {r.messages[0].content for r in records(store, manifest)} == {"You know the Zhouyi."}


def test_the_key_goes_to_the_settings_endpoint_alone(llm: FaultLlm, store: MemoryStore) -> None:
    run(zhouyi_job(store, 1), store, llm, llm_api_key="s3cret")
    assert {headers.get("Authorization") for headers in llm.headers} == {"Bearer s3cret"}
    with FaultLlm() as other:
        handler = SynthHandler(settings(llm.url, llm_api_key="s3cret"))
        job = zhouyi_job(store, 2, llm_url=other.url)
        handler(job, context(store))
        assert other.headers
        assert all("Authorization" not in headers for headers in other.headers)


def test_what_cannot_be_done_is_refused_before_a_call(llm: FaultLlm, store: MemoryStore) -> None:
    job = zhouyi_job(store, 1)
    with pytest.raises(NotFound, match="corpus"):
        run(job.model_copy(update={"corpus_id": f"cor_{'0' * 32}"}), store, llm)
    broken = job.question_sets[0].model_copy(update={"subject": "("})
    with pytest.raises(BadRequest):
        run(job.model_copy(update={"question_sets": (broken,)}), store, llm)
    assert llm.requests == []


def test_the_card_tells_what_was_left_out(llm: FaultLlm, store: MemoryStore) -> None:
    fails = ("Heaven below and Heaven above", "That can't be used")
    llm.answer = lambda prompt: "It has" if any(words in prompt for words in fails) else answer_from_passage(prompt)
    manifest = run(zhouyi_job(store, 2), store, llm, concurrency=1)
    card = store.get(manifest.card_key).decode()
    assert "| qa | 6 | 5 | 1 | 0 | 83 % |" in card
    assert "| truncated | 1 |" in card
    assert "| passage | 1 | 1 | 0 | 0 | 100 % |" in card
    assert manifest.prompt_versions[0] in card


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTMILL_SYNTH_LLM_API_KEY", "s3cret")
    monkeypatch.setenv("TEXTMILL_SYNTH_CONCURRENCY", "7")
    found = SynthSettings()
    assert found.concurrency == 7
    assert "s3cret" not in repr(found)


def test_without_a_question_set_the_heading_is_asked_about(llm: FaultLlm, store: MemoryStore) -> None:
    llm.answer = lambda prompt: "Shi stands for discipline under a trusted leader. It also does more."
    corpus_id = put_corpus(store, {"Shi": zhouyi_texts("en", 7)["07-shi.md"]}, heading=True)
    manifest = run(SynthJob(corpus_id=corpus_id), store, llm)
    found = records(store, manifest)
    assert {r.answer for r in found} == {"Shi stands for discipline under a trusted leader."}
    assert {r.evidence for r in found} == {"It stands for discipline under a trusted leader."}
    assert "Groundwater lies unseen" in str(llm.requests[0]["messages"]), "the whole passage is shown"


LIGHTHOUSE = (
    "The lighthouse on Fern Island was built in 1821. It is painted red.\n\nIts keeper is called Tom. He has two dogs."
)


def lighthouse_answers(prompt: str) -> str:
    """A reply in the form that each strategy's prompt asks for."""
    built = {"question": "When was the lighthouse built?", "answer": "The lighthouse was built in 1821."}
    painted = {"question": "What colour is the lighthouse?", "answer": "The lighthouse is painted red."}
    quoted = [{**built, "evidence": "was built in 1821"}, {**painted, "evidence": "It is painted red."}]
    if '"verdict"' in prompt:
        return json.dumps({"verdict": "supported", "quote": "was built in 1821"})
    if "a conversation of" in prompt:
        return f"```json\n{json.dumps({'items': quoted})}\n```"
    if '"items"' in prompt:
        return json.dumps({"items": quoted})
    if "first_evidence" in prompt:
        answer = "The lighthouse whose keeper is called Tom was built in 1821."
        both = {"first_evidence": "was built in 1821", "second_evidence": "Its keeper is called Tom."}
        return json.dumps({"question": "When was the lighthouse of Tom built?", "answer": answer, **both})
    called = {"tool": "find", "arguments": {"name": "lighthouse"}, "result": "was built in 1821"}
    return json.dumps({"question": "Look up the lighthouse.", "answer": built["answer"], **called})


def test_many_strategies_in_one_job(llm: FaultLlm, store: MemoryStore) -> None:
    tool = Tool(name="find", description="Finds.", parameters='{"type": "object"}')
    job = SynthJob(
        corpus_id=put_corpus(store, {"fern.md": LIGHTHOUSE}),
        strategies=("pairs", "bridge", "conversation", "tools"),
        pairs_per_passage=2,
        turns=2,
        tools=(tool,),
        judge=Judge(),
    )
    llm.answer = lighthouse_answers
    manifest = run(job, store, llm, response_mode="json")
    assert manifest.counts_by_strategy["pairs"].requested == 4
    assert manifest.answer_form == "json_schema"
    by_strategy = {record.strategy: record for record in records(store, manifest)}
    assert set(by_strategy) == {"pairs", "bridge", "conversation", "tools"}
    assert [m.role for m in by_strategy["tools"].messages] == ["user", "assistant", "tool", "assistant"]
    assert by_strategy["tools"].tools == [tool]
    assert [m.role for m in by_strategy["conversation"].messages] == ["user", "assistant"] * 2
    assert by_strategy["conversation"].rung == "json_repair"
    for record in by_strategy.values():
        raw = store.get(f"raw/{record.document_sha256}").decode()
        for quoted, span in [(record.evidence, record.evidence_span)] + [
            (e.text, e.span) for e in record.more_evidence
        ]:
            assert raw[span.char_start : span.char_end] == quoted
        assert store.exists(f"prompts/{record.prompt_version}.j2")
    (second,) = by_strategy["bridge"].more_evidence
    assert second.text == "Its keeper is called Tom."
    assert manifest.rungs["json_repair"].gained == manifest.rungs["json_repair"].tried == 2
    again = run(job, store, llm, attempt=2, response_mode="json")
    assert again.calls == 0
    assert records(store, again) == records(store, manifest)


def test_the_rungs_are_counted_in_the_metrics(llm: FaultLlm, store: MemoryStore) -> None:
    def value(rung: str, outcome: str) -> float:
        return RUNGS.labels(rung, outcome)._value.get()

    before = {name: value("asked_again", name) for name in ("tried", "gained")}
    llm.faults = {0: Say("It has"), 3: Say("It has")}
    manifest = run(zhouyi_job(store, 1), store, llm, concurrency=1)
    gained = manifest.rungs["asked_again"].gained
    assert (manifest.rungs["asked_again"].tried, gained) == (1, 0)
    assert value("asked_again", "tried") - before["tried"] == 1
    assert value("asked_again", "gained") == before["gained"]


def test_what_a_preflight_found_known_is_left_out_and_counted(llm: FaultLlm, store: MemoryStore) -> None:
    job = zhouyi_job(store, 2)
    first = records(store, run(job, store, llm))[0]
    none = Interval(expected=0)
    names = ("calls", "prompt_tokens", "completion_tokens", "cost", "accepted")
    forecast = Forecast(confidence=0.9, seconds=None, concurrency=1, **dict.fromkeys(names, none))
    preflight = PreflightManifest(
        preflight_id=new_id("pre"),
        corpus_id=job.corpus_id,
        passages=2,
        concerned=2,
        corpus_passages=2,
        counts=Counts(),
        counts_by_strategy={},
        forecast=forecast,
        value=None,
        known=[KnownItem(passage_id=first.passage_id, question_id=first.question_id)],
        calls=0,
        calls_reused=0,
        cost=Cost(),
    )
    store.put(preflight_key(preflight.preflight_id), preflight.to_json())
    manifest = run(job.model_copy(update={"leave_out_known": preflight.preflight_id}), store, llm)
    assert (manifest.counts.requested, manifest.left_out) == (5, 1)


@pytest.mark.parametrize("said", [None, "no"])
def test_the_metrics_balance_for_each_job_even_one_without_a_record(
    llm: FaultLlm, store: MemoryStore, said: str | None
) -> None:
    def settled() -> float:
        return sum(s.value for m in RECORDS.collect() for s in m.samples if s.name.endswith("_total"))

    before = REQUESTED._value.get(), settled()
    llm.always = Say(said) if said else None
    try:
        run(zhouyi_job(store, 1, extractive_fallback=False), store, llm)
    except JobFailed:
        assert said
    assert (REQUESTED._value.get() - before[0], settled() - before[1]) == (3, 3)


def test_rows_left_out_are_counted_by_their_rule(llm: FaultLlm, store: MemoryStore) -> None:
    asked = Question(
        id="phone", key=r"电话(?P<key>\d+)", ask=("{subject}码头的电话是多少？", "怎么打给{subject}码头？")
    )
    questions = QuestionSet(language="zh", subject="^(?P<subject>.+?)码头", questions=(asked,))
    corpus_id = put_corpus(
        store, {"风岛": "风岛码头归陈大海管，电话13800138000。", "石岛": "石岛码头归李小山管，电话8800。"}, "zh"
    )
    job = SynthJob(
        corpus_id=corpus_id,
        question_sets=(questions,),
        strategies=("passage",),
        quality=QualityOptions(drop_pii=True),
        eval_fraction=0,
    )
    before = DROPS.labels("pii")._value.get()
    assert run(job, store, llm).dropped_by_rule == {"pii": 2}
    assert DROPS.labels("pii")._value.get() - before == 2
