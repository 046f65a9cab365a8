"""Turns records into token ids and a label mask, through the model's own chat template.

Loss is taken on assistant turns only, up to and including the token at which generation stops: without it a model
never learns to stop (unsloth #416). Nothing is truncated or dropped: a record that can't be trained on as it stands is
refused, with the reason. Knows no torch.
"""

import hashlib
import json
import re
import unicodedata
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pyarrow.parquet as pq

from textmill.contracts.datasets import Message, Record, Split
from textmill.contracts.masking import RefusedRecord
from textmill.errors import JobFailed
from textmill_trainer.chat import Chat, Dialogue, Refused, control_tokens
from textmill_trainer.refusals import refusal_message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


# Information separators and the next-line control count as white space to Python, but no tokenizer folds them.
_SPACE = re.compile(r"[^\S\x1c-\x1f\x85]+")


class TrainingDialogue(Dialogue, Protocol):
    """What is read of a record to train on it."""

    @property
    def record_id(self) -> str: ...

    @property
    def document_id(self) -> str: ...

    @property
    def split(self) -> Split: ...


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


@dataclass(frozen=True)
class Encoded:
    """Examples in the order of their records, and the records that are none."""

    examples: list[Example] = field(default_factory=list)
    refused: list[RefusedRecord] = field(default_factory=list)


def read_records(path: Path) -> list[Record]:
    """All rows of a Parquet file of records, checked."""
    return [Record.model_validate(row) for row in pq.read_table(path).to_pylist()]


def encode_all(
    records: Iterable[TrainingDialogue], tokenizer: "PreTrainedTokenizerFast", max_tokens: int
) -> list[Example]:
    """See ``encode_records``. Raises ``JobFailed`` if any record is refused; the message counts them by reason."""
    encoded = encode_records(records, tokenizer, max_tokens)
    if encoded.refused:
        raise JobFailed(refusal_message(encoded.refused))
    return encoded.examples


def encode_records(
    records: Iterable[TrainingDialogue], tokenizer: "PreTrainedTokenizerFast", max_tokens: int
) -> Encoded:
    """Every record, as one example or more, or as refused. Raises ``JobFailed`` for a tokenizer without an end."""
    encoder = Encoder(tokenizer, max_tokens)
    encoded = Encoded()
    for record in records:
        try:
            encoded.examples.extend(encoder.encode(record))
        except Refused as exc:
            refused = RefusedRecord(record_id=record.record_id, split=record.split, reason=exc.reason, detail=str(exc))
            encoded.refused.append(refused)
    return encoded


@dataclass(frozen=True)
class Turn:
    """An answer: the index of its message, what the model is given to write it, and that with the answer rendered."""

    index: int
    prompt: str
    through: str


@dataclass(frozen=True)
class Tokens:
    """A text with its tokens; each answer in it from its first token to the one behind all that is rendered for it."""

    text: str
    ids: list[int]
    spans: list[tuple[Turn, int, int]] = field(default_factory=list)


