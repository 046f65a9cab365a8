"""Sentences and numbers in both languages."""

import pytest

from textmill_synth.dates import Date, date_spans
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
        ("Store below 25 °C. Keep dry.", ["Store below 25 °C.", "Keep dry."]),
        ("Ms. Olsen met J. Legge. They left.", ["Ms. Olsen met J. Legge.", "They left."]),
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
        ("one hundred and fifty, a hundred times, two thousand", {"150", "100", "2000"}),
        ("2.6 million pounds, 3.6亿元, 8万", {"2600000", "360000000", "80000"}),
        ("two and three; the first two weeks", {"2", "3"}),
        ("八百两、两百张、两尊、250千帕、十二指肠", {"800", "200", "2", "250"}),
        ("每次半片", {"0.5"}),
        ("一" * 5000, {"1" * 5000}),
    ],
)
def test_numbers(text: str, found: set[str]) -> None:
    assert numbers(text) == found


@pytest.mark.parametrize(
    ("text", "dates"),
    [
        ("4 March 2024, March 4, 2024 and 2024-03-04", [Date(2024, 3, 4)] * 3),
        ("2024年3月18日上午，二〇二四年三月十八日", [Date(2024, 3, 18)] * 2),
        ("3月15日; 17 October; May 1912", [Date(None, 3, 15), Date(None, 10, 17), Date(1912, 5, None)]),
        ("tickets for 13 and 14 November", [Date(None, 11, 14), Date(None, 11, 13)]),
        ("each month, 月租金, 三个月, 2月底, in 1870, 31 apples", []),
    ],
)
def test_dates(text: str, dates: list[Date]) -> None:
    assert [date for _, _, date in date_spans(text)] == dates


@pytest.mark.parametrize(
    ("said", "known", "agrees"),
    [
        (Date(None, 11, 21), Date(2023, 11, 21), True),
        (Date(2023, 11, 21), Date(None, 11, 21), True),
        (Date(1911, 5, 17), Date(1911, 10, 17), False),
        (Date(None, 5, 17), Date(1912, 5, None), False),
        (Date(1911, 10, None), Date(1911, 10, 17), True),
        (Date(1912, 10, 17), Date(1911, 10, 17), False),
    ],
)
def test_a_date_agrees_with_one_that_gives_all_its_parts(said: Date, known: Date, agrees: bool) -> None:
    assert said.agrees(known) is agrees
