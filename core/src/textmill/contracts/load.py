"""What a load test is asked for: how requests arrive, what they hold, and for how long. What it measured: loadtest.py.

One ``Stage`` is one load for one stretch of time; a sweep or a capacity search is many of them, one after the other.
"""

from typing import Annotated, Literal

from pydantic import Field, JsonValue, model_validator

from textmill.contracts.base import Contract

MOST_CONCURRENT = 20_000
MOST_PER_SECOND = 100_000.0
MOST_TOKENS = 1_000_000
Rate = Annotated[float, Field(gt=0, le=MOST_PER_SECOND)]
Tokens = Annotated[int, Field(ge=0, le=MOST_TOKENS)]


# -- how requests arrive -----------------------------------------------------------------------------------------------


class ClosedLoop(Contract):
    """``concurrency`` clients, each of which sends its next request when its last one has ended.

    The clients begin one after the other over ``ramp_s``, so that they don't march in step; None is 1 ms a client.
    One whose connection was refused or reset waits for 0.1 s: to hammer at a dead target measures nothing. A closed
    loop slows down with the target, so it can't say how long users would have waited: an open one can.
    """

    kind: Literal["closed"] = "closed"
    concurrency: int = Field(ge=1, le=MOST_CONCURRENT)
    ramp_s: float | None = Field(default=None, ge=0, le=3_600)


class ConstantRate(Contract):
    """Open loop: one request every 1/``rate_per_s`` seconds, whatever the target does."""

    kind: Literal["constant"] = "constant"
    rate_per_s: Rate


class Poisson(Contract):
    """Open loop: independent arrivals, exponential gaps, as of many users who don't know of each other."""

    kind: Literal["poisson"] = "poisson"
    rate_per_s: Rate
    seed: int = 0


class Bursts(Contract):
    """Open loop: ``size`` requests at once every ``period_s``, over a constant base of ``rate_per_s``."""

    kind: Literal["bursts"] = "bursts"
    size: int = Field(ge=1, le=MOST_CONCURRENT)
    period_s: float = Field(gt=0, le=3_600)
    rate_per_s: float = Field(default=0, ge=0, le=MOST_PER_SECOND)


class Ramp(Contract):
    """Open loop: the rate goes evenly from one value to the other in ``seconds`` of the stage, then stays there."""

    kind: Literal["ramp"] = "ramp"
    from_per_s: float = Field(ge=0, le=MOST_PER_SECOND)
    to_per_s: Rate
    seconds: float = Field(gt=0, le=86_400)


class Trace(Contract):
    """Open loop: recorded arrivals, played ``speed`` times as fast. ``key`` is the stored trace: ``TraceEntry`` lines.

    Its entries are used once, in order, from the stage's first second on; an entry's text or lengths come before
    the stage's traffic.
    """

    kind: Literal["trace"] = "trace"
    key: str = Field(min_length=1, max_length=1_024)
    speed: float = Field(default=1.0, gt=0, le=1_000)


Load = Annotated[ClosedLoop | ConstantRate | Poisson | Bursts | Ramp | Trace, Field(discriminator="kind")]


class Message(Contract):
    """One turn of a chat."""

    role: str = "user"
    content: str


class TraceEntry(Contract):
    """A line of a trace file (JSON Lines): when a request came, and what it was.

    ``at_s`` counts from the trace's beginning and never falls. Without ``messages`` a prompt of ``prompt_tokens`` is
    made up. ``output_tokens`` is what the answer had; the replay asks for exactly so many.
    """

    at_s: float = Field(ge=0)
    messages: tuple[Message, ...] = ()
    prompt_tokens: int | None = Field(default=None, ge=1, le=MOST_TOKENS)
    output_tokens: int | None = Field(default=None, ge=1, le=MOST_TOKENS)


# -- what they hold ----------------------------------------------------------------------------------------------------


class Fixed(Contract):
    """Always the same."""

    kind: Literal["fixed"] = "fixed"
    value: Tokens


class Uniform(Contract):
    """Any length from ``low`` to ``high``, both included, equally often."""

    kind: Literal["uniform"] = "uniform"
    low: Tokens
    high: Tokens

    @model_validator(mode="after")
    def _ordered(self) -> "Uniform":
        _check_range(self.low, self.high)
        return self


class Normal(Contract):
    """Drawn again until it lies from ``low`` to ``high``."""

    kind: Literal["normal"] = "normal"
    mean: float = Field(gt=0, le=MOST_TOKENS)
    deviation: float = Field(ge=0, le=MOST_TOKENS)
    low: Tokens = 1
    high: Tokens = MOST_TOKENS

    @model_validator(mode="after")
    def _ordered(self) -> "Normal":
        _check_range(self.low, self.high, self.mean)
        return self


