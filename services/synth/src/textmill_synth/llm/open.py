"""Wires the client of one LLM from the settings: session, routes, rate limits, and the limit learnt by earlier jobs."""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from pydantic import ValidationError

from textmill.contracts.base import StoredContract
from textmill.errors import DependencyDown, NotFound
from textmill.jobs import worker_name
from textmill.store import ObjectStore
from textmill_synth.llm.claims import Quota, endpoint_id
from textmill_synth.llm.client import ChatClient, Route
from textmill_synth.llm.concurrency import Concurrency
from textmill_synth.llm.endpoint import Endpoint, HttpEndpoint
from textmill_synth.llm.limits import RateLimits
from textmill_synth.llm.retry import RetryPolicy
from textmill_synth.settings import SynthSettings

log = logging.getLogger(__name__)
_REMEMBER_EVERY_S = 15.0


class LearntLimit(StoredContract):
    """How many calls at once an endpoint bore, so that a restarted job starts warm. ``threshold`` ends slow start."""

    limit: float
    threshold: float | None = None


@asynccontextmanager
async def open_llm(
    settings: SynthSettings,
    store: ObjectStore,
    url: str | None = None,
    model: str | None = None,
    observe: Callable[[str], None] = lambda outcome: None,
    guard: Callable[[Endpoint], Endpoint] = lambda endpoint: endpoint,
) -> AsyncIterator[ChatClient]:
    """A client for ``url``, the settings' endpoint by default. ``observe`` is told the outcome of each try.

    ``guard`` wraps each endpoint, and so sees every try, hedges, failovers and probes too: for a budget.
    Keys, rate limits and the fallback are those of the settings' endpoint: another URL has none of them.
    """
    url, model = url or settings.llm_url, model or settings.llm_model
    own = _origin(url) == _origin(settings.llm_url)
    endpoints = [HttpEndpoint(url, settings.llm_api_key if own else None)]
    if own and settings.fallback_url:
        endpoints.append(_fallback(settings))
    routes = [
        Route(guard(endpoint), await _learnt(store, endpoint.url, settings.concurrency)) for endpoint in endpoints
    ]
    if own:
        routes[0].limits = _limits(settings, store, url)
    retry = RetryPolicy(max_tries=settings.max_tries, first_delay_s=settings.retry_delay_s)
    client = ChatClient(routes, model, settings.deadline_s, retry, observe, settings.hedge_budget)
    remembering = asyncio.create_task(_remember_regularly(store, routes))
    try:
        yield client
    finally:
        remembering.cancel()
        await asyncio.gather(remembering, return_exceptions=True)
        await client.close()
        for endpoint in endpoints:
            endpoint.close()
        await _remember(store, routes)


def _limits(settings: SynthSettings, store: ObjectStore, url: str) -> RateLimits | None:
    if not (settings.requests_per_minute or settings.tokens_per_minute):
        return None
    per_minute = Quota(settings.requests_per_minute or math.inf, settings.tokens_per_minute or math.inf)
    return RateLimits(store, url, per_minute, worker_name())


def _fallback(settings: SynthSettings) -> HttpEndpoint:
    return HttpEndpoint(
        settings.fallback_url,
        settings.fallback_api_key,
        settings.fallback_model,
        "TEXTMILL_SYNTH_FALLBACK_API_KEY",
    )


async def _learnt(store: ObjectStore, url: str, ceiling: int) -> Concurrency:
    try:
        found = LearntLimit.model_validate_json(await asyncio.to_thread(store.get, _learnt_key(url)))
    except (NotFound, ValidationError):
        return Concurrency(ceiling)
    return Concurrency(ceiling, found.limit, math.inf if found.threshold is None else found.threshold)


async def _remember_regularly(store: ObjectStore, routes: list[Route]) -> None:
    while True:
        await asyncio.sleep(_REMEMBER_EVERY_S)
        await _remember(store, routes)


async def _remember(store: ObjectStore, routes: list[Route]) -> None:
    """Only a hint: that it can't be written mustn't fail a job."""
    for route in routes:
        learnt = LearntLimit.model_validate(route.concurrency.learnt())
        try:
            await asyncio.to_thread(store.put, _learnt_key(route.endpoint.url), learnt.to_json())
        except DependencyDown as exc:
            log.info("the learnt limit isn't remembered", extra={"error": str(exc)})


def _learnt_key(url: str) -> str:
    return f"endpoints/{endpoint_id(url)}.json"


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc
