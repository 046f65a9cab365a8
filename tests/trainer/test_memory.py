"""The formula for memory against what torch really holds, and the setup it finds."""

import json
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from textmill.contracts.trainforecast import Setup
from textmill.contracts.training import TrainOptions
from textmill.errors import JobFailed
from textmill_trainer import loss, memory, packing
from textmill_trainer.batches import collate
from textmill_trainer.fit import Rows, available_memory, find_setup, ladder
from textmill_trainer.geometry import Geometry, of_config, read_geometry
from textmill_trainer.loop import make_optimizer, plain_model
from textmill_trainer.memory import Load, activation_bytes, peak, total, trained, weight_bytes
from textmill_trainer.model import LoraSettings, linear4bits, load_model
from textmill_trainer.prepare import Example

CPU = torch.device("cpu")
SHAPE = {
    "vocab_size": 512, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FAMILIES = ["llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "glm", "glm4", "mistral", "phi3"]
SEVEN_B = of_config(
    {
        "model_type": "llama", "hidden_size": 4_096, "intermediate_size": 11_008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "vocab_size": 32_000,
    }
)  # fmt: skip


def save(family: str, folder: Path) -> Path:
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SHAPE))  # type: ignore[no-untyped-call]
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {family: save(family, root / family) for family in ("llama", "qwen3", "gemma2", "glm4")}


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_counted_from_the_config_alone(family: str) -> None:
    config = AutoConfig.for_model(family, **SHAPE)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    geometry = of_config(json.loads(config.to_json_string()))
    assert geometry.parameters == sum(p.numel() for p in model.parameters())
    linears = [m.weight for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"]
    assert geometry.adapter_parameters(8) == 8 * sum(sum(w.shape) for w in linears)
    assert geometry.tied == config.tie_word_embeddings


def test_headers_say_what_the_config_says(bases: dict[str, Path]) -> None:
    for family, folder in bases.items():
        config = json.loads((folder / "config.json").read_text())
        read, guessed = read_geometry(folder), of_config(config)
        assert read.exact, family
        assert (read.parameters, read.tied) == (guessed.parameters, guessed.tied)
        assert sorted(read.linears) == sorted(guessed.linears)


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JobFailed, match=r"has no config\.json"):
        read_geometry(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(JobFailed, match="hidden_size"):
        read_geometry(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**SHAPE, "model_type": "llama"}))
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 16)
    with pytest.raises(JobFailed, match="no safetensors file"):
        read_geometry(tmp_path)


