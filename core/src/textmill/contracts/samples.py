"""What a model wrote, from the same beginnings, as its training went on."""

from collections.abc import Sequence

from textmill.contracts.base import Contract, StoredContract


class Sample(Contract):
    """``text`` is what came after ``prompt`` when ``step`` steps were done."""

    step: int
    prompt: str
    text: str


class SamplesReport(StoredContract):
    samples: Sequence[Sample]
