"""``textmill fault-llm``: the command line of the fault server."""

import asyncio
from contextlib import suppress
from typing import Annotated

import typer
import uvloop
from typer.models import OptionInfo

from textmill.errors import Conflict
from textmill_cli.fault_llm.limits import Limits
from textmill_cli.fault_llm.plan import Plan, Rates
from textmill_cli.fault_llm.server import FaultServer


def _share(what: str) -> OptionInfo:
    option: OptionInfo = typer.Option(
        min=0, max=1, help=what, rich_help_panel="Faults, each a share of the requests from 0 to 1"
    )
    return option


def _limit(what: str) -> OptionInfo:
    option: OptionInfo = typer.Option(min=1, help=what, rich_help_panel="Limits")
    return option


def fault_llm(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8199,
    latency: Annotated[float, typer.Option(min=0, help="Seconds before every reply but a 429.")] = 0.0,
    jitter: Annotated[float, typer.Option(min=0, help="Seconds that the latency differs by, up or down.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Another seed plants the faults elsewhere.")] = 0,
    rate_429: Annotated[float, _share("Answered 429.")] = 0.0,
    rate_429_retry_after: Annotated[float, _share("Answered 429 with 'Retry-After: 1'.")] = 0.0,
    rate_500: Annotated[float, _share("Answered 500.")] = 0.0,
    rate_stall: Annotated[float, _share("Never answered.")] = 0.0,
    rate_drip: Annotated[float, _share("A byte a second, for ever.")] = 0.0,
    rate_truncate: Annotated[float, _share("Cut in the middle, finish_reason 'length'.")] = 0.0,
    rate_garbage: Annotated[float, _share("No JSON: half of them the body, half the JSON answer in it.")] = 0.0,
    rate_refuse: Annotated[float, _share("A polite refusal.")] = 0.0,
    rpm: Annotated[int | None, _limit("Answers 429 with Retry-After past so many requests in any minute.")] = None,
    max_concurrency: Annotated[int | None, _limit("Answers 429 past so many requests at a time.")] = None,
) -> None:
    """An OpenAI-compatible chat server with known latency and planted faults, to test a client against.

    It needs no model: it answers with sentences of the text in the prompt, and follows a JSON schema.

    Under one seed the n-th try of a request always meets the same fault.

    GET /stats tells what was asked and how it ended; DELETE /stats counts anew.
    """
    rates = Rates(
        status_429=rate_429,
        status_429_retry_after=rate_429_retry_after,
        status_500=rate_500,
        stall=rate_stall,
        drip=rate_drip,
        truncate=rate_truncate,
        garbage=rate_garbage,
        refuse=rate_refuse,
    )
    plan, limits = Plan(rates, seed, latency, jitter), Limits(rpm, max_concurrency)
    with suppress(KeyboardInterrupt):
        uvloop.run(_serve(FaultServer(plan, limits), host, port))


async def _serve(server: FaultServer, host: str, port: int) -> None:
    """Serve until cancelled. Raises ``Conflict`` when the port is taken."""
    try:
        bound = await server.start(host, port)
    except OSError as exc:
        raise Conflict(f"can't listen on {host}:{port}: {exc.strerror}; choose another --port, or 0") from exc
    print(f"fault-llm listens on http://{host}:{bound}/v1", flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        await server.stop()
