"""Splits and shuffles depend on content and seed alone; a question has one answer; records hold all that was said."""

import asyncio
import hashlib
from dataclasses import replace

import pytest
from corpora import put_corpus, zhouyi_questions, zhouyi_texts
from scripted import passages

from textmill.contracts.datasets import Message, Record, Tool, ToolCall
from textmill.contracts.documents import Language, Passage, Span
from textmill.contracts.synthesis import QuestionSet
from textmill.store import MemoryStore
from textmill_synth.augment import Augmentation, QuestionIndex, eval_documents, shuffle_key
from textmill_synth.checks import Finding
from textmill_synth.corpus import Corpus, Documents
from textmill_synth.strategies.base import Answer, Quotation, Source
from textmill_synth.strategies.passage import Extractive
from textmill_synth.topics import DroppedWording, Further, Phrasing, Topic

# Made with the code of before the asking options: hashes of all record ids, splits and ways of the example's passages.
RECORDS_BEFORE = {
    "en": "c6ef761399bf2733673d73990313bd807ad380ea9b5ad4240a7df6472fbb1e2e",
    "zh": "598e7913e467527cbebc230daf419a70995d92e2205b40b6172e3bdcfa833f84",
}
AUGMENTATION = Augmentation(frozenset(), None)
[PASSAGE, NEXT] = passages("Tower 9 is red. It has two gates.", "Tower 8 is blue.")
DOCUMENTS = [f"doc_{n:032x}" for n in range(200)]


def answer(text: str, *questions: str) -> Answer:
    return Answer(Topic("q", tuple(Phrasing(f"ask-{n}", q) for n, q in enumerate(questions))), text, (0, 1))


def test_the_split_is_about_the_fraction_and_the_same_in_any_order() -> None:
    chosen = eval_documents(DOCUMENTS, 0.25, seed=0)
    assert 30 <= len(chosen) <= 70
    assert eval_documents(DOCUMENTS[::-1], 0.25, seed=0) == chosen
    assert eval_documents(DOCUMENTS, 0.25, seed=1) != chosen


def test_a_document_stays_on_its_side_when_others_come() -> None:
    before, after = eval_documents(DOCUMENTS[:150], 0.25, 0), eval_documents(DOCUMENTS, 0.25, 0)
    assert before == after & set(DOCUMENTS[:150])


def test_both_sides_have_a_document() -> None:
    assert eval_documents(DOCUMENTS, 0.0, 0) == frozenset()
    assert eval_documents(DOCUMENTS[:1], 0.9, 0) == frozenset()
    for count in range(2, 8):
        for fraction in (0.001, 0.999):
            assert 1 <= len(eval_documents(DOCUMENTS[:count], fraction, 0)) < count


def test_the_shuffle_depends_on_the_seed() -> None:
    order = [sorted(DOCUMENTS, key=lambda d, s=seed: shuffle_key(d, s)) for seed in (0, 0, 1)]  # type: ignore[misc]
    assert order[0] == order[1] != order[2]
    assert order[0] != DOCUMENTS


def test_the_same_question_with_another_answer_is_a_conflict() -> None:
    index = QuestionIndex()
    assert isinstance(index.admit(answer("Red.", "What colour is it?", "Colour?")), Answer)
    clash = index.admit(answer("Blue.", "Which?", "what COLOUR is it ?!"))
    assert isinstance(clash, Finding)
    assert clash.reason == "conflict"
    again = index.admit(answer("Red.", "Colour"))
    assert isinstance(again, Finding)
    assert again.reason == "duplicate"
    assert isinstance(index.admit(answer("Blue.", "Which?")), Answer), "a refused answer must not keep its questions"


def locate(passage: Passage, start: int, end: int) -> Span:
    return Span(char_start=start, char_end=end, byte_start=start, byte_end=end)


def added(question: str, axis: str = "register", n: int = 1) -> Phrasing:
    return Phrasing(f"added-{n}", question, axis, added=True)  # type: ignore[arg-type]


