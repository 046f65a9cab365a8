"""requested = accepted + rejected + dead-lettered, whatever the LLM says or doesn't, for all strategies at once."""

import json
from collections import Counter
from typing import get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripted import Fails, Reply, Run, Says, generate, passages

from textmill.contracts.datasets import Strategy, Tool
from textmill.contracts.synthesis import OwnerPrompt, SeedTask, SynthOptions
from textmill_synth.finishing import Finishing, Variants
from textmill_synth.judge import open_judge
from textmill_synth.ladder import Ladder
from textmill_synth.prompts import load_prompts
from textmill_synth.strategies.base import Answer, DeadLetter, ResponseForm

TEXTS = (
    "The lighthouse on Fern Island was built in 1821. It is painted red.",
    "Its keeper is called Tom. He has two dogs.",
    "The island has no harbour.",
)
OPTIONS = SynthOptions(
    strategies=get_args(Strategy),
    pairs_per_passage=2,
    styles=("short", "long"),
    turns=2,
    tools=(Tool(name="find", description="Finds.", parameters='{"type": "object"}'),),
    seed_tasks=(SeedTask(language="en", instruction="Name a place.", answer="The quay."),),
    prompts=(OwnerPrompt(id="own", language="en", prompt="About {passage}"),),
    answer_variants=2,
)
QUOTES = ["was built in 1821", "It is painted red.", "Its keeper is called Tom.", "The island has no harbour.", "none"]
ANSWERS = [
    "The lighthouse on Fern Island was built in 1821.",
    "It is painted red.",
    "Its keeper is called Tom.",
    "A dragon lives there since 1999.",
    "",
    "It is",
]
QUESTIONS = ["When was the lighthouse built?", "Who is the keeper?", "What colour is it?", "Tell me."]
FIELDS = st.fixed_dictionaries(
    {"question": st.sampled_from(QUESTIONS), "answer": st.sampled_from(ANSWERS), "evidence": st.sampled_from(QUOTES)}
)
EXCHANGES = st.builds(
    lambda fields: {**fields, "tool": "find", "arguments": {}, "result": fields["evidence"]}, FIELDS
).map(lambda fields: {name: value for name, value in fields.items() if name != "evidence"})
BRIDGES = st.builds(
    lambda fields: {
        "question": fields["question"],
        "answer": fields["answer"],
        "first_evidence": fields["evidence"],
        "second_evidence": "Its keeper is called Tom.",
    },
    FIELDS,
)
OBJECTS = st.one_of(
    FIELDS,
    EXCHANGES,
    BRIDGES,
    FIELDS.map(lambda f: {"answer": f["answer"], "evidence": f["evidence"]}),
    FIELDS.map(lambda f: {"content": "Fern Island", "summary": f["answer"]}),
    st.lists(FIELDS, max_size=4).map(lambda items: {"items": items}),
    st.lists(FIELDS.map(lambda f: {"answer": f["answer"]}), max_size=3).map(lambda items: {"items": items}),
    st.sampled_from(["supported", "not_supported"]).map(lambda v: {"verdict": v, "quote": "It is painted red."}),
)
RAW = OBJECTS.map(json.dumps)
REPLIES: st.SearchStrategy[Reply] = st.one_of(
    RAW,
    RAW,
    RAW.flatmap(lambda raw: st.integers(0, len(raw)).map(lambda at: Says(raw[:at], "length"))),
    RAW.map(lambda raw: f"```json\n{raw},\n```"),
    st.text(max_size=20),
    st.sampled_from(ANSWERS),
    st.sampled_from([Fails("llm_timeout"), Fails("budget_spent"), Fails("llm_bad_request")]),
)


def assert_conserved(run: Run) -> None:
    settled = Counter(s.strategy for s in run.settled)
    assert settled == +run.tally.requested
    for outcome in run.settled:
        if isinstance(outcome.outcome, Answer):
            run.tally.accepted[outcome.strategy] += 1
        elif isinstance(outcome.outcome, DeadLetter):
            run.tally.dead_lettered[outcome.strategy] += 1
        else:
            run.tally.rejected[outcome.strategy, outcome.outcome.reason] += 1
    assert run.tally.total().requested == len(run.settled)


def judged(ladder: Ladder) -> Finishing:
    judge = open_judge(ladder.generator.ledger, "a-judge", structured=True)
    return Finishing(judge, None, Variants(ladder, load_prompts("variants"), 2))


@pytest.mark.parametrize("form", ["json", "text"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(replies=st.lists(REPLIES, min_size=1, max_size=8))
def test_every_row_asked_for_is_settled_once(form: ResponseForm, replies: list[Reply]) -> None:
    said = 0

    def reply(prompt: str) -> Reply:
        nonlocal said
        said += 1
        return replies[said % len(replies)]

    run = generate(OPTIONS, passages(*TEXTS, heading="Fern Island"), reply, form=form, finishing=judged)
    assert_conserved(run)
    assert run.tally.requested["pairs"] == 6
    for settled in run.settled:
        if isinstance(settled.outcome, Answer):
            start, end = settled.outcome.evidence
            assert 0 <= start < end <= len(settled.passage.text)
            assert settled.outcome.topic.ask


def test_the_fitting_reply_is_accepted_by_each_strategy() -> None:
    """So that the property above isn't one of rejections alone."""
    pair = {"question": "When was the lighthouse on Fern Island built?", "answer": ANSWERS[0], "evidence": QUOTES[0]}
    second = {
        "question": "What colour is the lighthouse?",
        "answer": "The lighthouse is painted red.",
        "evidence": QUOTES[1],
    }
    third = {"question": "Which colour does Fern Island paint it?", "answer": ANSWERS[1], "evidence": QUOTES[1]}

    def reply(prompt: str) -> Reply:
        if '"items"' in prompt:
            return json.dumps({"items": [pair, second]})
        if "first_evidence" in prompt:
            both = {"first_evidence": QUOTES[0], "second_evidence": "Tom"}
            answer = "The lighthouse on Fern Island, whose keeper is called Tom, was built in 1821."
            return json.dumps({"question": "When was the lighthouse of Tom built?", "answer": answer, **both})
        if '"tool"' in prompt:
            called = {"tool": "find", "arguments": {}, "result": QUOTES[0]}
            return json.dumps({"question": pair["question"], "answer": pair["answer"], **called})
        if '"content"' in prompt:
            return json.dumps({"content": "Fern Island", "summary": ANSWERS[0]})
        if '"question"' in prompt:
            return json.dumps(third)
        return json.dumps({"answer": ANSWERS[0], "evidence": QUOTES[0]})

    run = generate(OPTIONS, passages(*TEXTS[:2], heading="Fern Island"), reply)
    # "logged" asks no LLM, and these passages are no logged conversations.
    assert {s.strategy for s in run.settled if isinstance(s.outcome, Answer)} == {*OPTIONS.strategies} - {"logged"}
    assert_conserved(run)
