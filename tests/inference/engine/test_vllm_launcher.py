"""vLLM's command line and environment, with and without a GPU, as strings."""

import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from textmill_inference.engine import room
from textmill_inference.engine.launcher import Care
from textmill_inference.engine.maker import VllmEngines
from textmill_inference.engine.room import no_room_in_memory, no_room_on_gpus
from textmill_inference.engine.settings import EngineSettings
from textmill_inference.engine.vllm_launcher import VllmLauncher

FOLDER = Path("/models/m")


def line(gpu, adapters=False, extra=(), **options):
    made = VllmLauncher(2048, 1, extra, EngineSettings(**options), adapters=adapters, gpu=gpu)
    command = made.command(FOLDER, "tuned", 8001)
    assert command[:2] == [sys.executable, "-m"]
    return " ".join(command[2:])


def test_on_gpus_parallelism_memory_share_and_quantization_are_vllms_own_flags():
    options = {"tensor_parallel": 2, "gpu_memory_share": 0.45, "dtype": "float16", "quantization": "fp8"}
    assert line(True, extra=("--seed", "7"), **options) == (
        "vllm.entrypoints.openai.api_server --model /models/m --served-model-name tuned --host 127.0.0.1 --port 8001 "
        "--dtype float16 --max-model-len 2048 --disable-uvicorn-access-log "
        "--tensor-parallel-size 2 --gpu-memory-utilization 0.45 --quantization fp8 --seed 7"
    )


def test_on_a_cpu_nothing_of_gpus_is_said():
    assert line(False, tensor_parallel=2) == (
        "textmill_inference.engine.vllm_child --model /models/m --served-model-name tuned --host 127.0.0.1 --port 8001 "
        "--dtype bfloat16 --max-model-len 2048 --disable-uvicorn-access-log --enforce-eager"
    )


def test_where_tracing_is_on_vllms_spans_go_to_the_same_collector(monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318")
    assert "--otlp-traces-endpoint http://collector:4318/v1/traces" in line(True, extra=("--seed", "7"))
    environment = VllmLauncher(2048, 1, gpu=True).environment()
    assert environment["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] == "http/protobuf"
    assert environment["OTEL_SERVICE_NAME"] == "textmill-engine"


def test_adapters_are_switched_on_where_they_are_wanted():
    given = line(True, adapters=True, max_adapters=3, max_adapter_rank=32)
    assert given.endswith("--gpu-memory-utilization 0.9 --enable-lora --max-loras 3 --max-lora-rank 32")
    launcher = VllmLauncher(2048, 1, (), EngineSettings(max_adapters=3), gpu=True)
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" not in launcher.environment()
    environment = replace(launcher, adapters=True).environment()
    assert environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    assert environment["VLLM_SERVER_DEV_MODE"] == "1"
    assert not any(name.startswith("VLLM_CPU") for name in environment)


@pytest.mark.parametrize(("max_adapters", "adapters"), [(0, False), (2, True)])
def test_the_base_models_engine_alone_takes_adapters(tmp_path, max_adapters, adapters):
    launcher = VllmLauncher(2048, 1, (), EngineSettings(max_adapters=max_adapters), gpu=False)
    engines = VllmEngines(launcher, Care(), tmp_path, "base", threading.Semaphore(1))
    assert engines.make("base", "base")._launcher.adapters is adapters
    second = engines.make("tuned", "tuned#2")
    assert not second._launcher.adapters
    assert second._log_path == tmp_path / "engine-tuned-2.log"


def test_a_second_engine_is_refused_where_memory_or_the_owner_says_no(tmp_path, monkeypatch):
    (tmp_path / "model.safetensors").write_bytes(b"w" * 1024)
    assert "needs about" in no_room_in_memory(tmp_path, 1e6)
    monkeypatch.setattr(room, "_free_memory_gib", lambda: 100.0)
    assert no_room_in_memory(tmp_path, 1) == ""
    for second, why in (("never", "says never"), ("always", ""), ("auto", "")):
        made = VllmLauncher(2048, 1, (), EngineSettings(second=second), gpu=False)
        assert why in made.no_room(tmp_path)


def test_on_gpus_the_memory_share_decides(monkeypatch):
    monkeypatch.setattr(room, "_gpu_memory_mib", lambda: [(40_000.0, 80_000.0), (10_000.0, 80_000.0)])
    assert no_room_on_gpus(0.45, 1) == ""
    assert "GPU 0" in no_room_on_gpus(0.9, 1)
    assert "GPU 1, 9.8 are free" in no_room_on_gpus(0.45, 2)
    assert "3 GPUs are needed" in no_room_on_gpus(0.1, 3)


def test_nvidia_smis_answer_is_read(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '81000, 81559'\necho '40000, 81559'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert no_room_on_gpus(0.9, 1) == ""
    assert "GPU 1" in no_room_on_gpus(0.9, 2)
    program.write_text("#!/bin/sh\nexit 9\n")
    assert "doesn't tell" in no_room_on_gpus(0.9, 1)
