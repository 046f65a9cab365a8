"""What happens to accepted answers: the judge, further wordings, answers in other words."""

import json
from collections.abc import Callable

from scripted import Fails, Reply, Says, generate, in_turn, passages

from textmill.contracts.synthesis import AskingOptions, Question, QuestionSet, SynthOptions
from textmill_synth.asking.asker import Asker
from textmill_synth.finishing import Finishing, Variants
from textmill_synth.judge import open_judge
from textmill_synth.ladder import Ladder
from textmill_synth.prompts import load_prompts

TEXT = "The lighthouse on Fern Island was built in 1821. It is painted red."
ANSWER = "The lighthouse on Fern Island was built in 1821."
QUESTIONS = QuestionSet(
    language="en",
    subject=r"lighthouse on (?P<name>[A-Z]\w+ Island)",
    questions=(
        Question(
            id="built",
            key=r"built in (?P<key>\d+)",
            ask=("When was the lighthouse on {name} built?", "In which year was the lighthouse on {name} built?"),
            held_out=("How old is the lighthouse on {name}?",),
        ),
    ),
)
OPTIONS = SynthOptions(question_sets=(QUESTIONS,), extractive_fallback=False)
GOOD = json.dumps({"answer": ANSWER, "evidence": "was built in 1821"})


def judged(ladder: Ladder) -> Finishing:
    return Finishing(judge=open_judge(ladder.generator.ledger, "a-judge", structured=True))


def varied(count: int) -> Callable[[Ladder], Finishing]:
    return lambda ladder: Finishing(variants=Variants(ladder, load_prompts("variants"), count))


def verdict(verdict: str, quote: str = "was built in 1821") -> str:
    return json.dumps({"verdict": verdict, "quote": quote})


def test_what_the_judge_bears_out_is_accepted() -> None:
    run = generate(OPTIONS, passages(TEXT), in_turn(GOOD, verdict("supported")), finishing=judged)
    assert [a.text for a in run.answers()] == [ANSWER]
    assert run.requests[1].model == "a-judge"
    assert TEXT in run.requests[1].messages[-1].content


def test_what_the_judge_does_not_bear_out_is_rejected_with_the_writers_call() -> None:
    run = generate(OPTIONS, passages(TEXT), in_turn(GOOD, verdict("not_supported", "")), finishing=judged)
    assert run.reasons() == {"judge_unsupported": 1}
    assert run.rejections()[0].raw == GOOD


def test_a_judge_without_an_answer_makes_a_dead_letter() -> None:
    run = generate(OPTIONS, passages(TEXT), in_turn(GOOD, Fails()), finishing=judged)
    assert [d.reason for d in run.dead()] == ["llm_timeout"]
    assert run.answers() == []


def test_a_quotation_needs_no_judge() -> None:
    options = SynthOptions(strategies=("passage",))
    run = generate(options, passages(TEXT, heading="Fern Island"), in_turn("no"), finishing=judged)
    assert len(run.answers()) == 1
    assert list(run.requests) == []


def test_every_reply_of_a_conversation_is_judged_with_what_was_said_before() -> None:
    turns = [
        {"question": "When was the lighthouse built?", "answer": ANSWER, "evidence": "was built in 1821"},
        {"question": "What colour is it?", "answer": "It is painted red.", "evidence": "It is painted red."},
    ]
    raw = json.dumps({"items": turns})
    said = in_turn(raw, verdict("supported"), verdict("contradicted"))
    run = generate(SynthOptions(strategies=("conversation",), turns=2), passages(TEXT), said, finishing=judged)
    assert run.reasons() == {"judge_unsupported": 1}
    second = run.requests[2].messages[-1].content
    assert f"When was the lighthouse built?\n{ANSWER}\nWhat colour is it?" in second


def variants_of(*texts: str) -> Reply:
    return json.dumps({"items": [{"answer": text} for text in texts]})


def test_variants_share_out_the_wordings() -> None:
    other = "It was in 1821 that the lighthouse on Fern Island was built."
    run = generate(OPTIONS, passages(TEXT), in_turn(GOOD, variants_of(other)), finishing=varied(2))
    first, second = run.answers()
    assert (first.text, second.text) == (ANSWER, other)
    assert [p.way for p in first.topic.ask] == ["ask-1"]
    assert [p.way for p in second.topic.ask] == ["ask-2"]
    assert (len(first.topic.held_out), len(second.topic.held_out)) == (1, 0)
    assert run.tally.requested["qa"] == 2
    assert second.prompted is not None
    assert second.prompted.prompt_version.startswith("variants.en@")


def test_no_more_variants_than_wordings() -> None:
    run = generate(OPTIONS, passages(TEXT), in_turn(GOOD, "no"), finishing=varied(10))
    assert run.tally.requested["qa"] == 2


def test_a_variant_that_says_something_else_is_rejected_and_the_first_keeps_all_wordings() -> None:
    cases: list[tuple[Reply, str]] = [
        (variants_of("The lighthouse on Fern Island was built long ago."), "key_missing"),
        (variants_of("The lighthouse on Fern Island was built in 1821, 3 years late."), "key_missing"),
        (variants_of(ANSWER), "duplicate"),
        (Says('{"items": [', "length"), "truncated"),
        ("nothing", "format"),
    ]
    for said, reason in cases:
        run = generate(OPTIONS, passages(TEXT), in_turn(GOOD, said), finishing=varied(2))
        (answer,) = run.answers()
        assert len(answer.topic.ask) == 2
        assert run.reasons() == {reason: 1}
        assert run.tally.requested["qa"] == 2


def test_a_failed_call_for_variants_costs_the_variants_alone() -> None:
    run = generate(OPTIONS, passages(TEXT), in_turn(GOOD, Fails()), finishing=varied(2))
    assert (len(run.answers()), len(run.dead()), run.tally.requested["qa"]) == (1, 1, 2)


def test_further_wordings_are_asked_for_the_accepted_alone() -> None:
    asker = Asker(AskingOptions(quotas={"register": 2}), seed=0)
    run = generate(OPTIONS, passages(TEXT), in_turn(GOOD), finishing=lambda ladder: Finishing(asker=asker))
    (answer,) = run.answers()
    assert [p.axis for p in answer.topic.ask] == ["plain", "plain", "register", "register"]
    rejected = generate(OPTIONS, passages(TEXT), in_turn("no"), finishing=lambda ladder: Finishing(asker=asker))
    assert rejected.reasons() == {"format": 1}
