"""What people say of answers: stored once each, never changed. Redacted as the answers are."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from textmill.contracts.base import content_id, utc_now
from textmill.contracts.traffic import Feedback, NewFeedback
from textmill.errors import NotFound
from textmill.store import ObjectStore
from textmill_inference.flywheel import metrics
from textmill_inference.flywheel.redact import Redactor
from textmill_inference.flywheel.segments import FEEDBACK, day_of, deleted_hashes, request_hash


def keep_feedback(store: ObjectStore, new: NewFeedback) -> tuple[Feedback, bool]:
    """Store it under an id that follows from its content. False if the same came before, on the same day."""
    redact = Redactor()
    now = utc_now()
    feedback = Feedback(
        feedback_id=content_id("fb", new.model_dump_json()),
        request_id=new.request_id,
        rating=new.rating,
        corrected_answer=None if new.corrected_answer is None else redact.text(new.corrected_answer),
        comment=None if new.comment is None else redact.text(new.comment),
        author=redact.text(new.author),
        created_at=now,
        redacted=dict(redact.counts),
    )
    key = f"{FEEDBACK}{day_of(now)}/{request_hash(new.request_id)}-{feedback.feedback_id}.json"
    if store.create(key, feedback.to_json()):
        metrics.FEEDBACK.labels(new.rating or "none").inc()
        return feedback, True
    return Feedback.model_validate_json(store.get(key)), False


def feedback_of(store: ObjectStore, request_id: str) -> list[Feedback]:
    """Oldest first. Lists all feedback there is, and reads that of this request."""
    hashed = request_hash(request_id)
    if hashed in deleted_hashes(store):
        return []
    keys = [info.key for info in store.list(FEEDBACK) if hashed in info.key]
    return sorted(_read(store, keys), key=lambda feedback: feedback.created_at)


def feedback_by_request(store: ObjectStore) -> Mapping[str, Sequence[Feedback]]:
    """All feedback there is, oldest first, by request id. In memory: a few hundred bytes each and its texts."""
    deleted = deleted_hashes(store)
    keys = [i.key for i in store.list(FEEDBACK) if i.key.rpartition("/")[2].partition("-")[0] not in deleted]
    found: dict[str, list[Feedback]] = defaultdict(list)
    for feedback in sorted(_read(store, keys), key=lambda feedback: feedback.created_at):
        found[feedback.request_id].append(feedback)
    return found


def _read(store: ObjectStore, keys: Sequence[str]) -> Iterator[Feedback]:
    for key in keys:
        try:
            yield Feedback.model_validate_json(store.get(key))
        except NotFound:  # swept or deleted meanwhile
            continue
