"""Topics and phrasings, from the owner's question set and from the built-in ways."""

import pytest
from corpora import put_corpus, zhouyi_questions, zhouyi_texts

from textmill.contracts.documents import Language, Passage
from textmill.contracts.synthesis import Question, QuestionSet
from textmill.errors import BadRequest
from textmill.store import MemoryStore
from textmill_synth.corpus import Corpus
from textmill_synth.topics import normal_form, owner_topics, subject_topic, titled_topic, validate_question_sets


def passage(language: Language = "en", index: int = 6) -> Passage:
    store = MemoryStore()
    texts = zhouyi_texts(language, index + 1)
    return list(Corpus(store, put_corpus(store, texts, language)).passages())[index]


def question_set(**changes: object) -> QuestionSet:
    question = {
        "id": "meaning",
        "key": "stands for (?P<key>[^.]+)",
        "ask": ("What is {name}?",),
        "held_out": (),
    } | changes
    return QuestionSet(
        language="en",
        subject=r"Hexagram (?P<number>\d+) is (?P<name>[^,]+)",
        questions=(Question.model_validate(question),),
    )


def test_an_owners_topic_has_filled_questions_and_the_place_of_its_key() -> None:
    shi = passage()
    topics = {topic.question_id: topic for topic in owner_topics(shi, [zhouyi_questions("en")])}
    assert topics["meaning"].ask[0].question == "What does hexagram 7, Shi, stand for?"
    assert topics["meaning"].key is not None
    assert shi.text[slice(*topics["meaning"].key)] == "discipline under a trusted leader"
    assert {p.way for p in topics["meaning"].held_out} == {"held-out-1", "held-out-2"}


def test_chinese_topics() -> None:
    topics = {t.question_id: t for t in owner_topics(passage("zh"), [zhouyi_questions("en"), zhouyi_questions("zh")])}
    assert topics["meaning"].ask[0].question == "第七卦师卦象征什么？"
    assert len(topics) == 3


def test_a_passage_of_another_kind_is_not_asked() -> None:
    assert owner_topics(passage("zh"), [zhouyi_questions("en")]) == []
    other = passage().model_copy(update={"text": "A preface."})
    assert owner_topics(other, [zhouyi_questions("en")]) == []


def test_a_key_that_does_not_match_is_a_flaw() -> None:
    [topic] = owner_topics(passage(), [question_set(key="costs (?P<key>[0-9]+)")])
    assert topic.flaw is not None
    assert topic.flaw.reason == "key_not_in_passage"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"key": "stands for (.+)"}, "no group"),
        ({"key": "stands for (?P<key>"}, "no regular expression"),
        ({"ask": ("What is {title}?",)}, "title"),
        ({"ask": ("What is {name?",)}, "stray brace"),
        ({"ask": ("What is {name.upper}?",)}, "stray brace"),
        ({"held_out": ("what is {name} ?!",)}, "held_out and ask"),
    ],
)
def test_a_question_set_that_cannot_work_is_refused(changes: dict[str, object], named: str) -> None:
    with pytest.raises(BadRequest, match=named):
        validate_question_sets([question_set(**changes)])


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_example_sets_and_built_in_ways_are_sound(language: Language) -> None:
    validate_question_sets([zhouyi_questions(language)])
    topic = titled_topic("subject", "## Shi.", language)
    questions = [p.question for p in (*topic.ask, *topic.held_out)]
    assert (len(topic.ask), len(topic.held_out)) == (18, 2)
    assert len({normal_form(q) for q in questions}) == 20
    assert all("Shi" in q and "#" not in q and "{" not in q for q in questions)


def test_a_passage_without_a_heading_has_no_subject() -> None:
    assert subject_topic(passage()).flaw is not None
    named = passage().model_copy(update={"heading": "Shi"})
    assert subject_topic(named).ask[0].question == "What does Shi stand for?"
