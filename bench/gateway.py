"""The gateway on one core against a mock of known latency, and LiteLLM's proxy against the same.

    python bench/gateway.py [--parts requests,chunks,latency,streams,peer] [--minutes 10] [--no-peer] [--vllm]

Writes ``bench/results/gateway.json`` and prints each figure beside its goal. Keys, admission and metrics are on. The
gateway has the first core to itself; the mock and the client share the others, and what they can do without a gateway
is measured beside it. ``--vllm`` adds vLLM itself behind the gateway, and needs the cores for it.
"""

import argparse
import asyncio
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gateway_peers as peers
import gateway_world as world
import uvloop
from findings import Findings
from gateway_world import Ask, Process, Took

ROOT = Path(__file__).resolve().parent.parent
AT_ONCE = 64
STREAMS, GAP_S, TOKENS, TTFT_S = 1_000, 0.1, 50, 0.1
LATENCY_S = 0.02
PLAIN_PER_S, CHUNKS_PER_S, TIMES_PEER = 6_000, 20_000, 30


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="which parts, by name")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long each reading takes")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long the 1,000 streams run")
    parser.add_argument("--no-peer", action="store_true", help="leave LiteLLM out")
    parser.add_argument("--vllm", action="store_true", help="vLLM behind the gateway, too")
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results/gateway.json")
    options = parser.parse_args()
    os.sched_setaffinity(0, world.CLIENT_CORES)
    findings, known = Findings(), dict[str, float]()
    for name in options.parts.split(","):
        PARTS[name](findings, options, known)
    if options.vllm:
        with_vllm(findings, options, known)
    findings.write(options.out, " ".join(["python", "bench/gateway.py", *sys.argv[1:]]))
    return 0 if findings.all_hold else 1


def requests(findings: Findings, options: argparse.Namespace, known: dict[str, float]) -> None:
    """Plain answers as fast as they come, with 64 always under way."""
    with world.mock(latency=0.0) as mock, world.gateway(mock.url) as gateway:
        direct = _closed(Ask(mock.url), AT_ONCE, options.seconds, mock)
        through = _closed(Ask(gateway.url), AT_ONCE, options.seconds, gateway)
    known["requests"] = _per_s(len(through.seconds), through)
    findings.note("requests direct", **_plain(direct))
    findings.note("requests through the gateway", **_plain(through))
    figure, errors = known["requests"], len(through.errors)
    findings.goal("plain requests/s on one core", f"{figure:.0f}", f">= {PLAIN_PER_S}", figure >= PLAIN_PER_S)
    findings.goal("their errors", str(errors), "0", errors == 0)


def chunks(findings: Findings, options: argparse.Namespace, known: dict[str, float]) -> None:
    """More events are offered than asked for: 600 streams of 50 a second, each an event and a write of its own."""
    with world.mock(latency=0.05, gap=0.02, tokens=100) as mock, world.gateway(mock.url) as gateway:
        direct = _closed(Ask(mock.url, stream=True), 600, options.seconds, mock, ramp_s=2.0)
        through = _closed(Ask(gateway.url, stream=True), 600, options.seconds, gateway, ramp_s=2.0)
    known["chunks"] = _per_s(through.events, through)
    findings.note("chunks direct", **_streamed(direct))
    findings.note("chunks through the gateway", **_streamed(through))
    figure, errors = known["chunks"], len(through.errors)
    findings.goal("streamed chunks/s on one core", f"{figure:.0f}", f">= {CHUNKS_PER_S}", figure >= CHUNKS_PER_S)
    findings.goal("their errors", str(errors), "0", errors == 0)


