"""Planted defects, each with the reason it must be rejected for, and good answers that must pass. Both languages."""

from typing import Any

import pytest
from corpora import put_corpus, zhouyi_questions, zhouyi_texts

from textmill.contracts.documents import Language
from textmill.store import MemoryStore
from textmill_synth.checks import Candidate, first_finding
from textmill_synth.corpus import Corpus
from textmill_synth.grounding import ALL_CHECKS, contains
from textmill_synth.prompts import load_prompt
from textmill_synth.sentences import sentence_around
from textmill_synth.topics import owner_topics

EN = zhouyi_texts("en", 7)["07-shi.md"].strip()
ZH = zhouyi_texts("zh", 7)["07-shi.md"].strip()
EN_QUESTION = "What does hexagram 7, Shi, stand for?"
ZH_QUESTION = "第七卦师卦象征什么？"
EN_KEY = "discipline under a trusted leader"
ZH_KEY = "纪律与众望所归的统帅"


def reason(answer: str, language: Language, **changes: Any) -> str | None:
    english = language == "en"
    values: dict[str, Any] = {
        "question": EN_QUESTION if english else ZH_QUESTION,
        "passage": EN if english else ZH,
        "instructions": load_prompt(f"qa.{language}").instructions + load_prompt(f"qa-key.{language}").instructions,
        **changes,
    }
    finding = first_finding(Candidate(answer=answer, language=language, **values), ALL_CHECKS)
    return finding.reason if finding else None


@pytest.mark.parametrize(
    "answer",
    [
        "Hexagram 7, Shi, stands for discipline under a trusted leader.",
        "It stands for discipline under a trusted leader.",
        "Shi, the Army, is about discipline under a leader who is trusted.",
        "The seventh hexagram is Shi, the Army.",
        "Only the second line is solid, counted from the bottom.",
        "It has Water below and Earth above.",
        "A campaign needs a just cause and a seasoned commander.",
        "When it is won, small-minded men should be given no land to rule.",
        "Soldiers live unseen among the farmers until they are called.",
        'Shi is "the Army".',
    ],
)
def test_good_english_answers_pass(answer: str) -> None:
    assert reason(answer, "en") is None


@pytest.mark.parametrize(
    "answer",
    [
        "师卦象征纪律与众望所归的统帅。",
        "第七卦是师卦，它象征纪律与众望所归的统帅。",
        "师卦的下卦是坎，上卦是坤。",
        "自下而上，只有第二爻是阳爻。",
        "第7卦名为地水师。",
        "出兵要名正言顺，由老成的人带领。",
        "师卦说的是兵藏在民间，平时看不见。",
        "得胜论功之时，不可把封地交给小人。",
    ],
)
def test_good_chinese_answers_pass(answer: str) -> None:
    assert reason(answer, "zh") is None


ENGLISH_DEFECTS = [
    ("", "empty"),
    (" \n ", "empty"),
    ("...", "empty"),
    ("content: Shi stands for discipline.", "format"),
    ('"Shi" summary: It stands for discipline under a trusted leader.', "format"),
    ("Shi stands for discipline. interpretation: the army is led well.", "format"),
    ("image: water under the earth.", "format"),
    ('{"answer": "discipline"}', "format"),
    ("```It stands for discipline.```", "format"),
    ("Shi stands for discipline.</s>", "format"),
    ('Shi stands for "discipline under a trusted leader.', "format"),
    ("Shi stands for discipline (under a trusted leader.", "format"),
    ("Shi stands for discipline under a", "truncated"),
    ("Shi 代表纪律 under a trusted leader.", "language"),
    ("Shi означает discipline under a trusted leader.", "language"),
    ("Le chef commande l'armée avec courage, honneur, fidélité.", "language"),
    ("I'm sorry, but I cannot answer that.", "refusal"),
    ("As an AI language model, I have no opinion.", "refusal"),
    ("The text does not mention what Shi stands for.", "refusal"),
    ("According to the passage, Shi stands for discipline.", "prompt_leak"),
    ("The answer is: discipline under a trusted leader.", "prompt_leak"),
    ("The answer to this question is discipline under a trusted leader.", "prompt_leak"),
    ("You use only facts of the text and repeat the subject's name.", "prompt_leak"),
    ("On cart 7, Shi, discipline stands under a trusted leader.", "prompt_leak"),
    ("What does hexagram 7, Shi, stand for? It stands for discipline.", "echo"),
    ("Who is the trusted leader?", "echo"),
    ("Shi Shi Shi Shi Shi Shi is the Army.", "repetition"),
    ("It has Water below, Water below, Water below, Water below, Water below.", "repetition"),
    ("It stands for          discipline.", "repetition"),
    ("It is 1111111111111 in all.", "repetition"),
    ("Hexagram 8 is Shi, the Army.", "ungrounded_number"),
    ("The third line is solid.", "ungrounded_number"),
    ("Hexagram 7 has eight lines.", "ungrounded_number"),
    ("It was written in 1821.", "ungrounded_number"),
    ("It has Fire below and Earth above.", "ungrounded_name"),
    ("Shi was explained by Confucius.", "ungrounded_name"),
    ("It stands for wealth, fame, beauty and a long happy marriage.", "ungrounded_words"),
    ("Shi does not stand for discipline under a trusted leader.", "negation"),
    ("It has no Water below and Earth above.", "negation"),
    ("Shi never stands for discipline.", "negation"),
]