class Encoder:
    """Records to examples under one tokenizer and its chat template."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", max_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._end_ids = end_of_turn_ids(tokenizer)
        self._control = sorted(control_tokens(tokenizer, self._end_ids))

    def encode(self, record: TrainingDialogue) -> list[Example]:
        """One example with every answer supervised, where each answer's prompt stands in it as a server would render
        and encode it. Else, since the template strips the reasoning of earlier turns, say, or a prompt's last token
        joins with what follows, one example for each answer, behind the prompt that it would really follow.

        Raises:
            Refused: see ``RefusalReason``.
        """
        chat = Chat(record, self._tokenizer)
        self._check_messages(chat)
        turns = [_turn(chat, index) for index in chat.answers]
        text = chat.text()
        _check_tools(record, text)
        whole = self._whole(text, turns)
        found = [whole] if whole is not None else [self._alone(turn) for turn in turns]
        return [self._example(record, chat, tokens) for tokens in found]

    def _check_messages(self, chat: Chat) -> None:
        if not chat.answers:
            raise Refused("no_answer", "it has no assistant turn, so there is nothing to learn from it")
        for index, message in enumerate(chat.messages):
            if message.role == "assistant" and not (message.content.strip() or message.tool_calls):
                raise Refused("empty_answer", f"turn {index + 1} is an empty answer")
            if found := [token for token in self._control if token in message.content]:
                raise Refused("control_token", f"the text of turn {index + 1} holds the control token {found[0]}")

    def _whole(self, text: str, turns: Sequence[Turn]) -> Tokens | None:
        """All turns in one; None if a turn's prompt would be other tokens alone than it is here."""
        if not all(text.startswith(turn.through) for turn in turns):
            return None
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        begins = [begin for begin, _ in encoded["offset_mapping"]]
        tokens = Tokens(text, encoded["input_ids"])
        for turn in turns:
            prompt_ids = self._ids(turn.prompt)
            if tokens.ids[: len(prompt_ids)] != prompt_ids:
                return None
            behind = bisect_left(begins, len(turn.through), lo=len(prompt_ids))
            tokens.spans.append((turn, len(prompt_ids), behind))
        return tokens

    def _alone(self, turn: Turn) -> Tokens:
        """A turn behind its prompt, which is encoded by itself, as it is when the model is asked."""
        prompt_ids = self._ids(turn.prompt)
        ids = prompt_ids + self._ids(turn.through[len(turn.prompt) :])
        if self._tokenizer.decode(ids) != self._tokenizer.decode(self._ids(turn.through)):
            raise Refused("joined_tokens", f"turn {turn.index + 1} begins inside a token that belongs to the prompt")
        return Tokens(turn.through, ids, [(turn, len(prompt_ids), len(ids))])

    def _example(self, record: TrainingDialogue, chat: Chat, tokens: Tokens) -> Example:
        ids, supervised = tokens.ids, [False] * (len(tokens.ids) + 1)
        for turn, first, behind in tokens.spans:
            if behind == len(ids) and not self._end_ids.intersection(ids[first:]):
                ids = [*ids, self._closing(chat, turn, tokens.text)]
            last = self._end_of_turn(turn, ids, first, behind)
            supervised[first : last + 1] = [True] * (last + 1 - first)
        if len(ids) > self._max_tokens:
            raise Refused("too_long", f"it has {len(ids)} tokens, max_tokens is {self._max_tokens}")
        self._check_kept(tokens)
        return Example(record.record_id, record.document_id, tuple(ids), tuple(supervised[: len(ids)]))

    def _end_of_turn(self, turn: Turn, ids: Sequence[int], first: int, behind: int) -> int:
        """Index of the token at which generation stops: within what the template writes for the turn, or right behind
        it, where the next role's token is the end (ChatGLM3).
        """
        for index in range(first, min(behind + 1, len(ids))):
            if ids[index] in self._end_ids:
                return index
        raise self._no_end(turn)

    def _check_kept(self, tokens: Tokens) -> None:
        """Some vocabularies lack characters: they drop them, or write their unknown token."""
        kept = str(self._tokenizer.decode(tokens.ids))
        # Tokenizers may fold white space and compatibility forms; that is their way to write the text.
        if kept != tokens.text and _folded(kept) != _folded(tokens.text):
            raise Refused("not_in_vocabulary", "it has characters that the tokenizer can't write")

    def _closing(self, chat: Chat, turn: Turn, text: str) -> int:
        """The token with which the next turn would begin, if generation stops at it."""
        going_on = chat.going_on(turn.index)
        ids = self._ids(going_on[len(text) :]) if going_on.startswith(text) else []
        if not ids or ids[0] not in self._end_ids:
            raise self._no_end(turn)
        return ids[0]

    def _no_end(self, turn: Turn) -> Refused:
        ends = ", ".join(end_of_turn_tokens(self._tokenizer))
        detail = f"the template puts none of {ends} behind turn {turn.index + 1}: the model wouldn't stop"
        return Refused("no_end_of_turn", detail)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


def end_of_turn_ids(tokenizer: "PreTrainedTokenizerFast") -> frozenset[int]:
    """The ids at which generation stops: the tokenizer's, and those of the model's folder that it was loaded from.

    As vLLM and transformers have it: ``generation_config.json`` counts, or, without it, ``config.json``. Raises
    ``JobFailed`` if there are none.
    """
    ids = set() if tokenizer.eos_token_id is None else {int(tokenizer.eos_token_id)}
    for name in ("generation_config.json", "config.json"):
        path = Path(tokenizer.name_or_path) / name
        if path.is_file():
            ends = json.loads(path.read_bytes()).get("eos_token_id")
            ids.update(ends if isinstance(ends, list) else [] if ends is None else [int(ends)])
            break
    if not ids:
        raise JobFailed("the base model's tokenizer has no eos_token: set it to the token that ends an assistant turn")
    return frozenset(ids)


def end_of_turn_tokens(tokenizer: "PreTrainedTokenizerFast") -> list[str]:
    return [str(token) for token in tokenizer.convert_ids_to_tokens(sorted(end_of_turn_ids(tokenizer)))]


def dataset_digest(examples: Iterable[object]) -> str:
    """A hash of what is trained on, in order: plain dataclasses of numbers and text, as each objective has its own."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(repr(example).encode())
    return digest.hexdigest()


def _turn(chat: Chat, answer: int) -> Turn:
    turn = Turn(answer, chat.prompt(answer), chat.through(answer))
    if not turn.through.startswith(turn.prompt):
        raise Refused(
            "turns_not_separable",
            f"turn {answer + 1} is rendered otherwise than the template's own prompt for it begins, so what the model "
            f"is asked can't be what it is trained on",
        )
    _check_rendered(answer, chat.messages[answer], turn.through[len(turn.prompt) :])
    return turn


def _folded(text: str) -> str:
    return _SPACE.sub("", unicodedata.normalize("NFKC", text).casefold())


def _check_rendered(answer: int, message: Message, rendered: str) -> None:
    # Templates trim and re-space; what they must not do is lose words.
    if "".join(message.content.split()) not in "".join(rendered.split()):
        raise Refused("answer_not_rendered", f"the template doesn't write what the assistant says in turn {answer + 1}")
    for call in message.tool_calls:
        if call.name not in rendered:
            raise Refused("tools_not_rendered", f"the template doesn't write the call of {call.name!r}")


def _check_tools(record: Dialogue, text: str) -> None:
    for tool in record.tools:
        if tool.name not in text:
            raise Refused("tools_not_rendered", f"the template doesn't show the model the tool {tool.name!r}")
