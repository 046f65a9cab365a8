"""Our loop beside TRL's SFTTrainer: the same data, order, start and schedule must give the same loss at every step."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tests.trainer import chat_templates
from tests.trainer.conftest import make_record, make_records
from transformers import LlamaConfig, LlamaForCausalLM
from trl import SFTConfig, SFTTrainer

from textmill.contracts.datasets import Message, Record, Role
from textmill.contracts.runs import EvalMetrics
from textmill_trainer.batches import collate, pack
from textmill_trainer.loop import BETAS, MAX_GRADIENT_NORM, LoopSettings, plain_model, train
from textmill_trainer.model import LoraSettings, add_lora
from textmill_trainer.observing import StepSeen
from textmill_trainer.packing import install
from textmill_trainer.prepare import Example, encode_all
from textmill_trainer.supervised import Supervised

STEPS, BATCH, RECORDS = 50, 4, 40
SETTINGS = LoopSettings(
    epochs=5, batch_size=BATCH, learning_rate=5e-3, warmup_ratio=0.0, evaluations=0, checkpoints=0, seed=3,
    max_padded_tokens=160,
)  # fmt: skip
"""Rows are cut into several microbatches a step: the mean is over the step's tokens, not over microbatches' means."""


class Order:
    """Remembers the records of each step, and its loss."""

    def __init__(self) -> None:
        self.steps: list[list[str]] = []
        self.losses: list[float] = []

    def step(self, seen: StepSeen) -> None:
        self.steps.append([record.record_id for record in seen.records])
        self.losses.append(seen.metrics.loss)

    def evaluated(self, metrics: EvalMetrics) -> None:
        raise AssertionError("this run has no evaluations")


# Of Llama 3's form, with the marks by which transformers finds what the assistant says.
_MARKED = """<|begin_of_text|>
{%- for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>

{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|eot_id|>{% endgeneration %}
{%- else %}{{ m.content }}<|eot_id|>{% endif %}
{%- endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>

{% endif %}"""


@pytest.fixture(scope="module")
def llama3() -> Any:
    """A vocabulary of 1,000 keeps TRL's logits, and this test, small."""
    tokenizer = chat_templates.llama3()
    tokenizer.chat_template, tokenizer.pad_token = _MARKED, "<|eot_id|>"
    return tokenizer


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return [*make_records(RECORDS - 10), *map(_conversation, range(10))]


@pytest.fixture(scope="module")
def examples(llama3: Any, records: list[Record]) -> list[Example]:
    return encode_all(records, llama3, 400)


def _conversation(number: int) -> Record:
    said = f"What is {number} and {number}?", f"It is {2 * number}.", "And why is that so?", "因为加法。" * (number + 1)
    roles: tuple[Role, ...] = ("user", "assistant", "user", "assistant")
    messages = [Message(role=role, content=text) for role, text in zip(roles, said, strict=True)]
    return make_record(said[0], said[1], messages=messages)


def fresh(tokenizer: Any, method: str) -> Any:
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    core: Any = LlamaForCausalLM(config)  # type: ignore[no-untyped-call]
    if method == "full":
        return core
    core.requires_grad_(False)
    return add_lora(core, LoraSettings(rank=8, alpha=16, dropout=0.0), seed=3)


def trainer_of_trl(model: Any, tokenizer: Any, dataset: Dataset, folder: Path, **changes: Any) -> SFTTrainer:
    options = {
        "output_dir": str(folder), "num_train_epochs": 1, "per_device_train_batch_size": BATCH,
        "learning_rate": SETTINGS.learning_rate, "lr_scheduler_type": "linear", "warmup_steps": 0,
        "adam_beta1": BETAS[0], "adam_beta2": BETAS[1], "weight_decay": 0.0, "max_grad_norm": MAX_GRADIENT_NORM,
        "train_sampling_strategy": "sequential", "max_length": None, "bf16": False, "use_cpu": True,
        "gradient_checkpointing": False, "logging_steps": 1, "save_strategy": "no", "report_to": "none",
        "disable_tqdm": True, "seed": SETTINGS.seed, "dataloader_pin_memory": False,
    }  # fmt: skip
    arguments = SFTConfig(**{**options, **changes})
    return SFTTrainer(model=model, args=arguments, train_dataset=dataset, processing_class=tokenizer)


def losses_of_trl(model: Any, tokenizer: Any, batches: Sequence[Sequence[Example]], folder: Path) -> list[float]:
    """One row a record, in the order of the batches."""
    rows = [example for batch in batches for example in batch]
    dataset = Dataset.from_dict({"input_ids": [list(row.token_ids) for row in rows], "labels": list(map(labels, rows))})
    trainer = trainer_of_trl(model, tokenizer, dataset, folder)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def labels(example: Example) -> list[int]:
    return [token if counts else -100 for token, counts in zip(example.token_ids, example.supervised, strict=True)]


@pytest.mark.parametrize(("method", "packed"), [("lora", False), ("full", False), ("lora", True)])
def test_fifty_steps_have_the_losses_of_trl(
    llama3: Any, examples: list[Example], tmp_path: Path, method: str, packed: bool
) -> None:
    ours, theirs = fresh(llama3, method), fresh(llama3, method)
    assert not packed or install(plain_model(ours))
    order = Order()
    train(
        ours,
        Supervised(partial(pack, share=True) if packed else collate),
        examples,
        replace(SETTINGS, packed=packed),
        tmp_path / "ours",
        observers=[order],
    )
    by_id = {example.record_id: example for example in examples}
    batches = [[by_id[record_id] for record_id in step] for step in order.steps]
    assert [len(batch) for batch in batches] == [BATCH] * STEPS
    expected = losses_of_trl(theirs, llama3, batches, tmp_path / "theirs")
    assert len(expected) == STEPS
    assert expected[0] - expected[-1] > 0.5  # it learns, so equal losses say that the updates are equal too
    assert order.losses == pytest.approx(expected, abs=1e-3)


def test_the_comparison_would_see_another_order(llama3: Any, examples: list[Example], tmp_path: Path) -> None:
    batches = [examples[n : n + BATCH] for n in range(0, 12, BATCH)]
    one = losses_of_trl(fresh(llama3, "lora"), llama3, batches, tmp_path / "a")
    other = losses_of_trl(fresh(llama3, "lora"), llama3, batches[::-1], tmp_path / "b")
    assert one != pytest.approx(other, abs=1e-3)


def test_trl_reads_and_masks_the_same_tokens(
    llama3: Any, records: list[Record], examples: list[Example], tmp_path: Path
) -> None:
    dataset = Dataset.from_list([{"messages": [message.openai() for message in record.messages]} for record in records])
    trainer = trainer_of_trl(fresh(llama3, "full"), llama3, dataset, tmp_path, assistant_only_loss=True)
    theirs: Any = trainer.train_dataset
    assert [row["input_ids"] for row in theirs] == [list(example.token_ids) for example in examples]
    assert [row["labels"] for row in theirs] == list(map(labels, examples))
