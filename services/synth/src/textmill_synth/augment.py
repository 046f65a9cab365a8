"""Turns one answer into many records: split by document first, then one record for each way of asking.

Split and order depend on the seed and on content alone. Knows nothing of files.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from textmill.contracts.base import content_id
from textmill.contracts.datasets import Axis, Cost, Evidence, Message, Record, Split, Strategy
from textmill.contracts.documents import Passage, Span
from textmill_synth.asking.coverage import Coverage
from textmill_synth.asking.near import Wordings
from textmill_synth.checks import Finding
from textmill_synth.strategies.base import Answer
from textmill_synth.topics import DroppedWording, Phrasing, normal_form

Locate = Callable[[Passage, int, int], Span]
"""Where a piece of a passage stands in its document (``corpus.Documents.locate``)."""
_LINE, _TYPO = "\x1e", "~"


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

    def records(self, passage: Passage, strategy: Strategy, answer: Answer, locate: Locate) -> Iterator[Record]:
        """One record for each phrasing. Held-out phrasings are kept for documents of ``train`` only."""
        split = self._split(passage)
        for phrasing in answer.topic.ask:
            yield self._record(passage, strategy, answer, locate, phrasing, split)
        for phrasing in () if split == "eval" else answer.topic.held_out:
            yield self._record(passage, strategy, answer, locate, phrasing, "heldout")

    def dropped(
        self, passage: Passage, strategy: Strategy, answer: Answer, locate: Locate
    ) -> Iterator[tuple[Record, DroppedWording]]:
        """The records that the wordings not kept would have made."""
        for drop in answer.topic.further.dropped:
            yield self._record(passage, strategy, answer, locate, drop.phrasing, self._split(passage)), drop

    def _split(self, passage: Passage) -> Split:
        return "eval" if passage.document_id in self.eval_documents else "train"

    def _record(
        self, passage: Passage, strategy: Strategy, answer: Answer, locate: Locate, phrasing: Phrasing, split: Split
    ) -> Record:
        topic, call = answer.topic, answer.prompted.call if answer.prompted else None
        key = [passage.text[slice(*topic.key)]] if topic.key else []
        return Record(
            record_id=self._record_id(passage, strategy, answer, phrasing),
            split=split,
            strategy=strategy,
            language=passage.language,
            messages=self._messages(answer, phrasing),
            key_facts=list(dict.fromkeys([*key, *answer.key_facts])),
            question_id=topic.question_id,
            way=phrasing.way,
            axis=phrasing.axis,
            tools=answer.tools,
            document_id=passage.document_id,
            document_sha256=passage.document_sha256,
            passage_id=passage.passage_id,
            evidence=passage.text[slice(*answer.evidence)],
            evidence_span=locate(passage, *answer.evidence),
            more_evidence=_more_evidence(passage, answer, phrasing, locate),
            rung=answer.prompted.rung if answer.prompted else None,
            prompt_version=answer.prompted.prompt_version if answer.prompted else None,
            model=call.completion.model if call else None,
            call_id=call.call_id if call else None,
            wording_call_id=phrasing.call_id,
            cost=Cost(prompt_tokens=call.completion.prompt_tokens, completion_tokens=call.completion.completion_tokens)
            if call
            else Cost(),
        )

    def _messages(self, answer: Answer, phrasing: Phrasing) -> Sequence[Message]:
        system = [Message(role="system", content=self.system_prompt)] if self.system_prompt else []
        user, reply = Message(role="user", content=phrasing.question), Message(role="assistant", content=answer.text)
        return (*system, *answer.before, *phrasing.history, user, *answer.between, reply)

    def _record_id(self, passage: Passage, strategy: Strategy, answer: Answer, phrasing: Phrasing) -> str:
        """By place, question and answer; by the other turns and the tools as well, where there are any."""
        identity = (passage.document_sha256, passage.passage_id, strategy, answer.topic.question_id, phrasing.way)
        around = (*answer.before, *phrasing.history, *answer.between, *answer.tools)
        more = [part.model_dump_json() for part in around]
        return content_id("rec", *identity, phrasing.question, answer.text, self.system_prompt or "", *more)


@dataclass
class QuestionIndex:
    """Every question of the dataset, across all splits, with its answer. About 100 bytes a question.

    Where asking options bring wordings, those of one question about one subject are kept too, 60 bytes each. Answers
    must come in a fixed order.
    """

    near_duplicate: float = 0.95
    coverage: Coverage = field(default_factory=Coverage)
    _answers: dict[int, int] = field(default_factory=dict)
    _wordings: dict[int, str] = field(default_factory=dict)

    def admit(self, answer: Answer) -> Answer | Finding:
        """Take the answer with its questions: a question has one answer, and stands in the dataset once.

        An added wording that the dataset has already is left out, and one in reserve takes its place. Any other
        question that it has already is the finding, and nothing of the answer is taken.
        """
        topic = answer.topic
        own = [p for p in topic.ask if not p.added]
        clash = self._clash((*own, *topic.held_out), answer)
        if clash:
            added = [p for p in topic.ask if p.added]
            self.coverage.note(topic.further, (), [(p.axis, "answer_not_taken") for p in added])
            return clash
        self._take((*own, *topic.held_out), answer)
        if len(own) == len(topic.ask) and not topic.further.wanted:
            return answer
        return self._with_added(answer)

    def _with_added(self, answer: Answer) -> Answer:
        """Each added wording, or the next in reserve of its axis, or none and the reason."""
        topic = answer.topic
        near = self._open_wordings(answer)
        kept = [p for p in topic.ask if not p.added]
        reserve, dropped = list(topic.further.reserve), list(topic.further.dropped)
        lost: list[tuple[Axis, str]] = []
        for chosen in (p for p in topic.ask if p.added):
            next_best = [p for p in reserve if p.axis == chosen.axis]
            for phrasing in (chosen, *next_best):
                drop = self._drop(answer, phrasing, near)
                if phrasing is not chosen:
                    reserve.remove(phrasing)
                if drop is None:
                    break
                dropped.append(drop)
            else:
                lost.append((chosen.axis, dropped[-1].reason))
                continue
            near.add(phrasing)
            self._take((phrasing,), answer)
            kept.append(phrasing)
        self._close_wordings(answer, kept)
        self.coverage.note(topic.further, kept, lost)
        further = replace(topic.further, reserve=(), dropped=tuple(dropped))
        return replace(answer, topic=replace(topic, ask=tuple(kept), further=further))

    def _clash(self, phrasings: Iterable[Phrasing], answer: Answer) -> Finding | None:
        text = _hash64(answer.text)
        for phrasing in phrasings:
            known = self._answers.get(_asked(phrasing, answer))
            if known is not None:
                same = known == text
                detail = f"asked before, with {'the same' if same else 'another'} answer: {phrasing.question!r}"
                return Finding("duplicate" if same else "conflict", detail)
        return None

    def _take(self, phrasings: Iterable[Phrasing], answer: Answer) -> None:
        self._answers.update(dict.fromkeys((_asked(p, answer) for p in phrasings), _hash64(answer.text)))

    def _drop(self, answer: Answer, phrasing: Phrasing, near: Wordings) -> DroppedWording | None:
        clash = self._clash((phrasing,), answer)
        if clash:
            return DroppedWording(phrasing, "asked_already", clash.detail)
        alike = near.clash(phrasing)
        if alike is None:
            return None
        reason, value, threshold = alike
        return DroppedWording(phrasing, reason, "too much like another wording", value, threshold)

    def _open_wordings(self, answer: Answer) -> Wordings:
        """What is asked by the same question about the same subject, this answer's own wordings included."""
        near = Wordings(self.near_duplicate, answer.topic.held_out)
        for line in filter(None, self._wordings.get(_subject(answer), "").split(_LINE)):
            near.add(Phrasing("", line[1:], "typo" if line[0] == _TYPO else "plain"))
        for phrasing in answer.topic.ask:
            if not phrasing.added:
                near.add(phrasing)
        return near

    def _close_wordings(self, answer: Answer, kept: Iterable[Phrasing]) -> None:
        """Where no subject is known, the next answer's can't be told to be the same."""
        if answer.topic.subject:
            lines = (f"{_TYPO if p.axis == 'typo' else '='}{p.said}" for p in kept)
            before = self._wordings.get(_subject(answer), "")
            self._wordings[_subject(answer)] = _LINE.join(filter(None, [before, *lines]))


def _more_evidence(passage: Passage, answer: Answer, phrasing: Phrasing, locate: Locate) -> list[Evidence]:
    """What the answer draws on besides its own evidence, and what the turn before the question does."""
    said_before = [(passage, phrasing.evidence)] if phrasing.evidence else []
    quoted = [*((q.passage, q.span) for q in answer.more_evidence), *said_before]
    return [
        Evidence(
            document_id=source.document_id,
            document_sha256=source.document_sha256,
            passage_id=source.passage_id,
            text=source.text[slice(*span)],
            span=locate(source, *span),
        )
        for source, span in quoted
    ]


def _asked(phrasing: Phrasing, answer: Answer) -> int:
    """A number for all that is said up to the answer, in normal form."""
    return _hash64(normal_form("\n".join([*(message.content for message in answer.before), phrasing.said])))


def _subject(answer: Answer) -> int:
    return _hash64(_LINE.join([answer.topic.question_id, *answer.topic.subject]))


def _hash64(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def _unit(seed: int, document_id: str) -> float:
    """A number in [0, 1) that belongs to the document."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{document_id}".encode()).digest()[:8]) / 2**64
