"""The masking report: what a run shows of its records before it trains on them."""

from pathlib import Path
from typing import Any

import pytest
from tests.trainer import chat_templates
from tests.trainer.conftest import make_record, make_records, write_records

from textmill.contracts.datasets import Message
from textmill.contracts.masking import MaskedRecords, MaskingReport
from textmill.errors import JobFailed
from textmill_trainer.masking import (
    encode_with_proof,
    length_histogram,
    masked_records,
    masking_report,
    preview,
    summarize,
)
from textmill_trainer.prepare import Example, encode_all, encode_records
from textmill_trainer.workfolder import WorkFolder


def test_the_preview_marks_what_the_mask_trains(tokenizer: Any) -> None:
    (example,) = encode_all([make_record("How many lines?", "Six.")], tokenizer, 100)
    prompt = "<|im_start|>user\nHow many lines?<|im_end|>\n<|im_start|>assistant\n"
    assert preview(example, tokenizer) == f"{prompt}⟦Six.<|im_end|>⟧\n"
    wrong = Example("r", "d", example.token_ids, (False, True) + (False,) * (len(example.token_ids) - 2))
    assert preview(wrong, tokenizer).startswith("<|im_start|>⟦user⟧\nHow many")


def test_the_preview_keeps_spaces_of_sentencepiece_vocabularies(tmp_path: Path) -> None:
    tokenizer = chat_templates.chatglm(tmp_path)
    (example,) = encode_all([make_record("乾卦有 几爻？", "六爻 皆阳。")], tokenizer, 100)
    assert preview(example, tokenizer) == "[gMASK]sop<|user|>\n 乾卦有 几爻？<|assistant|>⟦\n 六爻 皆阳。<|user|>⟧"


def test_the_report_counts_every_record_and_every_trained_token(tokenizer: Any) -> None:
    records = make_records(5) + make_records(2, "eval")
    encoded = encode_records(records, tokenizer, 100)
    report = masking_report(records, encoded, tokenizer, 100)
    train, held = report.splits
    assert (train.split, train.records, held.split, held.records) == ("train", 5, "eval", 2)
    assert train.tokens == sum(len(e.token_ids) for e in encoded.examples[:5])
    assert train.supervised_tokens == sum(sum(e.supervised) for e in encoded.examples[:5])
    assert 0 < train.supervised_share < 1
    assert sum(bucket.examples for bucket in train.lengths) == train.examples == 5
    assert report.end_of_turn == ["<|im_end|>"]
    assert MaskingReport.model_validate_json(report.to_json()) == report
    summary = summarize(report)
    assert summary is not None
    assert summary.supervised_tokens == train.supervised_tokens


def test_the_report_shows_longest_shortest_and_the_first_of_each_way(tokenizer: Any) -> None:
    records = [
        make_record("What is this one, please?", "It is the one.", way="plain"),
        make_record("And that?", "It is the other one of the two.", way="plain"),
        make_record("Thing?", "A thing.", way="keyword"),
    ]
    report = masking_report(records, encode_records(records, tokenizer, 100), tokenizer, 100)
    shown = {record.shown_as: record for record in report.shown}
    assert shown["first of qa, plain"].record_id == records[0].record_id
    assert shown["first of qa, keyword"].record_id == records[2].record_id
    assert shown["shortest"].record_id == records[2].record_id
    assert "⟦A thing.<|im_end|>⟧" in shown["shortest"].preview


def test_refused_records_are_in_the_report_and_not_in_the_counts(tokenizer: Any) -> None:
    bad = make_record("Nothing?", "a", messages=[Message(role="user", content="Nothing?")])
    records = [*make_records(2), bad, make_record("Long?", "word " * 99)]
    report = masking_report(records, encode_records(records, tokenizer, 64), tokenizer, 64)
    assert {r.record_id: r.reason for r in report.refused} == {
        bad.record_id: "no_answer",
        records[3].record_id: "too_long",
    }
    assert report.refused_by_reason == {"no_answer": 1, "too_long": 1}
    assert [split.records for split in report.splits] == [2]


def test_a_report_of_nothing_but_refusals(tokenizer: Any) -> None:
    records = [make_record("Long?", "word " * 99)]
    report = masking_report(records, encode_records(records, tokenizer, 64), tokenizer, 64)
    assert (report.splits, report.shown, len(report.refused)) == ([], [], 1)
    assert summarize(report) is None


def test_a_record_split_by_turn_is_one_row_with_all_its_examples(real_base: Path) -> None:
    tokenizer = chat_templates.thinking(real_base)
    turns = ("One?", "<think>\n1\n</think>\n\nYes.", "Two?", "<think>\n2\n</think>\n\nNo.")
    roles = ("user", "assistant", "user", "assistant")
    messages = [Message(role=role, content=turn) for role, turn in zip(roles, turns, strict=True)]  # type: ignore[arg-type]
    records = [make_record("q", "a", messages=messages)]
    encoded = encode_records(records, tokenizer, 100)
    assert masking_report(records, encoded, tokenizer, 100).split_by_turn == 1
    (row,) = masked_records(records, encoded.examples, tokenizer)
    assert row.examples == 2
    assert row.supervised_tokens == sum(e.supervised_tokens for e in encoded.examples)
    assert row.preview.count("⟦") == 2


@pytest.mark.parametrize(
    ("lengths", "buckets"),
    [([], []), ([3, 16], [(16, 2)]), ([17, 130], [(32, 1), (64, 0), (128, 0), (256, 1)])],
)
def test_the_histogram_leaves_no_length_out(lengths: list[int], buckets: list[tuple[int, int]]) -> None:
    assert [(b.up_to, b.examples) for b in length_histogram(lengths)] == buckets


def test_the_proof_is_written_before_a_refusal_fails_the_run(tokenizer: Any, tmp_path: Path) -> None:
    folder = WorkFolder(tmp_path)
    write_records(folder.records("train"), [*make_records(2), make_record("Long?", "word " * 99)])
    write_records(folder.records("eval"), make_records(1, "eval"))
    with pytest.raises(JobFailed, match=r"1 record can't be trained on.*too_long 1: "):
        encode_with_proof(folder, tokenizer, 64)
    report = MaskingReport.model_validate_json(folder.report("masking").read_bytes())
    assert [(split.split, split.records) for split in report.splits] == [("train", 2), ("eval", 1)]
    assert report.refused_by_reason == {"too_long": 1}
    proof = MaskedRecords.model_validate_json(folder.report("masked_records").read_bytes())
    assert ["⟦It is 0.<|im_end|>⟧" in record.preview for record in proof.records] == [True, False, True]