def kept_for_backward(model: Any, rows: int, length: int, scored: int) -> int:
    """Bytes of all tensors that autograd holds at the end of forward and that are no weights."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    alive: weakref.WeakSet[Any] = weakref.WeakSet()

    class Held:
        def __init__(self, tensor: torch.Tensor) -> None:
            self.tensor = tensor

    def hold(tensor: torch.Tensor) -> Held:
        held = Held(tensor)
        alive.add(held)
        return held

    supervised = (False,) * (length + 1 - scored) + (True,) * scored
    ids_of_rows = torch.randint(3, 512, (rows, length + 1)).tolist()
    batch = collate([Example(f"rec_{row}", "doc", tuple(ids), supervised) for row, ids in enumerate(ids_of_rows)])
    model.train()
    with torch.autograd.graph.saved_tensors_hooks(hold, lambda held: held.tensor):
        held_loss = loss.supervised_losses(plain_model(model), batch).sum()
    storages = {h.tensor.untyped_storage().data_ptr(): h.tensor.untyped_storage().nbytes() for h in alive}
    held_loss.backward()  # type: ignore[no-untyped-call]
    return sum(size for pointer, size in storages.items() if pointer not in own)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {}),
        ("llama", {"dequantized": False}),
        ("llama", {"dropout": True}),
        ("llama", {"padded_tokens": 1_200, "longest": 600}),
        ("llama", {"gradient_checkpointing": True}),
        ("llama", {"method": "lora", "adapter": "dora"}),
        ("llama", {"method": "full"}),
        ("qwen3", {"rank": 32}),
        ("gemma2", {"method": "full"}),
        ("glm4", {"method": "lora", "padded_tokens": 1_200, "longest": 600}),
    ],
)
def test_activations_are_what_torch_keeps(bases: dict[str, Path], family: str, changes: dict[str, Any]) -> None:
    """Within 15 %; the tightest are within 1 %."""
    load = replace(Load("qlora", padded_tokens=120, longest=40, scored=12, rank=8), **changes)
    rows = load.padded_tokens // load.longest
    lora = LoraSettings(load.rank, 16, 0.1 if load.dropout else 0.0, load.adapter)
    model = load_model(
        bases[family], load.method, CPU, lora=lora, seed=0, dequantized_budget_bytes=load.dequantized << 40,
        gradient_checkpointing=load.gradient_checkpointing,
    )  # fmt: skip
    scored = load.scored // 3
    geometry = read_geometry(bases[family])
    kept_logits = load.method == "full"  # behind a frozen head none are
    logits = 4 * scored * rows * geometry.vocab if kept_logits else 0
    expected = activation_bytes(geometry, load)
    if load.gradient_checkpointing:  # the one layer in backward isn't there yet at the end of forward
        expected -= memory.layer_activation_bytes(geometry, load)
    assert kept_for_backward(model, rows, load.longest, scored) == pytest.approx(expected + logits, rel=0.15)


def test_gate_and_up_are_unpacked_together_and_one_of_them_twice() -> None:
    unpacked = {
        term.what: term.bytes
        for term in memory.growth(SEVEN_B, Load("qlora", 512, 512, 512, rank=64, dequantized=False))
    }
    assert unpacked["a matrix while it is dequantized"] == 3 * 2 * 4_096 * 11_008


@pytest.mark.parametrize("family", ["llama", "glm4"])
@pytest.mark.parametrize(("method", "dequantized"), [("qlora", True), ("qlora", False), ("lora", True), ("full", True)])
def test_weights_gradients_and_moments_are_exact(
    bases: dict[str, Path], family: str, method: Any, dequantized: bool
) -> None:
    model: Any = load_model(
        bases[family], method, CPU, lora=LoraSettings(8, 16, 0.0), seed=0, dequantized_budget_bytes=dequantized << 40
    )
    geometry = read_geometry(bases[family])
    load = Load(method, 120, 40, 12, rank=8, dequantized=dequantized)
    parameters = [p for p in model.parameters() if p.requires_grad]
    assert trained(geometry, load) == sum(p.numel() for p in parameters)
    frozen = sum(p.nbytes for p in model.parameters() if method == "full" or not p.requires_grad)
    assert weight_bytes(geometry, load) == frozen + sum(_scales(m.weight) for m in linear4bits(model).values())

    kept_for_backward(model, 3, 40, 4)
    optimizer = make_optimizer(parameters, 1e-3, CPU)
    optimizer.step()
    terms = {term.what: term.bytes for term in peak(geometry, load)}
    assert terms["gradients, fp32"] == sum(p.grad.nbytes for p in parameters)
    moments = [s[name] for s in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert terms["AdamW's moments, fp32"] == sum(m.nbytes for m in moments)


def _scales(weight: Any) -> int:
    """What bitsandbytes holds beside the packed weights of one matrix."""
    state = weight.quant_state
    tensors = (state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)
    return sum(t.nbytes for t in tensors)


def test_what_the_formula_repeats_of_loss_is_the_same_there() -> None:
    assert memory.SHORT_TOKENS == packing.SHORT_TOKENS
    assert memory.CHUNK_POSITIONS == loss.CHUNK_POSITIONS


def test_known_sizes_of_a_7b_model() -> None:
    """LLaMA 7B has 6.74e9 weights; half a byte each, embeddings two, make 3.9 GB; QLoRA's paper trains it on 5 to 9."""
    assert SEVEN_B.parameters == pytest.approx(6.74e9, rel=0.001)
    load = Load("qlora", 512, 512, 512, rank=64, dequantized=False, gradient_checkpointing=True, cuda=True)
    assert weight_bytes(SEVEN_B, load) == pytest.approx(0.516 * 6.476e9 + 2 * 0.262e9, rel=0.01)
    assert 5e9 < total(peak(SEVEN_B, load)) < 9e9


