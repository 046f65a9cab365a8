"""Each rung of the repair ladder: what it makes usable, what it leaves alone, how it is counted."""

import json

import pytest
from scripted import Fails, Reply, Run, Says, generate, in_turn, passages

from textmill.contracts.datasets import Rung
from textmill.contracts.synthesis import SynthOptions
from textmill_synth.ladder import split_in_two

TEXT = "The lighthouse on Fern Island was built in 1821. It is painted red. Its keeper is called Tom."
PAIRS = [
    ("When was the lighthouse on Fern Island built?", "The lighthouse on Fern Island was built in 1821."),
    ("What colour is the lighthouse painted?", "The lighthouse is painted red."),
    ("Who is the keeper of the lighthouse?", "The keeper of the lighthouse is called Tom."),
]
EVIDENCE = ["The lighthouse on Fern Island was built in 1821.", "It is painted red.", "Its keeper is called Tom."]
ITEMS = [
    {"question": question, "answer": answer, "evidence": evidence}
    for (question, answer), evidence in zip(PAIRS, EVIDENCE, strict=True)
]
LISTED = json.dumps({"items": ITEMS})


def pairs(*replies: Reply, count: int = 3) -> Run:
    options = SynthOptions(strategies=("pairs",), pairs_per_passage=count)
    return generate(options, passages(TEXT), in_turn(*replies))


def climbed(run: Run) -> dict[Rung, tuple[int, int]]:
    return {rung: (tried, run.rungs.gained["pairs", rung]) for (_, rung), tried in run.rungs.tried.items()}


def test_what_is_in_the_form_takes_one_call() -> None:
    run = pairs(LISTED)
    assert [a.text for a in run.answers()] == [answer for _, answer in PAIRS]
    assert {a.prompted.rung for a in run.answers() if a.prompted} == {"as_asked"}
    assert climbed(run) == {"as_asked": (1, 1)}
    assert len(run.requests) == 1


@pytest.mark.parametrize(
    "slip",
    [
        f"```json\n{LISTED}\n```",
        f"Sure! {LISTED}",
        LISTED.replace("}]}", "},]}"),
        LISTED.removesuffix("}"),
        json.dumps(ITEMS),
        LISTED.replace('"question"', "'question'"),
    ],
)
def test_slips_of_syntax_are_mended_and_no_word_changes(slip: str) -> None:
    run = pairs(slip)
    assert [(a.topic.ask[0].question, a.text) for a in run.answers()] == PAIRS
    assert climbed(run) == {"as_asked": (1, 0), "json_repair": (1, 1)}
    assert {a.prompted.rung for a in run.answers() if a.prompted} == {"json_repair"}
    assert len(run.requests) == 1


@pytest.mark.parametrize("at", range(len('{"items": [') + 1, len(LISTED) - 2, 7))
def test_the_whole_items_of_a_cut_off_list_are_kept_and_never_a_half(at: int) -> None:
    run = pairs(Says(LISTED[:at], "length"), Fails())
    whole = sum(LISTED[:at].count(json.dumps(item)) for item in ITEMS)
    assert [(a.topic.ask[0].question, a.text) for a in run.answers()] == PAIRS[:whole]
    if whole:
        assert run.reasons() == ({"missing": 3 - whole} if whole < 3 else {})
        assert climbed(run)["partial"] == (1, 1)
    else:
        assert run.reasons() == {"truncated": 3}
    assert run.tally.requested["pairs"] == 3


def test_a_list_that_breaks_off_without_a_sign_of_it_is_cut_all_the_same() -> None:
    run = pairs(LISTED[: LISTED.index(EVIDENCE[1]) + 5])
    assert [a.text for a in run.answers()] == [PAIRS[0][1]]
    assert run.reasons() == {"missing": 2}


def test_the_question_is_put_again_with_what_was_wrong() -> None:
    run = pairs("I would say: red.", LISTED)
    assert len(run.answers()) == 3
    assert climbed(run) == {"as_asked": (1, 0), "json_repair": (1, 0), "partial": (1, 0), "asked_again": (1, 1)}
    first, second = run.requests
    assert second.messages[: len(first.messages)] == first.messages
    assert [m.role for m in second.messages[len(first.messages) :]] == ["assistant", "user"]
    assert second.messages[-2].content == "I would say: red."
    assert "not the JSON that was asked for" in second.messages[-1].content
    assert first.key != second.key
    assert {a.prompted.prompt_version.split("@")[0] for a in run.answers() if a.prompted} == {"pairs-again.en"}
    assert {a.prompted.call.call_id for a in run.answers() if a.prompted} == {second.key}


