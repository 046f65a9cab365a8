"""Wordings of an LLM are kept when the answer to them is the accepted one, and dropped with the reason when not."""

import asyncio
import json
from collections.abc import Callable

import pytest
from scripted import Fails, Reply, Scripted, in_turn, passages

from textmill.contracts.datasets import Message
from textmill.contracts.documents import Language, Passage
from textmill.contracts.synthesis import AskingOptions
from textmill.errors import DependencyDown
from textmill.store import MemoryStore
from textmill_synth.asking.asker import Asker
from textmill_synth.asking.phrasings import PhrasingWriter, agreement
from textmill_synth.augment import QuestionIndex
from textmill_synth.ledger import Ledger
from textmill_synth.llm import ChatRequest, Completion
from textmill_synth.prompts import load_prompts
from textmill_synth.strategies.base import Answer, Generator, ResponseForm
from textmill_synth.topics import Phrasing, Topic

[TOWER] = passages("Tower 9 of Elm Hill was built in 1821. Its gates are two arches of granite.")
[CHINESE] = passages("第七卦是师卦。它象征纪律与众望所归的统帅。", language="zh")
PLAIN = "What are the gates of tower 9 of Elm Hill?"
KEYED = Answer(
    Topic("gates", (Phrasing("ask-1", PLAIN),), key=(53, 74), subject=("9", "Elm Hill")),
    "The gates of tower 9 of Elm Hill are two arches of granite.",
    (39, 75),
)
ZH_KEYED = Answer(
    Topic("meaning", (Phrasing("ask-1", "第七卦师卦象征什么？"),), key=(10, 20), subject=("七", "师")),
    "它象征纪律与众望所归的统帅。",
    (7, 21),
)


def written(*questions: str) -> str:
    return json.dumps({"items": [{"question": q} for q in questions]}, ensure_ascii=False)


def said(answer: str) -> str:
    return json.dumps({"answer": answer}, ensure_ascii=False)


def asker_on(ledger: Ledger, options: AskingOptions, form: ResponseForm) -> Asker:
    generator = Generator(ledger, "a-model", 0.0, 96, form)
    return Asker(options, 0, PhrasingWriter(generator, load_prompts("phrasing"), load_prompts("phrasing-check")))


def extend(
    reply: Callable[[str], Reply],
    options: AskingOptions,
    answer: Answer = KEYED,
    passage: Passage = TOWER,
    form: ResponseForm = "json",
) -> tuple[Answer, list[ChatRequest]]:
    llm = Scripted(reply)

    async def work() -> Answer:
        async with Ledger(MemoryStore(), llm) as ledger:
            return await asker_on(ledger, options, form).extend(passage, answer)

    return asyncio.run(work()), llm.requests


def test_key_is_where_the_tests_say() -> None:
    assert KEYED.topic.key is not None
    assert ZH_KEYED.topic.key is not None
    assert TOWER.text[slice(*KEYED.topic.key)] == "two arches of granite"
    assert CHINESE.text[slice(*ZH_KEYED.topic.key)] == "纪律与众望所归的统帅"


def test_a_wording_with_the_same_answer_is_kept_with_its_call() -> None:
    replies = in_turn(
        written("Of what are the gates of tower 9 of Elm Hill?"), said("They are Two arches of  granite.")
    )
    answer, requests = extend(replies, AskingOptions(llm_phrasings=2))
    [_, kept] = answer.topic.ask
    assert (kept.question, kept.way, kept.axis) == (
        "Of what are the gates of tower 9 of Elm Hill?",
        "llm-en-1",
        "plain",
    )
    assert kept.call_id is not None
    assert kept.prompt_version is not None
    assert kept.prompt_version.startswith("phrasing.en@")
    assert len(requests) == 2
    assert answer.topic.further.missing == {("plain", "too_few_written"): 1}


