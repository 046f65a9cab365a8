"""Three families of chat templates with tokenizers to match: how an answer ends is different in each.

ChatML closes every turn (SmolLM2's own); Llama 3 does too, with headers and a tool call as JSON; in ChatGLM3's form
nothing closes a turn: generation stops at the next role's token, which ``generation_config.json`` lists.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer
from tokenizers.decoders import ByteFallback, Fuse
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.decoders import Metaspace as MetaspaceDecoder
from tokenizers.decoders import Sequence as Decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Metaspace, Split
from tokenizers.pre_tokenizers import Sequence as Cutters
from tokenizers.trainers import BpeTrainer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "zhouyi"
CHATGLM_ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
CHATGLM = """[gMASK]sop
{%- if tools %}<|system|>
 {{ tools | tojson }}{% endif %}
{%- for m in messages %}
{%- if m.tool_calls %}{% for c in m.tool_calls %}<|assistant|>{{ c.function.name }}
 {{ c.function.arguments | tojson }}{% endfor %}
{%- else %}<|{{ m.role }}|>
 {{ m.content }}{% endif %}
{%- endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"""
LLAMA3_TOKENS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|python_tag|>")
LLAMA3 = """<|begin_of_text|>
{%- for m in messages %}<|start_header_id|>{{ 'ipython' if m.role == 'tool' else m.role }}<|end_header_id|>

{% if tools and m.role == 'user' and loop.first %}{{ tools | tojson }}

{% endif %}
{%- if m.tool_calls %}{% for c in m.tool_calls %}
{{- '{"name": "' + c.function.name + '", "parameters": ' }}{{ c.function.arguments | tojson }}}{% endfor %}
{%- else %}{{ m.content | trim }}{% endif %}<|eot_id|>
{%- endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>

{% endif %}"""
THINKING = """{% set last = namespace(user=-1) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set last.user = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}
{%- if m.role == 'assistant' and '</think>' in m.content and loop.index0 < last.user %}
{{- m.content.split('</think>')[-1] | trim }}{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
"""Leaves out the reasoning of all turns before the last question, as Qwen 3's does."""


def chatml(base: Path) -> Any:
    return AutoTokenizer.from_pretrained(base)


def thinking(base: Path) -> Any:
    tokenizer = chatml(base)
    tokenizer.chat_template = THINKING
    return tokenizer


def llama3() -> Any:
    """With a byte-level vocabulary, cut where Llama 3 cuts: line breaks stay together, whatever follows."""
    return _as_llama3(PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(_byte_level())))


def joining(base: Path) -> Any:
    """Llama 3's template on SmolLM2's vocabulary: the two line breaks that end a prompt are one token alone, and two
    before an answer.
    """
    return _as_llama3(chatml(base))


def _as_llama3(tokenizer: Any) -> Any:
    tokenizer.add_special_tokens({"additional_special_tokens": list(LLAMA3_TOKENS)})
    tokenizer.eos_token, tokenizer.chat_template = "<|eot_id|>", LLAMA3
    return tokenizer


def chatglm(folder: Path) -> Any:
    """With a vocabulary of its own in SentencePiece's form (``▁`` for spaces), learnt from the Chinese examples."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_sentencepiece()),
        eos_token="</s>",
        additional_special_tokens=["[gMASK]", "sop", *CHATGLM_ROLES],
    )
    tokenizer.chat_template = CHATGLM
    tokenizer.save_pretrained(folder)
    ends = [tokenizer.convert_tokens_to_ids(t) for t in ("</s>", "<|user|>", "<|observation|>")]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    return AutoTokenizer.from_pretrained(folder)


@cache
def _sentencepiece() -> str:
    tokenizer = Tokenizer(BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Metaspace(prepend_scheme="never", split=False)
    tokenizer.decoder = Decoders([ByteFallback(), MetaspaceDecoder(prepend_scheme="never", split=False), Fuse()])
    specials = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = BpeTrainer(vocab_size=1_500, special_tokens=specials, max_token_length=4, show_progress=False)
    return _learn(tokenizer, trainer)


@cache
def _byte_level() -> str:
    tokenizer = Tokenizer(BPE())
    lines_together = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    bytes_only = ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = Cutters([Split(Regex(lines_together), "isolated"), bytes_only])
    tokenizer.decoder = ByteLevelDecoder()
    alphabet = ByteLevel.alphabet()
    return _learn(tokenizer, BpeTrainer(vocab_size=1_000, initial_alphabet=alphabet, show_progress=False))


def _learn(tokenizer: Tokenizer, trainer: BpeTrainer) -> str:
    texts = [path.read_text("utf-8") for path in sorted((EXAMPLES / "zh").glob("*.md"))[:16]]
    tokenizer.train_from_iterator(texts, trainer)
    return str(tokenizer.to_str())
