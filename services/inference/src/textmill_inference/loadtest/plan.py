"""What the load-test job and its load generator tell each other, as JSON lines. Imports nothing heavy."""

from collections.abc import Sequence

from pydantic import Field

from textmill.contracts.base import Contract
from textmill.contracts.serving import LoadLevel


class LoadPlan(Contract):
    """One run, given to the generator on its standard input. ``url`` is the endpoint itself."""

    url: str
    model: str
    messages: Sequence[Sequence[dict[str, str]]] = Field(min_length=1)
    concurrencies: Sequence[int]
    requests_per_level: int
    seconds_per_level: float
    max_tokens: int
    timeout_s: float


class LoadNews(Contract):
    """A line of the generator's output: how far the current level has come, or, with ``level``, its figures."""

    concurrency: int
    requests: int = 0
    errors: int = 0
    level: LoadLevel | None = None
