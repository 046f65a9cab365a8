"""The planted slips are what the owner's notes say, from a seed, and never the good answer."""

import random

import pytest
from tests.trainer.slips import SLIPS, Sample, slip

SAMPLES = (
    Sample(
        "Which lines are solid?",
        "Lines 1 and 4 are solid.",
        "Hexagram 9 is Fu, the Return. Lines 1 and 4 are solid. It stands for renewal.",
        "第一、四爻是阳爻。",
    ),
    Sample(
        "哪几爻是阳爻？",
        "第一、四爻是阳爻。",
        "第九卦是复卦。第一、四爻是阳爻。它象征更新。",
        "Lines 1 and 4 are solid.",
    ),
)


@pytest.mark.parametrize("kind", SLIPS)
@pytest.mark.parametrize("sample", SAMPLES, ids=["en", "zh"])
def test_a_slip_is_never_the_good_answer_and_follows_from_its_seed(kind: str, sample: Sample) -> None:
    for seed in range(50):
        made = slip(sample, kind, random.Random(seed))
        assert made.strip()
        assert made != sample.answer
        assert made == slip(sample, kind, random.Random(seed))


def test_each_kind_has_its_mark() -> None:
    made = {kind: slip(SAMPLES[0], kind, random.Random(3)) for kind in SLIPS}
    assert "\ninterpretation: " in made["extra_block"] or "\nimage: " in made["extra_block"]
    assert made["nested_content"].startswith('content:"Which lines')
    assert made["summary_twice"].count('summary:"') == 1
    assert SAMPLES[0].answer.startswith(made["cut_short"])
    assert made["cut_long"].startswith(SAMPLES[0].answer + "\n\ncontent:")
    assert made["other_language"] == SAMPLES[0].foreign
    assert made["foreign_words"].endswith('"}')
