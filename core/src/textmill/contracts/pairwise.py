"""Comparisons of models in pairs: what is asked of them, how people and a judge vote, and what the votes show."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, JsonValue, model_validator

from textmill.contracts.base import Contract, Id, StoredContract, utc_now
from textmill.contracts.loadoptions import KeyFrom
from textmill.contracts.traffic import TrafficFilter

Choice = Literal["left", "right", "tie", "both_bad"]
Outcome = Literal["first", "second", "tie", "both_bad"]
"""How a pair of models fared on a prompt; ``first`` is the one that stands first in the comparison's list."""
Source = Literal["people", "judge"]
ChatMessage = dict[str, JsonValue]
"""As OpenAI's chat API writes it."""


class CompareJudge(Contract):
    """An LLM that sees two answers, each pair twice with the sides changed.

    ``url`` is any OpenAI-compatible endpoint, our own gateway by default; it is shown prompts and answers.
    ``key_from`` says where the inference service finds its key, as for a load test: no key ever travels in a job.
    """

    model: str = Field(min_length=1)
    url: str | None = None
    key_from: KeyFrom | None = None
    instructions: str = Field(default="", max_length=10_000)
    """What the owner values, in own words; it is put before the built-in instructions."""
    max_tokens: int = Field(default=512, ge=8, le=8_192)


class CompareOptions(Contract):
    """The same prompts to all ``models``. Prompts are the owner's own, a dataset's held-out questions, or logged ones.

    ``resamples`` is how many bootstrap samples the intervals rest on.
    """

    models: tuple[str, ...] = Field(min_length=2, max_length=10)
    prompts: tuple[str | tuple[ChatMessage, ...], ...] = Field(default=(), max_length=10_000)
    dataset_id: Id | None = None
    traffic: TrafficFilter | None = None
    max_prompts: int = Field(default=100, ge=1, le=10_000)
    max_tokens: int = Field(default=256, ge=1, le=32_768)
    temperature: float = Field(default=0.0, ge=0, le=2)
    concurrency: int = Field(default=8, ge=1, le=1_024)
    judge: CompareJudge | None = None
    resamples: int = Field(default=1_000, ge=100, le=10_000)
    seed: int = 0

    @model_validator(mode="after")
    def _can_be_compared(self) -> "CompareOptions":
        if len(set(self.models)) != len(self.models):
            raise ValueError(f"a model is named twice: {', '.join(self.models)}; name at least two different ones")
        given = [n for n in ("prompts", "dataset_id", "traffic") if getattr(self, n)]
        if len(given) != 1:
            raise ValueError(
                f"give one of 'prompts', 'dataset_id' and 'traffic' to say what is asked; given: {given or 'none'}"
            )
        return self


class ComparedPrompt(Contract):
    """``reference`` is the dataset's own answer, where there is one; a judge is shown it, people aren't."""

    prompt_id: Id
    messages: Sequence[ChatMessage]
    reference: str | None = None


class ModelAnswer(StoredContract):
    """What a model said. ``trouble`` is why it said nothing; such a prompt isn't voted on."""

    prompt_id: Id
    model: str
    text: str
    trouble: str | None = None
    finish_reason: str | None = None
    seconds: float


class Side(Contract):
    """One prompt with all models' answers, in the order of the comparison's models."""

    prompt: ComparedPrompt
    answers: Sequence[ModelAnswer]


class Pair(Contract):
    """Two models' answers to one prompt that are to be voted on. ``pair_id`` tells nothing of the models."""

    pair_id: Id
    prompt_id: Id
    first: str
    second: str


class ComparisonManifest(StoredContract):
    """A finished collection. ``same`` counts pairs with equal answers and ``failed`` those where one is missing:
    neither is voted on. ``salt`` shuffles the sides and isn't shown to voters."""

    comparison_id: Id
    models: Sequence[str]
    prompts: int
    pairs: int
    same: int
    failed: int
    sides_key: str
    pairs_key: str
    salt: str
    resamples: int
    seed: int
    judge: CompareJudge | None = None
    judged: int = 0
    created_at: datetime = Field(default_factory=utc_now)


class BlindPair(Contract):
    """What a voter sees. ``left_to_vote`` counts this pair, too."""

    pair_id: Id
    messages: Sequence[ChatMessage]
    left: str
    right: str
    left_to_vote: int


class NextPair(Contract):
    """``pair`` is None when the voter has seen all."""

    pair: BlindPair | None
    voted: int


class NewVote(Contract):
    pair_id: Id
    voter: Annotated[str, Field(min_length=1, max_length=100, pattern=r"\S")]
    choice: Choice
    comment: str = Field(default="", max_length=2_000)


class Vote(StoredContract):
    """Written once, create-only. ``left`` names the model that stood there for this voter."""

    pair_id: Id
    prompt_id: Id
    voter: str
    choice: Choice
    left: str
    right: str
    outcome: Outcome
    comment: str = ""
    voted_at: datetime = Field(default_factory=utc_now)


class Judgement(StoredContract):
    """One look of the judge at a pair. ``left`` was shown first; ``choice`` is None where no verdict could be read."""

    pair_id: Id
    left: str
    right: str
    choice: Literal["left", "right", "tie"] | None
    said: str


class Interval(Contract):
    """95 % confidence."""

    low: float
    high: float


class Rating(Contract):
    """``strength`` is a Bradley-Terry log-strength in nats, the mean of all models being 0.

    ``rating`` is the same on the scale of Elo: 1000 is the mean, 400 points are odds of 10 to 1.
    """

    model: str
    strength: float
    strength_interval: Interval
    rating: float
    rating_interval: Interval


class HeadToHead(Contract):
    """Two models over the prompts that both answered and that were voted on. ``win_rate`` is that of ``first``, a tie
    being half a win. ``shown`` names the better one if the interval of the difference doesn't hold 0."""

    first: str
    second: str
    wins: int
    losses: int
    ties: int
    both_bad: int
    win_rate: float
    win_rate_interval: Interval
    difference: float
    """Log-odds that ``first`` wins, by the ratings."""
    difference_interval: Interval
    shown: str | None


class PositionBias(Contract):
    """Of the pairs that the judge gave two readable verdicts on: how many agreed with the sides changed.

    ``always_first`` and ``always_second`` preferred the side, whichever model stood there; ``half`` called one of the
    two looks a tie.
    """

    pairs: int
    consistent: int
    always_first: int
    always_second: int
    half: int
    unreadable: int
    consistency: float | None
    consistency_interval: Interval | None


class Standings(Contract):
    """What the votes of one source show. ``prior_matters`` says that some model won or lost all its pairs, or that the
    votes fall apart into groups never compared, so that without the prior there would be no finite rating."""

    source: Source
    votes: int
    prompts: int
    voters: int
    ratings: Sequence[Rating]
    pairs: Sequence[HeadToHead]
    prior_matters: bool


class ComparisonResults(Contract):
    """``agreement`` is how often two votes on the same pair by different people, or people's majority and the judge,
    name the same outcome; None where there are no such pairs."""

    comparison: ComparisonManifest
    standings: Sequence[Standings]
    position_bias: PositionBias | None = None
    people_agree: float | None = None
    people_agree_on: int = 0
    judge_agrees: float | None = None
    judge_agrees_on: int = 0
    notes: Sequence[str] = ()
