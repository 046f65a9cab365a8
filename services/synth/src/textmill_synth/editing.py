"""Applies a reviewer's edits to a record, and has the edited answer checked against its source like any other.

Knows nothing of the review log.
"""

from collections.abc import Sequence
from dataclasses import replace

from textmill.contracts.datasets import Message, Record
from textmill.contracts.documents import Passage
from textmill.contracts.review import Changes
from textmill_synth.checks import Candidate, Finding, first_finding
from textmill_synth.grounding import ALL_CHECKS, GROUNDING_CHECKS, contains

_LEAST_ROOM = 400


def edited(record: Record, changes: Changes | None, author: str) -> Record:
    """The record with new texts in its last turn. Its lineage stays.

    Key facts that the new answer doesn't contain are no longer asked of a model: the editor knew of them and spoke
    otherwise, past the checks.
    """
    if changes is None:
        return record
    messages = list(record.messages)
    if changes.question is not None:
        messages = _with_last(messages, "user", changes.question)
    if changes.answer is not None:
        messages = _with_last(messages, "assistant", changes.answer)
    if changes.system is not None:
        system = [Message(role="system", content=changes.system)] if changes.system else []
        messages = [*system, *(message for message in messages if message.role != "system")]
    answer = record.answer if changes.answer is None else changes.answer
    keys = [key for key in record.key_facts if contains(answer, key)]
    return record.model_copy(update={"messages": messages, "key_facts": keys, "edited_by": author})


def finding_of_edit(record: Record, changes: Changes, passages: Sequence[Passage]) -> Finding | None:
    """What the checks say of the record after the edit. ``passages`` are all that the answer draws on."""
    new = edited(record, changes, "")
    keys = [key for key in record.key_facts if contains(record.answer, key)]
    candidate = _candidate(new.answer, new.question, passages, keys[0] if keys else None, 2 * len(record.answer))
    return _finding(candidate, record.question)


def finding_of_answer(answer: str, question: str, passages: Sequence[Passage]) -> Finding | None:
    """What the checks say of an answer that a reviewer wrote where synth had none."""
    return _finding(_candidate(answer, question, passages, None, 0), "")


def _candidate(
    answer: str, question: str, passages: Sequence[Passage], key: str | None, max_characters: int
) -> Candidate:
    return Candidate(
        answer=answer,
        question=question,
        passage="\n".join(passage.text for passage in passages),
        language=passages[0].language,
        key=key,
        max_characters=max(_LEAST_ROOM, max_characters),
    )


def _finding(candidate: Candidate, question_before: str) -> Finding | None:
    """A question counts as a source of its answer, but not one that the reviewer has just written."""
    grounded_before = replace(candidate, question=question_before)
    return first_finding(candidate, ALL_CHECKS) or first_finding(grounded_before, GROUNDING_CHECKS)


def _with_last(messages: list[Message], role: str, content: str) -> list[Message]:
    last = max(n for n, message in enumerate(messages) if message.role == role)
    return [m.model_copy(update={"content": content}) if n == last else m for n, m in enumerate(messages)]
