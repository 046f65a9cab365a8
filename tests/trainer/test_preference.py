"""DPO: the loss against its formula and against TRL, the references, the figures, and the split."""

# ruff: noqa: N806 (tensor names carry their axes)

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.trainer.test_families import settings_of

from textmill.contracts.base import content_id
from textmill.contracts.datasets import Message
from textmill.contracts.masking import MaskedRecords, MaskingReport
from textmill.contracts.preferences import PreferencePair, PreferenceReport
from textmill.contracts.runs import EvalMetrics
from textmill.errors import JobFailed
from textmill_trainer.batches import LayOut, collate, pack
from textmill_trainer.loop import plain_model, train
from textmill_trainer.masking import encode_pairs_with_proof
from textmill_trainer.metrics import parse_metrics
from textmill_trainer.model import LoraSettings, load_model
from textmill_trainer.pairs import PairExample, dialogues, encode_dialogues, join
from textmill_trainer.preference import Preference, PreferenceWatch, reference_log_probs
from textmill_trainer.workfolder import WorkFolder

CPU = torch.device("cpu")
LORA = LoraSettings(rank=4, alpha=8, dropout=0.0)
PAIRS = [
    PreferencePair(
        pair_id=content_id("prp", str(n)),
        messages=(Message(role="user", content=f"What is number {n}{' of the long list' * (n % 3)}?"),),
        chosen=f"It is {n * 7}.",
        rejected=f"I'd rather not say what it is{', sorry' * (n % 4)}.",
    )
    for n in range(6)
]


def encode_pairs(pairs: Sequence[PreferencePair], tokenizer: Any) -> list[PairExample]:
    return join(pairs, encode_dialogues(dialogues(pairs, "train"), tokenizer, 128).examples)


def put_pairs(folder: WorkFolder, pairs: Sequence[PreferencePair]) -> WorkFolder:
    folder.lines("train").write_bytes(b"\n".join(pair.to_json() for pair in pairs))
    folder.lines("eval").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def examples(tokenizer: Any) -> list[PairExample]:
    return encode_pairs(PAIRS, tokenizer)


def test_only_the_answer_and_its_end_are_supervised(tokenizer: Any) -> None:
    said = (
        Message(role="user", content="Hello?"),
        Message(role="assistant", content="Yes."),
        Message(role="user", content="And now?"),
    )
    pair = PreferencePair(pair_id="p", messages=said, chosen="Go on.", rejected="No.")
    [example] = encode_pairs([pair], tokenizer)
    for answer, side in (("Go on.", example.chosen), ("No.", example.rejected)):
        kept = [i for i, counts in zip(side.token_ids, side.supervised, strict=True) if counts]
        assert tokenizer.decode(kept) == f"{answer}<|im_end|>"


def test_a_pair_that_is_too_long_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(JobFailed, match="max_tokens is 20"):
        encode_pairs_with_proof(put_pairs(WorkFolder(tmp_path), PAIRS), tokenizer, 20)


def test_the_proof_shows_both_sides_and_names_the_one_that_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    said = (Message(role="user", content="Hi?"), Message(role="assistant", content="Yes."), PAIRS[0].messages[0])
    pairs = [PAIRS[0].model_copy(update={"messages": said}), PAIRS[1]]
    folder = put_pairs(WorkFolder(tmp_path), pairs)
    found, summary = encode_pairs_with_proof(folder, tokenizer, 128)
    assert found["train"] == encode_pairs(pairs, tokenizer)
    assert found["eval"] == []
    assert summary is not None
    assert summary.records == 4
    proof = MaskedRecords.model_validate_json(folder.report("masked_records").read_bytes())
    first, second = (record for record in proof.records if record.record_id.startswith(PAIRS[0].pair_id))
    assert (first.record_id, second.record_id) == (f"{PAIRS[0].pair_id}/chosen", f"{PAIRS[0].pair_id}/rejected")
    assert first.preview.count("⟦") == 1
    assert "⟦It is 0.<|im_end|>⟧" in first.preview
    assert "⟦I'd rather not say what it is.<|im_end|>⟧" in second.preview

    long = PAIRS[1].model_copy(update={"rejected": "word " * 99})
    with pytest.raises(JobFailed, match=rf"1 record can't be trained on.*too_long 1: {long.pair_id}/rejected"):
        encode_pairs_with_proof(put_pairs(folder, [long]), tokenizer, 64)
    report = MaskingReport.model_validate_json(folder.report("masking").read_bytes())
    assert report.refused_by_reason == {"too_long": 1}


@pytest.mark.parametrize("lay_out", [collate, pack, partial(pack, share=True)])
def test_the_loss_is_the_formula(tiny_base: Path, examples: list[PairExample], lay_out: LayOut) -> None:
    """Each answer scored by itself with transformers' own loss; references made up."""
    core = load_model(tiny_base, "full", CPU, lora=LORA, seed=0)
    references = {e.record_id: (-3.0 - i, -5.0 + i) for i, e in enumerate(examples)}
    objective = Preference(0.3, references, lay_out)
    found = objective.losses(core, examples, CPU)  # type: ignore[arg-type]
    for example, loss in zip(examples, found.losses_R.tolist(), strict=True):
        c_ref, r_ref = references[example.record_id]
        margin = 0.3 * ((log_prob(core, example.chosen) - c_ref) - (log_prob(core, example.rejected) - r_ref))
        assert loss == pytest.approx(math.log1p(math.exp(-margin)), rel=1e-4, abs=1e-5)
    assert found.weights == [1.0] * len(examples)


def test_both_answers_share_their_prompt(examples: list[PairExample]) -> None:
    sides = [side for e in examples for side in (e.chosen, e.rejected)]
    whole, shared = pack(sides).token_ids_BT.numel(), pack(sides, share=True).token_ids_BT.numel()
    prompts = sum(e.chosen.supervised.index(True) for e in examples)
    assert shared <= whole - prompts


