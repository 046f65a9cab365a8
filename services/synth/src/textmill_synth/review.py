"""The log of decisions on a dataset, and the state that it adds up to.

A decision's key is the next free number, written create-only: who loses the race reads what the winner decided, looks
whether his own decision still holds, and takes the number after. So decisions stand in one order for all, and an edit
is made on exactly the version it names. State costs about 300 bytes a reviewed record, besides the edits' texts.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

from textmill.contracts.base import new_id
from textmill.contracts.review import Approve, Changes, Decision, DecisionView, Edit, RejectRecords, Status, Undo
from textmill.errors import BadRequest, Conflict, NotFound, TextmillError
from textmill.store import ObjectStore

_STATES_KEPT = 8
_READERS = 8
_BATCH = 256
REJECT_PREFIX = "rej_"


@dataclass(frozen=True)
class Standing:
    """What has been decided about one record. ``edits`` stand in their order; ``last`` is None when nothing stands."""

    status: Status
    edits: tuple[Decision, ...]
    last: Decision | None

    @property
    def version(self) -> int:
        return self.edits[-1].number if self.edits else 0

    @property
    def changes(self) -> Changes | None:
        """All edits as one: of each text the latest."""
        merged: dict[str, str | None] = {}
        for edit in self.edits:
            assert edit.changes is not None
            merged |= edit.changes.model_dump(exclude_none=True)
        return Changes.model_validate(merged) if merged else None


_PENDING = Standing("pending", (), None)
_STATUS: dict[str, Status] = {"approve": "approved", "reject": "rejected", "edit": "edited"}


@dataclass
class ReviewState:
    """A fold over decisions, which must come in the order of their numbers."""

    number: int = 0
    decisions: dict[int, Decision] = field(default_factory=dict)
    """Those on many records without their ids."""
    sizes: dict[int, int] = field(default_factory=dict)
    undone: dict[int, int] = field(default_factory=dict)
    """Decisions taken back, and by which one."""
    _touched: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def fold(self, decision: Decision) -> None:
        if decision.number != self.number + 1:
            raise TextmillError(
                f"the review of {decision.dataset_id} goes from decision {self.number} to {decision.number}: objects "
                f"are missing under reviews/{decision.dataset_id}/; restore them"
            )
        self.number = decision.number
        many = decision.action != "edit"
        self.decisions[self.number] = decision.model_copy(update={"record_ids": ()}) if many else decision
        self.sizes[self.number] = len(decision.record_ids)
        for record_id in decision.record_ids:
            self._touched[record_id] = (*self._touched.get(record_id, ()), self.number)
        if decision.undoes is not None:
            self.undone[decision.undoes] = self.number
            again = self.decisions[decision.undoes].undoes
            if again is not None:
                self.undone.pop(again, None)

    def standing(self, record_id: str) -> Standing:
        decisions = [self.decisions[n] for n in self._touched.get(record_id, ()) if n not in self.undone]
        if not decisions:
            return _PENDING
        edits = tuple(d for d in decisions if d.action == "edit")
        return Standing(_STATUS[decisions[-1].action], edits, decisions[-1])

    def history(self, record_id: str) -> list[Decision]:
        """All decisions on the record, those taken back too."""
        return [self.decisions[n] for n in self._touched.get(record_id, ())]

    def edited_rejects(self) -> list[str]:
        """Ids of what synth rejected and a reviewer has edited, in the order of synth's rejects."""
        ids = [i for i in list(self._touched) if i.startswith(REJECT_PREFIX)]
        return sorted(i for i in ids if self.standing(i).edits)

    def reviewers(self) -> dict[str, int]:
        """Who has decided how many times."""
        counts: dict[str, int] = {}
        for decision in list(self.decisions.values()):
            counts[decision.author] = counts.get(decision.author, 0) + 1
        return dict(sorted(counts.items()))

    def view(self, decision: Decision) -> DecisionView:
        shown = decision.model_dump(include=set(DecisionView.model_fields))
        return DecisionView(**shown, records=self.sizes[decision.number], undone_by=self.undone.get(decision.number))

    def last_of(self, author: str) -> int:
        """The author's last decision that stands and is no undo. Raises ``NotFound``."""
        for number in sorted(self.decisions, reverse=True):
            decision = self.decisions[number]
            if decision.author == author and decision.action != "undo" and number not in self.undone:
                return number
        raise NotFound(f"{author!r} has no decision that could be undone")

    def later_edits(self, number: int) -> list[int]:
        """Edits that stand and whose author saw the record with, or without, the edit that ``number`` is about."""
        decision = self.decisions[number]
        if decision.undoes is not None:
            return self.later_edits(decision.undoes)
        if decision.action != "edit":
            return []
        return [edit.number for edit in self.standing(decision.record_ids[0]).edits if edit.number > number]


Draft = Callable[[ReviewState], Decision]
"""Makes a decision (its number is set later) on the state it will stand on. Raises to give up."""


