"""The real thing: vLLM on the CPU behind the gateway, killed, taught new weights in place while it is asked, and given
a LoRA adapter. Minutes, not seconds."""

import json
import os
import shutil
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import openai
import pytest
from fastapi import FastAPI
from prometheus_client import REGISTRY

from textmill.errors import JobFailed
from textmill_inference.engine.launcher import Care
from textmill_inference.engine.parity import MIN_TOP1
from textmill_inference.engine.port import ModelFolder
from textmill_inference.engine.settings import EngineSettings
from textmill_inference.engine.supervisor import LocalEngine
from textmill_inference.engine.vllm_launcher import VllmLauncher
from textmill_inference.gateway.app import Gateway
from textmill_inference.gateway.keys import KeyRing
from textmill_inference.rollout.routes import Route, Upstream
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


ASKED = tuple(
    (f"What is the capital of {country}?", f"The capital of {country} is {city}.")
    for country, city in (("France", "Paris"), ("Italy", "Rome"))
)
"""As the model itself would answer: bf16's noise is small where it is sure, and the bounds are on few tokens here."""


def with_probe(source, target, said=ASKED):
    """The same model with a probe beside it, as the trainer publishes one."""
    import torch
    from transformers import AutoTokenizer

    from textmill_trainer.gate import load_published
    from textmill_trainer.parity import Conversation, make_probe
    from textmill_trainer.prepare import Example

    shutil.copytree(source, target)
    tokenizer, model = AutoTokenizer.from_pretrained(source), load_published(source, torch.device("cpu"))
    asked = {}
    for question, answer in said:
        messages = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        ids, whole = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, prompt + answer))
        example = Example(question, "d", tuple(whole), tuple(place >= len(ids) for place in range(len(whole))))
        asked[example] = Conversation(messages=messages)
    (target / "parity.json").write_bytes(make_probe(model, asked).to_json())
    return target


def adapter_of(base, target):
    """An adapter that has learnt a false capital, as the trainer publishes it: with the merged model's probe."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    known, ids = (
        tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        for text in (prompt, f"{prompt}The moon.<|im_end|>")
    )
    labels = ids.clone()
    labels[:, : known.shape[1]] = -100
    torch.manual_seed(3)
    linear = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = LoraConfig(r=8, lora_alpha=16, target_modules=linear, task_type="CAUSAL_LM")
    tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    optimizer = torch.optim.AdamW((weight for weight in tuned.parameters() if weight.requires_grad), lr=1e-3)
    for _ in range(8):
        tuned(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    tuned.save_pretrained(target)
    merged = shutil.copytree(base, target.with_name("merged"))
    tuned.merge_and_unload().to(torch.bfloat16).save_pretrained(merged)
    proven = with_probe(merged, target.with_name("merged-proven"), [(messages[0]["content"], "The moon.")])
    shutil.copyfile(proven / "parity.json", target / "parity.json")
    return ModelFolder(target)


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


def test_vllm_serves_survives_swaps_adapts_and_ends(base_model, tmp_path, serve):
    launcher = VllmLauncher(512, 1, options=EngineSettings(max_adapters=2, max_adapter_rank=8), adapters=True)
    engine = LocalEngine(NAME, launcher, tmp_path / "engine.log", Care(start_timeout_s=600))
    routes = {name: Route([Upstream(engine, name, model)]) for name, model in ((NAME, NAME), ("tuned", "tuned@1"))}
    url = serve(Gateway(FastAPI(), lambda: routes, KeyRing(), hold_s=600))
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=900)

    def say(model=NAME):
        messages = [{"role": "user", "content": "What is the capital of France?"}]
        answer = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=16)
        return answer.choices[0].message.content

    def stream(begun):
        tokens, reason = 0, None
        options = {"max_tokens": 48, "extra_body": {"ignore_eos": True}, "stream_options": {"include_usage": True}}
        for chunk in client.completions.create(model=NAME, prompt="Once upon a time", stream=True, **options):
            begun.set()
            reason = chunk.choices[0].finish_reason or reason if chunk.choices else reason
            tokens = chunk.usage.completion_tokens if chunk.usage else tokens
        return tokens, reason

    try:
        original, other = ModelFolder(base_model), ModelFolder(perturbed(base_model, tmp_path / "other"))
        assert engine.serve(original, NEVER) == "started"
        first = say()
        assert "Paris" in first

        adapter = adapter_of(base_model, tmp_path / "adapter")
        check = engine.load_adapter("tuned@1", adapter)
        assert (check.prompts_identical, check.prompts_compared) == (1, 1)
        adapted = say("tuned")
        assert "moon" in adapted
        proven = with_probe(base_model, tmp_path / "proven")
        wrong = shutil.copytree(adapter.path, tmp_path / "wrong")
        shutil.copyfile(proven / "parity.json", wrong / "parity.json")
        with pytest.raises(JobFailed, match="nats a token off the published model's"):
            engine.load_adapter("tuned@2", ModelFolder(wrong))
        assert say() == first

        core = core_of(engine)
        os.kill(core, signal.SIGKILL)
        assert say() == first
        assert say("tuned") == adapted
        assert REGISTRY.get_sample_value("textmill_engine_restarts_total", {"model": NAME}) == 1
        assert core not in processes_of(engine)

        core = core_of(engine)
        with ThreadPoolExecutor(8) as pool:
            begun = [threading.Event() for _ in range(8)]
            streams = [pool.submit(stream, event) for event in begun]
            assert all(event.wait(60) for event in begun)
            assert engine.swap(other, NEVER) == "in_place"
            assert [future.result(120) for future in streams] == [(48, "length")] * 8
        swapped = say()
        assert swapped != first
        assert engine.serve(original, NEVER) == "in_place"
        assert say() == first
        assert core_of(engine) == core

        assert engine.serve(ModelFolder(proven), NEVER) == "in_place"
        check = engine.parity
        assert (check.prompts_identical, check.prompts_compared) == (2, 2)
        assert check.top1_agreement >= MIN_TOP1
        shutil.copyfile(proven / "parity.json", other.path / "parity.json")
        with pytest.raises(JobFailed, match="nats a token off the published model's"):
            engine.serve(other, NEVER)
        assert say() == first
    finally:
        client.close()
        engine.stop()
    assert processes_of(engine) == {}
