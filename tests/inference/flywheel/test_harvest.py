"""From thumbs and corrections to a dataset, through the job bus, with ingest's and synth's own workers."""

import io
import threading

import pyarrow.parquet
import pytest
from traffic_made import logged, store_with

from textmill.bus import MemoryBus
from textmill.contracts.datasets import DatasetManifest, Message, Record
from textmill.contracts.preferences import PreferenceLine
from textmill.contracts.traffic import HarvestRow, NewFeedback, NewHarvest, TrafficFilter, parse_transcript, transcript
from textmill.errors import BadRequest
from textmill.jobs import Jobs
from textmill.worker import Pace, Worker
from textmill_inference.flywheel.feedback import keep_feedback
from textmill_inference.flywheel.harvest import harvest, harvests_with, read_harvest
from textmill_inference.flywheel.judged import Looked, judged, preference_lines
from textmill_ingest.worker import build_corpus, keep_harvest
from textmill_synth.settings import SynthSettings
from textmill_synth.stored import StoredDatasets
from textmill_synth.worker import SynthHandler


def say(store, number, **what):
    keep_feedback(store, NewFeedback(request_id=f"req_{number}", **what))


def working(bus, jobs):
    """A worker of ingest and synth at once, in its thread."""
    handlers = {"harvest": keep_harvest, "corpus": build_corpus, "synth": SynthHandler(SynthSettings())}
    worker = Worker(jobs, bus, handlers, "g", Pace(heartbeat_s=0.05, recover_every_s=60, grace_s=5))
    thread = threading.Thread(target=worker.run, daemon=True)
    thread.start()
    return worker, thread


@pytest.fixture
def bus():
    return MemoryBus()


def test_approved_and_corrected_answers_become_records_that_lead_back_to_their_requests(bus, waits):
    system = {"role": "system", "content": "你是易经的读者。"}
    turns = [
        system,
        *({"role": r, "content": c} for r, c in [("user", "颐？"), ("assistant", "养。"), ("user", "何意？")]),
    ]
    store = store_with(
        logged(0, "How many lines has a hexagram?", "Six."),
        logged(1, "How many hexagrams are there?", "Sixty."),
        logged(2, answer="自养。\n\n观颐。", messages=turns),
        logged(3, "Who wrote it?", "I did."),
        logged(4, "When?"),
    )
    jobs = Jobs(store, ring=bus.ring, bury=bus.bury)
    say(store, 0, rating="up")
    say(store, 1, rating="down", corrected_answer="Sixty-four.")
    say(store, 2, rating="up")
    say(store, 3, rating="down")
    say(store, 77, rating="up")
    manifest = harvest(store, jobs, NewHarvest())
    assert manifest.taken == {"approved": 2, "corrected": 1}
    assert manifest.left_out == {"called_wrong": 1, "no_feedback": 1}
    assert (manifest.looked_at, manifest.feedback_without_exchange) == (5, 1)
    assert read_harvest(store, manifest.harvest_id) == manifest
    assert bus.queue("harvest").qsize() == 1

    worker, thread = working(bus, jobs)
    try:
        waits(lambda: store.exists(f"datasets/{manifest.dataset_id}/manifest.json"), "the dataset", 120)
    finally:
        worker.drain()
        thread.join(60)
    made = DatasetManifest.model_validate_json(store.get(f"datasets/{manifest.dataset_id}/manifest.json"))
    table = pyarrow.parquet.read_table(io.BytesIO(store.get(made.records_keys["train"])))
    records = [Record.model_validate(row) for row in table.to_pylist()]
    said = {record.question: record for record in records}
    assert {question: record.answer for question, record in said.items()} == {
        "How many lines has a hexagram?": "Six.",
        "How many hexagrams are there?": "Sixty-four.",
        "何意？": "自养。\n\n观颐。",
    }
    assert [m.content for m in said["何意？"].messages] == [*(t["content"] for t in turns), "自养。\n\n观颐。"]
    assert (made.calls, made.document_ids) == (0, [manifest.document_id])

    record = said["How many hexagrams are there?"]
    lineage = StoredDatasets(store).lineage(manifest.dataset_id, record.record_id)
    raw = store.get(lineage.document.raw_key)
    at = record.evidence_span.byte_start
    row = HarvestRow.model_validate_json(raw[raw.rfind(b"\n", 0, at) + 1 : raw.index(b"\n", at)])
    assert (row.request_id, row.verdict) == ("req_1", "corrected")
    assert row.text.endswith("\n" + record.evidence)


