"""What bench/gateway.py compares with: LiteLLM's proxy in an environment of its own, and a real vLLM."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gateway_world as world

from textmill_cli.local.ports import any_free
from textmill_inference.engine.vllm_launcher import VllmLauncher
from textmill_inference.settings import InferenceSettings

BENCH = Path(__file__).resolve().parent
VLLM_MODEL = "smollm2-135m"
_QUIET = {
    "LITELLM_MODE": "PRODUCTION",
    "LITELLM_LOG": "ERROR",
    "LITELLM_TELEMETRY": "False",
    "DISABLE_ADMIN_UI": "True",
}


@contextmanager
def litellm(engine_url: str) -> Iterator[world.Process]:
    """Its own server, one worker, a master key, no database, no callbacks: the fastest it has."""
    folder, port = _environment("litellm"), any_free()
    parameters = {"model": "openai/mock", "api_base": f"{engine_url}/v1", "api_key": "none"}
    config = {
        "model_list": [{"model_name": "mock", "litellm_params": parameters}],
        "general_settings": {"master_key": world.KEY},
        "litellm_settings": {"telemetry": False, "drop_params": False, "num_retries": 0},
    }
    with tempfile.TemporaryDirectory(prefix="textmill-bench-") as scratch:
        path = Path(scratch) / "litellm.yaml"
        path.write_text(json.dumps(config))  # JSON is YAML
        command = [str(folder / "bin" / "litellm"), "--config", str(path), "--host", "127.0.0.1", "--port", str(port)]
        url = f"http://127.0.0.1:{port}"
        with world.server(
            [*command, "--num_workers", "1"], world.GATEWAY_CORES, url=url, probe="/health/liveliness", env=_QUIET
        ) as proxy:
            yield proxy


@contextmanager
def vllm() -> Iterator[world.Process]:
    """On all cores, with the base model of the settings."""
    settings, port = InferenceSettings(), any_free()
    if not (settings.base_model / "config.json").is_file():
        raise SystemExit(f"no model at {settings.base_model}: 'make demo' puts one there")
    launcher = VllmLauncher(settings.max_model_len, settings.kv_cache_gib, settings.engine_args)
    command = launcher.command(settings.base_model, VLLM_MODEL, port)
    url = f"http://127.0.0.1:{port}"
    with world.server(command, set(world.CORES), url=url, probe="/health", env=launcher.environment()) as engine:
        yield engine


def _environment(name: str) -> Path:
    """The peer's environment, which is made when there is none."""
    folder = BENCH / ".peers" / name
    ready = folder / ".ready"
    if not ready.exists():
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        install = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*install, "--no-deps", "-r", str(BENCH / "peers" / f"{name}.txt")], check=True)
        ready.touch()
        print(f"installed {name} in {time.perf_counter() - began:.0f} s", flush=True)
    return folder
