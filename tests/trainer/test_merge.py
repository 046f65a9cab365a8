"""The merged folder is the trained model, in the base's own shape."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tests.trainer.conftest import make_records
from transformers import AutoModelForCausalLM, AutoTokenizer

from textmill.contracts.gates import Closeness, MergedInto
from textmill.contracts.training import AdapterKind
from textmill.errors import JobFailed
from textmill_trainer.batches import collate
from textmill_trainer.gate import Trained, load_published
from textmill_trainer.loop import plain_model
from textmill_trainer.loss import supervised_logits
from textmill_trainer.merge import merge, merged_in_memory, save_full
from textmill_trainer.model import LoraSettings, add_lora, dequantize_in_place, load_16bit, load_full, load_nf4
from textmill_trainer.prepare import Example, encode_all

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def examples(tokenizer: Any) -> list[Example]:
    return encode_all(make_records(6), tokenizer, 100)


def trained(base: Path, residence: str, kind: AdapterKind = "lora") -> Any:
    core = load_nf4(base, CPU)
    if residence == "dequantized":
        dequantize_in_place(core)
    return with_adapter(core, kind)


def with_adapter(core: Any, kind: AdapterKind) -> Any:
    """As if it had been trained: B is no longer zero, and DoRA's rows have lengths of their own."""
    model = add_lora(core, LoraSettings(rank=4, alpha=8, dropout=0.0, kind=kind), seed=1)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.05, generator=generator)
        if "magnitude" in name:
            parameter.data *= 1 + 0.2 * torch.randn(parameter.shape, generator=generator)
    model.eval()
    return model


def closeness(model: Any, folder: Path, examples: list[Example]) -> Closeness:
    return Trained(plain_model(model), [collate(examples)]).closeness(load_published(folder, CPU))


KINDS: tuple[AdapterKind, ...] = ("lora", "rslora", "dora")


@pytest.mark.parametrize("residence", ["nf4", "dequantized"])
@pytest.mark.parametrize("kind", KINDS)
def test_merged_is_the_live_adapter(
    tiny_base: Path, examples: Any, tmp_path: Path, residence: str, kind: AdapterKind
) -> None:
    model = trained(tiny_base, residence, kind)
    merge(model, tiny_base, tmp_path / "merged")
    checked = closeness(model, tmp_path / "merged", examples)
    assert checked.mean_kl < 1e-4
    assert checked.top1_agreement > 0.9
    assert checked.nll == pytest.approx(Trained(plain_model(model), [collate(examples)]).nll, abs=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_beside_16_bit_weights_merges_into_those(
    tiny_base: Path, examples: Any, tmp_path: Path, kind: AdapterKind
) -> None:
    model = with_adapter(load_16bit(tiny_base, CPU), kind)
    merge(model, tiny_base, tmp_path / "merged", into="16bit")
    assert closeness(model, tmp_path / "merged", examples).mean_kl < 1e-4


def test_the_base_merged_into_matters(tiny_base: Path, examples: Any, tmp_path: Path) -> None:
    model = trained(tiny_base, "nf4")
    for into in ("nf4", "16bit"):
        merge(model, tiny_base, tmp_path / into, into)
    near, far = (closeness(model, tmp_path / into, examples).mean_kl for into in ("nf4", "16bit"))
    assert far > 10 * near


@pytest.mark.parametrize("into", ["nf4", "16bit"])
@pytest.mark.parametrize("residence", ["nf4", "dequantized"])
def test_merged_in_memory_is_merged_on_disk_and_leaves_no_trace(
    tiny_base: Path, examples: Any, tmp_path: Path, into: MergedInto, residence: str
) -> None:
    model = trained(tiny_base, residence, "dora")
    before = supervised_logits(plain_model(model), collate(examples))
    with merged_in_memory(model, tiny_base, into) as core:
        in_memory = supervised_logits(core, collate(examples))
    merge(model, tiny_base, tmp_path / "merged", into)
    on_disk = supervised_logits(load_published(tmp_path / "merged", CPU), collate(examples))
    assert torch.equal(in_memory, on_disk)
    assert not torch.equal(in_memory, before)
    assert torch.equal(supervised_logits(plain_model(model), collate(examples)), before)
    assert all(p.requires_grad for name, p in model.named_parameters() if "lora_" in name)


def test_all_weights_trained_are_saved_as_they_are(tiny_base: Path, examples: Any, tmp_path: Path) -> None:
    model = load_full(tiny_base, CPU)
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    save_full(model, tiny_base, tmp_path / "saved")
    loaded = load_published(tmp_path / "saved", CPU).state_dict()
    assert all(torch.equal(loaded[name], weight.to(torch.bfloat16)) for name, weight in model.state_dict().items())
    assert _tensors(tmp_path / "saved") == _tensors(tiny_base)


def test_weights_that_the_files_do_not_name_are_refused(tiny_base: Path, tmp_path: Path) -> None:
    model = load_full(tiny_base, CPU)
    model.register_parameter("extra", torch.nn.Parameter(torch.ones(1)))
    with pytest.raises(JobFailed, match=r"no tensors \['extra'\] for 1 trained layers"):
        save_full(model, tiny_base, tmp_path / "saved")


def test_names_and_files_are_the_bases_own(tiny_base: Path, tmp_path: Path) -> None:
    merge(trained(tiny_base, "nf4"), tiny_base, tmp_path / "merged")
    assert sorted(p.name for p in (tmp_path / "merged").iterdir()) == sorted(p.name for p in tiny_base.iterdir())
    assert _tensors(tmp_path / "merged") == _tensors(tiny_base)
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert "quantization_config" not in config
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template


def test_plain_transformers_loads_it(tiny_base: Path, examples: Any, tmp_path: Path) -> None:
    model = trained(tiny_base, "dequantized")
    merge(model, tiny_base, tmp_path / "merged")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    batch = collate(examples)
    live = supervised_logits(plain_model(model), batch)
    assert (supervised_logits(loaded, batch).argmax(-1) == live.argmax(-1)).float().mean() > 0.9


def test_a_merge_that_changes_nothing_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    untrained = add_lora(load_nf4(tiny_base, torch.device("cpu")), LoraSettings(4, 8, 0.0), seed=1)
    with pytest.raises(JobFailed, match="equals the base"):
        merge(untrained, tiny_base, tmp_path / "merged")


def _tensors(folder: Path) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    return {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()}
