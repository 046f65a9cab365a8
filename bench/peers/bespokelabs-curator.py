"""One question a passage with bespokelabs-curator, for bench/synth.py. Reads the task from stdin, prints JSON.

Run as its page on online processing says to: the limits are set by hand and high, since otherwise it keeps to 200
requests a minute. ``require_all_responses`` is off, so that one failed row doesn't discard all the others. It would
download its tokenizer; here it finds the one that litellm brings along.
"""

import importlib.util
import json
import os
import sys
import tempfile
import time
from pathlib import Path

_LITELLM = Path(importlib.util.find_spec("litellm").origin).parent
os.environ["TIKTOKEN_CACHE_DIR"] = str(_LITELLM / "litellm_core_utils" / "tokenizers")
os.environ |= {"TELEMETRY_ENABLED": "false", "CURATOR_DISABLE_CACHE": "true", "HF_HUB_OFFLINE": "1"}
os.environ["CURATOR_CACHE_DIR"] = tempfile.mkdtemp(prefix="curator-")

from bespokelabs import curator  # noqa: E402  what stands above is read at import


class Asker(curator.LLM):
    def prompt(self, input):
        return input["prompt"]

    def parse(self, input, response):
        return {"prompt": input["prompt"], "answer": response}


def main():
    task = json.load(sys.stdin)
    began = time.perf_counter()
    asker = Asker(
        model_name="fault-llm",
        backend="openai",
        backend_params={
            "base_url": task["url"],
            "api_key": "none",
            "max_requests_per_minute": 10_000_000,
            "max_tokens_per_minute": 1_000_000_000_000,
            "max_concurrent_requests": task["concurrency"],
            "request_timeout": round(task["deadline_s"]),
            "seconds_to_pause_on_rate_limit": 1,
            "max_retries": task["max_tries"],
            "require_all_responses": False,
        },
    )
    rows = asker([{"prompt": prompt} for prompt in task["prompts"]]).dataset
    answered = {row["prompt"] for row in rows if row["answer"]}
    print(json.dumps({"rows_out": len(answered), "seconds": time.perf_counter() - began}), flush=True)


if __name__ == "__main__":
    main()
