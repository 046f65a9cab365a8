"""The masking proof: what is trained on in each record, decoded from its token ids and its mask; and what is refused.

Knows no torch, and nothing of how records are encoded (that is ``prepare``).
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Protocol

from textmill.contracts.datasets import Split
from textmill.contracts.masking import (
    LengthBucket,
    MaskedRecord,
    MaskedRecords,
    MaskedSplit,
    MaskingReport,
    MaskingSummary,
    ShownRecord,
)
from textmill.errors import JobFailed
from textmill_trainer.pairs import PairExample, dialogues, encode_dialogues, join, read_pairs
from textmill_trainer.prepare import Encoded, Example, encode_records, end_of_turn_tokens, read_records
from textmill_trainer.refusals import count_by_reason, refusal_message
from textmill_trainer.workfolder import WorkFolder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MARKS = ("⟦", "⟧")
_SPLITS: tuple[Split, ...] = ("train", "eval")
_SHOWN = 40
"""Records shown in the report: strategies times ways can be many, and each preview is private text at full length."""


class Row(Protocol):
    """What is shown of a record, or of one side of a preference pair, beside its tokens."""

    @property
    def record_id(self) -> str: ...

    @property
    def split(self) -> Split: ...

    @property
    def strategy(self) -> str: ...

    @property
    def way(self) -> str: ...


def masking_report(
    records: Sequence[Row], encoded: Encoded, tokenizer: "PreTrainedTokenizerFast", max_tokens: int
) -> MaskingReport:
    """``records`` of all splits, in the order in which they were encoded."""
    examples = _by_record(encoded.examples)
    accepted = [r for r in records if r.record_id in examples]
    splits = sorted({r.split for r in accepted}, key=lambda split: (split != "train", split))
    return MaskingReport(
        max_tokens=max_tokens,
        end_of_turn=end_of_turn_tokens(tokenizer),
        splits=[_split([r for r in accepted if r.split == split], examples) for split in splits],
        split_by_turn=sum(len(found) > 1 for found in examples.values()),
        shown=list(_shown(accepted, examples, tokenizer)),
        refused=encoded.refused,
        refused_by_reason=count_by_reason(encoded.refused),
    )


def encode_with_proof(
    folder: WorkFolder, tokenizer: "PreTrainedTokenizerFast", max_tokens: int
) -> tuple[dict[Split, list[Example]], MaskingSummary | None]:
    """The examples of the folder's splits. Raises as ``prove`` does."""
    records = {split: read_records(p) for split in _SPLITS if (p := folder.records(split)).exists()}
    encoded = {split: encode_records(found, tokenizer, max_tokens) for split, found in records.items()}
    rows = [record for found in records.values() for record in found]
    report = prove(folder, rows, list(encoded.values()), tokenizer, max_tokens)
    return {split: found.examples for split, found in encoded.items()}, summarize(report)


def encode_pairs_with_proof(
    folder: WorkFolder, tokenizer: "PreTrainedTokenizerFast", max_tokens: int
) -> tuple[dict[Split, list[PairExample]], MaskingSummary | None]:
    """The preference pairs of the folder's splits; in the reports each is two records. Raises as ``prove`` does."""
    pairs = {split: read_pairs(folder.lines(split)) for split in _SPLITS}
    sides = {split: list(dialogues(found, split)) for split, found in pairs.items()}
    encoded = {split: encode_dialogues(found, tokenizer, max_tokens) for split, found in sides.items()}
    rows = [side for found in sides.values() for side in found]
    report = prove(folder, rows, list(encoded.values()), tokenizer, max_tokens)
    return {split: join(found, encoded[split].examples) for split, found in pairs.items()}, summarize(report)


def prove(
    folder: WorkFolder,
    rows: Sequence[Row],
    encoded: Sequence[Encoded],
    tokenizer: "PreTrainedTokenizerFast",
    max_tokens: int,
) -> MaskingReport:
    """Write the reports ``masking`` and ``masked_records``, also on failure.

    Raises:
        JobFailed: some records can't be trained on; the message counts them by reason, and all are in the report.
    """
    everything = Encoded(
        [e for found in encoded for e in found.examples], [r for found in encoded for r in found.refused]
    )
    report = masking_report(rows, everything, tokenizer, max_tokens)
    folder.write(folder.report("masking"), report)
    proof = MaskedRecords(records=list(masked_records(rows, everything.examples, tokenizer)))
    folder.write(folder.report("masked_records"), proof)
    if everything.refused:
        raise JobFailed(refusal_message(everything.refused))
    return report


