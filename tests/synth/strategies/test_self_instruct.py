"""Tasks in the manner of the owner's examples."""

import json

from scripted import Says, generate, in_turn, passages

from textmill.contracts.synthesis import SeedTask, SynthOptions

TEXT = "The lighthouse on Fern Island was built in 1821. It is painted red."
SEEDS = tuple(
    SeedTask(language="en", instruction=f"Name fact {n} about the harbour.", answer=f"Fact {n} is its depth.")
    for n in range(5)
)
OPTIONS = SynthOptions(strategies=("self_instruct",), seed_tasks=SEEDS, pairs_per_passage=2)
GOOD = {
    "question": "State when the lighthouse on Fern Island was built.",
    "answer": "The lighthouse on Fern Island was built in 1821.",
    "evidence": "was built in 1821",
}
SECOND = {
    "question": "State how the lighthouse is painted.",
    "answer": "The lighthouse is painted red.",
    "evidence": "It is painted red.",
}


def test_tasks_need_not_be_questions() -> None:
    run = generate(OPTIONS, passages(TEXT), in_turn(json.dumps({"items": [GOOD, SECOND]})))
    assert [a.topic.ask[0].question for a in run.answers()] == [GOOD["question"], SECOND["question"]]
    assert [a.topic.question_id for a in run.answers()] == ["task-1", "task-2"]


def test_other_passages_are_shown_other_examples() -> None:
    run = generate(OPTIONS, passages(TEXT, TEXT), in_turn("no"))
    shown = [r.messages[-1].content for r in run.requests if len(r.messages) == 2 and r.sample == 0]
    seen = [{n for n in range(5) if f"Name fact {n} " in prompt} for prompt in shown]
    assert {0, 1, 2} in seen
    assert {3, 4, 0} in seen


def test_an_example_given_back_is_a_leak() -> None:
    copied = {**GOOD, "answer": "Fact 1 is its depth."}
    run = generate(OPTIONS, passages(TEXT), in_turn(json.dumps({"items": [copied, SECOND]})))
    assert len(run.answers()) == 1
    assert len(run.rejections()) == 1


def test_no_example_in_the_language_is_no_task() -> None:
    assert generate(OPTIONS, passages("灯塔建于1821年。", language="zh"), in_turn("no")).settled == []


def test_a_list_that_breaks_off() -> None:
    raw = json.dumps({"items": [GOOD, SECOND]})
    run = generate(OPTIONS, passages(TEXT), in_turn(Says(raw[:-20], "length")))
    assert len(run.answers()) == 1
    assert run.reasons() == {"missing": 1}
