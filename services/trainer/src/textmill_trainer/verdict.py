"""Judges a run by its evaluations: underfit, good, overfit, memorized, or undecided. No torch; measures nothing.

The measure is what the owner wants: the trained facts, asked for in other words. Documents never trained on don't
decide where training teaches facts: their facts are not in the training data, so their loss rises with every fact that
is learnt. They decide for raw text and preference pairs, which have no questions to put in other words.
"""

import math
from collections.abc import Sequence

from textmill.contracts.runs import EvalMetrics, StepMetrics, VerdictWord
from textmill.contracts.verdict import DocumentGap, TrainVerdict, Wordings

KNOWN = 0.8
"""Share of training answers recited in the trained wording from which a text counts as known by heart."""
HALF_KNOWN = 0.5
MEMORIZED_RATIO = 0.6
"""Recall in other words over recall in the trained ones; bench/results/verdicts.json has both classic runs."""
OVERFIT_RATIO = 0.8
UNLEARNT_SHARE = 1 / 3
"""Of the loss that the base starts from: what is left of it when answers are half known, measured on the demo."""
ROSE_SHARE = 0.1
"""A score so far above its best is worse, and not only noise of a small sample; so is one that fell by less."""
ROSE_NATS = 0.02

Judged = tuple[VerdictWord, str, tuple[str, ...]]
_MORE_WAYS = "Add ways of asking: the same answer behind 8 to 20 differently worded questions."
_FEWER_EPOCHS = "Or train for fewer epochs; keep: best publishes the best checkpoint."


def judge(
    metrics: Sequence[StepMetrics | EvalMetrics],
    kept_step: int | None = None,
    records: int = 0,
    replayed: int = 0,
    sampled: dict[str, int] | None = None,
) -> TrainVerdict:
    """``kept_step`` is the step whose weights were published, None for the last."""
    evals = [m for m in metrics if isinstance(m, EvalMetrics)]
    steps = [m for m in metrics if isinstance(m, StepMetrics)]
    counts = sampled or {}
    if not evals or evals[-1].step == 0:
        return TrainVerdict(
            verdict="undecided", sentence="The run was not evaluated, so nothing can be said about what it learnt.",
            advice=("Set evaluations to 1 or more.",), records=records, replayed=replayed,
        )  # fmt: skip
    start, last = evals[0] if evals[0].step == 0 else None, evals[-1]
    kept = next((e for e in evals if e.step == kept_step), last)
    word, sentence, advice = _judge_facts(evals, start, counts) if last.exact_recall is not None else _judge_loss(evals)
    return TrainVerdict(
        verdict=word,
        sentence=sentence,
        advice=advice,
        warnings=_warnings(last, kept),
        wordings=wordings_of(last),
        start=start,
        last=last,
        kept=kept,
        perplexity_before=_perplexity(start),
        perplexity_after=_perplexity(kept),
        documents=_documents(start, kept),
        sampled=counts,
        records=records,
        replayed=replayed,
        evaluating_seconds=sum(e.seconds for e in evals),
        training_seconds=sum(s.seconds for s in steps),
    )


def wordings_of(metrics: EvalMetrics) -> Wordings | None:
    if metrics.reworded_loss is None:
        return None
    return "heldout" if metrics.heldout_loss is not None else "template"


# -- answers to questions ----------------------------------------------------------------------------------------------


def _judge_facts(evals: Sequence[EvalMetrics], start: EvalMetrics | None, counts: dict[str, int]) -> Judged:
    last = evals[-1]
    exact, reworded = last.exact_recall or 0.0, last.reworded_recall
    asked = f"{_of(exact, counts.get('trained'))} sampled training answers word for word, asked as in training"
    if reworded is None:
        return (
            "undecided",
            f"The model gives {asked}; it could not be asked in other words, since no record is one question with one "
            f"answer.",
            ("Give the dataset held-out wordings.",),
        )
    other = f"{_of(reworded, counts.get('reworded'))} asked in other words"
    if exact >= KNOWN and reworded <= MEMORIZED_RATIO * exact:
        sentence = f"The model recites {asked}, but {other}: it has learnt the sentences, not the facts."
        return "memorized", sentence, (_MORE_WAYS, _FEWER_EPOCHS)
    if start is not None and exact < HALF_KNOWN and _left(last.train_loss, start.train_loss) > UNLEARNT_SHARE:
        sentence = f"The model gives {asked}, and {other}: it has not learnt its records yet."
        return "underfit", sentence, (
            "Train for more epochs, or raise learning_rate.",
            "Where an answer has no single right wording, look at base and tuned side by side instead.",
        )  # fmt: skip
    if exact >= HALF_KNOWN and reworded <= OVERFIT_RATIO * exact:
        sentence = f"The model gives {asked}, but {other}: it depends on the wording it was trained on."
        return "overfit", sentence, (_MORE_WAYS, _FEWER_EPOCHS)
    best = min(evals, key=lambda e: e.score)
    if _rose(last.score, best.score):
        return "overfit", _past_best(best, last), (_FEWER_EPOCHS, _MORE_WAYS)
    return "good", f"{_as_well(last)} It gives {asked}, and {other}.", _not_exact(exact)


