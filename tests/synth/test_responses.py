"""The response forms, taken apart strictly: a slip is a finding, and mending changes no word."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import JsonValue

from textmill_synth.checks import Finding
from textmill_synth.responses import (
    Answered,
    Item,
    Summarised,
    labelled_items,
    listed,
    one_item,
    repaired_json,
    strict_json,
    text_summary,
    whole_items,
)


class QA(Item):
    question: str
    answer: str


def summarised(content: str, summary: str) -> Summarised:
    return Summarised(content=content, summary=summary)


@pytest.mark.parametrize(
    "raw",
    ['content:"Shi"\nsummary:"It stands for discipline."', 'content: "Shi"\n\nsummary: "It stands for discipline."\n'],
)
def test_the_text_form(raw: str) -> None:
    assert text_summary(raw) == summarised("Shi", "It stands for discipline.")


def test_the_text_form_in_chinese() -> None:
    assert text_summary('content:"师卦"\nsummary:"它象征纪律。"') == summarised("师卦", "它象征纪律。")


@pytest.mark.parametrize(
    ("raw", "detail"),
    [
        ('content:"Shi"\nsummary:"a."\ninterpretation:"b."', "extra block 'interpretation'"),
        ('content:"Shi"\nimage:"water"\nsummary:"a."', "extra block 'image'"),
        ('content:"Shi content:"again""\nsummary:"a."', "'content' stands there more than once"),
        ('content:"Shi"\nsummary:"a."\nsummary:"b."', "'summary' stands there more than once"),
        ('content:"Shi"\nsummary:"summary: a."', "'summary' stands there more than once"),
        ("content:Shi\nsummary:a.", "0 double quotes"),
        ('content:"Shi\nsummary:"a."', "3 double quotes"),
        ('content:""Shi""\nsummary:"a."', "6 double quotes"),
        ('content:"Shi"', "no line starts with 'summary'"),
        ('summary:"a."', "no line starts with 'content'"),
        ('summary:"a."\ncontent:"Shi"', "not two lines"),
        ('Sure! content:"Shi"\nsummary:"a."', "no line starts with 'content'"),
        ("content：“师卦”\nsummary：“纪律。”", "0 double quotes"),
        ("", "no line starts with 'content'"),
    ],
)
def test_slips_of_the_text_form(raw: str, detail: str) -> None:
    finding = text_summary(raw)
    assert isinstance(finding, Finding)
    assert finding.reason == "format"
    assert detail in finding.detail


def test_json_forms() -> None:
    assert one_item(strict_json('{"answer": "Yes."}'), Answered) == Answered(answer="Yes.")
    assert listed(strict_json('{"items": [1, 2]}')) == [1, 2]


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "Yes.",
        '{"answer": 1}',
        '{"answer": ""}',
        '{"answer": "a", "note": "b"}',
        '{"answer": "a", "answer": "b"}',
        '```json\n{"answer": "a"}\n```',
        '{"answer": "a"',
    ],
)
def test_slips_of_the_json_form(raw: str) -> None:
    finding = one_item(strict_json(raw), Answered)
    assert isinstance(finding, Finding)
    assert finding.reason == "format"


@pytest.mark.parametrize("raw", ['{"items": 1}', '{"items": [], "note": 1}', "[1]", '"a"'])
def test_what_is_no_list_of_items(raw: str) -> None:
    assert isinstance(listed(strict_json(raw)), Finding)


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        ('```json\n{"answer": "a"}\n```', {"answer": "a"}),
        ('Sure! {"answer": "Red.",} Bye.', {"answer": "Red."}),
        ("{'answer': 'It is red.'}", {"answer": "It is red."}),
        ('{answer: "Red."}', {"answer": "Red."}),
        ('{"answer": "a"', {"answer": "a"}),
        ('{"answer": "He said "yes" and left."}', {"answer": 'He said "yes" and left.'}),
        ('{"answer": "line\nbreak"}', {"answer": "line\nbreak"}),
        ('{"answer": "a\\nb\\u4e2d",}', {"answer": "a\nb中"}),
        ('{"items":[{"a":"1"},{"a":"2"},]', {"items": [{"a": "1"}, {"a": "2"}]}),
    ],
)
def test_syntax_is_mended(raw: str, value: JsonValue) -> None:
    assert repaired_json(raw) == value


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ('{"answer": "It is', "truncated"),
        ('{"items": [{"a": "1"}, {"a": "2', "truncated"),
        ('{"items": [{"a": "1"}, {"a', "truncated"),
        ("no JSON at all", "format"),
        ('{"answer": "a", "answer": "b"}', "format"),
        ('{"answer": True}', "format"),
        ("{'answer': 'It's red.'}", "format"),
    ],
)
def test_what_mending_would_change_is_left_alone(raw: str, reason: str) -> None:
    finding = repaired_json(raw)
    assert isinstance(finding, Finding)
    assert finding.reason == reason


WORDS = st.text(alphabet="ab é中',:{}[]", min_size=1, max_size=12)


@settings(max_examples=300, deadline=None)
@given(st.fixed_dictionaries({"question": WORDS, "answer": WORDS}), st.data())
def test_mending_never_changes_a_word(value: dict[str, str], data: st.DataObject) -> None:
    """Whatever character is lost from the JSON: an item that comes of it says what was said, field by field."""
    raw = json.dumps(value, ensure_ascii=False)
    at = data.draw(st.integers(0, len(raw) - 1))
    item = one_item(repaired_json(raw[:at] + raw[at + 1 :]), QA)
    if isinstance(item, QA):
        for name, text in item.model_dump().items():
            original = value[name]
            shorter = [original[:n] + original[n + 1 :] for n in range(len(original))]
            assert _letters(text) in {_letters(variant) for variant in (original, *shorter)}


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.fixed_dictionaries({"answer": WORDS}), max_size=4), st.data())
def test_whole_items_are_a_beginning_of_the_list(items: list[dict[str, str]], data: st.DataObject) -> None:
    raw = json.dumps({"items": items}, ensure_ascii=False)
    cut = raw[: data.draw(st.integers(0, len(raw)))]
    found = whole_items(cut)
    assert found == items[: len(found)]
    if cut == raw:
        assert found == items


def test_labelled_lines() -> None:
    raw = "question: Who?\nanswer: Tom: the keeper.\n\nquestion： 谁？\nanswer：汤姆。\n"
    assert labelled_items(raw, QA) == [
        QA(question="Who?", answer="Tom: the keeper."),
        QA(question="谁？", answer="汤姆。"),
    ]


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "Sure!\nquestion: Who?\nanswer: Tom.",
        "answer: Tom.\nquestion: Who?",
        "question: Who?\nquestion: Who?\nanswer: Tom.\nanswer: Tom.",
        "question: Who?\nanswer: Tom.\nanswer: Tim.",
        "question: Who?\nanswer: Tom.\nnote: maybe",
    ],
)
def test_slips_of_labelled_lines(raw: str) -> None:
    found = labelled_items(raw, QA)
    assert isinstance(found, Finding) or any(isinstance(item, Finding) for item in found)


def test_a_missing_last_line_costs_one_item() -> None:
    first, second = labelled_items("question: Who?\nanswer: Tom.\nquestion: Why?", QA)
    assert first == QA(question="Who?", answer="Tom.")
    assert isinstance(second, Finding)
