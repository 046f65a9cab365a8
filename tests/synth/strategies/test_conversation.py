"""Conversations: every reply held against the passage, the last one the answer."""

import json

from scripted import Says, generate, in_turn, passages

from textmill.contracts.synthesis import SynthOptions

TEXT = "The lighthouse on Fern Island was built in 1821. It is painted red. Its keeper is called Tom."
TURNS = [
    {
        "question": "When was the lighthouse on Fern Island built?",
        "answer": "The lighthouse on Fern Island was built in 1821.",
        "evidence": "was built in 1821",
    },
    {"question": "And what colour is it?", "answer": "It is painted red.", "evidence": "It is painted red."},
    {"question": "Who keeps it?", "answer": "Its keeper is called Tom.", "evidence": "Its keeper is called Tom."},
]
OPTIONS = SynthOptions(strategies=("conversation",), turns=3)
RAW = json.dumps({"items": TURNS})


def test_a_conversation_is_one_row() -> None:
    (passage,) = passages(TEXT)
    run = generate(OPTIONS, [passage], in_turn(RAW))
    (answer,) = run.answers()
    assert run.tally.requested["conversation"] == 1
    assert [(m.role, m.content) for m in answer.before] == [
        (role, turn[name]) for turn in TURNS[:2] for role, name in (("user", "question"), ("assistant", "answer"))
    ]
    assert answer.topic.ask[0].question == "Who keeps it?"
    assert answer.text == "Its keeper is called Tom."
    assert passage.text[slice(*answer.evidence)] == TURNS[2]["evidence"]
    assert [passage.text[slice(*q.span)] for q in answer.more_evidence] == [t["evidence"] for t in TURNS[:2]]


def test_one_bad_turn_is_a_bad_conversation() -> None:
    bad = json.dumps({"items": [TURNS[0], {**TURNS[1], "answer": "It is painted blue and white, 3 times."}, TURNS[2]]})
    run = generate(OPTIONS, passages(TEXT), in_turn(bad))
    assert run.reasons() == {"ungrounded_number": 1}
    assert run.rejections()[0].detail.startswith("turn 2: ")


def test_the_whole_turns_of_one_that_breaks_off_are_a_shorter_conversation() -> None:
    cut = RAW[: RAW.index("Who keeps") + 3]
    (answer,) = generate(OPTIONS, passages(TEXT), in_turn(Says(cut, "length"))).answers()
    assert (len(answer.before), answer.text) == (2, "It is painted red.")
    assert answer.prompted is not None
    assert answer.prompted.rung == "partial"
    cut = RAW[: RAW.index("And what") + 3]
    assert generate(OPTIONS, passages(TEXT), in_turn(Says(cut, "length"))).reasons() == {"missing": 1}


def test_nothing_like_a_conversation() -> None:
    assert generate(OPTIONS, passages(TEXT), in_turn("Hello!")).reasons() == {"format": 1}


def test_turns_nobody_asked_for_are_left() -> None:
    run = generate(OPTIONS.model_copy(update={"turns": 2}), passages(TEXT), in_turn(RAW))
    assert [(len(a.before), a.text) for a in run.answers()] == [(2, "It is painted red.")]
    assert run.rungs.surplus["conversation"] == 1
