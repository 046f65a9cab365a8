"""Question-answer pairs for each passage with synthetic-data-kit, for bench/synth.py. Reads the task, prints JSON.

Its command line handles one file after the other and asks for a summary of each first. Here its generator is called
on one document whose chunks are the passages, with a batch as large as the wanted concurrency: its fastest way. It has
no setting for a deadline, and makes several pairs in each call.
"""

import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path

import yaml
from synthetic_data_kit.generators.qa_generator import QAGenerator
from synthetic_data_kit.models.llm_client import LLMClient
from synthetic_data_kit.utils.config import load_config


def main():
    task = json.load(sys.stdin)
    config = load_config()
    config["llm"]["provider"] = "api-endpoint"
    config["api-endpoint"] |= {"api_base": task["url"], "api_key": "none", "max_retries": task["max_tries"]}
    config["generation"] |= {"chunk_size": 1, "overlap": 0, "batch_size": task["concurrency"]}
    path = Path(tempfile.mkdtemp()) / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    began = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):
        generator = QAGenerator(LLMClient(path), path)
        pairs = generator.generate_qa_pairs("\n\n".join(task["passages"]), "", 100 * len(task["passages"]))
    answers = {pair["answer"] for pair in pairs}
    answered = [passage for passage in task["passages"] if any(a in passage for a in answers)]
    print(json.dumps({"rows_out": len(answered), "seconds": time.perf_counter() - began}), flush=True)


if __name__ == "__main__":
    main()