@pytest.mark.parametrize(("answer", "expected"), ENGLISH_DEFECTS)
def test_english_defects_are_rejected_for_the_right_reason(answer: str, expected: str) -> None:
    assert reason(answer, "en") == expected


CHINESE_DEFECTS = [
    ("", "empty"),
    ("。。。", "empty"),
    ("内容：师卦象征纪律。", "format"),
    ("师卦象征纪律。 summary: 统帅。", "format"),
    ("师卦象征纪律。 解读：统帅众望所归。", "format"),
    ("“师卦象征纪律。", "format"),
    ("师卦象征纪律与众望所归的", "truncated"),
    ("师卦象征 discipline 与统帅。", "language"),
    ("It stands for the army.", "language"),
    ("師卦は纪律を象征する。", "language"),
    ("抱歉，我无法回答这个问题。", "refusal"),
    ("作为一个人工智能，我没有看法。", "refusal"),
    ("文字没有提到师卦象征什么。", "refusal"),
    ("这段文字说师卦象征纪律。", "prompt_leak"),
    ("答案是纪律与统帅。", "prompt_leak"),
    ("用一句完整的中文回答问题。", "prompt_leak"),
    ("师卦以清澈的泉水出名。", "prompt_leak"),
    ("第七卦师卦象征什么？象征纪律。", "echo"),
    ("统帅是谁？", "echo"),
    ("纪律纪律纪律纪律纪律纪律。", "repetition"),
    ("师卦象征          纪律。", "repetition"),
    ("第八卦是师卦。", "ungrounded_number"),
    ("只有第三爻是阳爻。", "ungrounded_number"),
    ("师卦共有八条爻。", "ungrounded_number"),
    ("师卦见于《论语》。", "ungrounded_name"),
    ("师卦象征财富、名望、美貌与婚姻幸福。", "ungrounded_words"),
    ("师卦不象征纪律与众望所归的统帅。", "negation"),
    ("第二爻并非阳爻。", "negation"),
]


@pytest.mark.parametrize(("answer", "expected"), CHINESE_DEFECTS)
def test_chinese_defects_are_rejected_for_the_right_reason(answer: str, expected: str) -> None:
    assert reason(answer, "zh") == expected


def test_the_key_fact_must_be_in_the_answer() -> None:
    assert reason("Shi stands for a trusted leader.", "en", key=EN_KEY) == "key_missing"
    assert reason("It stands for Discipline under  a trusted leader.", "en", key=EN_KEY) is None
    assert reason("师卦象征纪律。", "zh", key=ZH_KEY) == "key_missing"
    assert reason("师卦象征纪律与众望所归的统帅。", "zh", key=ZH_KEY) is None


@pytest.mark.parametrize(
    ("text", "key", "found"),
    [
        ("line 12", "2", False),
        ("line 2.", "2", True),
        ("ARMY!", "army", True),
        ("armies", "army", False),
        ("阳爻", "阳", True),
    ],
)
def test_a_key_stands_as_a_whole(text: str, key: str, found: bool) -> None:
    assert contains(text, key) is found


def test_too_long() -> None:
    assert reason("It stands for discipline under a trusted leader.", "en", max_characters=20) == "too_long"


def test_truncation_is_named_when_the_token_limit_was_hit() -> None:
    finding = first_finding(Candidate("It has Water", "?", EN, "en", finish_reason="length"), ALL_CHECKS)
    assert finding is not None
    assert finding.reason == "truncated"
    assert "token limit" in finding.detail


def test_words_of_the_passage_itself_are_no_defect() -> None:
    passage = "The summary: all is well. I'm sorry, he said. The passage of time is slow."
    for answer in ("I'm sorry, he said.", "The passage of time is slow.", "The summary: all is well."):
        assert first_finding(Candidate(answer, "What?", passage, "en"), ALL_CHECKS) is None


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_fact_sentence_of_the_example_passes(language: Language) -> None:
    """The extractive answer to each question of each hexagram is good by definition: no check may reject it."""
    store, questions = MemoryStore(), zhouyi_questions(language)
    corpus = Corpus(store, put_corpus(store, zhouyi_texts(language, 64), language))
    judged = 0
    for passage in corpus.passages():
        for topic in owner_topics(passage, [questions]):
            assert topic.key is not None
            sentence = passage.text[slice(*sentence_around(passage.text, *topic.key))]
            key = passage.text[slice(*topic.key)]
            candidate = Candidate(sentence, topic.ask[0].question, passage.text, language, key=key)
            assert first_finding(candidate, ALL_CHECKS) is None, sentence
            judged += 1
    assert judged == 64 * 3


def test_a_name_that_repeats_itself_is_no_loop_where_the_passage_has_it() -> None:
    passage = "Bababababa stands for the ridge behind the bell."
    assert first_finding(Candidate(passage, "What does it stand for?", passage, "en"), ALL_CHECKS) is None
    finding = first_finding(Candidate(passage, "What does it stand for?", "It stands for the ridge.", "en"), ALL_CHECKS)
    assert finding is not None
    assert finding.reason == "repetition"
