"""Runs the peers of bench/loadgen.py: guidellm and aiperf, each in an environment of its own, on the client's core."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parent
CAP_S = 100.0
"""A run that takes longer than this is ended, and counts as none."""
PROMPTS = 4_000
_TOKENIZER = """
import sys
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
words = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", eos_token="[UNK]").save_pretrained(sys.argv[1])
"""


@dataclass(frozen=True)
class Reading:
    """What a tool says of one run: times in ms; None for what it didn't say."""

    requests_per_s: float
    ttft_p50_ms: float
    ttft_p99_ms: float


@dataclass(frozen=True)
class Task:
    """One run of a tool: so many streams at once for so long, at ``url``, with answers of so many tokens."""

    url: str
    streams: int
    seconds: float
    tokens: int
    core: int


def run(name: str, task: Task) -> Reading | None:
    """None when it failed or took too long."""
    python = _environment(name)
    with tempfile.TemporaryDirectory(prefix=f"textmill-bench-{name}-") as folder:
        command, read = _TOOLS[name](python, Path(folder), task)
        environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True, preexec_fn=lambda: os.sched_setaffinity(0, {task.core}),
        )  # fmt: skip
        try:
            out, _ = process.communicate(timeout=CAP_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.communicate()
            print(f"{name} at {task.streams}: not done in {CAP_S:.0f} s", flush=True)
            return None
        try:
            return read()
        except (OSError, ValueError, KeyError, IndexError, TypeError) as exc:
            end = re.sub(rb"\s+", b" ", out)[-300:].decode(errors="replace")
            print(f"{name} at {task.streams}: no result ({exc!r}): {end}", flush=True)
            return None


def _guidellm(python: Path, folder: Path, task: Task) -> tuple[Sequence[str], Callable[[], Reading]]:
    prompts = _prompts(folder / "prompts.jsonl", "prompt")
    out = folder / "report.json"
    backend = f"kind=openai_http,target={task.url},model=m,max_tokens={task.tokens},validate_backend=false"
    command = [
        str(python.parent / "guidellm"), "run", "--backend", backend,
        "--profile", f"kind=concurrent,streams={task.streams}",
        "--constraint", f"kind=max_duration,seconds={task.seconds:g}",
        "--data", f"kind=json_file,path={prompts}",
        "--output", f"kind=json,path={out}", "--disable-console",
    ]  # fmt: skip

    def read() -> Reading:
        benchmark = json.loads(out.read_text())["benchmarks"][0]
        ttft = benchmark["metrics"]["time_to_first_token_ms"]["successful"]["percentiles"]
        rate = benchmark["metrics"]["requests_per_second"]["successful"]["mean"]
        return Reading(rate, ttft["p50"], ttft["p99"])

    return command, read


def _aiperf(python: Path, folder: Path, task: Task) -> tuple[Sequence[str], Callable[[], Reading]]:
    prompts = _prompts(folder / "prompts.jsonl", "text")
    tokenizer = folder / "tokenizer"
    subprocess.run([str(python), "-c", _TOKENIZER, str(tokenizer)], check=True, capture_output=True)
    command = [
        str(python.parent / "aiperf"), "profile", "-m", "m", "--url", task.url, "--endpoint-type", "chat",
        "--streaming", "--input-file", str(prompts), "--custom-dataset-type", "single_turn",
        "--tokenizer", str(tokenizer), "--use-server-token-count", "--concurrency", str(task.streams),
        "--benchmark-duration", f"{task.seconds:g}", "--benchmark-grace-period", "10",
        "--extra-inputs", f"max_tokens:{task.tokens}", "--ui", "none", "--export-level", "summary",
        "--output-artifact-dir", str(folder / "out"),
    ]  # fmt: skip

    def read() -> Reading:
        report: dict[str, Any] = json.loads((folder / "out/profile_export_aiperf.json").read_text())
        ttft = report["time_to_first_token"]
        return Reading(report["request_throughput"]["avg"], ttft["p50"], ttft["p99"])

    return command, read


_TOOLS = {"guidellm": _guidellm, "aiperf": _aiperf}
NAMES = tuple(_TOOLS)


def _prompts(path: Path, field: str) -> Path:
    """Prompts as long as ours, each with a number of its own."""
    text = " ".join(["time", "people", "way", "day"] * 12)
    path.write_text("".join(json.dumps({field: f"{number} {text}"}) + "\n" for number in range(PROMPTS)))
    return path


def _environment(name: str) -> Path:
    """The Python of the peer's environment, which is made when there is none."""
    folder, listed = BENCH / ".peers" / name, BENCH / "peers" / f"{name}.txt"
    python, ready = folder / "bin" / "python", folder / ".ready"
    if not ready.exists():
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        install = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        for torch in [line for line in listed.read_text().splitlines() if line.startswith("torch==")]:
            # With its dependencies: which they are depends on the build that the index has.
            subprocess.run([*install, torch], check=True)
        subprocess.run([*install, "--no-deps", "-r", str(listed)], check=True)
        ready.touch()
        print(f"installed {name} in {time.perf_counter() - began:.0f} s", flush=True)
    return python