def test_both_halves_of_the_passage_are_asked_and_share_the_rows() -> None:
    first, second = (json.dumps({"items": items}) for items in (ITEMS[:2], ITEMS[2:]))
    run = pairs("no", "no", first, second)
    assert [a.text for a in run.answers()] == [answer for _, answer in PAIRS]
    assert climbed(run)["split"] == (1, 1)
    shown = [request.messages[-1].content for request in run.requests[2:]]
    assert EVIDENCE[0] in shown[0]
    assert EVIDENCE[2] not in shown[0]
    assert EVIDENCE[2] in shown[1]
    assert "Write 2 " in shown[0]
    assert "Write 1 " in shown[1]


def test_one_good_half_is_better_than_none() -> None:
    run = pairs("no", "no", Fails(), json.dumps({"items": ITEMS[2:]}))
    assert [a.text for a in run.answers()] == [PAIRS[2][1]]
    assert run.reasons() == {"missing": 2}


def test_what_no_rung_helps_is_rejected_with_the_first_response() -> None:
    run = pairs("first", "second", "third")
    assert run.reasons() == {"format": 3}
    assert {r.raw for r in run.rejections()} == {"first"}
    assert {r.prompted.call.call_id for r in run.rejections() if r.prompted} == {run.requests[0].key}
    assert all(gained == 0 for _, gained in climbed(run).values())
    assert len(run.requests) == 4


def test_a_first_call_without_an_answer_is_a_dead_letter_for_each_row() -> None:
    run = pairs(Fails("llm_server_error"))
    assert [d.reason for d in run.dead()] == ["llm_server_error"] * 3
    assert len(run.requests) == 1


def test_a_later_call_without_an_answer_does_not_hide_what_was_said() -> None:
    run = pairs("no", Fails())
    assert run.reasons() == {"format": 3}
    assert {r.raw for r in run.rejections()} == {"no"}


def test_an_item_out_of_form_costs_its_own_row_alone() -> None:
    run = pairs(json.dumps({"items": [ITEMS[0], {"question": "Half?"}, ITEMS[2]]}))
    assert [a.text for a in run.answers()] == [PAIRS[0][1], PAIRS[2][1]]
    assert run.reasons() == {"format": 1}


def test_items_nobody_asked_for_are_counted_and_left() -> None:
    run = pairs(LISTED, count=2)
    assert len(run.answers()) == 2
    assert run.rungs.surplus["pairs"] == 1


def test_a_field_that_stands_there_twice_is_no_answer() -> None:
    twice = LISTED.replace('"answer": ', '"answer": "The lighthouse is blue.", "answer": ', 1)
    run = pairs(twice, Fails())
    assert run.answers() == []


def test_plain_lines() -> None:
    lines = "\n\n".join("\n".join(f"{name}: {text}" for name, text in item.items()) for item in ITEMS)
    options = SynthOptions(strategies=("pairs",), pairs_per_passage=3)
    run = generate(options, passages(TEXT), in_turn(lines), form="text")
    assert [(a.topic.ask[0].question, a.text) for a in run.answers()] == PAIRS
    assert run.requests[0].schema is None
    cut = generate(options, passages(TEXT), in_turn(Says(lines[:-3], "length")), form="text")
    assert len(cut.answers()) == 2
    assert cut.reasons() == {"truncated": 1}


@pytest.mark.parametrize(
    ("text", "halves"),
    [
        ("One. Two is long. Three.", ("One. Two is long.", "Three.")),
        ("Only one sentence.", None),
        ("一句话。第二句话。", ("一句话。", "第二句话。")),
    ],
)
def test_a_passage_is_split_at_the_sentence_end_nearest_its_middle(text: str, halves: tuple[str, str] | None) -> None:
    assert split_in_two(text) == halves
