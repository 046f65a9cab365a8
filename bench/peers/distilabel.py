"""One question a passage with distilabel, for bench/synth.py. Reads the task from stdin, prints JSON.

Its asynchronous LLMs send one batch at a time, so the batch is as large as the wanted concurrency.
"""

import json
import os
import sys
import time

os.environ["HF_HUB_OFFLINE"] = "1"

from distilabel.models import OpenAILLM
from distilabel.pipeline import Pipeline
from distilabel.steps import LoadDataFromDicts
from distilabel.steps.tasks import TextGeneration


def main():
    task = json.load(sys.stdin)
    began = time.perf_counter()
    with Pipeline(name="bench") as pipeline:
        rows = [{"instruction": prompt} for prompt in task["prompts"]]
        load = LoadDataFromDicts(data=rows, batch_size=task["concurrency"])
        llm = OpenAILLM(
            model="fault-llm",
            base_url=task["url"],
            api_key="none",
            max_retries=task["max_tries"],
            timeout=round(task["deadline_s"]),
        )
        load >> TextGeneration(llm=llm, input_batch_size=task["concurrency"])
    found = pipeline.run(use_cache=False)["default"]["train"]
    answered = {row["instruction"] for row in found if row["generation"]}
    print(json.dumps({"rows_out": len(answered), "seconds": time.perf_counter() - began}), flush=True)


if __name__ == "__main__":
    main()
