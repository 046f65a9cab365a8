"""Evaluations measure what they say, leave the model as it was, and see a text that is known by heart."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.trainer.conftest import make_record, make_records
from torch.nn.functional import cross_entropy

from textmill_trainer.evaluator import Evaluator, evenly_taken, objective_evaluator, recite, supervised_evaluator
from textmill_trainer.forgetting import Forgetting, answer
from textmill_trainer.model import LoraSettings, add_lora, load_full, load_nf4
from textmill_trainer.prepare import Example, encode_all
from textmill_trainer.supervised import Supervised, mean_loss

CPU = torch.device("cpu")
TITLES = ("Qian", "Kun", "Zhun", "Meng")
TRAIN = [make_record(t, f"{t} is hexagram number {n}.", question_id=t) for n, t in enumerate(TITLES)]


@pytest.fixture
def whole(tiny_base: Path) -> Any:
    return load_full(tiny_base, CPU)


def trained(model: Any, examples: list[Example], steps: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(steps):
        Supervised().losses(model, examples, CPU).losses_R.sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_losses_are_those_of_one_record_alone(whole: Any, tokenizer: Any) -> None:
    examples = encode_all(make_records(9), tokenizer, 100)
    with torch.no_grad():
        measured = recite(whole, examples)
        for example, found in zip(examples, measured, strict=True):
            logits = whole(torch.tensor([example.token_ids])).logits[0, :-1]
            at = torch.tensor(example.supervised[1:])
            targets = torch.tensor(example.token_ids[1:])[at]
            loss = cross_entropy(logits[at], targets, reduction="sum").item()
            assert found.loss == pytest.approx(loss, rel=1e-5)
            assert found.weight == len(targets)


def test_what_is_known_by_heart_is_recited_as_greedy_decoding_does(whole: Any, tokenizer: Any) -> None:
    examples = encode_all(TRAIN, tokenizer, 100)
    evaluate = supervised_evaluator(whole, tokenizer, (TRAIN, [], []), 100)
    before = evaluate(0, 0.0)
    trained(whole, examples, 100)
    after = evaluate(100, 100.0)
    assert (before.exact_recall, after.exact_recall) == (0.0, 1.0)
    assert after.train_loss is not None
    assert after.train_loss < 0.1
    assert after.reworded_recall is not None
    assert after.reworded_recall < 1.0
    for example in examples:
        start = example.supervised.index(True)
        asked = torch.tensor([example.token_ids[:start]])
        length = sum(example.supervised)
        said = whole.generate(asked, max_new_tokens=length, do_sample=False, eos_token_id=None, pad_token_id=0)
        assert tuple(said[0, start:].tolist()) == example.token_ids[start : start + length]


def test_one_wrong_token_is_no_recital(whole: Any, tokenizer: Any) -> None:
    examples = encode_all(TRAIN[:1], tokenizer, 100)
    trained(whole, examples, 30)
    ids = list(examples[0].token_ids)
    ids[examples[0].supervised.index(True) + 2] += 1
    changed = Example("rec", "doc", tuple(ids), examples[0].supervised)
    with torch.no_grad():
        assert [m.recited for m in recite(whole, [examples[0], changed])] == [True, False]


def test_the_score_is_of_heldout_wordings_where_there_are_some(whole: Any, tokenizer: Any) -> None:
    evaluation = [make_record("Bi", "Bi is hexagram number 8.", "eval", document_id="doc_b")]
    heldout = [
        make_record(f"And {t}?", f"{t} is hexagram number {n}.", "heldout", question_id=t) for n, t in enumerate(TITLES)
    ]
    found = supervised_evaluator(whole, tokenizer, (TRAIN, evaluation, heldout), 100)(0, 0.0)
    assert found.score == found.heldout_loss
    assert found.score == pytest.approx(mean_loss(whole, encode_all(heldout, tokenizer, 100), 999, CPU), rel=1e-5)
    assert found.probe_loss is None
    assert found.loss_by_document == {"doc_b": found.eval_loss}
    without = supervised_evaluator(whole, tokenizer, (TRAIN, evaluation, []), 100)(0, 0.0)
    assert without.score == without.probe_loss != found.heldout_loss


def test_evaluating_changes_nothing_that_training_depends_on(tiny_base: Path, tokenizer: Any) -> None:
    """Random state, mode, gradients to come, weights: a run with more evaluations is the same run."""
    model = add_lora(load_nf4(tiny_base, CPU), LoraSettings(4, 8, dropout=0.5), seed=1)
    core: Any = model.get_base_model()
    general = answer(model, tokenizer, ["What is the capital of France?"], 4)
    evaluate = supervised_evaluator(core, tokenizer, (TRAIN, [], []), 100, Forgetting(model, general, 0.5))
    model.train()
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    asked = [name for name, p in model.named_parameters() if p.requires_grad]
    state = torch.get_rng_state()
    assert evaluate(0, 0.0).train_loss == evaluate(1, 0.0).train_loss, "dropout was on"
    assert torch.equal(state, torch.get_rng_state())
    assert core.training
    assert [name for name, p in model.named_parameters() if p.requires_grad] == asked
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())


def test_a_question_that_gets_too_long_in_other_words_is_left_out(whole: Any, tokenizer: Any) -> None:
    longest = max(len(e.token_ids) for e in encode_all(TRAIN, tokenizer, 100))
    evaluate = supervised_evaluator(whole, tokenizer, (TRAIN, [], []), longest)
    assert evaluate.sampled["trained"] == 4
    assert evaluate.sampled["reworded"] == 0
    assert evaluate(0, 0.0).reworded_recall is None


def test_any_objective_is_measured_by_its_own_loss(whole: Any, tokenizer: Any) -> None:
    examples = encode_all(make_records(10), tokenizer, 100)
    evaluate: Evaluator[Example] = objective_evaluator(
        whole, Supervised(), examples[:6], examples[6:], lambda e: e.document_id, 50
    )
    found = evaluate(3, 1.5)
    assert found.eval_loss == pytest.approx(mean_loss(whole, examples[6:], 999, CPU), rel=1e-5)
    assert found.train_loss == pytest.approx(mean_loss(whole, examples[:6], 999, CPU), rel=1e-5)
    assert (found.score, found.exact_recall, found.kl_to_base) == (found.eval_loss, None, None)


def test_examples_are_taken_at_even_distances() -> None:
    assert evenly_taken(range(10), 5) == [0, 2, 4, 6, 8]
    assert evenly_taken(range(3), 5) == [0, 1, 2]