def test_the_whole_passage_is_shown_for_the_check_and_none_for_the_writing() -> None:
    replies = in_turn(written("Of what are the gates of tower 9 of Elm Hill?"), said("Two arches of granite."))
    _, [writing, checking] = extend(replies, AskingOptions(llm_phrasings=1))
    assert not any(TOWER.text in m.content for m in writing.messages)
    assert TOWER.text in checking.messages[-1].content
    assert "granite" not in writing.messages[-1].content


FLAWS = [
    (PLAIN.upper(), "echo"),
    ("The gates of tower 9 of Elm Hill are made somehow.", "no_question"),
    ("What are the gates of tower 8 of Elm Hill?", "number_changed"),
    ("What are the 3 gates of tower 9 of Elm Hill?", "number_changed"),
    ("What are the gates of tower 9 of Oak Hill?", "name_lost"),
    ("Are the gates of tower 9 of Elm Hill two arches of granite?", "number_changed"),
    ("Are the gates of tower 9 of Elm Hill granite arches?", "leaks_answer"),
    ("Elm Hill 的 9 号塔的城门是什么样的？", "wrong_language"),
    ("Question: what are the gates of tower 9 of Elm Hill?", "format"),
]


@pytest.mark.parametrize(("question", "reason"), FLAWS)
def test_a_wording_that_asks_something_else_is_dropped_unasked(question: str, reason: str) -> None:
    answer, requests = extend(
        in_turn(written(question), said("Two arches of granite.")), AskingOptions(llm_phrasings=1)
    )
    assert [d.reason for d in answer.topic.further.dropped] == [reason]
    assert len(answer.topic.ask) == 1
    assert len(requests) == 1
    assert answer.topic.further.missing == {("plain", reason): 1}


def test_a_wording_with_another_answer_is_dropped_and_the_next_one_tried() -> None:
    first, second = "Who built the gates of tower 9 of Elm Hill?", "Describe the gates of tower 9 of Elm Hill."
    replies = in_turn(written(first, second), said("Nobody knows."), said("Two arches of granite."))
    answer, requests = extend(replies, AskingOptions(llm_phrasings=2, quotas={"plain": 1}))
    [drop] = answer.topic.further.dropped
    assert (drop.phrasing.question, drop.reason) == (first, "other_answer")
    assert [p.question for p in answer.topic.ask] == [PLAIN, second]
    assert len(requests) == 3


def test_no_more_calls_are_made_than_the_quota_needs() -> None:
    questions = [
        f"{start} are the gates of tower 9 of Elm Hill?" for start in ("How", "Of what kind", "Of which stone")
    ]
    _, requests = extend(
        in_turn(written(*questions), said("Two arches of granite.")),
        AskingOptions(llm_phrasings=3, quotas={"plain": 1}),
    )
    assert len(requests) == 2


@pytest.mark.parametrize(
    ("replies", "reason", "kept"),
    [
        ((Fails("llm_timeout"),), "llm_timeout", 0),
        ((written("How are the gates of tower 9 of Elm Hill?"), Fails("budget_spent")), "budget_spent", 0),
        (("no JSON at all",), "format", 0),
        (
            (written("How are the gates of tower 9 of Elm Hill?")[:-1], said("Two arches of granite.")),
            "too_few_written",
            1,
        ),
    ],
)
def test_a_failed_call_costs_wordings_and_never_the_answer(replies: tuple[Reply, ...], reason: str, kept: int) -> None:
    answer, _ = extend(in_turn(*replies), AskingOptions(llm_phrasings=2))
    assert answer.text == KEYED.text
    assert sum(p.added for p in answer.topic.ask) == kept
    assert answer.topic.further.missing == {("plain", reason): 2 - kept}
    index = QuestionIndex()
    index.admit(answer)
    assert index.coverage.report()["plain"].filled == kept


def test_an_endpoint_that_is_down_ends_the_job() -> None:
    class Down:
        async def complete(self, request: ChatRequest) -> Completion:
            raise DependencyDown("the LLM is down")

    async def work() -> None:
        async with Ledger(MemoryStore(), Down()) as ledger:
            await asker_on(ledger, AskingOptions(llm_phrasings=1), "json").extend(TOWER, KEYED)

    with pytest.raises(DependencyDown):
        asyncio.run(work())


