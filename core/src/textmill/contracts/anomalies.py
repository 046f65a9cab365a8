"""What the loss watch found in a run: steps whose loss jumped, and the records that stand out among their like."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from textmill.contracts.base import Contract, StoredContract

SuspectVerdict = Literal["suspected", "confirmed", "cleared"]
"""``suspected`` by the losses of the run alone; the other two by a replay that didn't train on the record."""


class LossSpike(Contract):
    """A step whose loss stands out from the steps around it, and the records that made it.

    Losses are in nats a supervised token, ``score`` in robust standard deviations. ``record_ids`` are the records of
    the step whose own loss stands out, the worst first; empty where the step's loss is high without any of them.
    """

    step: int
    loss: float
    expected: float
    score: float
    record_ids: Sequence[str]


class RecordSeen(Contract):
    """One record at one step, beside what its peers had: records of like length, trained on at about the same time."""

    step: int
    epoch: float
    loss: float
    expected: float


class ReplayedLoss(Contract):
    """The record's loss under a model that wasn't trained on it, beside good records that it wasn't trained on either.

    ``limit`` is the loss above which a record is confirmed.
    """

    loss: float
    expected: float
    limit: float


class Suspect(Contract):
    """A record to look at, with the way back to its source. ``odd`` says what of its answer's form is rare among
    answers to its question. ``preview`` is the start of its answer: private text."""

    record_id: str
    passage_id: str | None
    document_id: str | None
    score: float
    tokens: int
    seen: Sequence[RecordSeen]
    odd: Sequence[str] = ()
    preview: str
    verdict: SuspectVerdict = "suspected"
    replayed: ReplayedLoss | None = None


class AnomalyReport(StoredContract):
    """``judged`` is false where there were too few records, or too few passes over them, to tell; ``note`` says so.

    Scores are robust standard deviations. A record is a suspect above ``odd_threshold`` if the form of its answer is
    rare, and above ``threshold`` if there is nothing to compare its form with. One above ``threshold`` whose answer
    looks like the others is ``surprising``: a rare good answer, or a wrong one in the right form; no replay can tell,
    and it isn't quarantined. ``left_out`` are the records that the run was told to leave out, and that nothing here is
    about.
    """

    records: int
    epochs_seen: float
    judged: bool
    threshold: float
    odd_threshold: float | None = None
    note: str = ""
    spikes: Sequence[LossSpike] = ()
    suspects: Sequence[Suspect] = ()
    surprising: Sequence[Suspect] = ()
    replayed: bool = False
    left_out: Sequence[str] = ()

    @property
    def confirmed(self) -> list[str]:
        return [s.record_id for s in self.suspects if s.verdict == "confirmed"]


class AnomalyCounts(Contract):
    """The short form, in the model's manifest. ``suspected`` were neither confirmed nor cleared."""

    judged: bool
    spikes: int = Field(ge=0)
    suspected: int = Field(ge=0)
    confirmed: int = Field(ge=0)
    cleared: int = Field(ge=0)
    left_out: int = Field(ge=0)
