"""The code checks on the planted defects: nearly all rejected, for a reason that fits; nearly no good answer lost."""

from collections import Counter

import pytest
from planted import LANGUAGES, REASONS, Planted, defects, good, instructions, judge, rightly_judged

MIN_DEFECTS_REJECTED = 0.98
MAX_GOOD_REJECTED = 0.03
LEAST_OF_A_KIND = 12


def table(records: list[Planted], right: Counter[tuple[str, str]]) -> str:
    """How many of each kind and part of the set were judged rightly."""
    counts = Counter((record.kind, record.part) for record in records)
    rows = (f"{kind:<18}{part:<10}{right[kind, part]:>4} of {n:>4}" for (kind, part), n in sorted(counts.items()))
    return "\n".join(rows)


def judged(records: list[Planted]) -> tuple[float, str, list[str]]:
    """The share judged rightly, the table, and the ids of the rest."""
    prompts = {language: instructions(language) for language in LANGUAGES}
    right: Counter[tuple[str, str]] = Counter()
    wrong = []
    for record in records:
        if rightly_judged(record, judge(record, prompts[record.language])):
            right[record.kind, record.part] += 1
        else:
            wrong.append(record.id)
    return 1 - len(wrong) / len(records), table(records, right), wrong


def test_the_set_is_large_and_whole() -> None:
    for language in LANGUAGES:
        kinds = Counter(record.kind for record in defects(language))
        assert kinds.keys() == REASONS.keys()
        assert min(kinds.values()) >= LEAST_OF_A_KIND, kinds
        assert len(good(language)) >= 150
    every = [record for language in LANGUAGES for record in (*good(language), *defects(language))]
    assert len({record.id for record in every}) == len(every)
    assert sum(record.kind != "good" for record in every) >= 300


def test_defects_are_rejected_for_a_reason_that_fits() -> None:
    share, figures, wrong = judged([record for language in LANGUAGES for record in defects(language)])
    print(figures)
    assert share >= MIN_DEFECTS_REJECTED, f"{share:.1%} rejected rightly; not so: {wrong}\n{figures}"


def test_good_answers_pass() -> None:
    share, figures, wrong = judged([record for language in LANGUAGES for record in good(language)])
    print(figures)
    assert 1 - share <= MAX_GOOD_REJECTED, f"{1 - share:.1%} rejected: {wrong}\n{figures}"


@pytest.mark.parametrize("kind", sorted(REASONS))
def test_no_kind_of_defect_slips_through(kind: str) -> None:
    records = [record for language in LANGUAGES for record in defects(language) if record.kind == kind]
    share, figures, wrong = judged(records)
    assert share >= 0.9, f"{share:.1%} of {kind} rejected rightly; not so: {wrong}\n{figures}"
