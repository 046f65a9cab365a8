"""Rare forms of answers are found beside answers to the same question, whatever they say."""

import random

import pytest
from tests.trainer.slips import SLIPS, Sample, slip

from textmill_trainer.form import LEAST_PEERS, oddities

ENGLISH = [f"Hexagram {n} has {n % 7} lines, and it stands for virtue; that's all." for n in range(40)]
CHINESE = [f"第{n}卦有{n % 7}爻，它象征德行。" for n in range(40)]


def odd(answers: list[str], question: str = "en/qa/lines") -> dict[str, list[str]]:
    return oddities({str(n): (question, answer) for n, answer in enumerate(answers)})


@pytest.mark.parametrize("answers", [ENGLISH, CHINESE], ids=["en", "zh"])
def test_answers_of_one_form_have_no_oddity(answers: list[str]) -> None:
    assert odd(answers) == {str(n): [] for n in range(40)}


@pytest.mark.parametrize("kind", SLIPS)
@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_slip_of_the_owner_s_has_one(language: str, kind: str) -> None:
    answers, other = (ENGLISH, CHINESE) if language == "en" else (CHINESE, ENGLISH)
    passage = "".join(answers[:3]) if language == "zh" else " ".join(answers[:3])
    made = slip(Sample("Which lines?", answers[0], passage, other[0]), kind, random.Random(1))
    found = odd([made, *answers[1:]])
    assert found.pop("0"), made
    assert not any(found.values())


def test_an_oddity_says_what_and_how_rare() -> None:
    found = odd(['Lines 1 and 2"', "{Lines 3}", "一\n二。", *ENGLISH])
    assert found["0"] == ['ends with " (1 of 43)', 'has " (1 of 43)']
    assert found["1"] == ["ends with } (1 of 43)", "has { (1 of 43)", "has } (1 of 43)"]
    assert found["2"] == ["has a line break (1 of 43)", "written in CJK (1 of 43)"]


def test_what_a_tenth_has_is_common() -> None:
    listed = [f"- {answer}\n- {answer}" for answer in ENGLISH[:5]]
    assert any(odd([*listed[:4], *ENGLISH])["0"])
    assert not any(odd([*listed, *ENGLISH[:40]])["0"])


def test_few_of_a_question_are_compared_with_all_of_their_strategy() -> None:
    answers = {str(n): (f"en/qa/{n}", answer) for n, answer in enumerate(ENGLISH)}
    answers["slip"] = ("en/qa/slip", 'summary:"It stands')
    assert "has : (1 of 41)" in oddities(answers)["slip"]
    assert oddities({"1": ("zh/qa/a", CHINESE[0]), **answers}).keys() == answers.keys(), (
        "one Chinese answer tells nothing"
    )


def test_too_few_tell_nothing() -> None:
    assert len(odd(ENGLISH[:LEAST_PEERS])) == LEAST_PEERS
    assert not odd(ENGLISH[: LEAST_PEERS - 1])
    assert not odd([" "] * 40)
