"""The real thing: vLLM on the CPU behind the gateway, killed, and taught new weights in place. Minutes, not seconds."""

import json
import os
import shutil
import signal
import threading
from pathlib import Path
from urllib.parse import urlsplit

import openai
import pytest
from fastapi import FastAPI
from prometheus_client import REGISTRY

from textmill.errors import JobFailed
from textmill_inference.engine.parity import MIN_TOP1
from textmill_inference.engine.port import ModelFolder
from textmill_inference.engine.supervisor import Care, LocalEngine
from textmill_inference.engine.vllm_launcher import VllmLauncher
from textmill_inference.gateway.app import Gateway
from textmill_inference.gateway.keys import KeyRing
from textmill_inference.settings import InferenceSettings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
NAME = "real"
NEVER = threading.Event()


def perturbed(source, target):
    """A model of the same geometry that says other things: every matrix of the last block with its sign turned."""
    import safetensors.torch

    shutil.copytree(source, target)
    (target / "model.safetensors").unlink()
    tensors = safetensors.torch.load_file(source / "model.safetensors")
    layers = json.loads((source / "config.json").read_text())["num_hidden_layers"]
    changed = {
        name: -tensor if f"layers.{layers - 1}." in name and tensor.dim() == 2 else tensor
        for name, tensor in tensors.items()
    }
    safetensors.torch.save_file(changed, target / "model.safetensors", metadata={"format": "pt"})
    return target


def with_probe(source, target):
    """The same model with a probe beside it, as the trainer publishes one."""
    import torch
    from transformers import AutoTokenizer

    from textmill_trainer.gate import load_published
    from textmill_trainer.parity import Conversation, make_probe
    from textmill_trainer.prepare import Example

    shutil.copytree(source, target)
    tokenizer, model = AutoTokenizer.from_pretrained(source), load_published(source, torch.device("cpu"))
    asked = {}
    for question, answer in (("What is the capital of France?", "Paris."), ("Name a colour.", "Blue is a colour.")):
        messages = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        ids, whole = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, prompt + answer))
        example = Example(question, "d", tuple(whole), tuple(place >= len(ids) for place in range(len(whole))))
        asked[example] = Conversation(messages=messages)
    (target / "parity.json").write_bytes(make_probe(model, asked).to_json())
    return target


def processes_of(engine):
    """Pid to command of all that runs below this engine's guard. Its port tells it from other engines here."""
    marker = f"--port {urlsplit(engine.url).port} "
    members = {}
    groups = set()
    for entry in [e for e in Path("/proc").iterdir() if e.name.isdigit()]:
        try:
            command = (entry / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
            state, _, group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if state != "Z":
            members[int(entry.name)] = (int(group), command)
            if "guard.py" in command and marker in command:
                groups.add(int(group))
    return {pid: command for pid, (group, command) in members.items() if group in groups}


def core_of(engine):
    return next(pid for pid, command in processes_of(engine).items() if "EngineCore" in command)


@pytest.fixture(scope="module")
def base_model():
    folder = InferenceSettings().base_model
    if not (folder / "config.json").is_file():
        pytest.skip(f"no base model at {folder}: python -m textmill_trainer.base_model makes it")
    return folder


def test_vllm_serves_survives_swaps_and_ends(base_model, tmp_path, serve):
    launcher = VllmLauncher(max_model_len=512, kv_cache_gib=1)
    engine = LocalEngine(NAME, launcher, tmp_path / "engine.log", Care(start_timeout_s=600))
    url = serve(Gateway(FastAPI(), lambda: {NAME: engine}, KeyRing(), hold_s=600))
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=900)

    def say():
        messages = [{"role": "user", "content": "What is the capital of France?"}]
        answer = client.chat.completions.create(model=NAME, messages=messages, temperature=0, max_tokens=16)
        return answer.choices[0].message.content

    try:
        original, other = ModelFolder(base_model), ModelFolder(perturbed(base_model, tmp_path / "other"))
        assert engine.serve(original, NEVER) == "started"
        first = say()
        assert "Paris" in first

        core = core_of(engine)
        os.kill(core, signal.SIGKILL)
        assert say() == first
        assert REGISTRY.get_sample_value("textmill_engine_restarts_total", {"model": NAME}) == 1
        assert core not in processes_of(engine)

        core = core_of(engine)
        assert engine.serve(other, NEVER) == "in_place"
        swapped = say()
        assert swapped != first
        assert engine.serve(original, NEVER) == "in_place"
        assert say() == first
        assert core_of(engine) == core

        assert engine.serve(ModelFolder(with_probe(base_model, tmp_path / "proven")), NEVER) == "in_place"
        check = engine.parity
        assert (check.prompts_identical, check.prompts_compared) == (2, 2)
        assert check.top1_agreement >= MIN_TOP1
        shutil.copyfile(tmp_path / "proven" / "parity.json", other.path / "parity.json")
        with pytest.raises(JobFailed, match="nats a token off the published model's"):
            engine.serve(other, NEVER)
        assert say() == first
    finally:
        client.close()
        engine.stop()
    assert processes_of(engine) == {}
