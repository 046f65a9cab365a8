"""What a split is made of is counted, and what is lopsided is said in plain words."""

import pytest
from made_records import made_record

from textmill.contracts.datasets import Record, Split
from textmill.contracts.quality import Balance
from textmill_synth.quality.balance import BalanceTally, warnings

LONG = "It stands for discipline under a trusted leader of many soldiers."


def balance(*records: Record) -> Balance:
    tally = BalanceTally()
    for record in records:
        tally.note(record)
    return tally.balance()


def spoken(train: Balance, made: int = 0, dropped: dict[str, int] | None = None, **findings: int) -> list[str]:
    splits: dict[Split, Balance] = {"train": train, "eval": Balance(), "heldout": Balance()}
    return list(warnings(splits, made or train.rows, dropped or {}, findings))


def many(count: int, answer: str = LONG, **changes: object) -> list[Record]:
    return [made_record(f"Question {n}?", answer, f"d{n}", way=f"way-{n % 2}", **changes) for n in range(count)]


def test_counts() -> None:
    found = balance(
        made_record("Who?", "Reed.", "one", axis="keyword"),
        made_record("So who?", "Reed.", "one"),
        made_record("When, then?", "In 1821, or so.", "one"),
        made_record("谁修的？", "陈大海。", "two", strategy="pairs"),
    )
    assert (found.rows, found.answers) == (4, 3)
    assert found.answers_per_document == {1: 1, 2: 1}
    assert found.largest_document_rows == 3
    assert found.languages == {"en": 3, "zh": 1}
    assert found.axes == {"keyword": 1, "plain": 3}
    assert found.strategies == {"pairs": 1, "qa": 3}
    assert (found.answer_lengths.least, found.answer_lengths.most, found.answer_lengths.mean) == (4, 15, 7.2)
    assert found.answer_lengths.histogram == {8: 3, 16: 1}
    assert sum(found.question_lengths.histogram.values()) == 4
    assert found.answer_lengths.under_20 == 4


def test_nothing_is_said_of_a_balanced_set_or_of_a_few_rows() -> None:
    assert spoken(balance(*many(30))) == []
    assert spoken(balance(made_record("Who?", "Reed."))) == []


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (many(30, "Reed."), "100.0 % of the rows to train on have answers under 20 characters"),
        (
            [*many(40), made_record("谁修的？", "石岛灯塔是陈大海带着岛上的乡亲们一起修起来的。")],
            "2.4 % .* language 'zh'",
        ),
        ([r.model_copy(update={"way": "ask-1"}) for r in many(30)], "one way only, 'ask-1'"),
        ([*many(9), *(made_record(f"Why {n}?", LONG, "big", way=f"w{n}") for n in range(15))], "One of 10 documents"),
    ],
)
def test_what_is_lopsided(rows: list[Record], words: str) -> None:
    [warning] = spoken(balance(*rows))
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(warning)


def test_what_was_dropped_and_found() -> None:
    kept = balance(*many(30))
    assert spoken(kept, 100, {"near_duplicate": 60, "pii": 10}) == [
        "70 of 100 rows were dropped, most as near_duplicate."
    ]
    assert spoken(Balance()) == ["No row is left to train on."]
    assert len(spoken(kept, conflict=1, pii=2, refusal=3)) == 3