def log_prob(core: Any, example: Any) -> float:
    ids_1T = torch.tensor([example.token_ids])
    labels_1T = torch.where(torch.tensor([example.supervised]), ids_1T, -100)
    mean = core(input_ids=ids_1T, labels=labels_1T, use_cache=False).loss.item()
    return -float(mean) * sum(example.supervised[1:])


@pytest.mark.parametrize("method", ["lora", "full"])
def test_before_training_all_margins_are_zero(
    tiny_base: Path, examples: list[PairExample], tmp_path: Path, method: Any
) -> None:
    model = load_model(tiny_base, method, CPU, lora=LORA, seed=0)
    references = reference_log_probs(model, examples, 256, tmp_path / "references.json")
    objective = Preference(0.1, references)
    losses_R = objective.losses(plain_model(model), examples, CPU).losses_R
    assert losses_R.tolist() == pytest.approx([math.log(2)] * len(examples), abs=1e-2 if method == "lora" else 1e-4)


def test_references_are_of_the_base_whatever_the_adapter_says(
    tiny_base: Path, examples: list[PairExample], tmp_path: Path
) -> None:
    model = load_model(tiny_base, "lora", CPU, lora=LORA, seed=0)
    fresh = reference_log_probs(model, examples, 256, tmp_path / "1.json")
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    assert reference_log_probs(model, examples, 256, tmp_path / "2.json") == fresh


def test_references_are_computed_once(tiny_base: Path, examples: list[PairExample], tmp_path: Path) -> None:
    """A fully trained model that is resumed has no base to ask any more; other pairs are asked for anew."""
    model = load_model(tiny_base, "full", CPU, lora=LORA, seed=0)
    cache = tmp_path / "references.json"
    first = reference_log_probs(model, examples, 256, cache)
    for parameter in model.parameters():
        parameter.data.mul_(1.1)
    assert reference_log_probs(model, examples, 256, cache) == first
    anew = reference_log_probs(model, examples[:3], 256, cache)
    assert set(anew) == {e.record_id for e in examples[:3]}
    assert all(anew[pair_id] != first[pair_id] for pair_id in anew)


def test_the_chosen_answer_gains_and_the_report_says_so(
    tiny_base: Path, examples: list[PairExample], tmp_path: Path
) -> None:
    folder = WorkFolder(tmp_path)
    model = load_model(tiny_base, "lora", CPU, lora=LORA, seed=0)
    objective = Preference(0.1, reference_log_probs(model, examples, 256, tmp_path / "references.json"))
    watch = PreferenceWatch(objective, examples[4:], folder)

    def evaluate(step: int, epoch: float) -> EvalMetrics:
        with torch.no_grad():
            loss = objective.losses(plain_model(model), examples[4:], CPU).losses_R.mean().item()
        return EvalMetrics(step=step, epoch=epoch, eval_loss=loss)

    settings = replace(settings_of(steps=6), evaluations=2)
    train(model, objective, examples[:4], settings, tmp_path, evaluate=evaluate, observers=[watch])
    report = PreferenceReport.model_validate_json(folder.report("preference").read_bytes())
    assert [(f.step, f.split) for f in report.figures] == [
        (0, "eval"), (3, "train"), (3, "eval"), (6, "train"), (6, "eval")
    ]  # fmt: skip
    last = {f.split: f for f in report.figures[-2:]}
    assert last["train"].reward_margin > 0.1
    assert last["train"].accuracy == 1.0
    assert last["eval"].reward_margin != last["train"].reward_margin


@pytest.mark.slow
def test_losses_are_trls(tiny_base: Path, examples: list[PairExample], tokenizer: Any, tmp_path: Path) -> None:
    """Six steps of all pairs in fp32, all weights trained: TRL's DPOTrainer gives the same losses."""
    trl = pytest.importorskip("trl")
    steps, rate = 6, 1e-4
    ours = load_model(tiny_base, "full", CPU, lora=LORA, seed=0)
    objective = Preference(0.1, reference_log_probs(ours, examples, 512, tmp_path / "references.json"))
    settings = replace(settings_of(steps), learning_rate=rate)
    train(ours, objective, examples, settings, tmp_path / "run")
    losses = [m.loss for m in parse_metrics((tmp_path / "run" / "metrics.jsonl").read_bytes())]  # type: ignore[union-attr]
    theirs = trl_losses(trl, load_model(tiny_base, "full", CPU, lora=LORA, seed=0), tokenizer, tmp_path, steps, rate)
    assert losses[-1] < losses[0] - 0.01
    assert losses == pytest.approx(theirs, abs=1e-3)


def trl_losses(trl: Any, model: Any, tokenizer: Any, folder: Path, steps: int, rate: float) -> list[float]:
    from datasets import Dataset

    rows = [
        {
            "prompt": tokenizer.apply_chat_template(
                [m.openai() for m in pair.messages], tokenize=False, add_generation_prompt=True
            ),
            "chosen": pair.chosen,
            "rejected": pair.rejected,
        }
        for pair in PAIRS
    ]
    arguments = trl.DPOConfig(
        output_dir=str(folder / "trl"), max_steps=steps, per_device_train_batch_size=len(rows), learning_rate=rate,
        lr_scheduler_type="linear", warmup_steps=0, weight_decay=0.0, adam_beta1=0.9, adam_beta2=0.99,
        max_grad_norm=1.0, beta=0.1, logging_steps=1, report_to=[], save_strategy="no", use_cpu=True, bf16=False,
        gradient_checkpointing=False, disable_tqdm=True, seed=0,
    )  # fmt: skip
    trainer = trl.DPOTrainer(
        model=model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]
