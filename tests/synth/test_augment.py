"""Splits and shuffles depend on content and seed alone; a question has one answer."""

from textmill_synth.augment import QuestionIndex, eval_documents, shuffle_key
from textmill_synth.strategies.base import Answer
from textmill_synth.topics import Phrasing, Topic

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
    assert index.claim(answer("Red.", "What colour is it?", "Colour?")) is None
    clash = index.claim(answer("Blue.", "Which?", "what COLOUR is it ?!"))
    assert clash is not None
    assert clash.reason == "conflict"
    again = index.claim(answer("Red.", "Colour"))
    assert again is not None
    assert again.reason == "duplicate"
    assert index.claim(answer("Blue.", "Which?")) is None, "a refused answer must not keep its questions"
