"""Whatever the options and the seed: quotas hold, facts stay, nothing is given away, and it is all accounted for."""

import asyncio
from dataclasses import replace

import pytest
from corpora import put_corpus, zhouyi_questions, zhouyi_texts
from scripted import passages

from textmill.contracts.datasets import Axis
from textmill.contracts.documents import Language, Passage
from textmill.contracts.synthesis import AskingOptions, AskingTemplate
from textmill.store import MemoryStore
from textmill_synth.asking.asker import Asker, wanted_wordings
from textmill_synth.asking.near import HELD_OUT_SIMILARITY, nearest
from textmill_synth.augment import QuestionIndex
from textmill_synth.corpus import Corpus
from textmill_synth.grounding import contains
from textmill_synth.numerals import numbers
from textmill_synth.strategies.base import Answer, Source
from textmill_synth.strategies.passage import Extractive
from textmill_synth.topics import Phrasing, Topic, normal_form

RULE_AXES: tuple[Axis, ...] = ("register", "persona", "indirect", "keyword", "typo", "follow_up")


def answers_on(language: Language, count: int) -> list[tuple[Passage, list[Answer]]]:
    store = MemoryStore()
    corpus = Corpus(store, put_corpus(store, zhouyi_texts(language, count), language))
    strategy, found = Extractive([zhouyi_questions(language)]), []
    for source in map(Source, corpus.passages()):
        settled = [s for r in strategy.plan(source) for s in asyncio.run(strategy.settle(source, r))]
        found.append((source.passage, [s for s in settled if isinstance(s, Answer)]))
    return found


def extended(asker: Asker, passage: Passage, answers: list[Answer]) -> list[Answer]:
    return asker.follow_up(passage, [asyncio.run(asker.extend(passage, answer)) for answer in answers])


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize(("seed", "quota"), [(0, 1), (1, 3), (2, 6)])
def test_what_must_hold_for_every_added_wording(language: Language, seed: int, quota: int) -> None:
    asker = Asker(AskingOptions(quotas=dict.fromkeys(RULE_AXES, quota)), seed)
    index = QuestionIndex()
    for passage, answers in answers_on(language, 12):
        made = extended(asker, passage, answers)
        assert made == extended(asker, passage, answers), "the same seed, the same wordings"
        for before, answer in zip(answers, made, strict=True):
            assert list(answer.topic.ask[: len(before.topic.ask)]) == list(before.topic.ask)
            check_wordings(passage, answer, quota)
            assert isinstance(index.admit(answer), Answer)
    coverage = index.coverage.report()
    assert {axis: c.wanted for axis, c in coverage.items()} == dict.fromkeys(RULE_AXES, 12 * 3 * quota)
    assert {axis for axis, c in coverage.items() if c.missing} <= ({"follow_up", "keyword"} if quota == 6 else set())


def check_wordings(passage: Passage, answer: Answer, quota: int) -> None:
    topic = answer.topic
    assert topic.key is not None
    key = passage.text[slice(*topic.key)]
    plain = {p.way: p.question for p in topic.ask if not p.added}
    held_out = [normal_form(p.question) for p in topic.held_out]
    added = [p for p in topic.ask if p.added]
    assert len({normal_form(p.said) for p in topic.ask}) == len(topic.ask)
    for axis in RULE_AXES:
        assert sum(p.axis == axis for p in added) <= quota
    for phrasing in added:
        base = plain[phrasing.way.split("/")[1]]
        assert not contains(phrasing.said, key) or any(contains(q, key) for q in plain.values())
        assert numbers(base) <= numbers(phrasing.said), (base, phrasing)
        assert "{" not in phrasing.question
        assert nearest(normal_form(phrasing.said), held_out) < HELD_OUT_SIMILARITY


def test_without_options_the_answer_is_left_as_it_is() -> None:
    [(passage, answers)] = answers_on("en", 1)
    made = extended(Asker(AskingOptions(), 0), passage, answers)
    assert all(a is b for a, b in zip(made, answers, strict=True))


def test_another_seed_makes_other_wordings() -> None:
    [(passage, answers)] = answers_on("en", 1)
    made = [
        extended(Asker(AskingOptions(quotas={"register": 2, "typo": 2}), seed), passage, answers) for seed in (0, 1)
    ]
    assert made[0] != made[1]


def test_an_owners_template_is_used_first() -> None:
    [(passage, answers)] = answers_on("en", 1)
    own = AskingTemplate(axis="persona", language="en", text="I run a workshop. {question}")
    made = extended(Asker(AskingOptions(quotas={"persona": 1}, templates=(own,)), 0), passage, answers)
    added = [p for a in made for p in a.topic.ask if p.added]
    assert len(added) == 3
    assert all(p.question.startswith("I run a workshop. ") and p.way.startswith("owner-1/") for p in added)