class ReviewLog:
    """Reads and appends. Keeps the states of the datasets used last, brought up to date at each use."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._states: OrderedDict[str, tuple[ReviewState, threading.Lock]] = OrderedDict()
        self._lock = threading.Lock()

    def state(self, dataset_id: str) -> ReviewState:
        state, lock = self._slot(dataset_id)
        with lock:
            self._catch_up(dataset_id, state)
        return state

    def append(self, dataset_id: str, draft: Draft) -> Decision:
        """Write the decision that ``draft`` makes; it is asked anew after each race that was lost."""
        state, lock = self._slot(dataset_id)
        with lock:
            while True:
                self._catch_up(dataset_id, state)
                decision = draft(state).model_copy(update={"number": state.number + 1})
                created = self._store.create(_key(dataset_id, decision.number), decision.to_json())
                if created or self._is_mine(dataset_id, decision):
                    state.fold(decision)
                    return decision

    def _is_mine(self, dataset_id: str, decision: Decision) -> bool:
        """Whether a write that was refused had gone through before, its answer lost on the way."""
        try:
            stored = Decision.model_validate_json(self._store.get(_key(dataset_id, decision.number)))
        except NotFound:
            return False
        return stored.decision_id == decision.decision_id

    def _slot(self, dataset_id: str) -> tuple[ReviewState, threading.Lock]:
        with self._lock:
            slot = self._states.setdefault(dataset_id, (ReviewState(), threading.Lock()))
            self._states.move_to_end(dataset_id)
            while len(self._states) > _STATES_KEPT:
                self._states.popitem(last=False)
            return slot

    def _catch_up(self, dataset_id: str, state: ReviewState) -> None:
        for decision in decisions(self._store, dataset_id, state.number):
            state.fold(decision)


def decisions(store: ObjectStore, dataset_id: str, after: int = 0) -> Iterator[Decision]:
    """All decisions past number ``after``, in order, some hundred in memory at a time."""
    infos = store.list(f"reviews/{dataset_id}/", _key(dataset_id, after))
    with ThreadPoolExecutor(_READERS) as readers:
        while keys := [info.key for info in islice(infos, _BATCH)]:
            for data in readers.map(store.get, keys):
                yield Decision.model_validate_json(data)


def draft(dataset_id: str, author: str, new: Approve | RejectRecords, record_ids: Sequence[str]) -> Decision:
    """A decision about records that are known to exist."""
    return Decision(
        number=0,
        decision_id=new_id("rev"),
        dataset_id=dataset_id,
        author=author,
        action=new.action,
        record_ids=record_ids,
        filter=new.filter,
        reason=new.reason if isinstance(new, RejectRecords) else None,
    )


def draft_edit(dataset_id: str, author: str, new: Edit, finding: str | None) -> Draft:
    """Raises ``Conflict`` when the record has another version by now."""
    decision = Decision(
        number=0,
        decision_id=new_id("rev"),
        dataset_id=dataset_id,
        author=author,
        action="edit",
        record_ids=(new.record_id,),
        changes=new.changes,
        finding=finding,
    )

    def on(state: ReviewState) -> Decision:
        standing = state.standing(new.record_id)
        if standing.version != new.based_on:
            by = f", made by {standing.edits[-1].author!r}" if standing.edits else ", the original"
            raise Conflict(
                f"{new.record_id} is at version {standing.version}{by}; the edit is based on {new.based_on}. Read the "
                "record again and base the edit on what it says now"
            )
        return decision

    return on


def draft_undo(dataset_id: str, author: str, new: Undo) -> Draft:
    """Raises ``NotFound``; ``Conflict`` for what is undone already, or what later edits were made on."""
    decision = Decision(
        number=0, decision_id=new_id("rev"), dataset_id=dataset_id, author=author, action="undo", undoes=new.decision
    )

    def on(state: ReviewState) -> Decision:
        number = state.last_of(author) if new.decision is None else new.decision
        if number not in state.decisions:
            raise NotFound(f"{dataset_id} has {state.number} decisions, and none of number {number}")
        if number in state.undone:
            raise Conflict(f"decision {number} was undone by decision {state.undone[number]}; undo that to restore it")
        if later := state.later_edits(number):
            numbers = ", ".join(map(str, later))
            raise Conflict(f"undoing {number} would change what later edits were made on: undo {numbers} first")
        return decision.model_copy(update={"undoes": number})

    return on


def reject_id(row: int) -> str:
    """The id of the reject in this line, counted from 0."""
    return f"{REJECT_PREFIX}{row:032x}"


def reject_row(target_id: str) -> int:
    return int(target_id.removeprefix(REJECT_PREFIX), 16)


def refuse_unedited(state: ReviewState, record_ids: Sequence[str]) -> None:
    """Raises ``BadRequest`` when a reject of synth is approved that nobody has given an answer."""
    for record_id in record_ids:
        if record_id.startswith(REJECT_PREFIX) and not state.standing(record_id).edits:
            raise BadRequest(f"{record_id} was rejected by synth: edit it, and it is taken up")


def _key(dataset_id: str, number: int) -> str:
    return f"reviews/{dataset_id}/{number:012d}.json"
