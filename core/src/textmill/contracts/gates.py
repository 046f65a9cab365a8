"""Two gates on the way from training to serving: the merged model is the trained one, the served model the merged one.

Log-probabilities, KL and NLL are in nats a token.
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, JsonValue, model_validator

from textmill.contracts.base import Contract, StoredContract
from textmill.contracts.training import Method

MergedInto = Literal["nf4", "16bit", "saved"]
"""The dequantized NF4 weights, the base's own 16-bit weights, or no merge: all weights were trained, and are saved."""
PARITY_FILE = "parity.json"
"""A ``ParityProbe`` beside a model's weights."""


class Closeness(Contract):
    """A model against the trained one at the same supervised tokens.

    ``mean_kl`` is of the model from the trained one, ``top1_agreement`` a share of tokens, ``nll`` the model's own.
    """

    mean_kl: float
    top1_agreement: float
    nll: float


class MergeCandidate(Closeness):
    into: MergedInto


class MergeReport(StoredContract):
    """How the published model was chosen. ``trained_nll`` and ``base`` are of the model before merging.

    ``published`` is measured as loaded from disk on all ``tokens`` of all ``records``; ``base`` and ``candidates``,
    before anything is written, on the first few records. The nearest candidate is published; ``why`` says so in words.
    """

    method: Method
    records: int
    tokens: int
    max_kl: float
    trained_nll: float
    base: Closeness
    candidates: Sequence[MergeCandidate]
    published: MergeCandidate
    why: str
    seconds: float


class ParityToken(Contract):
    """One token of a continuation, and what the published model gave the likeliest tokens in its place, best first."""

    token_id: int
    logprob: float
    top_ids: Sequence[int]
    top_logprobs: Sequence[float]

    @model_validator(mode="after")
    def _ids_have_logprobs(self) -> "ParityToken":
        if not self.top_ids or len(self.top_ids) != len(self.top_logprobs):
            raise ValueError("top_ids and top_logprobs must be of the same length, and not empty")
        return self


class ParityConversation(Contract):
    """``prompt_ids`` is what the model's own template makes of ``messages``, with the assistant's turn begun.

    Messages and tools are in OpenAI's form. Without messages (raw text) only log-probabilities can be compared.
    """

    record_id: str
    messages: Sequence[dict[str, JsonValue]] = ()
    tools: Sequence[dict[str, JsonValue]] = ()
    prompt_ids: Sequence[int] = Field(min_length=1)
    continuation: Sequence[ParityToken] = Field(min_length=1)


class ParityProbe(StoredContract):
    """What a published model does, measured in transformers: the engine that serves it has to do the same."""

    conversations: Sequence[ParityConversation]
    dtype: str


class ParityCheck(Contract):
    """A serving engine against a model's ``ParityProbe``.

    ``top1_exact`` is the share of tokens at which both have the same likeliest token. ``top1_agreement`` counts ties,
    too: both sides see the two tokens in question less than ``tie_nats`` apart. Differences are of the log-probability
    of the continuation's own tokens.
    """

    conversations: int
    prompts_identical: int
    prompts_compared: int
    tokens: int
    top1_exact: float
    top1_agreement: float
    ties: int
    tie_nats: float
    mean_logprob_difference: float
    max_logprob_difference: float
    seconds: float
