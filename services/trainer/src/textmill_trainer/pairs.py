"""Preference pairs as tokens: each is two conversations that differ in their last answer, which alone is supervised.

They go through the chat template and are refused as records are. Knows no torch, and nothing of the objective (that is
``preference``).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from textmill.contracts.datasets import Message, Split, Tool
from textmill.contracts.preferences import PreferencePair
from textmill_trainer.prepare import Encoded, Example, encode_records

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class PairExample:
    """One pair as tokens. Only the answers are supervised, each up to its end of turn."""

    record_id: str
    document_id: str
    chosen: Example
    rejected: Example


@dataclass(frozen=True)
class PairDialogue:
    """One side of a pair, ``way`` says which. ``record_id`` is the pair's and the side: ``prp_1/chosen``."""

    record_id: str
    document_id: str
    split: Split
    messages: Sequence[Message]
    way: str
    strategy: str = "preference"
    tools: Sequence[Tool] = ()


def read_pairs(path: Path) -> list[PreferencePair]:
    with path.open("rb") as file:
        return [PreferencePair.model_validate_json(line) for line in file if line.strip()]


def dialogues(pairs: Iterable[PreferencePair], split: Split) -> Iterator[PairDialogue]:
    """The chosen and the rejected side of each pair."""
    for pair in pairs:
        for way, answer in (("chosen", pair.chosen), ("rejected", pair.rejected)):
            said = (*pair.messages, Message(role="assistant", content=answer))
            yield PairDialogue(f"{pair.pair_id}/{way}", pair.document_id or "", split, said, way)


def encode_dialogues(sides: Iterable[PairDialogue], tokenizer: "PreTrainedTokenizerFast", max_tokens: int) -> Encoded:
    """One example a side, or a refusal. Earlier answers are part of the prompt."""
    encoded = encode_records(sides, tokenizer, max_tokens)
    # A side that had to be parted by its answers ends with the one that counts.
    last = {example.record_id: example for example in encoded.examples}
    return Encoded([_only_last_answer(example) for example in last.values()], encoded.refused)


def join(pairs: Iterable[PreferencePair], examples: Iterable[Example]) -> list[PairExample]:
    """All sides must be among the examples, which have their pair's id from here on."""
    sides: Mapping[str, Example] = {example.record_id: example for example in examples}

    def side(pair: PreferencePair, way: str) -> Example:
        return replace(sides[f"{pair.pair_id}/{way}"], record_id=pair.pair_id)

    return [
        PairExample(pair.pair_id, pair.document_id or "", side(pair, "chosen"), side(pair, "rejected"))
        for pair in pairs
    ]


def _only_last_answer(example: Example) -> Example:
    supervised = list(example.supervised)
    end = max(i for i, counts in enumerate(supervised) if counts)
    start = end
    while start > 0 and supervised[start - 1]:
        start -= 1
    return replace(example, supervised=tuple(start <= i <= end for i in range(len(supervised))))
