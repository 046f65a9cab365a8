"""Decides of each row whether it stays, once all rows are known.

Rows are noted as they are made; then the splits are judged one after the other, ``train`` last, since it must not give
away what the rows that stay in the other two ask.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from textmill.contracts.datasets import Record, Split
from textmill.contracts.quality import DropRule, PiiKind, RowFinding
from textmill.contracts.synthesis import QualityOptions
from textmill.pii import pii_kinds
from textmill_synth.checks import Candidate, refusal
from textmill_synth.quality.contamination import DocumentFrequencies, KnownFacts, KnownWordings
from textmill_synth.quality.duplicates import Doubles, find_doubles
from textmill_synth.quality.minhash import MeetingPlace
from textmill_synth.quality.rows import Row, read_row, row_reader, shown
from textmill_synth.spool import Spool

JUDGED: tuple[Split, ...] = ("eval", "heldout", "train")
"""The order in which splits are judged."""


@dataclass(frozen=True)
class Verdict:
    """Why a row is dropped: ``value`` reached ``threshold``."""

    rule: str
    value: float
    threshold: float
    against: str | None = None


class Screen:
    """``spools`` hold the rows as JSON; rows are named by their number there. Memory: some 20 to 210 bytes a row."""

    def __init__(self, options: QualityOptions, spools: Mapping[Split, Spool]) -> None:
        self._options = options
        self._read = {split: row_reader(spool) for split, spool in spools.items()}
        self._meetings = {split: MeetingPlace() for split in spools}
        self._frequencies = DocumentFrequencies()
        self._doubles: dict[Split, Doubles] = {}
        self._eval_wordings = KnownWordings(self._read["eval"])
        self._eval_facts = KnownFacts(self._read["eval"], self._frequencies)
        self._heldout_wordings = KnownWordings(self._read["heldout"])

    def note(self, number: int, record: Record) -> None:
        row = read_row(record)
        self._meetings[record.split].add(number, row.keys)
        self._frequencies.note(record.document_id, row.question.words)

    def compare(self, split: Split) -> None:
        """Find what is twice in a split. All its rows must have been noted; judging comes after."""
        meetings = self._meetings.pop(split).meetings()
        self._doubles[split] = find_doubles(meetings, self._read[split], self._options.near_duplicate)

    def judge(self, number: int, record: Record) -> Verdict | list[RowFinding]:
        """Why the row goes; or what is remarkable about it, and it stays."""
        kinds = pii_kinds(shown(record))
        if kinds and self._options.drop_pii:
            return Verdict("pii", len(kinds), 1)
        double = self._doubles[record.split].duplicates.get(number)
        if double:
            return Verdict("near_duplicate", double.similarity, self._options.near_duplicate, double.record_id)
        row = read_row(record)
        if record.split == "train":
            return self._given_away(row) or self._findings(number, record, kinds)
        self._remember(number, row)
        return self._findings(number, record, kinds)

    def _remember(self, number: int, row: Row) -> None:
        if row.record.split == "heldout":
            self._heldout_wordings.add(number, row)
        else:
            self._eval_wordings.add(number, row)
            self._eval_facts.add(number, row)

    def _given_away(self, row: Row) -> Verdict | None:
        """At a threshold of 1 only equal questions count, and no other wordings of them."""
        threshold = self._options.contamination
        rules: tuple[tuple[DropRule, KnownWordings | KnownFacts], ...] = (
            ("contamination", self._eval_wordings),
            ("contamination", self._eval_facts),
            ("heldout_wording", self._heldout_wordings),
        )
        for rule, known in rules:
            match = None if known is self._eval_facts and threshold == 1 else known.closest(row)
            if match and match.similarity >= threshold:
                return Verdict(rule, match.similarity, threshold, match.record_id)
        return None

    def _findings(self, number: int, record: Record, kinds: tuple[PiiKind, ...]) -> list[RowFinding]:
        found = []
        conflict = self._doubles[record.split].conflicts.get(number)
        name, split = record.record_id, record.split
        if conflict:
            against, similarity = conflict.record_id, round(conflict.similarity, 4)
            found.append(
                RowFinding(record_id=name, split=split, finding="conflict", against=against, similarity=similarity)
            )
        if kinds:
            found.append(RowFinding(record_id=name, split=split, finding="pii", pii=kinds))
        if refusal(Candidate(record.answer, record.question, record.evidence, record.language)):
            found.append(RowFinding(record_id=name, split=split, finding="refusal"))
        return found
