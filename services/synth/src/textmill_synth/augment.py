"""Turns one answer into many records: split by document first, then one record for each way of asking.

Split and order depend on the seed and on content alone. Knows nothing of files.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from textmill.contracts.base import content_id
from textmill.contracts.datasets import Cost, Message, Record, Split, Strategy
from textmill.contracts.documents import Passage, Span
from textmill_synth.checks import Finding
from textmill_synth.strategies.base import Answer
from textmill_synth.topics import Phrasing, normal_form


def eval_documents(document_ids: Sequence[str], fraction: float, seed: int) -> frozenset[str]:
    """The documents kept out of training: about ``fraction`` of them, each by its own hash.

    So a document stays on its side when others are added. At least one is on each side, if there are two.
    """
    if fraction == 0 or len(document_ids) < 2:
        return frozenset()
    ranked = sorted(set(document_ids), key=lambda d: (_unit(seed, d), d))
    chosen = [d for d in ranked if _unit(seed, d) < fraction]
    return frozenset(chosen[: len(ranked) - 1] or ranked[:1])


def shuffle_key(record_id: str, seed: int) -> int:
    """64 bits to sort records by: a shuffle that doesn't depend on the order they came in."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{record_id}".encode()).digest()[:8])


@dataclass(frozen=True)
class Augmentation:
    """What all records of a dataset share."""

    eval_documents: frozenset[str]
    system_prompt: str | None
    model: str

    def records(self, passage: Passage, strategy: Strategy, answer: Answer, evidence_span: Span) -> Iterator[Record]:
        """One record for each phrasing. Held-out phrasings are kept for documents of ``train`` only."""
        evaluated = passage.document_id in self.eval_documents
        for phrasing in answer.topic.ask:
            yield self._record(passage, strategy, answer, evidence_span, phrasing, "eval" if evaluated else "train")
        for phrasing in () if evaluated else answer.topic.held_out:
            yield self._record(passage, strategy, answer, evidence_span, phrasing, "heldout")

    def _record(
        self, passage: Passage, strategy: Strategy, answer: Answer, span: Span, phrasing: Phrasing, split: Split
    ) -> Record:
        system = [Message(role="system", content=self.system_prompt)] if self.system_prompt else []
        user, reply = Message(role="user", content=phrasing.question), Message(role="assistant", content=answer.text)
        topic, call = answer.topic, answer.prompted.call if answer.prompted else None
        key = [passage.text[slice(*topic.key)]] if topic.key else []
        identity = (passage.document_sha256, passage.passage_id, strategy, topic.question_id, phrasing.way)
        return Record(
            record_id=content_id("rec", *identity, phrasing.question, answer.text, self.system_prompt or ""),
            split=split,
            strategy=strategy,
            language=passage.language,
            messages=(*system, user, reply),
            key_facts=key,
            question_id=topic.question_id,
            way=phrasing.way,
            document_id=passage.document_id,
            document_sha256=passage.document_sha256,
            passage_id=passage.passage_id,
            evidence=passage.text[slice(*answer.evidence)],
            evidence_span=span,
            prompt_version=answer.prompted.prompt_version if answer.prompted else None,
            model=self.model if call else None,
            call_id=call.call_id if call else None,
            cost=Cost(prompt_tokens=call.completion.prompt_tokens, completion_tokens=call.completion.completion_tokens)
            if call
            else Cost(),
        )


@dataclass
class QuestionIndex:
    """Every question of the dataset, across all splits, with its answer. About 100 bytes a question."""

    _answers: dict[int, int] = field(default_factory=dict)

    def claim(self, answer: Answer) -> Finding | None:
        """Take all questions of an answer, or none: a question has one answer, and stands in the dataset once."""
        text = _hash64(answer.text)
        questions = {_hash64(normal_form(p.question)): p for p in (*answer.topic.ask, *answer.topic.held_out)}
        for question, phrasing in questions.items():
            known = self._answers.get(question)
            if known is not None:
                same = known == text
                detail = f"asked before, with {'the same' if same else 'another'} answer: {phrasing.question!r}"
                return Finding("duplicate" if same else "conflict", detail)
        self._answers.update(dict.fromkeys(questions, text))
        return None


def _hash64(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def _unit(seed: int, document_id: str) -> float:
    """A number in [0, 1) that belongs to the document."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{document_id}".encode()).digest()[:8]) / 2**64
