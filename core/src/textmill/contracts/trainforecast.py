"""What is known of a run before it starts: memory, time, cost, and why its learning rate and rank are what they are."""

from collections.abc import Sequence
from datetime import datetime

from pydantic import Field

from textmill.contracts.base import Contract, Id, StoredContract, utc_now
from textmill.contracts.preflight import Interval
from textmill.contracts.training import TrainOptions


class MemoryTerm(Contract):
    """``what`` takes so many bytes at the fullest moment of a step."""

    what: str
    bytes: int


class MemoryForecast(Contract):
    """Peak memory of a step by formula, beside what the device has to give. None: that isn't known here."""

    terms: Sequence[MemoryTerm]
    available_bytes: int | None = None

    @property
    def total_bytes(self) -> int:
        return sum(term.bytes for term in self.terms)


class MeasuredStep(Contract):
    """One whole step, done and undone. Bytes are what it took beyond the loaded model; None where nobody counts them.

    ``padded_tokens`` is what the largest microbatch held, ``tokens`` what all of them did without padding. ``warm``:
    the step that was timed found its memory as a step before had left it, as a run's steps do.
    """

    tokens: int
    padded_tokens: int
    seconds: float
    grown_bytes: int | None
    formula_bytes: int
    warm: bool = False


class Setup(Contract):
    """What may change without changing results: how a step is cut, and what is computed twice to be held once."""

    max_padded_tokens: int
    gradient_checkpointing: bool = False
    dequantized: bool = True


class OptionEvidence(Contract):
    """Why an option has its value. ``source`` is a paper, an issue or a measurement of ours."""

    option: str
    value: float
    why: str
    source: str


class SweepTrial(Contract):
    """A learning rate tried for a few steps. ``loss`` in nats a token; None when it diverged."""

    learning_rate: float
    steps: int
    loss: float | None


class Sweep(Contract):
    """``measured_on``: the eval split, or the steps' own batches, each before it was trained on."""

    trials: Sequence[SweepTrial]
    chosen: float
    measured_on: str
    seconds: float


class ForecastTruth(Contract):
    """What became of it. Seconds are of the steps, evaluations between them aside."""

    steps: int
    tokens: int
    seconds: float
    seconds_off: float
    """Share by which the forecast was too high (positive) or too low."""


class TrainForecast(StoredContract):
    """``seconds`` and ``cost`` are None where nothing was measured to tell them from, or no price is set.

    ``tokens`` are those of all steps. ``asked`` is the setup of the settings, ``setup`` the one that is used.
    ``notes`` say what the figures rest on, ``advice`` what the owner could change.
    """

    base_model: str
    parameters: int
    trained_parameters: int
    steps: int
    tokens: Interval
    seconds: Interval | None
    seconds_by_stage: dict[str, float] = Field(default_factory=dict)
    cost: Interval | None
    memory: MemoryForecast
    asked: Setup
    setup: Setup
    probe: Sequence[MeasuredStep] = ()
    learning_rate: float
    rank: int
    evidence: Sequence[OptionEvidence] = ()
    sweep: Sweep | None = None
    advice: Sequence[str] = ()
    notes: Sequence[str] = ()
    device: str = "unknown"
    truth: ForecastTruth | None = None
    created_at: datetime = Field(default_factory=utc_now)


class ForecastRequest(TrainOptions):
    """A run that nobody has asked for yet. ``tokens_per_s`` of the device, where it is known, gives a time."""

    dataset_id: Id
    tokens_per_s: float | None = Field(default=None, gt=0)