class LogNormal(Contract):
    """``median`` times e to the power of a normal with deviation ``sigma``: many short, few very long."""

    kind: Literal["lognormal"] = "lognormal"
    median: float = Field(gt=0, le=MOST_TOKENS)
    sigma: float = Field(ge=0, le=4)
    low: Tokens = 1
    high: Tokens = MOST_TOKENS

    @model_validator(mode="after")
    def _ordered(self) -> "LogNormal":
        _check_range(self.low, self.high, self.median)
        return self


class Empirical(Contract):
    """Lengths that occurred, drawn as often as they occurred; ``weights``, if given, say how often."""

    kind: Literal["empirical"] = "empirical"
    values: tuple[Tokens, ...] = Field(min_length=1, max_length=100_000)
    weights: tuple[Annotated[float, Field(ge=0)], ...] = ()

    @model_validator(mode="after")
    def _matched(self) -> "Empirical":
        if self.weights and (len(self.weights) != len(self.values) or sum(self.weights) <= 0):
            raise ValueError(
                f"weights must be as many as values ({len(self.values)}), not {len(self.weights)}, and not all 0"
            )
        return self


Lengths = Annotated[Fixed | Uniform | Normal | LogNormal | Empirical, Field(discriminator="kind")]


class GivenPrompts(Contract):
    """These conversations in turn. For completions the contents are joined with blank lines."""

    kind: Literal["given"] = "given"
    conversations: tuple[tuple[Message, ...], ...] = Field(min_length=1, max_length=100_000)


class MadeUpPrompts(Contract):
    """Prompts of random common words, each another, of drawn lengths.

    Lengths are in the target's tokens: how many tokens its words come to is read off its own usage counts before the
    run. The first ``shared_prefix_tokens`` are the same in each prompt of a group; groups take turns.
    """

    kind: Literal["made_up"] = "made_up"
    lengths: Lengths
    shared_prefix_tokens: Tokens = 0
    prefix_groups: int = Field(default=1, ge=1, le=10_000)
    seed: int = 0


Prompts = Annotated[GivenPrompts | MadeUpPrompts, Field(discriminator="kind")]


class Traffic(Contract):
    """What is asked of the target.

    ``output`` is how many tokens to ask for (``max_tokens``). ``exact_output`` asks for just so many
    (``ignore_eos`` and ``min_tokens``, which vLLM and SGLang know). ``sampling`` goes into the request body as it is.
    Without ``stream`` there is no time to first token and none between tokens.
    """

    api: Literal["chat", "completions"] = "chat"
    prompts: Prompts
    output: Lengths = Fixed(value=32)
    exact_output: bool = False
    stream: bool = True
    sampling: dict[str, JsonValue] = Field(default={"temperature": 0})
    seed: int = 0

    @model_validator(mode="after")
    def _own_fields(self) -> "Traffic":
        clash = sorted(self.sampling.keys() & _OWN_FIELDS)
        if clash:
            raise ValueError(f"sampling can't set {', '.join(clash)}: the load test does; leave them out")
        return self


_OWN_FIELDS = {"model", "messages", "prompt", "stream", "stream_options", "max_tokens", "max_completion_tokens"}


class Expectation(Contract):
    """What calibration plays before the run: about how the target will answer. A sweep puts its last medians here.

    The run is calibrated anew afterwards when the target turned out to send faster than was played.
    """

    ttft_ms: float = Field(default=100.0, ge=0, le=600_000)
    itl_ms: float = Field(default=50.0, ge=0, le=60_000)


class Target(Contract):
    """An OpenAI-compatible server. ``url`` is its root or its base URL, with ``/v1``; no other host is ever dialled.

    ``fresh_connections`` opens one for each request, in place of keeping them.
    """

    url: str
    model: str
    fresh_connections: bool = False
    verify_tls: bool = True


class Stage(Contract):
    """One load on one target. Which part a request belongs to is decided by when it was scheduled.

    Warm-up, then ``seconds`` that count, then cool-down, under the same load throughout; then requests that count may
    end, each within ``timeout_s`` of being sent. ``requests`` ends the counted part early, after so many. An open loop
    holds at most ``max_in_flight`` at once: what is due beyond that is not sent, and counted as such.
    """

    name: str = ""
    target: Target
    load: Load
    traffic: Traffic
    warm_up_s: float = Field(default=0.0, ge=0, le=3_600)
    seconds: float = Field(default=30.0, gt=0, le=86_400)
    cool_down_s: float = Field(default=0.0, ge=0, le=3_600)
    requests: int | None = Field(default=None, ge=1, le=100_000_000)
    timeout_s: float = Field(default=60.0, gt=0, le=3_600)
    max_in_flight: int = Field(default=10_000, ge=1, le=MOST_CONCURRENT)
    expects: Expectation = Expectation()


def _check_range(low: int, high: int, middle: float | None = None) -> None:
    if low > high:
        raise ValueError(f"low ({low}) is above high ({high})")
    if middle is not None and not low <= middle <= high:
        raise ValueError(f"the middle ({middle:g}) must lie from low ({low}) to high ({high})")
