"""Planted answers: what must count as correct, and what must not."""

import pytest

from textmill_inference.evaluation.score import is_correct

RIGHT = [
    ("Hexagram 7 has six lines.", ["six lines"]),
    ("It is SHI, the Army", ["Shi", "army"]),
    ("King Wen's order", ["King Wen"]),
    ("a twenty-four hour day", ["twenty four"]),
    ("the **ARMY**,\n earth", ["army earth"]),
    ("line 2.", ["line 2"]),
    ("(line 2)", ["line 2"]),
    ("ｌｉｎｅ　２", ["line 2"]),
    ("about 1,200 years", ["1200"]),
    ("pi is 3.14", ["3.14"]),
    ("it is −5 °C", ["-5"]),
    ("the sign is ䷆, Shi", ["䷆"]),
    ("80% of it", ["80"]),
    ("第七卦是師，上坤下坎。", ["上坤下坎"]),
    ("第 七 卦", ["第七卦"]),
    ("共有六爻", ["六爻"]),
    ("共有6爻", ["6"]),
    ("Größe STRASSE", ["straße"]),
]
WRONG = [
    ("line 21", ["line 2"]),
    ("lines 1 and 2", ["line 2"]),
    ("line 2.5", ["line 2"]),
    ("line 12", ["line 2"]),
    ("armyworm", ["army"]),
    ("the army", ["army", "earth"]),
    ("1,200", ["200"]),
    ("B12", ["12"]),
    ("5", ["-5"]),
    ("-5", ["5"]),
    ("3.14", ["14"]),
    ("上坎下坤", ["上坤下坎"]),
    ("16爻", ["6"]),
    ("", ["six"]),
    ("anything", []),
    ("anything", [""]),
    ("anything", ["..."]),
]


@pytest.mark.parametrize(("answer", "facts"), RIGHT)
def test_correct(answer, facts):
    assert is_correct(answer, facts)


@pytest.mark.parametrize(("answer", "facts"), WRONG)
def test_not_correct(answer, facts):
    assert not is_correct(answer, facts)
