"""GGUF files, read back by transformers' own reader: the same tokens, the same logits."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, Qwen2Config, Qwen2ForCausalLM

from textmill.errors import JobFailed
from textmill_trainer.gguf_file import write_gguf

TEXTS = ["What is hexagram 12?", "乾为天。\n\n  two  spaces", "<|im_start|>user\nI'll say 3.14<|im_end|>\n"]


def reloaded(file: Path) -> tuple[Any, Any]:
    source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    model = AutoModelForCausalLM.from_pretrained(
        **source, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    return model, AutoTokenizer.from_pretrained(**source)


def assert_same(folder: Path, file: Path, same_tokens: bool = True) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    other, other_tokenizer = reloaded(file)
    assert other_tokenizer.chat_template == tokenizer.chat_template
    assert other_tokenizer.eos_token_id == tokenizer.eos_token_id
    for text in TEXTS:
        token_ids = tokenizer(text)["input_ids"]
        if same_tokens:
            assert other_tokenizer(text)["input_ids"] == token_ids
        with torch.no_grad():
            ours, theirs = (m(torch.tensor([token_ids])).logits for m in (model, other))
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-4)


def test_a_tiny_llama(tiny_base: Path, tmp_path: Path) -> None:
    write_gguf(tiny_base, tmp_path / "tiny.gguf", "tiny")
    assert_same(tiny_base, tmp_path / "tiny.gguf")


def test_weights_keep_their_type(tiny_base: Path, tmp_path: Path) -> None:
    write_gguf(tiny_base, tmp_path / "tiny.gguf", "tiny")
    reader = GGUFReader(tmp_path / "tiny.gguf")  # type: ignore[no-untyped-call]
    types = {t.name: t.tensor_type.name for t in reader.tensors}
    assert types["blk.0.attn_q.weight"] == types["token_embd.weight"] == "BF16"
    assert types["blk.0.attn_norm.weight"] == "F32"


def test_qwen2_with_biases(tiny_base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "qwen"
    config = Qwen2Config(
        vocab_size=49_152, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=False, eos_token_id=2, pad_token_id=0, bos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    model: Any = Qwen2ForCausalLM(config)  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    model.to(torch.float16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(tiny_base / name, folder / name)
    write_gguf(folder, tmp_path / "qwen.gguf", "qwen")
    # transformers reads the tokenizer of any Qwen2 file as Qwen2's own, which this one isn't.
    assert_same(folder, tmp_path / "qwen.gguf", same_tokens=False)


@pytest.mark.slow
def test_the_real_base(real_base: Path, tmp_path: Path) -> None:
    write_gguf(real_base, tmp_path / "base.gguf", "base")
    assert_same(real_base, tmp_path / "base.gguf")


def changed(base: Path, folder: Path, file: str, **changes: Any) -> Path:
    shutil.copytree(base, folder)
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(content | changes))
    return folder


def test_what_is_not_sure_is_refused_with_the_way_out(tiny_base: Path, tmp_path: Path) -> None:
    glm = changed(tiny_base, tmp_path / "glm", "config.json", model_type="glm")
    yarn = changed(tiny_base, tmp_path / "yarn", "config.json", rope_parameters={"rope_type": "yarn"})
    split = {"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": "x"}}, {"type": "ByteLevel"}]}
    odd = changed(tiny_base, tmp_path / "odd", "tokenizer.json", pre_tokenizer=split)
    for folder, words in ((glm, "type 'glm'"), (yarn, "'yarn' positions"), (odd, "tokenizer")):
        with pytest.raises(JobFailed, match=f"{words}.*convert_hf_to_gguf.py"):
            write_gguf(folder, tmp_path / "x.gguf", "x")
