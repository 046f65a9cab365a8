"""Verdicts on made-up figures, shaped like those of the two classic runs (bench/results/verdicts.json)."""

import json
from pathlib import Path
from typing import Any

import pytest

from textmill.contracts.runs import EvalMetrics, StepMetrics
from textmill.contracts.verdict import TrainVerdict
from textmill_trainer.verdict import judge

COUNTS = {"trained": 20, "reworded": 20}
RECORDED = Path(__file__).parents[2] / "bench" / "results" / "verdicts.json"


def at(step: int, train: float, other: float, exact: float, reworded: float | None, **more: Any) -> EvalMetrics:
    return EvalMetrics(
        step=step,
        epoch=step,
        train_loss=train,
        heldout_loss=other,
        exact_recall=exact,
        reworded_recall=reworded,
        **more,
    )


START = at(0, 4.2, 4.3, 0.0, 0.0)


def test_reciting_only_at_the_trained_words_is_memorized() -> None:
    verdict = judge([START, at(10, 0.03, 0.4, 0.9, 0.1), at(50, 0.001, 0.37, 1.0, 0.1)], None, 8, sampled=COUNTS)
    assert verdict.verdict == "memorized"
    assert "20 of 20" in verdict.sentence
    assert "2 of 20" in verdict.sentence
    assert "ways of asking" in verdict.advice[0]


def test_answers_in_any_words_are_good() -> None:
    verdict = judge([START, at(30, 0.2, 0.3, 0.6, 0.6), at(60, 0.02, 0.05, 1.0, 0.95)], None, 160, sampled=COUNTS)
    assert verdict.verdict == "good"
    assert verdict.perplexity_before == pytest.approx(73.7, abs=0.1)
    assert verdict.perplexity_after == pytest.approx(1.051, abs=0.001)


def test_too_little_learnt_is_underfit() -> None:
    assert judge([START, at(5, 2.5, 2.6, 0.0, 0.0)]).verdict == "underfit"


def test_half_of_what_the_trained_words_give_is_overfit() -> None:
    assert judge([START, at(5, 0.2, 0.5, 0.7, 0.4)]).verdict == "overfit"


def test_a_score_past_its_best_is_overfit_and_names_the_step() -> None:
    verdict = judge([START, at(5, 0.2, 0.3, 0.6, 0.6), at(9, 0.1, 0.6, 0.7, 0.65)], 5)
    assert verdict.verdict == "overfit"
    assert "best at step 5 of 9" in verdict.sentence
    assert verdict.kept is not None
    assert verdict.kept.step == 5
    assert any("step 5 of 9 was kept" in warning for warning in verdict.warnings)


def test_documents_never_trained_on_do_not_decide_about_facts() -> None:
    """Their loss rises with every fact that is learnt: 2.1 to 3.7 in the classic run."""
    evals = [
        EvalMetrics(step=s, epoch=s, eval_loss=e, train_loss=t, probe_loss=p, exact_recall=r, reworded_recall=r)
        for s, e, t, p, r in [(0, 3.9, 4.2, 4.2, 0.0), (8, 2.1, 0.9, 1.0, 0.1), (50, 3.7, 0.01, 0.02, 1.0)]
    ]
    assert [e.score for e in evals] == [4.2, 1.0, 0.02]
    assert judge(evals).verdict == "good"


@pytest.mark.parametrize(
    ("losses", "word"), [([3.0, 2.0, 1.5], "good"), ([3.0, 2.0, 2.5], "overfit"), ([3.0, 2.95], "underfit")]
)
def test_raw_text_is_judged_by_documents_never_trained_on(losses: list[float], word: str) -> None:
    evals = [EvalMetrics(step=n, epoch=n, eval_loss=loss, train_loss=1.0) for n, loss in enumerate(losses)]
    assert judge(evals).verdict == word


def test_a_run_without_evaluations_is_undecided() -> None:
    step = StepMetrics(
        step=1, epoch=1, loss=1, learning_rate=1e-3, gradient_norm=1, tokens=1, tokens_per_s=1, seconds=1
    )
    assert judge([step]).verdict == "undecided"
    assert judge([START, step]).verdict == "undecided"


def test_forgetting_over_budget_is_warned_of_in_words_and_in_the_note() -> None:
    over = at(9, 0.02, 0.05, 1.0, 1.0, kl_to_base=0.8, forgetting_budget=0.5)
    verdict = judge([START, over])
    assert verdict.note.forgets
    assert "0.80 nats" in verdict.warnings[0]
    assert "replay_share" in verdict.warnings[0]
    assert not judge([START, over.model_copy(update={"kl_to_base": 0.4})]).warnings


def test_documents_come_with_their_rise_and_gap_worst_first() -> None:
    start = START.model_copy(update={"loss_by_document": {"doc_a": 3.0, "doc_b": 3.0}})
    last = at(9, 0.5, 0.6, 1.0, 1.0, loss_by_document={"doc_a": 2.0, "doc_b": 4.0})
    worst, other = judge([start, last]).documents
    assert (worst.document_id, worst.rise, worst.gap) == ("doc_b", 1.0, 3.5)
    assert other.rise == -1.0


def test_the_recorded_classic_runs_are_judged_right_from_their_figures() -> None:
    """The figures of the real runs, judged anew by the rules as they are now."""
    for run in json.loads(RECORDED.read_text())["runs"]:
        right = run["right"]
        recorded = TrainVerdict.model_validate({k: v for k, v in run.items() if k in TrainVerdict.model_fields})
        evals = [e for e in (recorded.start, recorded.last) if e is not None]
        assert judge(evals, None, recorded.records, sampled=recorded.sampled).verdict in right
