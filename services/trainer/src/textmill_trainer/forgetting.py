"""How far a tuned model has moved from its base where it wasn't meant to: on general prompts, and replay against it.

The base answers a fixed small set of general prompts once, before training. The measure is KL(base || tuned) per token
of those answers, exact over the whole vocabulary. The base's distributions need no second model: they are kept from
the start, or, where they are large, computed again with the adapter switched off. Replay mixes the base's own answers
to *other* general prompts into training (self-distillation; Huang et al. 2024 find it as good as real old data).
"""

# ruff: noqa: N806 (tensor names carry their axes)

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
import yaml
from peft import PeftModel
from pydantic import Field, ValidationError
from torch import nn
from torch.nn.functional import kl_div, log_softmax
from transformers import GenerationConfig, PreTrainedModel

from textmill.contracts.base import Contract
from textmill.errors import JobFailed
from textmill_trainer.batches import Batch, collate, microbatches
from textmill_trainer.loss import CHUNK_POSITIONS, supervised_logits
from textmill_trainer.prepare import Example, end_of_turn_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MEASURED_TOKENS = 16
"""Of each answer. Where a model has forgotten, it shows in the first words; 32 prompts make 500 positions."""
KEPT_BYTES = 128 << 20
"""Of the base's distributions, in fp32: 100 MB at 49k entries. Larger ones are computed again, the adapter off."""
REPLAYED_TOKENS = 48
REPLAY_PREFIX = "replay_"
_PADDED_TOKENS = 2_048
_ANSWERED_AT_ONCE = 16
_NO_DOCUMENT = ""


class GeneralPrompts(Contract):
    """``measured`` and ``replayed`` share nothing, so that replay can't make the measure look good."""

    measured: tuple[str, ...] = Field(default=(), max_length=256)
    replayed: tuple[str, ...] = Field(default=(), max_length=4_096)


def read_prompts(more: Path | None = None) -> GeneralPrompts:
    """Our own, and those of a file of the same form.

    Raises:
        JobFailed: the file can't be read as such, or a prompt is both measured and replayed.
    """
    own = resources.files("textmill_trainer").joinpath("general_prompts.yaml").read_text(encoding="utf-8")
    prompts = GeneralPrompts.model_validate(yaml.safe_load(own))
    if more is not None:
        try:
            added = GeneralPrompts.model_validate(yaml.safe_load(more.read_text(encoding="utf-8")))
        except (OSError, yaml.YAMLError, ValidationError) as exc:
            raise JobFailed(f"general prompts {more}: {exc}; two lists, measured and replayed, are allowed") from exc
        prompts = GeneralPrompts(measured=prompts.measured + added.measured, replayed=prompts.replayed + added.replayed)
    if both := set(prompts.measured) & set(prompts.replayed):
        raise JobFailed(f"general prompt {min(both)!r} is both measured and replayed: leave it in one of the lists")
    return prompts


class Forgetting:
    """Measures the model against its base. Built before training, while a fully tuned model still is its base."""

    def __init__(self, model: PeftModel | PreTrainedModel, general: Sequence[Example], budget: float) -> None:
        """``general`` are prompts with the base's answers; ``budget`` is in nats a token. Dropout must be off."""
        self.budget = budget
        self._model = model
        self._core = as_transformers(model)
        self._batches = [collate(part).to(self._core.device) for part in microbatches(general, _PADDED_TOKENS)]
        vocabulary = cast(nn.Embedding, self._core.get_input_embeddings()).num_embeddings
        kept_bytes = 4 * vocabulary * sum(sum(e.supervised) for e in general)
        self._kept_NV: list[torch.Tensor] = []
        if not isinstance(model, PeftModel) or kept_bytes <= KEPT_BYTES:
            with without_adapter(model):
                self._kept_NV = [self._log_probabilities(batch) for batch in self._batches]

    @torch.no_grad()
    def mean_kl(self) -> float:
        """KL(base || tuned) in nats a token. Dropout must be off."""
        total, tokens = 0.0, 0
        for index, batch in enumerate(self._batches):
            base_NV, tuned_NV = self._base(index), self._log_probabilities(batch)
            chunks = zip(torch.split(base_NV, CHUNK_POSITIONS), torch.split(tuned_NV, CHUNK_POSITIONS), strict=True)
            for base, tuned in chunks:
                total += kl_div(tuned, base, reduction="sum", log_target=True).item()
            tokens += len(base_NV)
        return total / tokens

    def _base(self, index: int) -> torch.Tensor:
        if self._kept_NV:
            return self._kept_NV[index]
        with without_adapter(self._model):
            return self._log_probabilities(self._batches[index])

    @torch.no_grad()
    def _log_probabilities(self, batch: Batch) -> torch.Tensor:
        return log_softmax(supervised_logits(self._core, batch), -1)


