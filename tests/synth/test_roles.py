"""Names, figures and negations in another place than the passage has them, and the same said in other words."""

import pytest

from textmill.contracts.documents import Language
from textmill_synth.checks import Candidate, Finding
from textmill_synth.negation import negation_changed
from textmill_synth.roles import swapped

LEASE = (
    "The Tenant shall pay the Landlord a rent of EUR 900 and a deposit of EUR 1,800. "
    "Small repairs are borne by the Tenant, larger repairs by the Landlord. Notice by e-mail is not valid."
)
租约 = "甲方向乙方支付租金900元，押金1800元。小修由甲方承担，大修由乙方承担。未经乙方同意，甲方不得转租。"


def candidate(answer: str, language: Language, evidence: str | None = None) -> Candidate:
    passage = LEASE if language == "en" else 租约
    span = (passage.index(evidence), passage.index(evidence) + len(evidence)) if evidence else None
    return Candidate(answer, "?", passage, language, evidence=span)


@pytest.mark.parametrize(
    ("answer", "language"),
    [
        ("The Landlord shall pay the Tenant a rent of EUR 900.", "en"),
        ("The Tenant shall pay the Landlord a rent of EUR 1,800.", "en"),
        ("Larger repairs are borne by the Tenant.", "en"),
        ("Small repairs are borne by the Landlord, larger repairs by the Tenant.", "en"),
        ("乙方向甲方支付租金900元。", "zh"),
        ("甲方向乙方支付租金1800元。", "zh"),
        ("大修由甲方承担。", "zh"),
        ("未经甲方同意，乙方不得转租。", "zh"),
    ],
)
def test_swaps_are_found(answer: str, language: Language) -> None:
    finding = swapped(candidate(answer, language))
    assert isinstance(finding, Finding)
    assert finding.reason == "swapped"


@pytest.mark.parametrize(
    ("answer", "language"),
    [
        ("The Landlord is paid a rent of EUR 900 by the Tenant.", "en"),
        ("The Tenant bears small repairs, and the Landlord larger ones.", "en"),
        ("The deposit is EUR 1,800 and the rent EUR 900.", "en"),
        ("EUR 900.", "en"),
        ("租金900元由甲方支付给乙方。", "zh"),
        ("甲方承担小修，乙方承担大修。", "zh"),
        ("押金是1800元，租金是900元。", "zh"),
    ],
)
def test_the_same_in_other_words_is_no_swap(answer: str, language: Language) -> None:
    assert swapped(candidate(answer, language)) is None


def test_the_evidence_says_which_of_two_like_clauses_is_meant() -> None:
    passage = "Adults take one tablet. After lunch, children take half a tablet, and adults 2 tablets."
    answer = "Adults take 2 tablets."
    span = (0, len("Adults take one tablet."))
    passage = passage.replace("one", "1")
    assert swapped(Candidate(answer, "?", passage, "en", evidence=(0, span[1] - 2))) is not None


def test_a_name_for_the_evidences_pronoun_must_be_the_one_before() -> None:
    passage = "Ann Lee wrote the plan. Bob Hill read it. He raised the limit to 9 rows. Later Cid Moor left."
    start = passage.index("He raised")
    evidence = (start, start + len("He raised the limit to 9 rows."))
    assert swapped(Candidate("Bob Hill raised the limit.", "?", passage, "en", evidence=evidence)) is None
    assert swapped(Candidate("Cid Moor raised the limit.", "?", passage, "en", evidence=evidence)) is not None


@pytest.mark.parametrize(
    ("answer", "language"),
    [
        ("Notice by e-mail is valid.", "en"),
        ("Yes, notice by e-mail is valid.", "en"),
        ("The Tenant shall not pay the Landlord a rent of EUR 900.", "en"),
        ("未经乙方同意，甲方可以转租。", "zh"),
        ("大修不由乙方承担。", "zh"),
    ],
)
def test_changed_negations_are_found(answer: str, language: Language) -> None:
    finding = negation_changed(candidate(answer, language))
    assert finding is not None
    assert finding.reason == "negation"


@pytest.mark.parametrize(
    ("answer", "language"),
    [
        ("No, it isn't valid.", "en"),
        ("Notice by e-mail is invalid.", "en"),
        ("Notice is valid only when it isn't sent by e-mail.", "en"),
        ("No. The Landlord bears larger repairs.", "en"),
        ("不可以，未经乙方同意不得转租。", "zh"),
        ("只有乙方同意，甲方才能转租。", "zh"),
    ],
)
def test_a_negation_that_is_meant_is_no_finding(answer: str, language: Language) -> None:
    assert negation_changed(candidate(answer, language)) is None
