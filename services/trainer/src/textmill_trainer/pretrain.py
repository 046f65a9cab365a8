"""Turns raw text into blocks to be learnt word for word: continued pretraining, as nanoGPT does from a base.

Each token of a document is predicted once an epoch: a block begins with the last token of the one before it. No block
holds two documents, so a loss that stands out leads to one of them; short ends are packed with others as short records
are. The blocks are ``Example``s, and ``Supervised`` is their objective. Knows no torch.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from textmill.errors import JobFailed
from textmill_trainer.prepare import Example
from textmill_trainer.workfolder import RawText

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def read_texts(path: Path) -> list[RawText]:
    with path.open("rb") as file:
        return [RawText.model_validate_json(line) for line in file if line.strip()]


def encode_texts(texts: Iterable[RawText], tokenizer: "PreTrainedTokenizerFast", max_tokens: int) -> list[Example]:
    """Blocks of at most ``max_tokens``, in order.

    Raises:
        JobFailed: there is no token to predict in any of them.
    """
    texts = list(texts)
    blocks = [block for text in texts for block in _blocks(text, tokenizer, max_tokens)]
    if texts and not blocks:
        raise JobFailed("the texts hold less than two tokens, so there is nothing to predict: give it more text")
    return blocks


def document_ids(text: str, tokenizer: "PreTrainedTokenizerFast") -> list[int]:
    """Token ids of a document: begun as the tokenizer begins texts (Llama's with BOS, Qwen's with nothing), and ended
    with EOS, so that the model learns where a text is over.
    """
    ids: list[int] = tokenizer(text, verbose=False)["input_ids"]
    end = tokenizer.eos_token_id
    return ids if end is None or (ids and ids[-1] == end) else [*ids, int(end)]


def _blocks(text: RawText, tokenizer: "PreTrainedTokenizerFast", max_tokens: int) -> Iterable[Example]:
    ids = document_ids(text.text, tokenizer)
    for number, start in enumerate(range(0, len(ids) - 1, max_tokens - 1)):
        block = tuple(ids[start : start + max_tokens])
        yield Example(f"{text.document_id}/block-{number}", text.document_id, block, (True,) * len(block))
