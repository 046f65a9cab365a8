"""The two response forms, taken apart strictly: the slips of the hand-made pipeline are rejected, never mended."""

import pytest

from textmill_synth.checks import Finding
from textmill_synth.responses import TitledSummary, json_answer, json_summary, text_summary


@pytest.mark.parametrize(
    "raw",
    ['content:"Shi"\nsummary:"It stands for discipline."', 'content: "Shi"\n\nsummary: "It stands for discipline."\n'],
)
def test_the_text_form(raw: str) -> None:
    assert text_summary(raw) == TitledSummary("Shi", "It stands for discipline.")


def test_the_text_form_in_chinese() -> None:
    assert text_summary('content:"师卦"\nsummary:"它象征纪律。"') == TitledSummary("师卦", "它象征纪律。")


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
    assert json_answer('{"answer": "Yes."}') == "Yes."
    assert json_summary('{"content": "Shi", "summary": "Discipline."}') == TitledSummary("Shi", "Discipline.")


@pytest.mark.parametrize(
    "raw",
    ["", "Yes.", '{"answer": 1}', '{"answer": "a", "note": "b"}', '```json\n{"answer": "a"}\n```', '{"answer": "a"'],
)
def test_slips_of_the_json_form(raw: str) -> None:
    finding = json_answer(raw)
    assert isinstance(finding, Finding)
    assert finding.reason == "format"
