"""Finds rows that say nearly what an earlier row says, and rows that answer nearly the same question otherwise."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from textmill_synth.quality.rows import Row
from textmill_synth.quality.wording import likeness


@dataclass(frozen=True)
class Match:
    """Another record, and how much alike it is, from 0 to 1."""

    record_id: str
    similarity: float


@dataclass
class Doubles:
    """By row: what it is a near-duplicate of, or in conflict with. The earlier row of a pair is the one that stays."""

    duplicates: dict[int, Match] = field(default_factory=dict)
    conflicts: dict[int, Match] = field(default_factory=dict)


def find_doubles(meetings: Iterable[tuple[int, int]], read: Callable[[int], Row], threshold: float) -> Doubles:
    """Compare each row with the earlier ones it meets, and that stay. ``meetings`` come by row."""
    doubles = Doubles()
    for row, earlier in meetings:
        if row in doubles.duplicates or earlier in doubles.duplicates:
            continue
        mine, theirs = read(row), read(earlier)
        if _deliberate(mine, theirs):
            continue
        questions = likeness(mine.question, theirs.question)
        if questions < threshold:
            continue
        answers = likeness(mine.answer, theirs.answer)
        if answers >= threshold:
            doubles.duplicates[row] = Match(theirs.record.record_id, min(questions, answers))
            doubles.conflicts.pop(row, None)
        else:
            doubles.conflicts.setdefault(row, Match(theirs.record.record_id, questions))
    return doubles


def _deliberate(mine: Row, theirs: Row) -> bool:
    """A wording with slips, beside the same question's wording without."""
    a, b = mine.record, theirs.record
    siblings = (a.passage_id, a.question_id) == (b.passage_id, b.question_id)
    return siblings and a.axis != b.axis and "typo" in (a.axis, b.axis)
