"""Accepted pairs made deeper and wider; their rows are requested by themselves."""

import json

from scripted import Reply, Says, generate, passages

from textmill.contracts.synthesis import SynthOptions

TEXT = "The lighthouse on Fern Island was built in 1821. It was built because two ships had sunk. It is painted red."
PAIR = {
    "question": "When was the lighthouse on Fern Island built?",
    "answer": "The lighthouse on Fern Island was built in 1821.",
    "evidence": "was built in 1821",
}
DEEPER = {
    "question": "Why was the lighthouse on Fern Island built?",
    "answer": "The lighthouse on Fern Island was built because two ships had sunk.",
    "evidence": "because two ships had sunk",
}
WIDER = {
    "question": "What colour is the lighthouse painted?",
    "answer": "The lighthouse is painted red.",
    "evidence": "It is painted red.",
}
OPTIONS = SynthOptions(strategies=("pairs", "evolve"), pairs_per_passage=1)


def said(prompt: str) -> Reply:
    if "goes deeper" in prompt:
        return json.dumps(DEEPER)
    return json.dumps(WIDER if "something else" in prompt else {"items": [PAIR]})


def test_each_accepted_answer_evolves_in_each_way() -> None:
    run = generate(OPTIONS, passages(TEXT), said)
    assert [a.text for a in run.answers("pairs")] == [PAIR["answer"]]
    assert [a.text for a in run.answers("evolve")] == [DEEPER["answer"], WIDER["answer"]]
    assert [a.topic.question_id for a in run.answers("evolve")] == ["pair-1-deeper", "pair-1-wider"]
    assert run.tally.requested == {"pairs": 1, "evolve": 2}


def test_what_was_rejected_does_not_evolve() -> None:
    run = generate(OPTIONS, passages(TEXT), lambda _: "no")
    assert "evolve" not in run.tally.requested


def test_bad_evolutions_cost_their_own_rows() -> None:
    def reply(prompt: str) -> Reply:
        return Says(json.dumps(DEEPER)[:40], "length") if "goes deeper" in prompt else said(prompt)

    run = generate(OPTIONS, passages(TEXT), reply)
    assert [a.text for a in run.answers()] == [PAIR["answer"], WIDER["answer"]]
    assert run.reasons() == {"truncated": 1}
