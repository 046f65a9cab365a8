"""The two texts of a record that are compared: what is asked, with all that was said before, and what is answered."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from textmill.contracts.datasets import Message, Record
from textmill_synth.quality.minhash import meeting_keys
from textmill_synth.quality.wording import Wording, read_wording
from textmill_synth.spool import Spool


@dataclass(frozen=True)
class Row:
    """A record, ready to be compared."""

    record: Record
    question: Wording
    answer: Wording

    @cached_property
    def keys(self) -> Sequence[int]:
        """Rows that share one may ask nearly the same."""
        return meeting_keys(self.question)


def read_row(record: Record) -> Row:
    return Row(record, read_wording(asked(record)), read_wording(record.answer))


def row_reader(spool: Spool) -> Callable[[int], Row]:
    """Reads rows of a spool by number; the latest thousand are kept."""
    return lru_cache(maxsize=1024)(lambda row: read_row(Record.model_validate_json(spool.read(row))))


def asked(record: Record) -> str:
    """All that is said before the last answer, but for the system's words: "and why?" is no question by itself."""
    spoken = [message for message in record.messages if message.role != "system"]
    last = max(n for n, message in enumerate(spoken) if message.role == "assistant")
    return "\n".join(_said(message) for message in spoken[:last])


def shown(record: Record) -> str:
    """All that is said, for those who read it or search it."""
    return "\n".join(_said(message) for message in record.messages)


def _said(message: Message) -> str:
    if not message.tool_calls:
        return message.content
    calls = [f"{call.name} {call.arguments}" for call in message.tool_calls]
    return "\n".join([message.content, *calls] if message.content else calls)