def latency(findings: Findings, options: argparse.Namespace, known: dict[str, float]) -> None:
    """At half of what was read (or asked for), evenly spaced; direct and through the gateway by turns."""
    per_s = known.get("requests", PLAIN_PER_S) / 2
    added_p50, added_p99 = [], []
    with world.mock(latency=LATENCY_S) as mock, world.gateway(mock.url) as gateway:
        _opened(Ask(gateway.url), per_s, 1.0)
        for _ in range(3):
            direct = _opened(Ask(mock.url), per_s, options.seconds / 2)
            through = _opened(Ask(gateway.url), per_s, options.seconds / 2)
            findings.note(f"latency at {per_s:.0f} requests/s, round {len(added_p50) + 1}", **_both(direct, through))
            added_p50.append((through.quantile(0.5) - direct.quantile(0.5)) * 1e3)
            added_p99.append((through.quantile(0.99) - direct.quantile(0.99)) * 1e3)
    p50, p99 = statistics.median(added_p50), statistics.median(added_p99)
    findings.goal("added latency at half load, p50", f"{p50:.2f} ms", "<= 1 ms", p50 <= 1)
    findings.goal("added latency at half load, p99", f"{p99:.2f} ms", "<= 5 ms", p99 <= 5)


def streams(findings: Findings, options: argparse.Namespace, known: dict[str, float]) -> None:
    """1,000 streams of 10 tokens a second, always: the first token's delay beside that without a gateway; memory."""
    seconds = options.minutes * 60
    with world.mock(latency=TTFT_S, gap=GAP_S, tokens=TOKENS) as mock, world.gateway(mock.url) as gateway:
        direct = _closed(Ask(mock.url, stream=True), STREAMS, min(seconds, 30.0), mock, ramp_s=5.0)
        rss = _Rss(gateway, settled_s=60.0)
        through = _closed(Ask(gateway.url, stream=True), STREAMS, seconds, gateway, ramp_s=5.0, beside=rss.follow)
    findings.note("1,000 streams direct", **_streamed(direct))
    findings.note("1,000 streams through the gateway", **_streamed(through), **rss.figures())
    added = (through.quantile(0.99, "ttft") - direct.quantile(0.99, "ttft")) * 1e3
    errors, grown = len(through.errors), rss.grown
    findings.goal("TTFT added at 1,000 streams, p99", f"{added:.1f} ms", "<= 50 ms", added <= 50)
    findings.goal("errors of them", f"{errors} of {len(through.seconds) + errors}", "0", errors == 0)
    findings.goal(f"RSS growth over {options.minutes:g} minutes", f"{grown:.1%}", "<= 3 %", grown <= 0.03)


def peer(findings: Findings, options: argparse.Namespace, known: dict[str, float]) -> None:
    """LiteLLM's proxy in the gateway's place, with the same mock, client and key."""
    if options.no_peer:
        return
    with world.mock(latency=0.0) as mock, peers.litellm(mock.url) as proxy:
        _closed(Ask(proxy.url), 8, 2.0, proxy)
        plain = _closed(Ask(proxy.url), AT_ONCE, options.seconds, proxy)
        findings.note("requests through LiteLLM", **_plain(plain))
    with world.mock(latency=0.05, gap=0.02, tokens=100) as mock, peers.litellm(mock.url) as proxy:
        _closed(Ask(proxy.url, stream=True), 4, 2.0, proxy)
        streamed = _closed(Ask(proxy.url, stream=True), 64, options.seconds, proxy, ramp_s=2.0)
        findings.note("chunks through LiteLLM", **_streamed(streamed))
    figures = {"requests": _per_s(len(plain.seconds), plain), "chunks": _per_s(streamed.events, streamed)}
    for name in sorted(figures.keys() & known.keys()):
        times = known[name] / figures[name] if figures[name] else float("inf")
        findings.goal(f"{name}/s, over LiteLLM's", f"{times:.0f} times", f">= {TIMES_PEER}", times >= TIMES_PEER)