@pytest.mark.parametrize(
    ("exchange", "feedback", "reason"),
    [
        ({}, [], "no_feedback"),
        ({}, [{"comment": "hm"}], "no_rating"),
        ({}, [{"rating": "up"}, {"rating": "down"}], "disputed"),
        ({}, [{"rating": "down"}], "called_wrong"),
        ({"redacted": {"mobile": 1}}, [{"rating": "up"}], "redacted"),
        ({}, [{"corrected_answer": "Ask 13800138000."}], "redacted"),
        ({"finish_reason": "length"}, [{"rating": "up"}], "answer_cut_short"),
        ({"complete": False}, [{"rating": "up"}], "answer_cut_short"),
        ({"status": 500, "answer": ""}, [{"rating": "up"}], "no_answer"),
        ({"tool_calls": [{"name": "f"}]}, [{"rating": "up"}], "tool_calls"),
        ({"messages": [], "prompt": "Once"}, [{"rating": "up"}], "no_conversation"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, [{"rating": "up"}], "not_text"),
        ({"messages": [{"role": "user", "content": "[user]\nhi"}]}, [{"rating": "up"}], "no_transcript"),
        ({"messages": [{"role": "user", "content": "x" * 100_001}]}, [{"rating": "up"}], "too_long"),
    ],
)
def test_what_is_left_out_and_why(exchange, feedback, reason):
    store = store_with(logged(0, **exchange), logged(1))
    say(store, 1, rating="up")
    for said in feedback:
        say(store, 0, **said)
    manifest = harvest(store, Jobs(store), NewHarvest())
    assert (manifest.left_out, manifest.taken) == ({reason: 1}, {"approved": 1})


def test_a_request_id_that_was_used_twice_says_nothing():
    store = store_with(logged(0), logged(0), logged(1))
    say(store, 0, rating="up")
    say(store, 1, rating="up")
    assert harvest(store, Jobs(store), NewHarvest()).left_out == {"request_id_not_unique": 2}


def test_only_corrections_and_with_redacted():
    store = store_with(logged(0, redacted={"mobile": 1}), logged(1))
    say(store, 0, corrected_answer="Seven.")
    say(store, 1, rating="up")
    manifest = harvest(store, Jobs(store), NewHarvest(take=("corrected",), with_redacted=True))
    assert (manifest.taken, manifest.left_out) == ({"corrected": 1}, {"approved_not_wanted": 1})


def test_nothing_to_harvest_submits_nothing(bus):
    store = store_with(logged(0))
    with pytest.raises(BadRequest, match="no answer to learn from"):
        harvest(store, Jobs(store, ring=bus.ring), NewHarvest())
    assert list(store.list("jobs/")) == []


def test_the_last_correction_counts_and_one_that_changes_nothing_is_approval():
    store = store_with(logged(0), logged(1))
    for text in ("Five.", "Seven."):
        say(store, 0, corrected_answer=text)
    say(store, 1, rating="down", corrected_answer="Six.")
    manifest = harvest(store, Jobs(store), NewHarvest())
    rows = [HarvestRow.model_validate_json(line) for line in store.get(manifest.rows_key).splitlines()]
    answers = {row.request_id: (row.verdict, parse_transcript(row.text)[-1].content) for row in rows}
    assert answers == {"req_0": ("corrected", "Seven."), "req_1": ("approved", "Six.")}
    assert list(harvests_with(store, "req_1")) == [manifest.harvest_id]
    assert list(harvests_with(store, "req_")) == []


def test_preference_pairs_are_what_the_trainer_takes():
    store = store_with(
        logged(0, "a?", "wrong"), logged(1, "a?", "right"), logged(2, "b?", "bad"), logged(3, "c?", "fine")
    )
    say(store, 0, rating="down")
    say(store, 1, rating="up")
    say(store, 2, corrected_answer="good")
    say(store, 3, rating="up")
    lines = list(preference_lines(list(judged(store, TrafficFilter(), False, Looked()))))
    again = [PreferenceLine.model_validate_json(line.model_dump_json(exclude_none=True)) for line in lines]
    assert {(line.messages[0].content, line.chosen, line.rejected) for line in again} == {
        ("a?", "right", "wrong"),
        ("b?", "good", "bad"),
    }


@pytest.mark.parametrize(
    "turns",
    [
        [("user", "a"), ("assistant", "b")],
        [("system", "s"), ("user", "[x]\n[user] y"), ("assistant", "b\n\nc"), ("user", "d"), ("assistant", "é")],
    ],
)
def test_a_transcript_can_be_read_back(turns):
    messages = [Message(role=role, content=content) for role, content in turns]
    assert parse_transcript(transcript(messages)) == tuple(messages)


@pytest.mark.parametrize("content", ["", " a", "a\n", "x\n[assistant]\ny", "[user]\n"])
def test_what_couldnt_be_read_back_is_refused(content):
    with pytest.raises(ValueError, match="read back"):
        transcript([Message(role="user", content=content), Message(role="assistant", content="b")])


def test_other_texts_are_no_transcripts():
    assert parse_transcript("Once upon a time\n[user]\nhi") == ()
    assert parse_transcript("") == ()