def asked_more(text: str, plain: str, *more: Phrasing, reserve: tuple[Phrasing, ...] = ()) -> Answer:
    wanted = {phrasing.axis: sum(p.axis == phrasing.axis for p in more) for phrasing in more}
    topic = Topic("q", (Phrasing("ask-1", plain), *more), further=Further(wanted, reserve=reserve))
    return Answer(topic, text, (0, 15))


@pytest.mark.parametrize("language", ["en", "zh"])
def test_without_asking_options_the_example_makes_the_records_it_always_made(language: Language) -> None:
    store, lines = MemoryStore(), list[str]()
    corpus = Corpus(store, put_corpus(store, zhouyi_texts(language, 64), language, heading=True))
    held_back = eval_documents(corpus.manifest.document_ids, 0.2, 0)
    for system_prompt in (None, "Be brief."):
        augmentation = Augmentation(held_back, system_prompt)
        for question_sets in ([zhouyi_questions(language)], []):
            lines += record_lines(corpus, Documents(store), augmentation, question_sets)
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == RECORDS_BEFORE[language]


def record_lines(
    corpus: Corpus, documents: Documents, augmentation: Augmentation, question_sets: list[QuestionSet]
) -> list[str]:
    strategy, lines = Extractive(question_sets), list[str]()
    for source in map(Source, corpus.passages()):
        for request in strategy.plan(source):
            for settled in asyncio.run(strategy.settle(source, request)):
                assert isinstance(settled, Answer)
                records = augmentation.records(source.passage, "passage", settled, documents.locate)
                lines += [f"{record.record_id} {record.split} {record.way}" for record in records]
    return lines


def test_an_added_wording_that_is_asked_already_is_replaced_from_the_reserve() -> None:
    index = QuestionIndex()
    index.admit(answer("Blue.", "Say: which colour?"))
    more = asked_more(
        "Red.", "Which colour?", added("Say: which colour?"), reserve=(added("Tell me the colour.", n=2),)
    )
    admitted = index.admit(more)
    assert isinstance(admitted, Answer)
    assert [p.question for p in admitted.topic.ask] == ["Which colour?", "Tell me the colour."]
    assert [d.reason for d in admitted.topic.further.dropped] == ["asked_already"]
    assert index.coverage.report()["register"].model_dump() == {"wanted": 1, "filled": 1, "missing": {}}


def test_without_a_reserve_it_is_missing_and_the_answer_stays() -> None:
    index = QuestionIndex()
    index.admit(answer("Blue.", "Say: which colour?"))
    admitted = index.admit(asked_more("Red.", "Which colour?", added("Say: which colour?")))
    assert isinstance(admitted, Answer)
    assert [p.question for p in admitted.topic.ask] == ["Which colour?"]
    assert index.coverage.report()["register"].missing == {"asked_already": 1}


def test_an_answer_that_is_not_taken_has_its_wordings_missing() -> None:
    index = QuestionIndex()
    index.admit(answer("Blue.", "Which colour?"))
    refused = index.admit(asked_more("Red.", "Which colour?", added("Say: which colour?")))
    assert isinstance(refused, Finding)
    assert index.coverage.report()["register"].missing == {"answer_not_taken": 1}
    assert isinstance(index.admit(answer("Red.", "Say: which colour?")), Answer)


def test_wordings_nearly_alike_count_as_one_across_answers_to_one_question() -> None:
    index = QuestionIndex(near_duplicate=0.8)
    wording = "Could you please tell me which colour tower 9 has"
    first = asked_more("Red.", "Which colour has tower 9?", added(f"{wording}?"))
    second = asked_more("It is red.", "Tower 9: colour?", added(f"{wording}, yes?"))
    topics = [replace(a.topic, subject=("9",)) for a in (first, second)]
    index.admit(replace(first, topic=topics[0]))
    admitted = index.admit(replace(second, topic=topics[1]))
    assert isinstance(admitted, Answer)
    [drop] = admitted.topic.further.dropped
    assert drop.reason == "near_duplicate"
    assert 0.8 == drop.threshold <= drop.value < 1
    other = replace(second, topic=replace(topics[1], question_id="another", ask=topics[1].ask[1:]))
    assert isinstance(index.admit(other), Answer), "another question isn't compared"


