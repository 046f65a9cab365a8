"""Questions and answers written by the LLM: each row settled on its own merits."""

import json

import pytest
from scripted import generate, in_turn, passages

from textmill.contracts.synthesis import SynthOptions

TEXT = "The lighthouse on Fern Island was built in 1821. It is painted red."
GOOD = {
    "question": "When was the lighthouse on Fern Island built?",
    "answer": "The lighthouse on Fern Island was built in 1821.",
    "evidence": "was built in 1821",
}
OPTIONS = SynthOptions(strategies=("pairs",), pairs_per_passage=1)


def test_a_pair_leads_to_its_words_in_the_passage() -> None:
    (passage,) = passages(TEXT)
    run = generate(OPTIONS, [passage], in_turn(json.dumps({"items": [GOOD]})))
    (answer,) = run.answers()
    assert answer.topic.question_id == "pair-1"
    assert [p.question for p in answer.topic.ask] == [GOOD["question"]]
    assert passage.text[slice(*answer.evidence)] == "was built in 1821"
    assert answer.prompted is not None
    assert answer.prompted.prompt_version.startswith("pairs.en@")
    assert answer.prompted.call.call_id == run.requests[0].key


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"evidence": "It was built long ago."}, "evidence_not_in_passage"),
        ({"answer": "The lighthouse on Fern Island was built in 1822."}, "ungrounded_number"),
        ({"answer": "The lighthouse on Fern Island"}, "truncated"),
        ({"question": "When was the lighthouse of 1799 built?"}, "ungrounded_number"),
        ({"question": "Who lives on Skull Island?"}, "ungrounded_name"),
        ({"question": "Tell me about the lighthouse."}, "format"),
        ({"question": "What does the passage say about it?"}, "prompt_leak"),
    ],
)
def test_what_does_not_hold_up_is_rejected_with_its_reason(changed: dict[str, str], reason: str) -> None:
    raw = json.dumps({"items": [{**GOOD, **changed}]})
    run = generate(OPTIONS, passages(TEXT), in_turn(raw))
    assert run.reasons() == {reason: 1}
    assert run.rejections()[0].raw == raw


def test_an_invented_question_is_no_source_for_its_answer() -> None:
    invented = {
        "question": "Why do pirates sail towards smugglers near the lighthouse?",
        "answer": "Pirates sail towards smugglers near the lighthouse.",
        "evidence": "It is painted red.",
    }
    run = generate(OPTIONS, passages(TEXT), in_turn(json.dumps({"items": [invented]})))
    assert run.reasons() == {"ungrounded_words": 1}


def test_the_same_question_twice_is_a_duplicate() -> None:
    options = OPTIONS.model_copy(update={"pairs_per_passage": 2})
    run = generate(options, passages(TEXT), in_turn(json.dumps({"items": [GOOD, GOOD]})))
    assert len(run.answers()) == 1
    assert run.reasons() == {"duplicate": 1}


def test_in_chinese() -> None:
    item = {"question": "灯塔建于哪一年？", "answer": "灯塔建于1821年。", "evidence": "灯塔建于1821年"}
    run = generate(
        OPTIONS, passages("灯塔建于1821年，漆成红色。", language="zh"), in_turn(json.dumps({"items": [item]}))
    )
    assert [a.text for a in run.answers()] == ["灯塔建于1821年。"]


def test_what_is_known_already_is_not_asked_for_and_counted_apart() -> None:
    (passage,) = passages(TEXT)
    options = OPTIONS.model_copy(update={"pairs_per_passage": 2})
    left_out = frozenset({(passage.passage_id, "pair-1")})
    second = {**GOOD, "question": "What colour is the lighthouse?", "answer": "The lighthouse is painted red."}
    second["evidence"] = "It is painted red."
    run = generate(options, [passage], in_turn(json.dumps({"items": [GOOD, second]})), left_out=left_out)
    assert [a.topic.question_id for a in run.answers()] == ["pair-2"]
    assert (run.tally.requested["pairs"], run.tally.left_out["pairs"]) == (1, 1)
    both = left_out | {(passage.passage_id, "pair-2")}
    nothing = generate(options, [passage], in_turn("no"), left_out=both)
    assert (nothing.settled, list(nothing.requests), nothing.tally.left_out["pairs"]) == ([], [], 2)
