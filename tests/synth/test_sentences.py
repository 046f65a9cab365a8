"""Sentences and numbers in both languages."""

import pytest

from textmill_synth.numerals import numbers
from textmill_synth.sentences import ends_complete, first_sentence, sentence_around, sentence_spans


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("It rains. We stay.", ["It rains.", "We stay."]),
        ("Pi is 3.14 or so. Yes!", ["Pi is 3.14 or so.", "Yes!"]),
        ("See Fig. 3, e.g. this. End.", ["See Fig. 3, e.g. this.", "End."]),
        ('He said "go." She went.', ['He said "go."', "She went."]),
        (
            "下卦为坎，上卦为坤。它象征纪律！“好吗？”是的。",
            ["下卦为坎，上卦为坤。", "它象征纪律！", "“好吗？”", "是的。"],
        ),
        ("# Shi\nIt has Water below.\n\nMore", ["# Shi", "It has Water below.", "More"]),
        ("one line\nwrapped here. Two", ["one line\nwrapped here.", "Two"]),
        ("", []),
    ],
)
def test_sentence_spans(text: str, sentences: list[str]) -> None:
    assert [text[start:end] for start, end in sentence_spans(text)] == sentences


def test_the_sentence_around_a_fact_and_the_first_one() -> None:
    text = "Hexagram 7 is Shi. Only line 2 is solid. It stands for discipline."
    start = text.index("line 2")
    assert text[slice(*sentence_around(text, start, start + 6))] == "Only line 2 is solid."
    assert first_sentence(text) == "Hexagram 7 is Shi."
    assert first_sentence("no end") == "no end"


@pytest.mark.parametrize(
    ("text", "complete"), [("Yes.", True), ("是。”", True), ("No", False), ("a, ", False), ("", False)]
)
def test_ends_complete(text: str, complete: bool) -> None:
    assert ends_complete(text) is complete


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("line 2 and 1,000 and 3.50", {"2", "1000", "3.5"}),
        ("the second of twenty-four lines", {"2", "24"}),
        ("no one is the one who knows", set()),
        ("First, all six; the seventh", {"6", "7"}),
        ("第七卦，第一、五爻", {"7", "1", "5"}),
        ("二十四、一百零八、一九八四、十万", {"24", "108", "1984", "100000"}),
        ("统一万物，一样一起", set()),
        ("第二十一卦", {"21"}),
    ],
)
def test_numbers(text: str, found: set[str]) -> None:
    assert numbers(text) == found
