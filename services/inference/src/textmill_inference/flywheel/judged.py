"""Exchanges with what people said of them: which may be trained on, which pair up, and why the others may not."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pydantic import ValidationError

from textmill.contracts.datasets import Message
from textmill.contracts.preferences import PreferenceLine
from textmill.contracts.traffic import Exchange, Feedback, TrafficFilter, Verdict
from textmill.store import ObjectStore
from textmill_inference.flywheel.feedback import feedback_by_request
from textmill_inference.flywheel.segments import exchanges
from textmill_inference.flywheel.traces import text_of

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


@dataclass(frozen=True)
class Judged:
    """A conversation up to its answer. ``said`` is the model's, ``better`` somebody's correction; ``verdict`` is None
    for an answer that is wrong, with no better one known."""

    exchange: Exchange
    messages: Sequence[Message]
    said: str
    better: str | None
    verdict: Verdict | None
    feedback_ids: Sequence[str]


@dataclass
class Looked:
    """What a reading of the log came upon. ``at`` counts exchanges; the others are ``left_out`` by reason."""

    at: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    without_exchange: int = 0


def judged(store: ObjectStore, wanted: TrafficFilter, with_redacted: bool, looked: Looked) -> Iterator[Judged]:
    """Exchanges that somebody judged and that can be trained on. Fills ``looked`` on the way.

    Memory: all feedback, and the exchanges that have some.
    """
    said = feedback_by_request(store)
    rated: list[Exchange] = []
    for exchange in exchanges(store, wanted):
        looked.at += 1
        if exchange.request_id in said:
            rated.append(exchange)
        else:
            looked.left_out["no_feedback"] += 1
    seen = Counter(exchange.request_id for exchange in rated)
    looked.without_exchange = len(said.keys() - seen.keys())
    for exchange in rated:
        found = _judge(exchange, said[exchange.request_id], with_redacted)
        if isinstance(found, Judged) and seen[exchange.request_id] > 1:
            found = "request_id_not_unique"
        if isinstance(found, Judged):
            yield found
        else:
            looked.left_out[found] += 1


def preference_lines(judged_ones: Sequence[Judged]) -> Iterator[PreferenceLine]:
    """Pairs to learn a preference from: a correction over what the model had said, and an approved answer over one
    that was called wrong, where the same was asked."""
    wrong: dict[str, list[str]] = {}
    for one in judged_ones:
        if one.verdict != "approved":
            wrong.setdefault(_asked(one), []).append(one.said)
    for one in judged_ones:
        if one.better is not None:
            yield from _line(one, one.better, one.said)
        elif one.verdict == "approved":
            for other in dict.fromkeys(wrong.get(_asked(one), ())):
                yield from _line(one, one.said, other)


def _judge(exchange: Exchange, said: Sequence[Feedback], with_redacted: bool) -> Judged | str:
    """The judged exchange, or why it is none."""
    corrections = [feedback for feedback in said if feedback.corrected_answer is not None]
    ratings = {feedback.rating for feedback in said if feedback.rating is not None}
    better = corrections[-1].corrected_answer if corrections else None
    if better is None and len(ratings) != 1:
        return "disputed" if ratings else "no_rating"
    if (exchange.redacted or any(f.redacted for f in said)) and not with_redacted:
        return "redacted"
    messages = _conversation(exchange)
    if isinstance(messages, str):
        return messages
    if exchange.status != 200 or not exchange.answer:
        return "no_answer"
    if better is None and (not exchange.complete or exchange.finish_reason != "stop"):
        return "answer_cut_short"
    if better == exchange.answer:
        better = None
        ratings = {"up"}
    verdict: Verdict | None = "corrected" if better is not None else "approved" if ratings == {"up"} else None
    return Judged(exchange, messages, exchange.answer, better, verdict, [f.feedback_id for f in said])


def _conversation(exchange: Exchange) -> Sequence[Message] | str:
    """All turns up to the answer, or why they can't be trained on."""
    if exchange.prompt is not None or not exchange.messages:
        return "no_conversation"
    if exchange.tool_calls or any("tool_calls" in turn for turn in exchange.messages):
        return "tool_calls"
    turns = [(_ROLES.get(str(turn.get("role"))), text_of(turn.get("content"))) for turn in exchange.messages]
    if any(role is None or text is None for role, text in turns):
        return "not_text"
    if turns[-1][0] != "user":
        return "no_question"
    return tuple(Message.model_validate({"role": role, "content": text}) for role, text in turns)


def _line(one: Judged, chosen: str, rejected: str) -> Iterator[PreferenceLine]:
    """One, or none where the two say the same."""
    try:
        yield PreferenceLine(messages=tuple(one.messages), chosen=chosen, rejected=rejected)
    except ValidationError:
        return


def _asked(one: Judged) -> str:
    digest = hashlib.sha256()
    for message in one.messages:
        digest.update(message.to_json())
    return digest.hexdigest()