def test_what_cannot_be_made_is_missing_by_reason() -> None:
    topic = Topic("colour", (Phrasing("ask-1", "What colour is it?"),))
    [passage] = passages("Tower 9 is red.")
    options = AskingOptions(quotas={"plain": 2, "language": 1, "follow_up": 1, "keyword": 3, "typo": 9})
    [answer] = extended(Asker(options, 0), passage, [Answer(topic, "It is red.", (0, 15))])
    index = QuestionIndex()
    index.admit(answer)
    missing = {axis: c.missing for axis, c in index.coverage.report().items()}
    assert missing["plain"] == {"no_llm_phrasings": 2}
    assert missing["language"] == {"no_llm_phrasings": 1}
    assert missing["follow_up"] == {"no_other_question": 1}
    assert missing["keyword"] == {"no_more_keywords": 2}
    assert missing["typo"].get("no_place_for_a_slip", 0) > 0


def test_a_template_that_gives_the_answer_away_is_dropped_and_the_next_one_takes_its_place() -> None:
    topic = Topic("colour", (Phrasing("ask-1", "What colour has tower 9?"),), key=(11, 14), subject=("9",))
    [passage] = passages("Tower 9 is red.")
    own = AskingTemplate(axis="register", language="en", text="In the red book I saw it. {question}")
    asker = Asker(AskingOptions(quotas={"register": 1}, templates=(own,)), 0)
    [answer] = extended(asker, passage, [Answer(topic, "It is red.", (0, 15))])
    assert [d.reason for d in answer.topic.further.dropped] == ["leaks_answer"]
    assert [p.axis for p in answer.topic.ask if p.added] == ["register"]
    assert answer.topic.further.missing == {}


def test_a_held_out_wording_is_never_trained_on() -> None:
    held_out = (Phrasing("held-out-1", "I am new to all this. What colour has tower 9?"),)
    topic = Topic("colour", (Phrasing("ask-1", "What colour has tower 9?"),), held_out, subject=("9",))
    [passage] = passages("Tower 9 is red.")
    [answer] = extended(Asker(AskingOptions(quotas={"persona": 6}), 0), passage, [Answer(topic, "Red.", (0, 15))])
    reasons = {d.reason for d in answer.topic.further.dropped}
    assert reasons == {"held_out"}
    assert answer.topic.further.missing == {("persona", "held_out"): 1}
    assert sum(p.added for p in answer.topic.ask) == 5


def test_slips_and_polite_words_are_compared_with_their_own_kind() -> None:
    topic = Topic(
        "colour", (Phrasing("ask-1", "What colour has tower 9, the tall one by the harbour?"),), subject=("9",)
    )
    [passage] = passages("Tower 9 is red.")
    options = AskingOptions(quotas={"typo": 2}, near_duplicate=0.5)
    [answer] = extended(Asker(options, 0), passage, [Answer(topic, "Red.", (0, 15))])
    assert sum(p.axis == "typo" for p in answer.topic.ask) == 1
    assert {d.reason for d in answer.topic.further.dropped} == {"near_duplicate"}


def test_a_follow_up_has_the_answer_to_another_question_before_it() -> None:
    [*_, (passage, answers)] = answers_on("en", 7)
    made = extended(Asker(AskingOptions(quotas={"follow_up": 2}), 0), passage, answers)
    others = {a.topic.question_id: a for a in answers}
    for answer in made:
        follow_ups = [p for p in answer.topic.ask if p.added]
        assert len(follow_ups) == 2
        for phrasing in follow_ups:
            question, reply = phrasing.history
            assert "7" not in phrasing.question
            assert "Shi" not in phrasing.question
            assert "Shi" in question.content
            first = others.get(phrasing.way.removeprefix("follow-up-").split("/")[0])
            assert first is None or (first is not answer and reply.content == first.text)
            assert phrasing.evidence is not None
            assert passage.text[slice(*phrasing.evidence)] == reply.content


def test_of_answers_to_one_question_the_first_is_followed_up() -> None:
    [*_, (passage, [first, second, third])] = answers_on("en", 7)
    variant = replace(first, text="In other words.")
    made = Asker(AskingOptions(quotas={"follow_up": 1}), 0).follow_up(passage, [first, variant, second, third])
    assert [sum(p.added for p in a.topic.ask) for a in made] == [1, 0, 1, 1]


def test_the_heading_is_the_subject_where_the_strategy_knows_none() -> None:
    [passage] = passages("The tall tower is red. It has two gates.", heading="The tall tower")
    made = Answer(Topic("pair-1", (Phrasing("written", "How many gates does The tall tower have?"),)), "Two.", (23, 40))
    asker = Asker(AskingOptions(quotas={"follow_up": 1, "indirect": 1}), 0)
    [answer] = extended(asker, passage, [made])
    assert answer.topic.subject == ("The tall tower",)
    [follow_up] = [p for p in answer.topic.ask if p.axis == "follow_up"]
    assert follow_up.question == "And how many gates does it have?"
    assert follow_up.history[1].content == "The tall tower is red."


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (AskingOptions(), {}),
        (AskingOptions(llm_phrasings=4), {"plain": 4}),
        (AskingOptions(llm_phrasings=4, quotas={"plain": 2, "typo": 0}), {"plain": 2}),
        (AskingOptions(quotas={"typo": 1, "register": 2}), {"register": 2, "typo": 1}),
    ],
)
def test_what_is_wanted(options: AskingOptions, wanted: dict[Axis, int]) -> None:
    assert wanted_wordings(options) == wanted
