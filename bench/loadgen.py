"""Load generator benchmark: our own beside a server that keeps the truth, and beside guidellm and aiperf.

One core for the client, the other for the server (textmill_inference.loadtest.null_server), which records when it read
each request and wrote each token. Parts: ``streams`` (1,000 streams on one core), ``held`` (10,000 connections),
``lateness`` (open loop), ``truth`` (our figures against the server's), ``peers`` (valid load per core). A load is
valid for a tool while its TTFT p99 lies within 60 ms of the truth and its rate within 15 % of what so many streams
come to: a run of 8 s with requests of 1 s loses that at its ends, which peers count and we don't. The load is searched
on a ladder.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import loadgen_peers as peers
from findings import Findings

from textmill.contracts.load import ClosedLoop, Expectation, Fixed, Load, MadeUpPrompts, Poisson, Stage, Target, Traffic
from textmill.contracts.loadtest import Clock, Measured
from textmill_inference.loadtest.calibration import null_server
from textmill_inference.loadtest.generator import Generator
from textmill_inference.loadtest.histogram import Histogram
from textmill_inference.loadtest.truth import TruthRead, read_truth

ROOT = Path(__file__).resolve().parent.parent
CORES = sorted(os.sched_getaffinity(0))
CLIENT, SERVER = CORES[0], CORES[-1]
TTFT_MS, ITL_MS, STREAMS = 100.0, 50.0, 1_000
TOKENS = 64
"""With them 1,000 streams come to the ideal 308 requests/s."""
NEAR_MS, NEAR_RATE = 60.0, 0.85
LADDER = (10, 25, 50, 75, 100, 150, 200, 300, 400, 600, 800, 1_000, 1_300, 1_600, 2_000, 2_500)
PEER_TOKENS = 20
TIMES = {"guidellm": 3.0, "aiperf": 2.0}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="which parts, by name")
    parser.add_argument("--seconds", type=float, default=26.0, help="how long the streams part counts")
    parser.add_argument("--connections", type=int, default=10_000, help="of the held part")
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results/loadgen.json")
    options = parser.parse_args()
    if CLIENT == SERVER:
        print("this machine has one core; the client and the server need one each", file=sys.stderr)
        return 2
    findings = Findings()
    for name in options.parts.split(","):
        began = time.perf_counter()
        PARTS[name](findings, options)
        print(f"-- {name} took {time.perf_counter() - began:.0f} s", flush=True)
    findings.write(options.out, " ".join(["python", "bench/loadgen.py", *sys.argv[1:]]))
    return 0 if findings.all_hold else 1


def streams(findings: Findings, options: argparse.Namespace) -> None:
    answer_s = (TTFT_MS + (TOKENS - 1) * ITL_MS) / 1e3
    ideal = STREAMS / answer_s
    with truth_server() as url:
        load = ClosedLoop(concurrency=STREAMS, ramp_s=answer_s)
        measured, truth = run(url, load, TOKENS, options.seconds, warm_up_s=2 * answer_s, calibrate_s=3.0)
    ours, true = percentile_ms(measured, Clock.TTFT_SENT, 99), truth_ms(truth.ttft, 99)
    findings.note(
        "streams", requests_per_s=round(measured.requests_per_s, 1),
        ttft_p50=percentile_ms(measured, Clock.TTFT_SENT, 50), ttft_p99=ours, true_ttft_p99=true,
        inter_token_p99=percentile_ms(measured, Clock.INTER_TOKEN, 99),
        true_inter_token_p99=truth_ms(truth.inter_token, 99), cpu_share=round(measured.health[0].cpu_share, 3),
        cpu_us_per_chunk=[round(one.cpu_us_per_chunk, 1) for one in measured.calibrations],
        errors=measured.counted.failed, doubts=[doubt.message for doubt in measured.doubts],
    )  # fmt: skip
    rate = measured.requests_per_s
    findings.goal(f"req/s at 1,000 streams, of the ideal {ideal:.0f}", f"{rate:.1f}", ">= 300", rate >= 300)
    findings.goal("TTFT p99 from the truth's", f"{ours - true:+.1f} ms", "within 60 ms", abs(ours - true) <= NEAR_MS)
    findings.goal("the run is valid by its own rules", str(measured.valid), "True", measured.valid)


def held(findings: Findings, options: argparse.Namespace) -> None:
    """Slow answers, so that it is the number of connections that counts: 10 tokens, one a second."""
    wanted = options.connections
    with truth_server(ttft_ms=5_000, itl_ms=1_000) as url:
        load = ClosedLoop(concurrency=wanted, ramp_s=10.0)
        measured, _ = run(url, load, tokens=10, seconds=15.0, warm_up_s=12.0, calibrate_s=0)
    most = max(second.connections for second in measured.series)
    errors = sum(counts.failed for counts in measured.counts.values())
    findings.note("held", connections=most, errors=errors, doubts=[doubt.message for doubt in measured.doubts])
    findings.goal("connections held at once", str(most), f">= {wanted}", most >= wanted)
    findings.goal("errors with them", str(errors), "0", errors == 0)


def lateness(findings: Findings, options: argparse.Namespace) -> None:
    """Poisson arrivals at rising rates: the rated load is the highest that the generator itself calls valid."""
    rated, worst = 0, 0.0
    with truth_server() as url:
        for rate in (50, 100, 150, 200, 250, 300):
            measured, _ = run(url, Poisson(rate_per_s=rate), TOKENS, seconds=8.0, warm_up_s=4.0, calibrate_s=0)
            late = percentile_ms(measured, Clock.LATENESS, 99)
            cpu = round(measured.health[0].cpu_share, 2)
            findings.note(f"open loop {rate}/s", lateness_p99=late, cpu=cpu, doubts=[d.code for d in measured.doubts])
            if not measured.valid:
                break
            rated, worst = rate, max(worst, late)
    name = f"send lateness p99 up to the rated {rated}/s of {TOKENS} tokens"
    findings.goal(name, f"{worst:.2f} ms", "< 2 ms", rated > 0 and worst < 2)


def truth(findings: Findings, options: argparse.Namespace) -> None:
    """At a fifth of the load of ``streams``. Nothing but the counted part: the truth knows no warm-up."""
    with truth_server() as url:
        measured, true = run(url, Poisson(rate_per_s=60), PEER_TOKENS, seconds=30.0, warm_up_s=0, calibrate_s=0)
    pairs = {"ttft": (Clock.TTFT_SENT, true.ttft), "inter-token": (Clock.INTER_TOKEN, true.inter_token),
             "end to end": (Clock.E2E_SENT, true.e2e)}  # fmt: skip
    for name, (clock, buckets) in pairs.items():
        apart = {p: percentile_ms(measured, clock, p) / truth_ms(buckets, p) - 1 for p in (50, 90, 99)}
        findings.note(f"truth {name}", **{f"p{p}": f"{share:+.2%}" for p, share in apart.items()})
        most = max(map(abs, apart.values()))
        findings.goal(f"{name}: p50, p90, p99 from the truth's", f"{most:.2%}", "<= 2 %", most <= 0.02)
    requests, tokens = measured.counted.succeeded, measured.tokens.output
    same = (requests, tokens) == (true.requests, true.tokens)
    findings.goal("requests and tokens counted as the server did", f"{requests}, {tokens}", "the same", same)


def valid_load(findings: Findings, options: argparse.Namespace) -> None:
    """The highest step of the ladder at which a tool, on one core, is near the truth."""
    found = {name: _highest(name, findings) for name in ("textmill", *peers.NAMES)}
    for name in peers.NAMES:
        times = found["textmill"] / found[name] if found[name] else float("inf")
        figure = f"{found['textmill']}/{found[name]} = {times:.1f}"
        findings.goal(f"valid load per core over {name}'s", figure, f">= {TIMES[name]:g} times", times >= TIMES[name])


def _highest(name: str, findings: Findings) -> int:
    """By halving: four runs."""
    low, high = -1, len(LADDER) - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _is_valid(name, LADDER[middle], findings) else (low, middle - 1)
    return LADDER[low] if low >= 0 else 0


def _is_valid(name: str, count: int, findings: Findings) -> bool:
    seconds = 8.0
    with truth_server() as url:
        if name == "textmill":
            measured, true = run(url, ClosedLoop(concurrency=count, ramp_s=1.0), PEER_TOKENS, seconds, 1.5, 0)
            reading: peers.Reading | None = peers.Reading(
                measured.requests_per_s, percentile_ms(measured, Clock.TTFT_SENT, 50),
                percentile_ms(measured, Clock.TTFT_SENT, 99),
            )  # fmt: skip
        else:
            reading = peers.run(name, peers.Task(url, count, seconds, PEER_TOKENS, CLIENT))
            true = read_truth(url)
    if reading is None:
        findings.note(f"{name} at {count}", result="none")
        return False
    ideal = count / ((truth_ms(true.e2e, 50)) / 1e3)
    p99 = truth_ms(true.ttft, 99)
    near = abs(reading.ttft_p99_ms - p99) <= NEAR_MS and reading.requests_per_s >= NEAR_RATE * ideal
    findings.note(
        f"{name} at {count}", valid=near, requests_per_s=round(reading.requests_per_s, 1), ideal=round(ideal, 1),
        ttft_p50=round(reading.ttft_p50_ms, 1), ttft_p99=round(reading.ttft_p99_ms, 1), true_ttft_p99=round(p99, 1),
    )  # fmt: skip
    return near


PARTS: dict[str, Callable[[Findings, argparse.Namespace], None]] = {
    "streams": streams,
    "held": held,
    "lateness": lateness,
    "truth": truth,
    "peers": valid_load,
}


@contextmanager
def truth_server(ttft_ms: float = TTFT_MS, itl_ms: float = ITL_MS) -> Iterator[str]:
    with null_server(Expectation(ttft_ms=ttft_ms, itl_ms=itl_ms), SERVER) as url:
        yield url


def run(
    url: str, load: Load, tokens: int, seconds: float, warm_up_s: float, calibrate_s: float
) -> tuple[Measured, TruthRead]:
    """Our generator on the client's core, and the truth of the same run."""
    prompts = MadeUpPrompts(lengths=Fixed(value=50))
    stage = Stage(
        target=Target(url=url, model="m"),
        load=load,
        traffic=Traffic(prompts=prompts, output=Fixed(value=tokens)),
        warm_up_s=warm_up_s,
        seconds=seconds,
        expects=Expectation(ttft_ms=TTFT_MS, itl_ms=ITL_MS),
    )
    generator = Generator(workers=1, cores=(CLIENT,), calibrate_s=calibrate_s, look=False)
    measured = generator.run(stage, lambda second: None, lambda: False)
    return measured, read_truth(url)


def percentile_ms(measured: Measured, clock: Clock, percent: float) -> float:
    latency = measured.latencies.get(clock)
    us = Histogram.decode(latency.histogram).percentile(percent) if latency else None
    return round((us or 0.0) / 1e3, 3)


def truth_ms(buckets: dict[int, int], percent: float) -> float:
    return round((Histogram(buckets).percentile(percent) or 0.0) / 1e3, 3)


if __name__ == "__main__":
    raise SystemExit(main())