def test_the_same_words_after_another_history_are_another_question() -> None:
    index = QuestionIndex()
    for text, before in (("Red.", "Tell me about tower 9."), ("Blue.", "Tell me about tower 8.")):
        history = (Message(role="user", content=before), Message(role="assistant", content="It is a tower."))
        follow_up = Phrasing("f", "And which colour is it?", "follow_up", history=history, added=True)
        admitted = index.admit(asked_more(text, f"Which colour? {text}", follow_up))
        assert isinstance(admitted, Answer)
        assert len(admitted.topic.ask) == 2
        conversation = replace(answer(text, "And what else?"), before=history)
        assert isinstance(index.admit(conversation), Answer)


def test_a_record_has_the_turns_before_the_question_and_where_they_come_from() -> None:
    history = (
        Message(role="user", content="Tell me of tower 9."),
        Message(role="assistant", content="Tower 9 is red."),
    )
    follow_up = Phrasing("f", "How many gates?", "follow_up", history=history, added=True, evidence=(0, 15))
    topic = Topic("gates", (Phrasing("ask-1", "Gates of tower 9?"), follow_up), key=(23, 32))
    made = list(AUGMENTATION.records(PASSAGE, "qa", Answer(topic, "It has two gates.", (16, 33)), locate))
    assert [(r.axis, len(r.messages)) for r in made] == [("plain", 2), ("follow_up", 4)]
    assert [m.content for m in made[1].messages] == [
        "Tell me of tower 9.",
        "Tower 9 is red.",
        "How many gates?",
        "It has two gates.",
    ]
    assert made[0].more_evidence == []
    assert [e.text for e in made[1].more_evidence] == ["Tower 9 is red."]
    assert {tuple(r.key_facts) for r in made} == {("two gates",)}
    assert len({r.record_id for r in made}) == 2


def test_a_record_has_tools_calls_and_evidence_of_other_passages() -> None:
    call = ToolCall(id="c1", name="colour", arguments="{}")
    between = (
        Message(role="assistant", content="", tool_calls=(call,)),
        Message(role="tool", content="red", tool_call_id="c1"),
    )
    tool = Tool(name="colour", description="The colour of a tower.", parameters="{}")
    plain = answer("Red.", "Colour of tower 9?")
    with_tools = replace(plain, between=between, tools=(tool,), key_facts=("Red",), evidence=(0, 15))
    with_tools = replace(with_tools, more_evidence=(Quotation(NEXT, (0, 16)),))
    [record] = AUGMENTATION.records(PASSAGE, "tools", with_tools, locate)
    assert [m.role for m in record.messages] == ["user", "assistant", "tool", "assistant"]
    assert record.tools == (tool,)
    assert record.key_facts == ["Red"]
    [evidence] = record.more_evidence
    assert (evidence.passage_id, evidence.text) == (NEXT.passage_id, "Tower 8 is blue.")
    [without] = AUGMENTATION.records(PASSAGE, "tools", plain, locate)
    assert without.record_id != record.record_id
    assert Record.model_validate_json(record.to_json()).to_json() == record.to_json()


def test_wordings_not_kept_become_records_for_the_drop_ledger() -> None:
    drop = DroppedWording(added("Red, isn't it?"), "leaks_answer", "['Red']")
    topic = Topic("q", (Phrasing("ask-1", "Which colour?"),), further=Further(dropped=(drop,)))
    [(record, why)] = AUGMENTATION.dropped(PASSAGE, "qa", Answer(topic, "Red.", (0, 15)), locate)
    assert (record.question, record.answer, record.axis, why.reason) == (
        "Red, isn't it?",
        "Red.",
        "register",
        "leaks_answer",
    )