def _as_well(last: EvalMetrics) -> str:
    if last.exact_accuracy is None or last.reworded_accuracy is None:
        return "The model knows its facts in other words as well as in the trained ones."
    return (
        f"Asked in other words the model has {last.reworded_accuracy:.0%} of the tokens of its answers right, and "
        f"{last.exact_accuracy:.0%} asked as in training: it doesn't depend on the wording."
    )


def _not_exact(exact: float) -> tuple[str, ...]:
    if exact >= HALF_KNOWN:
        return ()
    return ("Most answers still differ from the trained ones in a word or a number: where that matters, train longer.",)


# -- raw text and preference pairs -------------------------------------------------------------------------------------


def _judge_loss(evals: Sequence[EvalMetrics]) -> Judged:
    first, last, best = evals[0], evals[-1], min(evals, key=lambda e: e.score)
    if last.eval_loss is None:
        return "undecided", "There is nothing that was not trained on to measure by.", ("Set eval_share above 0.",)
    if _rose(last.score, best.score):
        return "overfit", _past_best(best, last), (_FEWER_EPOCHS, "Or train on more text.")
    if not _rose(first.score, last.score):
        sentence = f"The loss on what was not trained on fell only from {first.score:.3f} to {last.score:.3f}."
        return "underfit", sentence, ("Train for longer, or raise learning_rate.",)
    return "good", f"The loss on what was not trained on fell from {first.score:.3f} to {last.score:.3f}.", ()


# -- figures -----------------------------------------------------------------------------------------------------------


def _warnings(last: EvalMetrics, kept: EvalMetrics) -> list[str]:
    warnings = []
    if kept.step != last.step:
        warnings.append(
            f"The model of step {kept.step} of {last.step} was kept, whose score was better: {kept.score:.3f} against "
            f"{last.score:.3f} nats a token at the end."
        )
    if kept.forgets:
        warnings.append(
            f"On general prompts the model is {kept.kl_to_base:.2f} nats a token away from its base, over the budget "
            f"of {kept.forgetting_budget:g}: it is losing general abilities. Raise replay_share (try 0.2), lower "
            f"learning_rate, or train for fewer epochs."
        )
    return warnings


def _documents(start: EvalMetrics | None, kept: EvalMetrics) -> list[DocumentGap]:
    """Those never trained on, furthest from the trained records first."""
    before = start.loss_by_document if start else {}
    gaps = [
        DocumentGap(
            document_id=document_id,
            loss=loss,
            rise=loss - before[document_id] if document_id in before else None,
            gap=loss - kept.train_loss if kept.train_loss is not None else None,
        )
        for document_id, loss in kept.loss_by_document.items()
    ]
    return sorted(gaps, key=lambda g: -g.loss)


def _perplexity(metrics: EvalMetrics | None) -> float | None:
    if metrics is None:
        return None
    loss = metrics.reworded_loss if metrics.reworded_loss is not None else metrics.eval_loss
    return math.exp(min(loss, 700.0)) if loss is not None else None


def _past_best(best: EvalMetrics, last: EvalMetrics) -> str:
    return (
        f"The model was best at step {best.step} of {last.step}: what it was not trained on had a loss of "
        f"{best.score:.3f} there, and {last.score:.3f} at the end, while the training loss went on falling."
    )


def _rose(score: float, best: float) -> bool:
    return score > best * (1 + ROSE_SHARE) and score > best + ROSE_NATS


def _left(loss: float | None, start: float | None) -> float:
    return loss / start if loss is not None and start else 0.0


def _of(share: float, count: int | None) -> str:
    return f"{round(share * count)} of {count}" if count else f"{share:.0%}"
