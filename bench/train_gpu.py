"""Training speed on a CUDA GPU, of models of 1 to 8 billion random weights, ours beside TRL's.

    python bench/train_gpu.py [--sizes 1b,3b,8b] [--tokens 2048] [--batch 4] [--steps 8]

Speed does not depend on what the weights are, so nothing is downloaded: the geometry is Llama 3's, the weights are
noise, quantized to NF4 on the GPU; LoRA on all linear layers, bf16 arithmetic, every token supervised. Each reading is
a process of its own. MFU counts what LoRA needs: forward and the gradients of activations, 4 operations a frozen weight
and token, 6 a trained one, and causal attention; recomputation is not counted (PaLM, appendix B, has 6 for full
training). Without a CUDA GPU it says so and measures nothing.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
VOCABULARY = 128_256
SIZES = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2},
    "1b": {"hidden_size": 2_048, "intermediate_size": 8_192, "num_hidden_layers": 16, "num_attention_heads": 32,
           "num_key_value_heads": 8},
    "3b": {"hidden_size": 3_072, "intermediate_size": 8_192, "num_hidden_layers": 28, "num_attention_heads": 24,
           "num_key_value_heads": 8},
    "8b": {"hidden_size": 4_096, "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 8},
}  # fmt: skip
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}
"""Dense bf16 with fp32 sums, as the data sheets have it."""
MFU_GOAL, TIMES_GOAL = 0.45, 1.5
_WARM = 2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1b,3b,8b")
    parser.add_argument("--tokens", type=int, default=2_048, help="of a record")
    parser.add_argument("--batch", type=int, default=4, help="records a step")
    parser.add_argument("--steps", type=int, default=8, help=f"of which the first {_WARM} are not counted")
    parser.add_argument("--device", default="cuda", help="cpu only to try this file out, with --sizes tiny")
    parser.add_argument("--one", choices=("textmill", "trl"), help="one reading, in this process")
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results/train_gpu.json")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one_reading(options)))
        return 0
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA GPU here: nothing is measured, and no goal is claimed")
        return 0
    return compare(options)


def compare(options: argparse.Namespace) -> int:
    goals, readings = [], {}
    for size in options.sizes.split(","):
        ours, theirs = (reading_of(tool, size, options) for tool in ("textmill", "trl"))
        readings[size] = {"textmill": ours, "trl": theirs}
        times = ours["tokens_per_s"] / theirs["tokens_per_s"]
        holds = times >= TIMES_GOAL
        goals.append((f"{size}: tokens/s over TRL's", f"{times:.2f} times", f">= {TIMES_GOAL} times", holds))
        if ours["mfu"] is not None:
            mfu = ours["mfu"]
            goals.append((f"{size}: MFU", f"{mfu:.1%}", f">= {MFU_GOAL:.0%}", mfu >= MFU_GOAL))
        print(f"{size} textmill: {ours}\n{size} trl: {theirs}", flush=True)
    for name, figure, goal, holds in goals:
        print(f"{name:<58} {figure:>14}   goal {goal:<16} {'holds' if holds else 'MISSED'}")
    rows = [dict(zip(("name", "figure", "goal", "holds"), goal, strict=True)) for goal in goals]
    command = " ".join(["python", "bench/train_gpu.py", *sys.argv[1:]])
    document = {"command": command, "readings": readings, "goals": rows}
    options.out.write_text(json.dumps(document, indent=2) + "\n")
    print(f"{sum(row['holds'] for row in rows)} of {len(rows)} goals hold")
    return 0 if all(row["holds"] for row in rows) else 1


def reading_of(tool: str, size: str, options: argparse.Namespace) -> dict[str, Any]:
    command = [
        sys.executable, __file__, "--one", tool, "--sizes", size, "--tokens", str(options.tokens),
        "--batch", str(options.batch), "--steps", str(options.steps), "--device", options.device,
    ]  # fmt: skip
    done = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{tool}, {size}: {done.stderr[-2_000:]}")
    reading: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return reading


def one_reading(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    device = torch.device(options.device)
    model = random_nf4(options.sizes, device)
    clock = train_ours(model, options) if options.one == "textmill" else train_trl(model, options)
    (began, before), (ended, after) = clock[_WARM - 1], clock[-1]
    tokens_per_s = (after - before) / (ended - began)
    cuda = device.type == "cuda"
    peak = next((flops for name, flops in PEAK_FLOPS.items() if cuda and name in torch.cuda.get_device_name()), None)
    return {
        "tokens_per_s": round(tokens_per_s, 1),
        "mfu": None if peak is None else round(tokens_per_s * operations_a_token(model, options.tokens) / peak, 4),
        "peak_gb": round(torch.cuda.max_memory_allocated() / 2**30, 2) if cuda else None,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
    }


def random_nf4(size: str, device: Any) -> Any:
    """Layer by layer, so that no more than one layer is there in 16 bits."""
    import torch
    from bitsandbytes.nn import Linear4bit, Params4bit
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**SIZES[size], vocab_size=VOCABULARY, tie_word_embeddings=True, max_position_embeddings=8_192)
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    for name, linear in [(n, m) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"]:
        quantized = Linear4bit(
            linear.in_features, linear.out_features, bias=False, compute_dtype=torch.bfloat16,
            compress_statistics=True, quant_type="nf4", device="meta",
        )  # fmt: skip
        noise = torch.randn(linear.out_features, linear.in_features, dtype=torch.bfloat16, device=device) * 0.02
        weight = Params4bit(noise, requires_grad=False, compress_statistics=True, quant_type="nf4", module=quantized)
        quantized.weight = weight.to(device)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, quantized)
    _materialize(model, device)
    model.is_loaded_in_4bit = True  # peft asks
    return model.requires_grad_(False)


def _materialize(model: Any, device: Any) -> None:
    """What isn't quantized: embedding, norms, and the angles of the positions, which follow from the configuration."""
    import torch
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta:
                weight = torch.randn(parameter.shape, dtype=torch.bfloat16, device=device) * 0.02
                filled = torch.ones_like(weight) if weight.dim() == 1 else weight
                setattr(module, name, torch.nn.Parameter(filled, requires_grad=False))
    with torch.device(device):
        model.model.rotary_emb = LlamaRotaryEmbedding(model.config)
    model.tie_weights()