def with_vllm(findings: Findings, options: argparse.Namespace, known: dict[str, float]) -> None:
    """16 streams of 64 tokens, direct and through the gateway by turns; vLLM shares its cores with the gateway."""
    shares = []
    with peers.vllm() as engine, world.gateway(engine.url, "--model", peers.VLLM_MODEL) as gateway:
        for number in range(4):
            turn = [("direct", engine), ("through the gateway", gateway)]
            tokens_per_s = {}
            for name, server in turn if number % 2 else reversed(turn):
                ask = Ask(server.url, stream=True, model=peers.VLLM_MODEL, max_tokens=64)
                took = _closed(ask, 16, max(20.0, options.seconds), server, ramp_s=1.0)
                tokens_per_s[name] = _per_s(took.events, took)
                findings.note(f"vLLM {name}, round {number + 1}", **_streamed(took))
            shares.append(tokens_per_s["through the gateway"] / tokens_per_s["direct"])
    share = statistics.median(shares)
    findings.goal("tokens/s of vLLM behind the gateway, of direct", f"{share:.1%}", ">= 97 %", share >= 0.97)


PARTS: dict[str, Callable[[Findings, argparse.Namespace, dict[str, float]], None]] = {
    "requests": requests,
    "chunks": chunks,
    "latency": latency,
    "streams": streams,
    "peer": peer,
}


class _Rss:
    """The memory of a process, once a second, after ``settled_s``."""

    def __init__(self, process: Process, settled_s: float) -> None:
        self._process = process
        self._settled_s = settled_s
        self._mb: list[float] = []

    async def follow(self, seconds: float) -> None:
        ends = time.monotonic() + seconds
        await asyncio.sleep(min(self._settled_s, seconds / 4))
        while time.monotonic() < ends:
            self._mb.append(self._process.rss_mb)
            await asyncio.sleep(min(1.0, seconds / 20))

    @property
    def grown(self) -> float:
        """From the first tenth to the last, by their medians."""
        part = max(1, len(self._mb) // 10)
        return statistics.median(self._mb[-part:]) / statistics.median(self._mb[:part]) - 1

    def figures(self) -> dict[str, float]:
        first, last = round(self._mb[0], 1), round(self._mb[-1], 1)
        return {"rss_first_mb": first, "rss_last_mb": last, "rss_readings": len(self._mb)}


def _closed(ask: Ask, at_once: int, seconds: float, watched: Process, ramp_s: float = 0.0, beside: Any = None) -> Took:
    async def both() -> Took:
        follower = asyncio.create_task(beside(seconds)) if beside is not None else None
        took = await world.closed(ask, at_once, seconds, ramp_s, watched)
        if follower is not None:
            await follower
        return took

    return uvloop.run(both())


def _opened(ask: Ask, per_s: float, seconds: float) -> Took:
    return uvloop.run(world.opened(ask, per_s, seconds))


def _per_s(count: int, took: Took) -> float:
    return count / took.wall_s


def _plain(took: Took) -> dict[str, Any]:
    count = len(took.seconds)
    return {
        "per_s": round(_per_s(count, took)),
        "p50_ms": round(took.quantile(0.5) * 1e3, 2),
        "p99_ms": round(took.quantile(0.99) * 1e3, 2),
        "server_cpu_us": round(took.cpu_s / max(1, count) * 1e6, 1),
        "server_busy": round(took.cpu_s / took.wall_s, 3),
        "requests": count,
        "errors": len(took.errors),
    }


def _streamed(took: Took) -> dict[str, Any]:
    return {
        "chunks_per_s": round(_per_s(took.events, took)),
        "ttft_p50_ms": round(took.quantile(0.5, "ttft") * 1e3, 1),
        "ttft_p99_ms": round(took.quantile(0.99, "ttft") * 1e3, 1),
        "server_cpu_us_a_chunk": round(took.cpu_s / max(1, took.events) * 1e6, 1),
        "server_busy": round(took.cpu_s / took.wall_s, 3),
        "streams": len(took.seconds),
        "errors": len(took.errors),
    }


def _both(direct: Took, through: Took) -> dict[str, Any]:
    figures = {}
    for name, took in (("direct", direct), ("through", through)):
        figures[f"{name}_p50_ms"] = round(took.quantile(0.5) * 1e3, 2)
        figures[f"{name}_p99_ms"] = round(took.quantile(0.99) * 1e3, 2)
        figures[f"{name}_errors"] = len(took.errors)
    return figures


if __name__ == "__main__":
    raise SystemExit(main())
