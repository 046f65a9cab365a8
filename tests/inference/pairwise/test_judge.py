"""The judge sees each pair both ways; a verdict counts when it is the same both times."""

import pytest

from textmill.contracts.base import content_id
from textmill.contracts.pairwise import ComparedPrompt, CompareJudge, Judgement
from textmill_inference.pairwise.judge import consistent_outcome, judge_messages, position_bias, read_verdict

PAIR = content_id("pr", "1")


def look(left, right, choice):
    return Judgement(pair_id=PAIR, left=left, right=right, choice=choice, said="")


def both(first, second):
    return [look("a", "b", first), look("b", "a", second)]


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ("Because.\nVERDICT: A", "left"),
        ("verdict: b", "right"),
        ("**VERDICT:** **TIE**.", "tie"),
        ("VERDICT: A at first, but then\nVERDICT: B", "right"),
        ("甲更好。\nVERDICT：A", "left"),
        ("VERDICT: Answers differ", None),
        ("I prefer A", None),
        ("", None),
    ],
)
def test_reading_a_verdict(said, verdict):
    assert read_verdict(said) == verdict


@pytest.mark.parametrize(
    ("looks", "outcome"),
    [
        (both("left", "right"), "first"),
        (both("right", "left"), "second"),
        (both("left", "left"), "tie"),
        (both("right", "right"), "tie"),
        (both("tie", "right"), "tie"),
        (both("tie", "tie"), "tie"),
        (both("left", None), None),
        (both("left", "right")[:1], None),
    ],
)
def test_only_a_verdict_given_both_ways_is_a_win(looks, outcome):
    assert consistent_outcome(looks, "a") == outcome


def test_position_bias_adds_up():
    looks = [
        both("left", "right"), both("right", "left"), both("tie", "tie"), both("left", "left"), both("left", "left"),
        both("right", "right"), both("tie", "left"), both("left", None), both("left", "right")[:1],
    ]  # fmt: skip
    found = position_bias({str(n): pair for n, pair in enumerate(looks)})
    assert (found.pairs, found.consistent, found.always_first, found.always_second, found.half) == (7, 3, 2, 1, 1)
    assert (found.unreadable, found.consistency) == (1, pytest.approx(3 / 7))


def test_what_the_judge_is_shown():
    prompt = ComparedPrompt(
        prompt_id=content_id("prm", "1"), messages=[{"role": "user", "content": "How many?"}], reference="Six."
    )
    system, user = judge_messages(CompareJudge(model="j", instructions="Be strict."), prompt, "five", "six")
    assert system["content"].startswith("Be strict.\n\n")
    shown = user["content"]
    assert [shown.index(part) for part in ("How many?", "Six.", "five", "six")] == sorted(
        shown.index(part) for part in ("How many?", "Six.", "five", "six")
    )
