"""What a comparison asks: the owner's own prompts, a dataset's held-out questions, or questions from the log."""

from collections.abc import Iterator, Mapping

from pydantic import JsonValue

from textmill.contracts.base import content_id
from textmill.contracts.jobs import CompareJob
from textmill.contracts.pairwise import ChatMessage, ComparedPrompt
from textmill.contracts.traffic import TrafficFilter
from textmill.errors import JobFailed
from textmill.store import ObjectStore
from textmill_inference.evaluation.questions import held_out
from textmill_inference.flywheel.segments import exchanges

_MOST_READ = 100_000
"""Of the log, to find so many different questions."""


def prompts_of(job: CompareJob, store: ObjectStore) -> list[ComparedPrompt]:
    """At most ``max_prompts``, each once.

    Raises:
        NotFound: no such dataset.
        JobFailed: there is nothing to ask.
    """
    found: dict[str, ComparedPrompt] = {}
    for prompt in _prompts(job, store):
        found.setdefault(prompt.prompt_id, prompt)
        if len(found) == job.max_prompts:
            break
    if not found:
        raise JobFailed("there is nothing to ask: the traffic log has no chat that the filter covers")
    return list(found.values())


def _prompts(job: CompareJob, store: ObjectStore) -> Iterator[ComparedPrompt]:
    for given in job.prompts:
        yield _prompt(({"role": "user", "content": given},) if isinstance(given, str) else given)
    if job.dataset_id is not None:
        for question in held_out(store, job.dataset_id, job.max_prompts):
            yield _prompt(tuple(_openai(message) for message in question.messages), question.expected)
    if job.traffic is not None:
        yield from _logged(store, job.traffic)


def _logged(store: ObjectStore, wanted: TrafficFilter) -> Iterator[ComparedPrompt]:
    """Conversations that end with a question; what was taken out of them stays out."""
    for exchange in exchanges(store, wanted.model_copy(update={"limit": _MOST_READ})):
        if exchange.messages and exchange.messages[-1].get("role") == "user":
            yield _prompt(tuple(exchange.messages))


def _openai(message: Mapping[str, str]) -> ChatMessage:
    content: dict[str, JsonValue] = dict(message)
    return content


def _prompt(messages: tuple[ChatMessage, ...], reference: str | None = None) -> ComparedPrompt:
    found = ComparedPrompt(prompt_id=content_id("prm", "x"), messages=messages, reference=reference)
    return found.model_copy(update={"prompt_id": content_id("prm", found.model_dump_json(include={"messages"}))})
