"""Synth against a server with known latency and planted faults, and its peers against the same.

    python bench/synth.py [--parts throughput,faults,kill,increment] [--no-peers]

Writes ``bench/results/synth.json`` and prints each figure beside its goal. Our side is the real one: the job's handler
in a process on one core, with a real SeaweedFS, one call for each passage. Each peer runs from an environment of its
own (``bench/.peers``, made on the first run from ``bench/peers/*.txt``), in its fastest way (see ``bench/peers/*.py``).
"""

import argparse
import io
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import synth_peers
import synth_world as world
from findings import Findings
from synth_world import Done, FaultLlm, Store

ROOT = Path(__file__).resolve().parent.parent
AT_ONCE = 1_000
LATENCY_S = 1.0
FAULT_LATENCY_S = 0.5
DEADLINE_S = 3.0
MAX_TRIES = 30
MIX = {
    "rate_stall": 0.2, "rate_429": 0.1, "rate_429_retry_after": 0.1, "rate_500": 0.1, "rate_garbage": 0.1,
    "rate_drip": 0.05,
}  # fmt: skip
KILLS = 20
FLUSH_S = 2.0
FIRST = {"faults": 100_000, "kill": 200_000, "increment": 300_000}
"""Where a part's passages begin: parts share a store, and one must not find another's calls in the ledger."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="which parts, by name")
    parser.add_argument("--no-peers", action="store_true", help="leave the peers out")
    parser.add_argument("--rows", type=int, default=10_000, help="passages of the throughput part")
    parser.add_argument("--fault-rows", type=int, default=300, help="passages of the faults part, for each tool")
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results/synth.json")
    options = parser.parse_args()
    findings = Findings()
    with tempfile.TemporaryDirectory(prefix="textmill-bench-") as folder, world.object_store(Path(folder)) as store:
        for name in options.parts.split(","):
            PARTS[name](store, findings, options)
    findings.write(options.out, " ".join(["python", "bench/synth.py", *sys.argv[1:]]))
    return 0 if findings.all_hold else 1


def throughput(store: Store, findings: Findings, options: argparse.Namespace) -> None:
    """No faults. Cold: the first job of a process. Warm: the one after it, which knows the endpoint already."""
    jobs = [world.one_call_a_passage(_corpus(store, options.rows, first)) for first in (0, options.rows)]
    with world.fault_llm(latency=LATENCY_S) as llm:
        settings: dict[str, object] = {"concurrency": AT_ONCE, "deadline_s": 60.0, "llm_url": llm.url}
        with world.Worker(store, settings) as worker:
            cold = worker.do(jobs[0])
            findings.note("throughput cold", **_speed(llm, cold))
            llm.count_anew()
            warm = _speed(llm, worker.do(jobs[1]))
            sustained, latency_s = _sustained(store, options.rows), llm.stats()["mean_open_s"]
            figures = {"sustained_rows_per_s": round(sustained, 1), "server_latency_s": latency_s}
            findings.note("throughput warm", **warm, **figures)
    findings.goal(f"RSS at {options.rows} passages", f"{cold.rss_mb:.0f} MB", "< 400 MB", cold.rss_mb < 400)
    # What 1,000 calls at once can bring from a server that takes so long, by its own clock (Little's law).
    ideal = AT_ONCE / latency_s
    share = sustained / ideal
    findings.goal(f"rows/s with 1,000 under way, of the ideal {ideal:.0f}", f"{share:.1%}", ">= 95 %", share >= 0.95)
    _peers("throughput", min(options.rows, 2_000), {"latency": LATENCY_S}, 60.0, 120.0, findings, options)


def _speed(llm: FaultLlm, done: Done) -> dict[str, Any]:
    """From the first call to the last. The ideal: each permit makes one call after the other, without a pause."""
    stats, rows, calls = llm.stats(), done.manifest.counts.accepted, done.manifest.calls
    ideal_s = -(-calls // AT_ONCE) * LATENCY_S
    return {
        "rows_asked": done.manifest.counts.requested,
        "rows": rows,
        "calls": calls,
        "job_s": round(done.seconds, 2),
        "calling_s": stats["busy_s"],
        "rows_per_s": round(rows / stats["busy_s"], 1),
        "share_of_ideal": round(ideal_s / stats["busy_s"] * rows / calls, 4),
        "cpu_ms_per_row": round(done.cpu_s / max(1, rows) * 1e3, 3),
        "most_at_once": stats["most_at_once"],
        "rss_mb": round(done.rss_mb, 1),
    }


def _sustained(store: Store, rows: int) -> float:
    """Rows a second while all permits are in use: of the last job, but for its first and last round of permits.

    From an answer to the one so many places later as there are permits is one round, whatever the permits' order.
    """
    opened = store.open()
    lines = (line for item in opened.list("ledger/") for line in opened.get(item.key).splitlines())
    times = sorted(datetime.fromisoformat(json.loads(line)["created_at"]) for line in lines)[-rows:]
    first, last = AT_ONCE - 1, rows - AT_ONCE - 1
    return (last - first) / (times[last] - times[first]).total_seconds()


def faults(store: Store, findings: Findings, options: argparse.Namespace) -> None:
    rows = options.fault_rows
    settings: dict[str, object] = {"concurrency": AT_ONCE, "deadline_s": DEADLINE_S, "max_tries": MAX_TRIES}
    with world.fault_llm(latency=FAULT_LATENCY_S, **MIX) as llm:
        with world.Worker(store, settings | {"llm_url": llm.url}) as worker:
            done = worker.do(world.one_call_a_passage(_corpus(store, rows, FIRST["faults"])))
        stats = llm.stats()
    counts, answered = done.manifest.counts, stats["outcomes"].get("answered", 0)
    per_row = stats["requests"] / max(1, counts.accepted)
    unavoidable = stats["requests"] / max(1, answered)
    goodput = counts.accepted / done.seconds
    findings.note(
        "faults textmill", rows_in=rows, rows_out=counts.accepted, dead_lettered=counts.dead_lettered,
        rejected=counts.rejected_by_reason, calls=stats["requests"], seconds=round(done.seconds, 1),
        goodput=round(goodput, 2), outcomes=stats["outcomes"],
    )  # fmt: skip
    settled = counts.accepted + counts.rejected + counts.dead_lettered
    findings.goal("rows settled under faults", f"{settled} of {rows}", "all", settled == rows)
    share = per_row / unavoidable
    findings.goal(
        f"calls per accepted row (1/0.35 = {1 / 0.35:.2f}; drawn {unavoidable:.2f})", f"{per_row:.2f}",
        f"<= {1.05 * unavoidable:.2f}", share <= 1.05,
    )  # fmt: skip
    longest = stats["longest_open_s"]
    findings.goal("longest call", f"{longest:.2f} s", f"<= {DEADLINE_S + 1:.0f} s", longest <= DEADLINE_S + 1)
    peers = _peers("faults", rows, {"latency": FAULT_LATENCY_S, **MIX}, DEADLINE_S, 120.0, findings, options)
    if peers:
        best = max(peer.goodput for peer in peers)
        times = goodput / best if best else float("inf")
        findings.goal("goodput over the best peer's", f"{times:.1f} times", ">= 3 times", times >= 3)


def kill(store: Store, findings: Findings, options: argparse.Namespace) -> None:
    """``kill -9`` at random moments after the first call. One segment: what is called between two flushes."""
    rows, at_once, latency_s = 1_000, 8, 0.4
    moments, kills, repeats = random.Random(0), 0, [0]
    job = world.one_call_a_passage(_corpus(store, rows, FIRST["kill"]))
    segment = round(at_once / latency_s * FLUSH_S) + at_once
    with world.fault_llm(latency=latency_s) as llm:
        settings: dict[str, object] = {"concurrency": at_once, "deadline_s": 30.0, "llm_url": llm.url}
        while kills < KILLS:
            before = llm.stats()["requests"]
            with world.Worker(store, settings, attempt=kills + 1) as worker:
                worker.start(job)
                while llm.stats()["requests"] == before and worker.process.poll() is None:
                    time.sleep(0.02)
                time.sleep(moments.uniform(0.0, 3.0))
                if worker.process.poll() is not None:
                    break
            kills += 1
            repeats.append(_repeated(llm))
        with world.Worker(store, settings, attempt=KILLS + 1) as worker:
            done = worker.do(job)
        repeats.append(_repeated(llm))
        stats = llm.stats()
    most = max(after - before for before, after in pairwise(repeats))
    keys = _record_keys(store, done)
    lost, doubled = rows - len(set(keys)), len(keys) - len(set(keys))
    findings.note(
        "kill", kills=kills, rows=len(keys), calls=stats["requests"], repeated=repeats[-1], most_repeated=most
    )
    findings.goal("kills at a random moment", str(kills), str(KILLS), kills == KILLS)
    findings.goal("rows lost or doubled", f"{lost} + {doubled}", "0", lost == doubled == 0)
    findings.goal("calls repeated after a kill, at most", str(most), f"<= {segment}", most <= segment)


def _repeated(llm: FaultLlm) -> int:
    return sum(tries - 1 for tries in llm.stats()["tries"].values())


def _record_keys(store: Store, done: Done) -> list[str]:
    """The passage of each training record: there should be one record a passage."""
    data = store.open().get(done.manifest.records_keys["train"])
    return [row["passage_id"] for row in pq.read_table(io.BytesIO(data), columns=["passage_id"]).to_pylist()]


def increment(store: Store, findings: Findings, options: argparse.Namespace) -> None:
    documents = [[passage] for passage in world.passages(1_000, FIRST["increment"])]
    added = world.passages(3, FIRST["increment"] + 1_000)
    with world.fault_llm() as llm:
        settings: dict[str, object] = {"concurrency": 64, "deadline_s": 30.0, "llm_url": llm.url}
        opened = store.open()
        jobs = [world.one_call_a_passage(world.put_corpus(opened, d)) for d in (documents, [*documents, added])]
        with world.Worker(store, settings) as worker:
            first, second = [worker.do(job) for job in jobs]
        requests = llm.stats()["requests"]
    findings.note("increment", first=first.manifest.calls, second=second.manifest.calls, requests=requests)
    extra = requests - first.manifest.calls
    findings.goal("calls for one document of 3 passages added to 1,000", str(extra), "3", extra == 3)


PARTS: dict[str, Callable[[Store, Findings, argparse.Namespace], None]] = {
    "throughput": throughput,
    "faults": faults,
    "kill": kill,
    "increment": increment,
}


def _corpus(store: Store, rows: int, first: int) -> str:
    """100 passages a document."""
    texts = world.passages(rows, first)
    return world.put_corpus(store.open(), [texts[n : n + 100] for n in range(0, rows, 100)])


def _peers(
    part: str,
    rows: int,
    server: dict[str, float],
    deadline_s: float,
    cap_s: float,
    findings: Findings,
    options: argparse.Namespace,
) -> list[synth_peers.Reading]:
    if options.no_peers:
        return []
    task = synth_peers.Task(world.passages(rows), AT_ONCE, deadline_s, MAX_TRIES, cap_s)
    readings = [synth_peers.run(name, task, server) for name in synth_peers.NAMES]
    for reading in readings:
        findings.note(f"{part} {reading.peer}", **reading.figures())
    return readings


if __name__ == "__main__":
    raise SystemExit(main())