def test_the_text_form_is_one_line_a_wording() -> None:
    lines = (
        "question: Of what are the gates of tower 9 of Elm Hill?\nquestion: Describe the gates of tower 9 of Elm Hill."
    )
    answer, _ = extend(in_turn(lines, "Two arches of granite."), AskingOptions(llm_phrasings=2), form="text")
    assert [p.way for p in answer.topic.ask] == ["ask-1", "llm-en-1", "llm-en-2"]


@pytest.mark.parametrize(
    ("passage", "answer", "question", "checked", "way"),
    [
        (TOWER, KEYED, "Elm Hill 的 9 号塔的城门是什么样的？", "Two arches of granite.", "llm-zh-1"),
        (CHINESE, ZH_KEYED, "What does hexagram 7, 师, stand for?", "它象征纪律与众望所归的统帅。", "llm-en-1"),
    ],
)
def test_the_other_language_keeps_names_and_numbers_and_is_answered_in_the_passages(
    passage: Passage, answer: Answer, question: str, checked: str, way: str
) -> None:
    options = AskingOptions(quotas={"language": 1})
    extended, requests = extend(in_turn(written(question), said(checked)), options, answer, passage)
    assert [(p.axis, p.way, p.question) for p in extended.topic.ask if p.added] == [("language", way, question)]
    assert extended.text == answer.text
    other: Language = "zh" if passage.language == "en" else "en"
    assert ("中文" in requests[0].messages[-1].content) == (other == "zh")
    assert len(requests) == 2


def test_a_wording_left_in_the_passages_language_is_no_translation() -> None:
    replies = in_turn(written("第七卦师卦代表什么？"), said("它象征纪律与众望所归的统帅。"))
    answer, _ = extend(replies, AskingOptions(quotas={"language": 1}), ZH_KEYED, CHINESE)
    assert [d.reason for d in answer.topic.further.dropped] == ["wrong_language"]


AGREEMENTS = [
    ("The harbour wall has a red lamp.", "A red lamp stands on the wall of the harbour.", True),
    ("The harbour wall has a red lamp.", "The market has a green roof.", False),
    ("It was built in 1821 by masons.", "Masons built it in 1821.", True),
    ("It was built in 1821 by masons.", "Masons built it in 1812.", False),
    ("It was built by masons.", "Masons built it in 1821.", False),
    ("灯塔的墙上有一盏红灯。", "墙上有一盏红灯。", True),
    ("灯塔的墙上有一盏红灯。", "市场的屋顶是绿色的。", False),
]


@pytest.mark.parametrize(("accepted", "given", "same"), AGREEMENTS)
def test_without_a_key_numbers_and_content_must_agree(accepted: str, given: str, same: bool) -> None:
    answer = Answer(Topic("pair-1", (Phrasing("written", "What is there?"),)), accepted, (0, 10))
    assert (agreement(TOWER, answer, given) >= 0.6) == same


def test_without_a_key_a_wording_that_retells_the_answer_is_dropped() -> None:
    plain = Answer(
        Topic("pair-1", (Phrasing("written", "How are the gates?"),)), "They are arches of grey granite.", (0, 9)
    )
    replies = in_turn(written("Why are the gates grey granite arches?"), said("They are arches of grey granite."))
    answer, _ = extend(replies, AskingOptions(llm_phrasings=1), plain)
    [drop] = answer.topic.further.dropped
    assert drop.reason == "leaks_answer"
    assert drop.value > drop.threshold


def test_a_question_within_a_conversation_is_left_as_it_is() -> None:
    history = (Message(role="user", content="Hello."), Message(role="assistant", content="Good day."))
    spoken = Answer(KEYED.topic, KEYED.text, KEYED.evidence, before=history)
    answer, requests = extend(in_turn("never"), AskingOptions(llm_phrasings=1), spoken)
    assert requests == []
    assert answer.topic.further.missing == {("plain", "is_a_conversation"): 1}
