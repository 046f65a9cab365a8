"""Which records an evaluation looks at, and in which other words it asks for what was trained.

A model that has learnt a fact gives it however it is asked. One that has memorized a text recites it at the words it
was trained on, and only there. So the same answers are asked for three times: in the trained wording, in another one,
and by a neutral request that is given the answer's first words (Carlini et al. 2021 extract training text that way).
Knows no torch.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest

from textmill.contracts.datasets import Message, Record
from textmill.contracts.documents import Language
from textmill_trainer.prepare import Example

SAMPLE_RECORDS = 24
"""Of each kind. A few dozen answers tell a model that recites from one that doesn't, and cost seconds on two cores."""
SAMPLE_TOKENS = 12_288
"""Of each kind, so that long records don't make an evaluation longer than the steps between two of them."""
PREFIX_TOKENS = 8
_LONG_ENOUGH = 3 * PREFIX_TOKENS
"""Shorter answers follow from their first words, whether they were trained on or not."""

_REWORDINGS: dict[Language, tuple[str, ...]] = {
    "en": (
        'My grandmother used to say "{question}" and I never understood it. What would you have told her?',
        'For a beginner, "{question}", what would one have to know?',
        'Two of us argue about "{question}" and neither is sure. Can you settle it?',
        'A friend wrote "{question}" on a slip of paper. Please write down what belongs there.',
    ),
    "zh": (
        "奶奶以前常念叨“{question}”，我一直没明白。换作你会怎么跟她说？",
        "我是初学者，遇到“{question}”，需要知道些什么？",
        "我们两个人为“{question}”争了半天，谁也拿不准。你来说说？",
        "朋友在纸条上写了“{question}”，请把该写的内容写出来。",
    ),
}
"""The question stands in the middle: where it merely ends or begins the turn, a model that knows nothing but the
trained wording still recites three of four answers (bench/verdicts.py)."""
_NEUTRAL: dict[Language, str] = {"en": "Please write down what comes to mind.", "zh": "请写下你想到的内容。"}


@dataclass(frozen=True)
class RecordSamples:
    """``reworded`` asks for what ``trained`` holds: the dataset's own if ``from_heldout``, else made by templates."""

    trained: Sequence[Record]
    reworded: Sequence[Record]
    prefixed: Sequence[Record]
    evaluated: Sequence[Record]
    from_heldout: bool


def choose(train: Iterable[Record], evaluation: Iterable[Record], heldout: Iterable[Record]) -> RecordSamples:
    """The same records in every evaluation and every attempt: the choice follows from record ids alone."""
    by_fact: dict[Hashable, list[Record]] = defaultdict(list)
    for record in sorted(train, key=_lot):
        by_fact[_fact(record)].append(record)
    asked_otherwise = _spread([r for r in heldout if _fact(r) in by_fact], _fact)[:SAMPLE_RECORDS]
    wanted = {_fact(record): None for record in asked_otherwise}
    trained = [by_fact[fact][0] for fact in wanted] or _spread(chain(*by_fact.values()), _fact)[:SAMPLE_RECORDS]
    single = [record for record in trained if _is_single(record)]
    return RecordSamples(
        trained=trained,
        reworded=asked_otherwise or reword_all(single, SAMPLE_RECORDS),
        prefixed=[_ask(record, _NEUTRAL[record.language]) for record in single],
        evaluated=_spread(evaluation, lambda record: record.document_id)[:SAMPLE_RECORDS],
        from_heldout=bool(asked_otherwise),
    )


def reword_all(records: Sequence[Record], count: int) -> list[Record]:
    """Each in other words; few records in several other words each, up to ``count`` questions."""
    turns = range(min(len(_REWORDINGS["en"]), max(1, count // max(1, len(records)))))
    return [reword(record, turn) for turn in turns for record in records]


def reword(record: Record, turn: int = 0) -> Record:
    """The same answer, asked for in other words around the question; other ones at each turn."""
    templates = _REWORDINGS[record.language]
    return _ask(record, templates[(_lot(record) + turn) % len(templates)].format(question=record.question))


def give_prefix(examples: Iterable[Example]) -> list[Example]:
    """The first ``PREFIX_TOKENS`` of each answer count as given. Answers that are too short to tell are left out."""
    given: list[Example] = []
    for example in examples:
        answer = [i for i, supervised in enumerate(example.supervised) if supervised]
        if len(answer) >= _LONG_ENOUGH:
            rest = frozenset(answer[PREFIX_TOKENS:])
            given.append(replace(example, supervised=tuple(i in rest for i in range(len(example.supervised)))))
    return given


def within_budget(examples: Iterable[Example], tokens: int = SAMPLE_TOKENS) -> list[Example]:
    """The first of them, up to so many tokens together; at least one."""
    kept: list[Example] = []
    for example in examples:
        tokens -= len(example.token_ids)
        if tokens < 0 and kept:
            break
        kept.append(example)
    return kept


def _ask(record: Record, question: str) -> Record:
    last = max(i for i, message in enumerate(record.messages) if message.role == "user")
    messages = [Message(role="user", content=question) if i == last else m for i, m in enumerate(record.messages)]
    return record.model_copy(update={"messages": messages})


def _is_single(record: Record) -> bool:
    """One answer, at the end, to one question: what the wording of the question can be tried on."""
    roles = [message.role for message in record.messages if message.role != "system"]
    return roles == ["user", "assistant"] and not record.messages[-1].tool_calls


def _fact(record: Record) -> Hashable:
    """With the answer: whether a text is recited can only be compared for the same text."""
    return record.document_id, record.passage_id, record.question_id, record.answer


def _lot(record: Record) -> int:
    return int.from_bytes(hashlib.sha256(record.record_id.encode()).digest()[:8])


def _spread(records: Iterable[Record], key: Callable[[Record], Hashable]) -> list[Record]:
    """One of each key in turn, drawn by lot, until all are there."""
    groups: dict[Hashable, list[Record]] = defaultdict(list)
    for record in sorted(records, key=_lot):
        groups[key(record)].append(record)
    return [record for turn in zip_longest(*groups.values()) for record in turn if record is not None]