def operations_a_token(model: Any, tokens: int) -> float:
    """Floating point operations that LoRA needs for a token of a record of this length."""
    config = model.config
    head = config.hidden_size // config.num_attention_heads
    attention_width = config.num_attention_heads * head
    kv_width = config.num_key_value_heads * head
    linear = config.hidden_size * (2 * attention_width + 2 * kv_width + 3 * config.intermediate_size)
    frozen = config.num_hidden_layers * linear + config.vocab_size * config.hidden_size
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    # Scores and their use, 2 operations each a pair, half of the pairs, and twice that again backward.
    attention = config.num_hidden_layers * 6 * tokens * attention_width
    return float(4 * frozen + 6 * trained + attention)


def train_ours(model: Any, options: argparse.Namespace) -> list[tuple[float, float]]:
    import torch
    from train_peer import Clock

    from textmill_trainer.loop import LoopSettings, train
    from textmill_trainer.model import LoraSettings, add_lora
    from textmill_trainer.prepare import Example
    from textmill_trainer.supervised import Supervised

    tuned, clock = add_lora(model, LoraSettings(16, 32, 0.0), seed=0), Clock()
    examples = [
        Example(f"rec_{n}", "doc", tuple(ids), (True,) * len(ids)) for n, ids in enumerate(random_records(options))
    ]
    settings = LoopSettings(
        epochs=options.steps, batch_size=options.batch, learning_rate=2e-4, warmup_ratio=0.0, evaluations=0,
        checkpoints=0, seed=0, max_padded_tokens=options.batch * options.tokens, max_steps=options.steps,
    )  # fmt: skip
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory(prefix="textmill-bench-") as folder:
        train(tuned, Supervised(), examples, settings, Path(folder), observers=[clock])
    return clock.ends


def train_trl(model: Any, options: argparse.Namespace) -> list[tuple[float, float]]:
    """With gradient checkpointing, its default, only if it doesn't fit without."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from textmill_trainer.base_model import default_folder, ensure_base_model
    from textmill_trainer.model import load_tokenizer

    ends: list[tuple[float, float]] = []

    class Ends(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            ends.append((time.perf_counter(), float((len(ends) + 1) * options.batch * options.tokens)))

    rows = random_records(options)
    with tempfile.TemporaryDirectory(prefix="textmill-bench-") as folder:
        arguments = SFTConfig(
            output_dir=folder, max_steps=options.steps, per_device_train_batch_size=options.batch, max_length=None,
            gradient_checkpointing=False, use_cpu=options.device == "cpu", save_strategy="no", report_to="none",
            disable_tqdm=True, logging_strategy="no",
        )  # fmt: skip
        trainer = SFTTrainer(
            model=model, args=arguments, train_dataset=Dataset.from_dict({"input_ids": rows, "labels": rows}),
            processing_class=load_tokenizer(ensure_base_model(default_folder())),
            peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
            callbacks=[Ends()],
        )  # fmt: skip
        sys.stdout, out = sys.stderr, sys.stdout
        trainer.train()
        sys.stdout = out
    return ends


def random_records(options: argparse.Namespace) -> list[list[int]]:
    import torch

    generator = torch.Generator().manual_seed(0)
    shape = (options.batch * options.steps, options.tokens)
    return list(torch.randint(10, VOCABULARY, shape, generator=generator).tolist())


if __name__ == "__main__":
    raise SystemExit(main())
