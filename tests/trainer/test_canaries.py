"""Which records are looked at: the same facts in the trained and in other words, and no two draws differ."""

from tests.trainer.conftest import make_record

from textmill.contracts.datasets import Message
from textmill_trainer.canaries import (
    PREFIX_TOKENS,
    SAMPLE_RECORDS,
    choose,
    give_prefix,
    reword,
    within_budget,
)
from textmill_trainer.prepare import Example

TRAIN = [
    make_record(f"What is fact {fact}, in wording {way}?", f"It is {fact}.", question_id=str(fact))
    for fact in range(40)
    for way in range(3)
]
HELDOUT = [
    make_record(f"And fact {fact}, please?", f"It is {fact}.", "heldout", question_id=str(fact)) for fact in range(50)
]


def test_the_same_facts_are_asked_for_in_both_wordings() -> None:
    chosen = choose(TRAIN, [], HELDOUT)
    assert chosen.from_heldout
    assert [r.answer for r in chosen.trained] == [r.answer for r in chosen.reworded]
    assert len({r.question_id for r in chosen.trained}) == SAMPLE_RECORDS
    assert {r.split for r in chosen.reworded} == {"heldout"}


def test_a_heldout_record_with_another_answer_is_no_other_wording() -> None:
    others = [record.model_copy(update={"messages": make_record("q", "It is not.").messages}) for record in HELDOUT]
    chosen = choose(TRAIN, [], others)
    assert not chosen.from_heldout
    assert not {r.record_id for r in chosen.reworded} & {r.record_id for r in others}


def test_without_heldout_wordings_the_question_is_put_in_words_of_ours() -> None:
    chosen = choose(TRAIN, [], [])
    assert [r.answer for r in chosen.reworded] == [r.answer for r in chosen.trained]
    for trained, reworded in zip(chosen.trained, chosen.reworded, strict=True):
        assert trained.question in reworded.question
        assert len(reworded.question) > len(trained.question)
    assert len({r.question.replace(t.question, "") for t, r in zip(chosen.trained, chosen.reworded, strict=True)}) > 1


def test_few_records_are_asked_in_several_other_words() -> None:
    chosen = choose(TRAIN[::3][:5], [], [])
    assert len(chosen.trained) == 5
    assert len(chosen.reworded) == len({r.question for r in chosen.reworded}) == 20
    assert len(choose(TRAIN[::3][:24], [], []).reworded) == SAMPLE_RECORDS


def test_a_chinese_question_is_put_in_chinese_words() -> None:
    question = reword(make_record("乾卦是什么？", "六爻皆阳。", language="zh")).question
    assert question != "乾卦是什么？"
    assert question.isascii() is False
    assert not any("a" <= letter <= "z" for letter in question)


def test_the_choice_does_not_depend_on_the_order_of_records() -> None:
    assert choose(TRAIN, TRAIN, HELDOUT) == choose(TRAIN[::-1], TRAIN[::-1], HELDOUT[::-1])


def test_evaluation_documents_take_turns() -> None:
    documents = [make_record(f"q {n}", "a", "eval", document_id=f"doc_{n % 4 and 1}") for n in range(100)]
    evaluated = choose(TRAIN, documents, []).evaluated
    assert sum(r.document_id == "doc_0" for r in evaluated) == SAMPLE_RECORDS // 2


def test_only_one_question_with_one_answer_is_asked_otherwise() -> None:
    turns = [Message(role="user", content="a"), Message(role="assistant", content="b")] * 2
    chosen = choose([make_record("x", "y", messages=turns)], [], [])
    assert len(chosen.trained) == 1
    assert not chosen.reworded
    assert not chosen.prefixed


def test_the_first_words_of_an_answer_are_given_and_short_answers_left_out() -> None:
    long = Example("rec_1", "doc_1", tuple(range(40)), (False,) * 10 + (True,) * 30)
    short = Example("rec_2", "doc_1", tuple(range(20)), (False,) * 10 + (True,) * 10)
    (given,) = give_prefix([long, short])
    assert given.record_id == "rec_1"
    assert [i for i, s in enumerate(given.supervised) if s] == list(range(10 + PREFIX_TOKENS, 40))


def test_a_sample_is_bounded_in_tokens_and_never_empty() -> None:
    examples = [Example(str(n), "d", (0,) * 10, (True,) * 10) for n in range(5)]
    assert len(within_budget(examples, 25)) == 2
    assert len(within_budget(examples, 5)) == 1
