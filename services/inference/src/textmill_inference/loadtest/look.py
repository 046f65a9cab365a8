"""A look at the target before the run: whether it sends usage in each chunk, and how many tokens our words come to."""

import asyncio
import contextlib
import json
import re
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field

from textmill.contracts.load import Fixed, GivenPrompts, Message, Stage
from textmill.http1 import ConnectFailed, ConnectionLost, HttpPool, Response
from textmill_inference.loadtest.address import Endpoint
from textmill_inference.loadtest.orders import Gauge
from textmill_inference.loadtest.traffic import WORDS, Requests

LOOK_S = 30.0
_ASK_EVERY_S = 0.1
_MOST_BYTES = 1 << 20
_PROMPT_TOKENS = re.compile(rb'"prompt_tokens":\s*(\d+)')
_WORDS = (8, 108)
_REFUSED = (400, 422)


@dataclass(frozen=True)
class Look:
    """``note`` says what couldn't be found out, and what is taken in its place."""

    gauge: Gauge = field(default_factory=Gauge)
    continuous: bool = True
    note: str = ""


def look(stage: Stage, where: Endpoint, key: str, stopping: Callable[[], bool] = lambda: False) -> Look:
    """Two to four short requests. A target that doesn't answer them is measured all the same.

    ``stopping`` is asked ten times a second: True ends the look, and what it raises comes out of here.
    """
    try:
        return asyncio.run(_watched(_look(stage, where, key), stopping))
    except (ConnectFailed, ConnectionLost, TimeoutError) as exc:
        return Look(note=f"the look before the run went unanswered ({exc or 'too slow'}): a word is taken for a token")


async def _watched(looking: Coroutine[None, None, Look], stopping: Callable[[], bool]) -> Look:
    async with asyncio.timeout(LOOK_S):
        task = asyncio.ensure_future(looking)
        try:
            while not task.done():
                if stopping():
                    return Look(note="the look before the run was cancelled")
                await asyncio.wait({task}, timeout=_ASK_EVERY_S)
            return task.result()
        finally:
            task.cancel()


async def _look(stage: Stage, where: Endpoint, key: str) -> Look:
    pool = HttpPool(where.root)
    try:
        continuous = True
        short = await _ask(pool, stage, where, key, _WORDS[0], continuous)
        if short.status in _REFUSED and stage.traffic.stream:
            continuous = False
            short = await _ask(pool, stage, where, key, _WORDS[0], continuous)
        if short.status != 200:
            return Look(continuous=continuous, note=_unclear(short))
        long = await _ask(pool, stage, where, key, _WORDS[1], continuous)
    finally:
        pool.close()
    few, many = _prompt_tokens(short), _prompt_tokens(long)
    if few is None or many is None or many <= few:
        return Look(continuous=continuous, note="the target doesn't count prompt tokens: a word is taken for a token")
    per_word = (many - few) / (_WORDS[1] - _WORDS[0])
    return Look(Gauge(base=few - per_word * _WORDS[0], per_word=per_word), continuous)


async def _ask(pool: HttpPool, stage: Stage, where: Endpoint, key: str, words: int, continuous: bool) -> Response:
    """One token for so many words, behind a number as made-up prompts have it."""
    text = "0.0 " + " ".join(WORDS[number % len(WORDS)] for number in range(words))
    prompts = GivenPrompts(conversations=((Message(content=text),),))
    traffic = stage.traffic.model_copy(update={"prompts": prompts, "output": Fixed(value=1), "exact_output": False})
    body = Requests(stage.target, traffic, Gauge(), continuous=continuous).next()
    headers = b"Content-Type: application/json\r\n" + (f"Authorization: Bearer {key}\r\n".encode() if key else b"")
    return await pool.post(where.path(traffic.api), headers, body, _MOST_BYTES)


def _prompt_tokens(response: Response) -> int | None:
    found = _PROMPT_TOKENS.findall(response.body)
    return int(found[-1]) if found else None


def _unclear(response: Response) -> str:
    said = response.body[:200].decode(errors="replace")
    with contextlib.suppress(ValueError, KeyError, TypeError):
        said = json.loads(response.body)["error"]["message"]
    return f"the look before the run was answered with {response.status} ({said}): a word is taken for a token"