def test_more_of_anything_takes_more() -> None:
    load = Load("qlora", 1_024, 1_024, 500, rank=8, dequantized=False, gradient_checkpointing=True, cuda=True)
    least = total(peak(SEVEN_B, load))
    more: list[dict[str, Any]]
    more = [{"rank": 16}, {"dequantized": True}, {"gradient_checkpointing": False}, {"padded_tokens": 2_048},
            {"adapter": "dora"}, {"method": "lora"}, {"method": "full"}, {"scored": 900}]  # fmt: skip
    for change in more:
        assert total(peak(SEVEN_B, replace(load, **change))) > least, change


def setup_for(available: int | None, options: TrainOptions | None = None, longest: int = 1_024) -> Setup:
    options = options or TrainOptions()
    rows = Rows(longest=longest, together=16)
    asked = Setup(max_padded_tokens=8_192)

    def load_of(setup: Setup) -> Load:
        return rows.load(options, setup, 16, cuda=True)

    return find_setup(SEVEN_B, load_of, asked, rows.longest, available)


def test_the_cheapest_setup_that_fits_is_found() -> None:
    """Of what changes no result, from what costs least time."""
    assert setup_for(None) == setup_for(300 << 30) == Setup(max_padded_tokens=8_192)
    found = [setup_for(gb * 10**9) for gb in (60, 40, 20, 12, 10)]
    assert [s.gradient_checkpointing for s in found] == sorted(s.gradient_checkpointing for s in found)
    assert found[0].max_padded_tokens < 8_192
    assert found[-1] == Setup(
        max_padded_tokens=found[-1].max_padded_tokens, gradient_checkpointing=True, dequantized=False
    )
    assert all(s.max_padded_tokens >= 1_024 for s in found)


def test_each_rung_of_the_ladder_is_a_new_one() -> None:
    rungs = list(ladder(Setup(max_padded_tokens=4_096), 900, qlora=True))
    assert len(rungs) == len({r.model_dump_json() for r in rungs}) == 4 * 4
    assert {r.max_padded_tokens for r in rungs} == {4_096, 2_048, 1_024, 900}
    assert all(r.dequantized for r in ladder(Setup(max_padded_tokens=4_096), 900, qlora=False))


def test_a_run_that_fits_in_no_setup_is_refused_with_one_that_does() -> None:
    """And the one named does fit."""
    with pytest.raises(
        JobFailed, match=r"needs \d+\.\d+ GB .* 6\.00 GB are free.*rank: \d+, max_tokens: \d+"
    ) as refused:
        setup_for(6 * 10**9, TrainOptions(rank=512), longest=8_192)
    words = str(refused.value).split("fits with ")[1].split(".")[0]
    rank, tokens = (int(part.split(": ")[1]) for part in words.split(", "))
    load = Load("qlora", tokens, tokens, tokens, rank=rank, dequantized=False, gradient_checkpointing=True, cuda=True)
    assert total(peak(SEVEN_B, load)) * 1.1 <= 6 * 10**9
    with pytest.raises(JobFailed, match="smaller base model"):
        setup_for(3 * 10**9)
    with pytest.raises(JobFailed, match="method: qlora"):
        setup_for(12 * 10**9, TrainOptions(method="full"))


def test_a_container_with_less_than_the_machine_counts(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       2000 kB\nMemAvailable:    1000 kB\n")
    assert available_memory(meminfo, [tmp_path]) == 1_000 << 10
    for name, text in {"max": "500000", "current": "300000", "stat": "anon 1\ninactive_file 100000"}.items():
        (tmp_path / f"memory.{name}").write_text(text + "\n")
    assert available_memory(meminfo, [tmp_path]) == 300_000
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory(meminfo, [tmp_path]) == 1_000 << 10


def test_the_geometry_of_the_demos_base(real_base: Path) -> None:
    geometry: Geometry = read_geometry(real_base)
    assert (geometry.parameters, geometry.exact, geometry.tied) == (134_515_008, True, True)
    assert geometry.adapter_parameters(16) == 4_884_480
