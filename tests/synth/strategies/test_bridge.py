"""Questions across two passages: evidence from both, and none where a passage has no neighbour."""

import json

from scripted import Says, generate, in_turn, passages

from textmill.contracts.synthesis import SynthOptions

FIRST = "The lighthouse on Fern Island was built in 1821."
SECOND = "Its keeper, Tom, paints it red every spring."
GOOD = {
    "question": "When was the lighthouse that Tom paints red built?",
    "answer": "The lighthouse that Tom paints red was built in 1821.",
    "first_evidence": "was built in 1821",
    "second_evidence": "Tom, paints it red",
}
OPTIONS = SynthOptions(strategies=("bridge",))


def test_a_bridge_quotes_both_passages() -> None:
    first, second = passages(FIRST, SECOND)
    run = generate(OPTIONS, [first, second], in_turn(json.dumps(GOOD)))
    (answer,) = run.answers()
    assert run.tally.requested["bridge"] == 1, "the last passage of a document has no neighbour"
    assert first.text[slice(*answer.evidence)] == GOOD["first_evidence"]
    (quotation,) = answer.more_evidence
    assert quotation.passage == second
    assert second.text[slice(*quotation.span)] == GOOD["second_evidence"]


def test_no_bridge_leaves_its_document() -> None:
    (first,), (other,) = passages(FIRST), passages(SECOND)
    assert generate(OPTIONS, [first, other], in_turn(json.dumps(GOOD))).settled == []


def test_evidence_from_one_side_alone_is_no_bridge() -> None:
    one_sided = {**GOOD, "second_evidence": GOOD["first_evidence"]}
    run = generate(OPTIONS, passages(FIRST, SECOND), in_turn(json.dumps(one_sided)))
    assert run.reasons() == {"evidence_not_in_passage": 1}


def test_a_cut_off_bridge_is_truncated() -> None:
    run = generate(OPTIONS, passages(FIRST, SECOND), in_turn(Says(json.dumps(GOOD)[:60], "length")))
    assert run.reasons() == {"truncated": 1}
    assert len(run.requests) == 2, "half a bridge is none: asked again, never split"


def test_in_plain_lines() -> None:
    lines = "\n".join(f"{name}: {text}" for name, text in GOOD.items())
    assert len(generate(OPTIONS, passages(FIRST, SECOND), in_turn(lines), form="text").answers()) == 1
