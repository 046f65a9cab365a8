"""Turns records into token ids and a label mask, through the model's own chat template.

Loss is taken on assistant turns only, up to and including the end-of-turn token: without it a model never learns to
stop (unsloth #416). Nothing is truncated or dropped: a record that can't be trained on as it stands is an error.
Knows no torch.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from textmill.contracts.datasets import Message, Record
from textmill.errors import JobFailed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Example:
    """One record as tokens. ``supervised[t]`` says that predicting token ``t`` counts in the loss; both are (T,)."""

    record_id: str
    document_id: str
    token_ids: tuple[int, ...]
    supervised: tuple[bool, ...]

    @property
    def supervised_tokens(self) -> int:
        return sum(self.supervised)


def read_records(path: Path) -> list[Record]:
    """All rows of a Parquet file of records, checked."""
    return [Record.model_validate(row) for row in pq.read_table(path).to_pylist()]


def encode_all(records: Iterable[Record], tokenizer: "PreTrainedTokenizerFast", max_tokens: int) -> list[Example]:
    """See ``encode``. Raises ``JobFailed`` for the first record that can't be trained on."""
    end_ids = end_of_turn_ids(tokenizer)
    return [encode(record, tokenizer, max_tokens, end_ids) for record in records]


def encode(record: Record, tokenizer: "PreTrainedTokenizerFast", max_tokens: int, end_ids: frozenset[int]) -> Example:
    """One record as token ids with its supervised positions.

    Raises:
        JobFailed: no assistant turn, a turn without an end-of-turn token, a template under which the turns of this
            conversation can't be told apart, or more than ``max_tokens`` tokens.
    """
    text = _render(tokenizer, record.messages)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    token_ids: list[int] = encoded["input_ids"]
    offsets: list[tuple[int, int]] = encoded["offset_mapping"]
    if len(token_ids) > max_tokens:
        raise JobFailed(
            f"record {record.record_id} has {len(token_ids)} tokens, max_tokens is {max_tokens}, and cutting it would "
            f"train on half an answer: raise max_tokens, or split its passage smaller"
        )
    supervised = [False] * len(token_ids)
    for start, end in _assistant_ranges(record, tokenizer, text):
        turn = [i for i, (a, b) in enumerate(offsets) if a >= start and b <= end]
        ends = [i for i in turn if token_ids[i] in end_ids]
        if not ends:
            raise JobFailed(
                f"record {record.record_id}: the chat template puts no end-of-turn token {sorted(end_ids)} after an "
                f"answer, so the model would never learn to stop: give the base model a template that does"
            )
        for i in turn:
            supervised[i] = i <= ends[-1]
    if not any(supervised[1:]):
        raise JobFailed(f"record {record.record_id} has no assistant turn, so there is nothing to learn from it")
    return Example(record.record_id, record.document_id, tuple(token_ids), tuple(supervised))


def end_of_turn_ids(tokenizer: "PreTrainedTokenizerFast") -> frozenset[int]:
    """The ids at which generation stops."""
    if tokenizer.eos_token_id is None:
        raise JobFailed("the base model's tokenizer has no eos_token: set it to the token that ends an assistant turn")
    return frozenset({int(tokenizer.eos_token_id)})


def dataset_digest(examples: Iterable[Example]) -> str:
    """A hash of what is trained on: ids, tokens and mask, in order."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(repr((example.record_id, example.token_ids, example.supervised)).encode())
    return digest.hexdigest()


def _assistant_ranges(record: Record, tokenizer: "PreTrainedTokenizerFast", text: str) -> Iterable[tuple[int, int]]:
    """Character ranges of the assistant turns in the rendered text, from the first character of the answer."""
    for index, message in enumerate(record.messages):
        if message.role != "assistant":
            continue
        before = _render(tokenizer, record.messages[:index], prompt=True)
        through = _render(tokenizer, record.messages[: index + 1])
        if not (text.startswith(through) and through.startswith(before)):
            raise JobFailed(
                f"record {record.record_id}: the base model's chat template renders turn {index + 1} differently "
                f"once more turns follow, so what the model will see can't be trained: use single-turn records"
            )
        yield len(before), len(through)


def _render(tokenizer: "PreTrainedTokenizerFast", messages: Sequence[Message], prompt: bool = False) -> str:
    conversation = [message.model_dump() for message in messages]
    return str(tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=prompt))
