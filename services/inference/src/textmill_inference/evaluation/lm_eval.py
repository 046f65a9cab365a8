"""Public benchmark tasks against a served model, by EleutherAI's lm-eval, where it is installed.

It runs as a process of its own and asks through the gateway, as clients do: its many requirements stay out of this
service, and a task that loads code from elsewhere can't reach our memory. Chat models are asked in chats, so tasks are
those that generate text. Scores of benchmarks that a model was trained on mean nothing.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from textmill.errors import JobFailed

NEEDED = "lm_eval"
_LOOK_EVERY_S = 0.5
_CONCURRENT = 8

Scores = dict[tuple[str, str], float]
"""By task and metric, as lm-eval names them."""


def check_installed() -> None:
    """Raises ``JobFailed`` if lm-eval can't be imported here."""
    if importlib.util.find_spec(NEEDED) is None:
        raise JobFailed(
            "lm_eval_tasks were asked for, but lm-eval is not installed beside the inference service: "
            "pip install 'lm_eval[api]', or leave lm_eval_tasks out"
        )


def run_tasks(
    gateway_url: str,
    key: str,
    model: str,
    tasks: Sequence[str],
    limit: int | None,
    stopping: threading.Event,
    own_tasks: Path | None = None,
) -> Scores:
    """Scores of one served model. ``own_tasks`` is a folder of task files besides lm-eval's own. Empty once stopped.

    Raises:
        JobFailed: lm-eval is missing, or it ended with an error: an unknown task, or a data set that can't be fetched.
    """
    check_installed()
    with tempfile.TemporaryDirectory(prefix="textmill-lm-eval-") as folder:
        log = Path(folder) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command(gateway_url, model, tasks, limit, Path(folder), own_tasks),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # The key goes where other users of the machine can't read it: not into the arguments.
                env={**os.environ, "OPENAI_API_KEY": key or "none"},
            )
        try:
            while process.poll() is None and not stopping.wait(_LOOK_EVERY_S):
                pass
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
        if stopping.is_set():
            return {}
        if process.returncode:
            said = log.read_text(errors="replace").strip()[-800:]
            raise JobFailed(f"lm-eval ended with {process.returncode} on {', '.join(tasks)} for {model!r}: {said}")
        return read_scores(Path(folder))


def command(
    gateway_url: str, model: str, tasks: Sequence[str], limit: int | None, folder: Path, own_tasks: Path | None
) -> list[str]:
    endpoint = f"model={model},base_url={gateway_url}/v1/chat/completions,num_concurrent={_CONCURRENT},max_retries=3"
    arguments = [sys.executable, "-m", NEEDED, "run", "--model", "local-chat-completions", "--model_args", endpoint]
    arguments += ["--tasks", ",".join(tasks), "--apply_chat_template", "--output_path", str(folder / "out")]
    arguments += ["--limit", str(limit)] if limit is not None else []
    return arguments + (["--include_path", str(own_tasks)] if own_tasks is not None else [])


def read_scores(folder: Path) -> Scores:
    """Of the newest results file below the folder. Raises ``JobFailed`` if there is none."""
    files = sorted(folder.glob("**/results_*.json"))
    if not files:
        raise JobFailed("lm-eval ended well and wrote no results: look at its version, 0.4 is known to work")
    results: Mapping[str, Mapping[str, object]] = json.loads(files[-1].read_text())["results"]
    return {
        (task, name.removesuffix(",none")): float(value)
        for task, metrics in results.items()
        for name, value in metrics.items()
        if isinstance(value, int | float) and "_stderr" not in name and "," in name
    }
