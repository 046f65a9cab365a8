"""Quotations are found where they stand, however the LLM wrote their marks, and nowhere else."""

import pytest

from textmill_synth.evidence import evidence_missing, locate_evidence


@pytest.mark.parametrize(
    ("quote", "passage", "found"),
    [
        ("Only line 2 is solid.", "It rains. Only line 2 is solid.", "Only line 2 is solid."),
        ("  only LINE 2 is solid ", "It rains. Only line 2\nis solid.", "Only line 2\nis solid"),
        ("he said 'go'", "Then he said “go” and left.", "he said “go"),
        ("30-40 km", "About 30–40 km away.", "30–40 km"),
        ("下卦为坎,上卦为坤", "师卦：下卦为坎，\n上卦为坤。", "下卦为坎，\n上卦为坤"),
        ("「军队」与民众", "卦名是“军队”与民众。", "军队”与民众"),
        ("重２０公斤", "此物重20 公斤。", "重20 公斤"),
        ("café noir", "one cafe\u0301 noir, please", "cafe\u0301 noir"),
        ("soft\u00adware", "new software here", "software"),
        ("2 is", "12 is more than 2 is.", "2 is"),
    ],
)
def test_a_quotation_is_found_with_its_exact_span(quote: str, passage: str, found: str) -> None:
    span = locate_evidence(quote, passage)
    assert span is not None
    assert passage[slice(*span)] == found


@pytest.mark.parametrize(
    ("quote", "passage"),
    [
        ("", "Some text."),
        ("...", "Some text..."),
        ("“”", "“Some” text."),
        ("he art", "the art of it"),
        ("line 2", "line 21"),
        ("Only line 3 is solid.", "Only line 2 is solid."),
        ("Only ... solid.", "Only line 2 is solid."),
        ("上卦为坎", "下卦为坎，上卦为坤。"),
    ],
)
def test_what_is_no_quotation_is_not_found(quote: str, passage: str) -> None:
    assert locate_evidence(quote, passage) is None


def test_the_finding_names_the_quotation() -> None:
    finding = evidence_missing("it never rains")
    assert finding.reason == "evidence_not_in_passage"
    assert "it never rains" in finding.detail
