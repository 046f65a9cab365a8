"""Splitting loses nothing but white space, keeps its bounds, and doesn't depend on how the text comes in."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ingest_cases import chunked, document_of, passages, without_space

from textmill.contracts.documents import Encoding
from textmill.contracts.jobs import SplitRule
from textmill_ingest.extract import passages_of
from textmill_ingest.split import chapter_heading, language_of, split

WORDS = st.sampled_from(
    ["师卦", "地中有水。", "Army ", "e.g. ", "3.14 ", "Mr. ", "Wait! ", "”", "\n", "\r\n", "\r", "\n\n\n", " ", "\t",
     "　", "# Title\n", "第七章 师\n", "```\n", "；", "……", "x" * 70, "\u2028", "\x85", "😀", "é"]
)  # fmt: skip
METHODS = st.sampled_from(["blank_lines", "headings", "budget"])
CODECS = st.sampled_from(["utf-8", "gb18030", "utf-16-le"])


@settings(max_examples=300)
@given(
    text=st.lists(WORDS, max_size=120).map("".join),
    method=METHODS,
    codec=CODECS,
    limit=st.integers(50, 120),
    size=st.integers(1, 300),
    media_type=st.sampled_from(["text/plain", "text/markdown"]),
)
def test_spans_are_exact_ordered_and_conserve_all_but_white_space(text, method, codec, limit, size, media_type):
    data = text.encode(codec)
    document = document_of(data, media_type, Encoding(name=codec, method="declared", confidence=1))
    rule = SplitRule(method=method, max_characters=limit)
    found = list(passages_of(document, chunked(data, size), rule))
    char_end = byte_end = 0
    for index, passage in enumerate(found):
        span = passage.span
        assert passage.index == index
        assert span.char_start >= char_end
        assert span.byte_start >= byte_end
        raw = data[span.byte_start : span.byte_end].decode(codec)
        assert raw == text[span.char_start : span.char_end]
        assert raw.replace("\r\n", "\n").replace("\r", "\n") == passage.text
        assert passage.exact == (raw == passage.text)
        assert 0 < len(passage.text) <= limit
        assert passage.text == passage.text.strip()
        assert text[char_end : span.char_start].strip() == ""
        char_end, byte_end = span.char_end, span.byte_end
    assert text[char_end:].strip() == ""
    assert without_space(p.text for p in found) == without_space([text])
    whole = list(passages_of(document, [data], rule))
    assert whole == found, "the cuts depend on the chunks"


def test_blank_lines_divide_however_many_there_are():
    text = "one\nstill one\n\ntwo\n\n\n\n\n\n\n\n\n\n\nthree\n \t\n　\nfour\n"
    assert [p.text for p in passages(text.encode())] == ["one\nstill one", "two", "three", "four"]


def test_windows_line_ends_divide_too_and_are_told_as_inexact():
    found = passages("一\r\n二\r\n\r\n三".encode("gb18030"))
    assert [(p.text, p.exact) for p in found] == [("一\n二", False), ("三", True)]


def test_a_line_end_cut_in_two_is_still_one():
    data = "一二三\r\n四五六\r\n\r\n七八九\r\n".encode()
    for size in range(1, len(data)):
        assert [p.text for p in passages(data, chunk_bytes=size)] == ["一二三\n四五六", "七八九"]


def test_headings_open_sections_and_are_kept_with_them():
    text = (
        "preface\n\n# Qian ##\nsix solid lines\n\nmore\n## Kun\nsix broken\n```\n# no heading\n```\n第七卦 师\n地中有水"
    )
    found = passages(text.encode(), "text/markdown", method="headings")
    assert [(p.heading, p.text.splitlines()[0]) for p in found] == [
        (None, "preface"), ("Qian", "# Qian ##"), ("Kun", "## Kun"), ("第七卦 师", "第七卦 师"),
    ]  # fmt: skip
    assert "more" in found[1].text
    assert "# no heading" in found[2].text


@pytest.mark.parametrize("line", ["第七章 师", "第 12 章：军队", "  第一百二十回 王熙凤\n", "第三节"])
def test_chinese_chapter_lines_are_headings(line):
    assert chapter_heading(line, 0) is not None


@pytest.mark.parametrize(
    "line", ["第七章讲的是军队如何出征以及为什么要有纪律。", "第一次", "见第七章", "第三节说得很清楚。"]
)
def test_sentences_that_open_like_chapters_are_not(line):
    assert chapter_heading(line, 0) is None


def cuts(text: str, limit: int) -> list[str]:
    rule = SplitRule(method="budget", max_characters=limit)
    return [cut.text for cut in split([text], rule, lambda line, start: None)]


def test_a_budget_ends_at_chinese_sentence_ends():
    sentence = "地中有水，师；君子以容民畜众。"
    assert cuts("他说：“" + sentence * 6 + "”完。", 50) == [
        "他说：“" + sentence * 3, sentence * 3 + "”完。",
    ]  # fmt: skip


def test_a_budget_ends_at_english_sentence_ends_not_at_abbreviations_or_decimals():
    text = (
        "The army moves. Mr. Legge puts the share at 3.14 percent, e.g. in Fig. 3, and J. Blofeld agrees. Good fortune."
    )
    assert cuts(text, 100) == [text[:97].strip(), "Good fortune."]
    assert cuts(text, 60) == [
        "The army moves.",
        "Mr. Legge puts the share at 3.14 percent, e.g. in Fig. 3,",
        "and J. Blofeld agrees. Good fortune.",
    ]


def test_list_numbers_are_no_sentence_ends():
    assert cuts("Lines of the hexagram:\n1. six at the beginning\n2. nine in the second place", 52) == [
        "Lines of the hexagram:\n1. six at the beginning", "2. nine in the second place",
    ]  # fmt: skip


def test_text_without_any_end_is_cut_at_the_limit():
    assert [len(piece) for piece in cuts("x" * 250, 100)] == [100, 100, 50]
    assert [len(piece) for piece in cuts("很" * 250, 100)] == [100, 100, 50]


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("师卦第七。", "zh"),
        ("Hexagram 7, 師 (shī), is made of six lines.", "en"),
        ("这是 Python 的 asyncio 模块说明。", "zh"),
        ("", "en"),
    ],
)
def test_language_is_what_dominates(text, language):
    assert language_of(text) == language


def test_the_same_text_gives_the_same_ids():
    assert passages("一。\n\n二。".encode()) == passages("一。\n\n二。".encode(), chunk_bytes=2)