def replay_examples(
    model: PeftModel | PreTrainedModel,
    tokenizer: "PreTrainedTokenizerFast",
    prompts: Sequence[str],
    records: int,
    share: float,
) -> list[Example]:
    """General examples, answered by the base itself, that make up ``share`` of an epoch beside ``records`` others.

    Past the number of prompts they come again, as copies with ids of their own.
    """
    wanted = round(share / (1 - share) * records)
    answered = answer(model, tokenizer, prompts[:wanted], REPLAYED_TOKENS)
    return [
        Example(f"{REPLAY_PREFIX}{i:05d}", _NO_DOCUMENT, answered[i % len(answered)].token_ids,
                answered[i % len(answered)].supervised)
        for i in range(wanted if answered else 0)
    ]  # fmt: skip


def keep_examples(path: Path, make: Callable[[], list[Example]]) -> list[Example]:
    """Those in the file, if it is there; else those made, after writing the file."""
    if path.exists():
        rows = json.loads(path.read_text())
        return [Example(row[0], _NO_DOCUMENT, tuple(row[1]), tuple(row[2])) for row in rows]
    examples = make()
    path.write_text(json.dumps([[e.record_id, e.token_ids, e.supervised] for e in examples]))
    return examples


def is_replay(record_id: str) -> bool:
    return record_id.startswith(REPLAY_PREFIX)


def answer(
    model: PeftModel | PreTrainedModel, tokenizer: "PreTrainedTokenizerFast", prompts: Sequence[str], max_tokens: int
) -> list[Example]:
    """The base's greedy answers, each up to its end of turn or ``max_tokens``, as examples supervised on them.

    Draws no random number. A full tuned model must not have been trained yet.
    """
    core = as_transformers(model)
    ends = end_of_turn_ids(tokenizer)
    settings = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False, max_new_tokens=max_tokens, eos_token_id=sorted(ends), pad_token_id=min(ends)
    )
    examples: list[Example] = []
    was_training = core.training
    core.train(False)
    with torch.no_grad(), without_adapter(model):
        for start in range(0, len(prompts), _ANSWERED_AT_ONCE):
            asked = [_prompt_ids(tokenizer, p) for p in prompts[start : start + _ANSWERED_AT_ONCE]]
            answers = _generate(core, asked, settings, min(ends))
            examples += [_example(a, b, ends, start + i) for i, (a, b) in enumerate(zip(asked, answers, strict=True))]
    core.train(was_training)
    return examples


def as_transformers(model: PeftModel | PreTrainedModel) -> PreTrainedModel:
    core = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(core, PreTrainedModel)
    return core


def without_adapter(model: PeftModel | PreTrainedModel) -> AbstractContextManager[None]:
    """The base within the context: nothing to switch off where all weights are trained."""
    return model.disable_adapter() if isinstance(model, PeftModel) else nullcontext()


def _prompt_ids(tokenizer: "PreTrainedTokenizerFast", prompt: str) -> list[int]:
    if tokenizer.chat_template is None:
        text = f"{prompt}\n"
    else:
        asked = [{"role": "user", "content": prompt}]
        text = str(tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True))
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _generate(
    core: PreTrainedModel, asked: Sequence[Sequence[int]], settings: GenerationConfig, pad_id: int
) -> list[list[int]]:
    """What follows each prompt, padding included. Prompts are padded on the left, and masked there."""
    length = max(map(len, asked))
    token_ids_BT = torch.full((len(asked), length), pad_id)
    mask_BT = torch.zeros(len(asked), length, dtype=torch.long)
    for row, ids in enumerate(asked):
        token_ids_BT[row, length - len(ids) :] = torch.tensor(ids)
        mask_BT[row, length - len(ids) :] = 1
    generated = core.generate(  # type: ignore[operator]
        input_ids=token_ids_BT.to(core.device), attention_mask=mask_BT.to(core.device), generation_config=settings
    )
    rows: list[list[int]] = generated[:, length:].tolist()
    return rows


def _example(asked: Sequence[int], generated: Sequence[int], ends: frozenset[int], number: int) -> Example:
    stop = next((i + 1 for i, token in enumerate(generated) if token in ends), len(generated))
    answered = generated[:stop]
    supervised = (False,) * len(asked) + (True,) * len(answered)
    return Example(f"general_{number:05d}", _NO_DOCUMENT, (*asked, *answered), supervised)
