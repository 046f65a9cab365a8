"""Does synth jobs in a process of its own, so that bench/synth.py can pin, measure and kill it.

Reads lines of JSON: first the store, the synth settings and the attempt's number, then a job a line. Prints a line for
each. The jobs share one handler, so that the second finds what the first has learnt of the endpoint.
"""

import json
import resource
import sys
import threading
import time

from textmill.contracts.datasets import DatasetManifest
from textmill.contracts.jobs import SynthJob
from textmill.store import S3Store
from textmill.worker import JobContext
from textmill_synth.settings import SynthSettings
from textmill_synth.worker import SynthHandler


def main() -> None:
    task = json.loads(sys.stdin.readline())
    store = S3Store(**task["store"])
    handler = SynthHandler(SynthSettings(**task["settings"]))
    for line in sys.stdin:
        job, attempt = SynthJob.model_validate_json(line), task["attempt"]
        scratch = f"scratch/{job.job_id}/1-{attempt}/"
        began, cpu_began = time.perf_counter(), time.process_time()
        output = handler(job, JobContext(store, attempt, scratch, threading.Event()))
        manifest = DatasetManifest.model_validate(output.manifest)
        news = {
            "seconds": time.perf_counter() - began,
            "cpu_s": time.process_time() - cpu_began,
            "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
            "manifest": manifest.model_dump(mode="json"),
        }
        print(json.dumps(news), flush=True)


if __name__ == "__main__":
    main()
