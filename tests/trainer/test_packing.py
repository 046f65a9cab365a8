"""Packed records don't see each other: logits, losses and gradients are those of the records alone."""

# ruff: noqa: N803, N806 (tensor names carry their axes)

import random
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoModelForCausalLM, Gemma3TextConfig, GlmConfig, LlamaConfig, Qwen3Config
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from textmill_trainer.batches import collate, cut, pack
from textmill_trainer.loop import LoopSettings
from textmill_trainer.loss import supervised_logits, supervised_losses
from textmill_trainer.model import checkpoint_activations
from textmill_trainer.packing import ATTENTION, install
from textmill_trainer.packing_choice import choose_packing, measure_isolation
from textmill_trainer.prepare import Example

CPU = torch.device("cpu")
SHAPE: dict[str, Any] = {
    "vocab_size": 200, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FAMILIES = {
    "llama": LlamaConfig(**SHAPE),
    "glm": GlmConfig(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE),
    "gemma3": Gemma3TextConfig(**SHAPE, sliding_window=8, layer_types=["sliding_attention", "full_attention"]),
}
SETTINGS = LoopSettings(
    epochs=3, batch_size=4, learning_rate=2e-2, warmup_ratio=0.1, evaluations=2, checkpoints=2, seed=7,
    max_padded_tokens=128,
)  # fmt: skip


def example(length: int) -> Example:
    rng = random.Random(length)
    token_ids = tuple(rng.randrange(3, 200) for _ in range(length))
    return Example(f"rec_{length}", "doc_1", token_ids, (False,) * (length // 2) + (True,) * (length - length // 2))


EXAMPLES = [example(n) for n in (5, 17, 1 + 8, 30, 2, 12)]
BEGINNING = example(14).token_ids


def begun_alike(length: int, shared: int) -> Example:
    """The first ``shared`` tokens are those of all such examples."""
    own = example(length)
    return Example(f"rec_{length}_{shared}", "doc_1", BEGINNING[:shared] + own.token_ids[shared:], own.supervised)


SHARING = [
    begun_alike(17, 10),
    begun_alike(9, 9),
    begun_alike(17, 3),
    begun_alike(30, 14),
    begun_alike(17, 10),
    *EXAMPLES,
]
"""A tree of beginnings, with an example that is within another and one that is there twice."""


def fresh(family: str, **options: Any) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(deepcopy(FAMILIES[family]), **options)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "_proj" in name:
                weight.mul_(5)  # as small as fresh ones are, what a record sees hardly shows in its logits
    return model.float().eval()


def gradients(model: Any, losses_R: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    losses_R.sum().backward()
    return [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("kernels", [None, SDPBackend.MATH, SDPBackend.FLASH_ATTENTION])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("share", [False, True])
def test_packed_is_unpacked(
    share: bool, family: str, kernels: SDPBackend | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernels is SDPBackend.FLASH_ATTENTION:
        monkeypatch.setattr("textmill_trainer.packing.SHORT_TOKENS", 0)  # torch's own choice, as for long records
    model = fresh(family)
    alone_NV = torch.cat([supervised_logits(model, collate([e])) for e in SHARING])
    alone_R = torch.cat([supervised_losses(model, collate([e])) for e in SHARING])
    alone = gradients(model, alone_R)
    assert install(model)
    with sdpa_kernel(SDPBackend.MATH) if kernels is SDPBackend.MATH else sdpa_kernel(list(_EVERY)):
        row = pack(SHARING, share=share)
        packed_NV = supervised_logits(model, row)
        packed_R = supervised_losses(model, row)
        packed = gradients(model, packed_R)
    assert (alone_NV - packed_NV).abs().max() < 1e-5 * max(1.0, alone_NV.abs().max().item())
    assert torch.allclose(alone_R, packed_R, rtol=1e-5, atol=1e-5)
    for a, b in zip(alone, packed, strict=True):
        assert (a - b).abs().max() <= 1e-5 * a.abs().max() + 1e-7


_EVERY = (SDPBackend.MATH, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_leak_would_be_seen(family: str) -> None:
    model = fresh(family)
    assert install(model)
    found = measure_isolation(model, SHARING, CPU, share=True)
    assert found.difference < 1e-5
    assert found.leak > 100 * found.difference
    assert found.holds


def test_attention_without_packed_rows_is_as_before() -> None:
    """Padded batches, and generation with a cache, which an evaluation may need."""
    model, prompt = fresh("llama"), torch.tensor([[5, 6, 7, 8]])
    padded_R = supervised_losses(model, collate(EXAMPLES))
    generated = model.generate(prompt, max_new_tokens=6, do_sample=False)
    install(model)
    assert torch.equal(padded_R, supervised_losses(model, collate(EXAMPLES)))
    assert torch.equal(generated, model.generate(prompt, max_new_tokens=6, do_sample=False))


def test_recomputed_layers_keep_records_apart() -> None:
    """Checkpointed layers run again in the backward pass, long after the forward's context is gone."""
    model = fresh("llama")
    install(model)
    plain = gradients(model, supervised_losses(model, pack(SHARING, share=True)))
    model.train()
    checkpoint_activations(model, True)
    again = gradients(model, supervised_losses(model, pack(SHARING, share=True)))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(plain, again, strict=True))


def test_a_packed_row_keeps_each_records_place() -> None:
    batch = pack([example(4), example(3)])
    assert batch.rows is not None
    assert batch.rows.positions_BT.tolist() == [[0, 1, 2, 0, 1]]
    assert batch.rows.bounds_R1.tolist() == [0, 3, 5]
    assert (batch.records, batch.longest) == (2, 3)
    assert batch.records_N.tolist() == [0, 0, 1, 1]
    assert batch.places_N.tolist() == [1, 2, 3, 4]
    assert pack([Example("r", "d", (5, 6), (True, True))]).targets_N.tolist() == [6], "the first follows from nothing"


def test_what_records_share_is_computed_once() -> None:
    asked_twice = [Example(f"rec_{n}", "doc", (7, 8, 9, n, 5), (False, False, False, True, True)) for n in (1, 2)]
    batch = pack(asked_twice, share=True)
    assert batch.token_ids_BT.tolist() == [[7, 8, 9, 1, 2]]
    assert batch.places_N.tolist() == [2, 3, 2, 4]
    assert batch.targets_N.tolist() == [1, 5, 2, 5]
    assert pack(asked_twice).token_ids_BT.tolist() == [[7, 8, 9, 1, 7, 8, 9, 2]]


def test_packed_parts_hold_real_tokens_up_to_the_bound() -> None:
    def tokens(e: Example) -> int:
        return len(e.token_ids)

    parts = cut(EXAMPLES, tokens, 30, packed=True)
    assert [sum(map(tokens, part)) for part in parts] == [28, 17, 30]
    assert [len(part) * max(map(tokens, part)) for part in cut(EXAMPLES, tokens, 30)] == [27, 12, 17, 30]


@pytest.mark.parametrize(
    ("wanted", "lengths", "packed", "why"),
    [
        ("auto", (4, 40, 7, 33), True, "would be padding, or beginnings in common"),
        ("auto", (40, 41, 42, 43), False, "only 1.8%"),
        ("on", (40, 41, 42, 43), True, "1.8% of positions would be padding"),
        ("off", (4, 40, 7, 33), False, "as asked for"),
    ],
)
def test_packing_where_it_pays(wanted: Any, lengths: tuple[int, ...], packed: bool, why: str) -> None:
    model = fresh("llama")
    report = choose_packing(wanted, model, [[example(n)] for n in lengths], SETTINGS, share=True)
    assert (report.packed, why in report.reason) == (packed, True), report
    assert (model.config._attn_implementation == ATTENTION) == packed
    assert report.shared == packed
    assert report.microbatches_packed <= report.microbatches_padded


def test_beginnings_in_common_are_worth_packing_unless_there_is_dropout() -> None:
    examples = [begun_alike(length, 14) for length in (20, 20, 20, 21)]
    examples = [replace(e, token_ids=(*e.token_ids[:14], n, *e.token_ids[15:])) for n, e in enumerate(examples)]
    report = choose_packing("auto", fresh("llama"), [[e] for e in examples], SETTINGS, share=True)
    assert (report.packed, report.shared) == (True, True)
    assert report.spared_share == pytest.approx(1 - (14 + 5 + 5 + 5 + 6) / 80)
    assert report.padding_share == pytest.approx(1 - 77 / 80)
    report = choose_packing("on", fresh("llama"), [[e] for e in examples], SETTINGS, share=False)
    assert (report.packed, report.shared) == (True, False)
    assert report.spared_share == pytest.approx(1 - 77 / 80)


def test_an_architecture_that_cannot_be_packed_is_padded() -> None:
    model = fresh("llama", attn_implementation="eager")
    report = choose_packing("on", model, [[e] for e in EXAMPLES], SETTINGS, share=True)
    assert not report.packed
    assert "can't be packed" in report.reason


def test_attention_that_leaks_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """As an architecture does that keeps what it is told about packed rows from its attention."""

    def deaf(*args: Any, rows: Any = None, **options: Any) -> Any:
        return sdpa_attention_forward(*args, **options)

    monkeypatch.setattr("textmill_trainer.packing.attention", deaf)
    report = choose_packing("on", fresh("llama"), [[e] for e in EXAMPLES], SETTINGS, share=True)
    assert not report.packed
    assert "they see each other" in report.reason


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("family", ["llama", "qwen3", "glm"])
@pytest.mark.parametrize("share", [False, True])
def test_flash_attention_keeps_records_apart(share: bool, family: str) -> None:
    """In bf16, on torch's flash attention for varying lengths."""
    model = fresh(family).to("cuda", torch.bfloat16)
    assert install(model)
    found = measure_isolation(model, SHARING, torch.device("cuda"), share=share)
    assert found.holds
    assert found.difference < 0.03
    packed_R = supervised_losses(model, pack(SHARING, share=share).to(torch.device("cuda")))
    padded_R = supervised_losses(model, collate(SHARING).to(torch.device("cuda")))
    packed, padded = gradients(model, packed_R), gradients(model, padded_R)
    for a, b in zip(packed, padded, strict=True):
        assert torch.nn.functional.cosine_similarity(a.flatten().float(), b.flatten().float(), dim=0) > 0.99
