"""What a training run saw of each record: how long it was, which tokens were trained on, what was refused and why."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from textmill.contracts.base import Contract, StoredContract
from textmill.contracts.datasets import Split

RefusalReason = Literal[
    "no_answer",
    "empty_answer",
    "too_long",
    "no_end_of_turn",
    "answer_not_rendered",
    "tools_not_rendered",
    "control_token",
    "joined_tokens",
    "not_in_vocabulary",
    "turns_not_separable",
    "template_error",
]
"""Why a record can't be trained on as it stands. ``joined_tokens``: a token is half prompt and half answer, and can't
be parted. ``not_in_vocabulary``: the tokenizer loses characters. ``turns_not_separable``: the template renders a turn
otherwise than it asks for it. ``template_error``: it raises."""


class RefusedRecord(Contract):
    record_id: str
    split: Split
    reason: RefusalReason
    detail: str


class MaskedRecord(Contract):
    """One record as it is trained on. Lengths are in tokens.

    ``examples`` is 1; or the number of its answers, each behind the prompt that it would really follow, where the
    template rewrites earlier turns or the tokenizer joins a prompt with what comes next. ``preview`` is the decoded
    text with each trained span between ``⟦`` and ``⟧``, made from the token ids and the mask themselves; examples are
    divided by a blank line.
    """

    record_id: str
    split: Split
    tokens: int
    supervised_tokens: int
    examples: int
    preview: str


class ShownRecord(MaskedRecord):
    """``shown_as``: the first of its strategy and way, the longest or the shortest."""

    shown_as: str


class LengthBucket(Contract):
    """``examples`` longer than the bucket before, and of at most ``up_to`` tokens."""

    up_to: int
    examples: int


class MaskedSplit(Contract):
    split: Split
    records: int
    examples: int
    tokens: int
    supervised_tokens: int
    longest: int
    shortest: int
    lengths: Sequence[LengthBucket]

    @property
    def supervised_share(self) -> float:
        return self.supervised_tokens / self.tokens


class MaskingReport(StoredContract):
    """Of a whole run. ``end_of_turn`` are the tokens at which generation stops; each answer ends with one of them.

    ``split_by_turn`` records were made into one example for each of their answers. With anything in ``refused`` the
    run fails before training: nothing is left out silently.
    """

    max_tokens: int
    end_of_turn: Sequence[str]
    splits: Sequence[MaskedSplit]
    split_by_turn: int
    shown: Sequence[ShownRecord]
    refused: Sequence[RefusedRecord]
    refused_by_reason: dict[RefusalReason, int] = Field(default_factory=dict)


class MaskedRecords(StoredContract):
    """The proof in full: every record that is trained on or evaluated with."""

    records: Sequence[MaskedRecord]


class MaskingSummary(Contract):
    """The short form, for the model's manifest and card: the train split's own figures."""

    records: int
    examples: int
    tokens: int
    supervised_tokens: int
    end_of_turn: Sequence[str]
