"""Judging a stage: point estimates, thin samples, failures, what wasn't measured."""

import pytest
from made_up import measured

from textmill.contracts.slo import Limit, Slo
from textmill_inference.loadtest.slo import judge

TTFT = Slo(limits=(Limit(measure="ttft", percent=99, ms=500),))


def test_a_stage_within_its_limits():
    found = judge(TTFT, measured(ttft_ms=[100] * 695 + [900] * 5))
    assert (found.met, found.evidence, found.why) == (True, True, "all limits are met")
    assert found.limits[0].share == pytest.approx(5 / 700)
    assert found.limits[0].low < 5 / 700 < found.limits[0].high
    assert found.goodput_low == found.goodput_high == pytest.approx(695 / 700)


def test_a_stage_beyond_its_limit_says_which():
    found = judge(TTFT, measured(ttft_ms=[100] * 600 + [900] * 100))
    assert (found.met, found.evidence) == (False, True)
    assert found.why == "ttft p99 500 ms: 14.29% took longer, 1.00% are allowed"


def test_failed_requests_break_every_limit_and_the_error_share():
    found = judge(TTFT, measured(failed=70))
    assert found.met is False
    assert found.limits[0].share == pytest.approx(70 / 770)
    assert "9.09% of the requests failed, 1.00% are allowed" in found.why
    assert judge(TTFT, measured(ttft_ms=(), itl_ms=(), failed=5)).met is False


def test_an_invalid_stage_says_nothing():
    found = judge(TTFT, measured(ttft_ms=[9000] * 700, valid=False))
    assert found.met is None
    assert found.why.startswith("invalid: requests were sent up to 90 ms late")
    assert judge(TTFT, measured(ttft_ms=(), itl_ms=())).met is None


def test_too_few_samples_are_no_evidence_unless_the_miss_is_plain():
    found = judge(TTFT, measured(ttft_ms=[100] * 100))
    assert (found.met, found.evidence) == (True, False)
    assert "100 samples are too few for p99, which takes 662" in found.why
    assert judge(TTFT, measured(ttft_ms=[100] * 98 + [900] * 2)).evidence is False
    assert judge(TTFT, measured(ttft_ms=[900] * 100)).evidence is True


def test_what_was_not_measured_is_neither_met_nor_proof():
    found = judge(Slo(limits=(Limit(measure="inter_token", ms=50),)), measured(itl_ms=()))
    assert (found.met, found.evidence) == (False, False)
    assert "inter_token was not measured" in found.why


def test_goodput_has_bounds_where_histograms_cannot_tell_who_was_slow():
    slo = Slo(
        limits=(Limit(measure="ttft", percent=90, ms=500), Limit(measure="e2e", percent=90, ms=1000)), goodput_share=0.9
    )
    found = judge(slo, measured(ttft_ms=[100] * 650 + [2000] * 50))
    assert found.goodput_low == pytest.approx(600 / 700)
    assert found.goodput_high == pytest.approx(650 / 700)
    assert found.goodput_met is False
    assert "fewer than 90.00%" in found.why


@pytest.mark.parametrize(
    ("text", "measure", "percent", "ms"),
    [
        ("ttft p99 500", "ttft", 99, 500), ("e2e p95 < 10s", "e2e", 95, 10_000),
        ("itl:p99:200ms", "inter_token", 99, 200), ("tpot p99.9 <= 80 ms", "per_token", 99.9, 80),
    ],
)  # fmt: skip
def test_limits_in_words(text, measure, percent, ms):
    assert Limit.parse(text) == Limit(measure=measure, percent=percent, ms=ms)


@pytest.mark.parametrize("text", ["", "ttft", "ttft p99", "speed p99 5", "ttft p99 -5", "ttft p100 5"])
def test_what_is_no_limit_is_refused(text):
    with pytest.raises(ValueError, match=r"is no limit|less than 100"):
        Limit.parse(text)
