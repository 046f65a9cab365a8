"""Builds records by hand, for tests that need no LLM and no corpus."""

from typing import Any

from textmill.contracts.base import content_id
from textmill.contracts.datasets import Message, Record
from textmill.contracts.documents import Span
from textmill_synth.quality.wording import read_wording


def made_record(question: str, answer: str, document: str = "one", **changes: Any) -> Record:
    """A record of the split ``train`` with one turn, as it is read back. The language is that of the question."""
    chinese = any("\u4e00" <= token <= "\u9fff" for token in read_wording(question).tokens)
    values: dict[str, Any] = {
        "record_id": content_id("rec", question, answer, document, str(sorted(changes.items()))),
        "split": "train",
        "strategy": "qa",
        "language": "zh" if chinese else "en",
        "messages": (Message(role="user", content=question), Message(role="assistant", content=answer)),
        "key_facts": [],
        "question_id": "q",
        "way": "ask-1",
        "document_id": content_id("doc", document),
        "document_sha256": content_id("sha", document),
        "passage_id": content_id("pas", document),
        "evidence": answer,
        "evidence_span": Span(char_start=0, char_end=len(answer), byte_start=0, byte_end=len(answer.encode())),
    }
    return Record.model_validate_json(Record(**{**values, **changes}).to_json())