def masked_records(
    records: Sequence[Row], examples: Sequence[Example], tokenizer: "PreTrainedTokenizerFast"
) -> Iterator[MaskedRecord]:
    """Each accepted record with its preview: the proof in full."""
    by_record = _by_record(examples)
    return (_masked(r, by_record[r.record_id], tokenizer) for r in records if r.record_id in by_record)


def summarize(report: MaskingReport) -> MaskingSummary | None:
    """None without a train split."""
    for split in report.splits:
        if split.split == "train":
            return MaskingSummary(
                records=split.records,
                examples=split.examples,
                tokens=split.tokens,
                supervised_tokens=split.supervised_tokens,
                end_of_turn=report.end_of_turn,
            )
    return None


def preview(example: Example, tokenizer: "PreTrainedTokenizerFast") -> str:
    """The whole text, each trained span between ``MARKS``."""
    text, at = "", 0
    for trained, run in groupby(example.supervised):
        begin, at = at, at + len(list(run))
        # A piece decoded alone would lose the space that some tokenizers keep in the token before it.
        piece = _decode(tokenizer, example.token_ids[:at])[len(_decode(tokenizer, example.token_ids[:begin])) :]
        text += f"{MARKS[0]}{piece}{MARKS[1]}" if trained else piece
    return text


def length_histogram(lengths: Sequence[int]) -> list[LengthBucket]:
    """Buckets up to powers of two, from the first to the last that holds any."""
    ends = sorted({max(16, 1 << (length - 1).bit_length()) for length in lengths})
    buckets, end = [], ends[0] if ends else 0
    while ends and end <= ends[-1]:
        below = end // 2 if end > 16 else 0
        buckets.append(LengthBucket(up_to=end, examples=sum(below < length <= end for length in lengths)))
        end *= 2
    return buckets


def _by_record(examples: Sequence[Example]) -> dict[str, list[Example]]:
    found: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        found[example.record_id].append(example)
    return dict(found)


def _split(records: Sequence[Row], examples: dict[str, list[Example]]) -> MaskedSplit:
    found = [example for record in records for example in examples[record.record_id]]
    lengths = [len(example.token_ids) for example in found]
    return MaskedSplit(
        split=records[0].split,
        records=len(records),
        examples=len(found),
        tokens=sum(lengths),
        supervised_tokens=sum(example.supervised_tokens for example in found),
        longest=max(lengths),
        shortest=min(lengths),
        lengths=length_histogram(lengths),
    )


def _shown(
    records: Sequence[Row], examples: dict[str, list[Example]], tokenizer: "PreTrainedTokenizerFast"
) -> Iterator[ShownRecord]:
    """The longest, the shortest, then the first of each strategy and way."""
    if not records:
        return
    by_length = sorted(records, key=lambda r: max(len(e.token_ids) for e in examples[r.record_id]))
    chosen = {"longest": by_length[-1], "shortest": by_length[0]}
    for record in records:
        chosen.setdefault(f"first of {record.strategy}, {record.way}", record)
    for shown_as, record in list(chosen.items())[:_SHOWN]:
        masked = _masked(record, examples[record.record_id], tokenizer)
        yield ShownRecord(shown_as=shown_as, **masked.model_dump())


def _masked(record: Row, examples: Sequence[Example], tokenizer: "PreTrainedTokenizerFast") -> MaskedRecord:
    return MaskedRecord(
        record_id=record.record_id,
        split=record.split,
        tokens=sum(len(example.token_ids) for example in examples),
        supervised_tokens=sum(example.supervised_tokens for example in examples),
        examples=len(examples),
        preview="\n\n".join(preview(example, tokenizer) for example in examples),
    )


def _decode(tokenizer: "PreTrainedTokenizerFast", token_ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
