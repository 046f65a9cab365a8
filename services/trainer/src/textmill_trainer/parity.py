"""Writes down what a published model does, token by token, so that the engine which will serve it can be held to it.

The figures are of the model as loaded from disk, in bf16.
The engine's side is in the inference service. Knows no store and no engine.
"""

# ruff: noqa: N803, N806 (tensor names carry their axes)

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from pydantic import JsonValue
from torch.nn.functional import log_softmax
from transformers import PreTrainedModel

from textmill.contracts.datasets import Tool
from textmill.contracts.gates import PARITY_FILE, ParityConversation, ParityProbe, ParityToken
from textmill.contracts.training import Objective
from textmill_trainer.batches import collate, microbatches
from textmill_trainer.chat import Chat, Dialogue
from textmill_trainer.loss import supervised_logits
from textmill_trainer.pairs import PairDialogue, read_pairs
from textmill_trainer.prepare import Example, read_records
from textmill_trainer.workfolder import WorkFolder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CONVERSATIONS = 16
ANSWER_TOKENS = 64
"""At most so many tokens of an answer: 16 answers of the demo have about 500 in all."""
MAX_TOKENS = 1_024
"""Of a conversation that is asked at all: an engine may have been started for short ones."""
TOP = 5


@dataclass(frozen=True)
class Conversation:
    """What comes before an answer, in OpenAI's form, and the text that the template makes of it."""

    prompt: str = ""
    messages: Sequence[dict[str, JsonValue]] = ()
    tools: Sequence[dict[str, JsonValue]] = ()


def write_probe(
    model: PreTrainedModel,
    tokenizer: "PreTrainedTokenizerFast",
    folder: WorkFolder,
    objective: Objective,
    examples: Sequence[Example],
) -> ParityProbe | None:
    """Put the probe beside the weights. None, and no file, if no example is short enough to be asked."""
    chosen = choose(examples)
    if not chosen:
        return None
    known = conversations(folder, objective, tokenizer, {example.record_id for example in chosen})
    probe = make_probe(model, {example: _that_of(example, known, tokenizer) for example in chosen})
    folder.write(folder.merged / PARITY_FILE, probe)
    return probe


def make_probe(model: PreTrainedModel, asked: Mapping[Example, Conversation]) -> ParityProbe:
    """What ``model`` says, place by place, to each example's last answer behind what comes before it."""
    found: list[ParityConversation] = []
    answers = {_last_answer(example): conversation for example, conversation in asked.items()}
    for part in microbatches(list(answers), MAX_TOKENS):
        for example, logits_NV in zip(part, _answer_logits(model, part), strict=True):
            found.append(_said(example, answers[example], logits_NV))
    return ParityProbe(conversations=found, dtype=str(model.dtype).removeprefix("torch."))


def choose(examples: Sequence[Example]) -> list[Example]:
    """The first few that are short enough."""
    return [e for e in examples if 2 <= len(e.token_ids) <= MAX_TOKENS][:CONVERSATIONS]


def conversations(
    folder: WorkFolder, objective: Objective, tokenizer: "PreTrainedTokenizerFast", ids: Collection[str]
) -> Mapping[str, Conversation]:
    """By record or pair, up to the last answer. None for raw text, which has no messages."""
    if objective == "pretrain":
        return {}
    read = _of_pairs if objective == "dpo" else _of_records
    return {
        record_id: Conversation(
            prompt=Chat(record, tokenizer).prompt(last),
            messages=[message.openai() for message in record.messages[:last]],
            tools=[_openai_tool(tool) for tool in record.tools],
        )
        for record_id, record, last in read(folder)
        if record_id in ids
    }


def answer_start(example: Example) -> int:
    """Where the last answer begins; the middle of raw text, which is supervised from its first token."""
    end = max(index for index, supervised in enumerate(example.supervised) if supervised)
    start = next((i + 1 for i in range(end, -1, -1) if not example.supervised[i]), 0)
    return start if start > 1 else len(example.token_ids) // 2


def _of_records(folder: WorkFolder) -> Iterator[tuple[str, Dialogue, int]]:
    for split in ("train", "eval"):
        for record in read_records(folder.records(split)) if folder.records(split).exists() else ():
            yield record.record_id, record, max(i for i, m in enumerate(record.messages) if m.role == "assistant")


def _of_pairs(folder: WorkFolder) -> Iterator[tuple[str, Dialogue, int]]:
    for split in ("train", "eval"):
        for pair in read_pairs(folder.lines(split)):
            yield (
                pair.pair_id,
                PairDialogue(pair.pair_id, pair.document_id or "", split, pair.messages, way="prompt"),
                len(pair.messages),
            )


def _that_of(example: Example, known: Mapping[str, Conversation], tokenizer: "PreTrainedTokenizerFast") -> Conversation:
    """The conversation whose last answer the example ends with; an empty one for an example of an earlier turn."""
    conversation = known.get(example.record_id, Conversation())
    prompt_ids: list[int] = tokenizer(conversation.prompt, add_special_tokens=False)["input_ids"]
    return conversation if tuple(prompt_ids) == example.token_ids[: answer_start(example)] else Conversation()


def _last_answer(example: Example) -> Example:
    """The example up to the end of its last answer, or to ``ANSWER_TOKENS`` of it, with nothing else supervised."""
    start = answer_start(example)
    end = start
    while end < len(example.token_ids) and example.supervised[end] and end - start < ANSWER_TOKENS:
        end += 1
    return replace(example, token_ids=example.token_ids[:end], supervised=(False,) * start + (True,) * (end - start))


@torch.no_grad()
def _answer_logits(model: PreTrainedModel, examples: Sequence[Example]) -> Sequence[torch.Tensor]:
    """Of each example the logits (N, V) at its answer."""
    model.train(False)
    batch = collate(examples).to(model.device)
    logits_NV = supervised_logits(model, batch)
    return torch.split(logits_NV, [e.supervised_tokens for e in examples])


def _said(example: Example, conversation: Conversation, logits_NV: torch.Tensor) -> ParityConversation:
    start = answer_start(example)
    places = zip(example.token_ids[start:], log_softmax(logits_NV, -1), strict=True)
    return ParityConversation(
        record_id=example.record_id,
        messages=conversation.messages,
        tools=conversation.tools,
        prompt_ids=example.token_ids[:start],
        continuation=[_token(token_id, logprobs_V) for token_id, logprobs_V in places],
    )


def _token(token_id: int, logprobs_V: torch.Tensor) -> ParityToken:
    top = logprobs_V.topk(min(TOP, len(logprobs_V)))
    return ParityToken(
        token_id=token_id,
        logprob=logprobs_V[token_id].item(),
        top_ids=top.indices.tolist(),
        top_logprobs=top.values.tolist(),
    )


def _openai_tool(tool: Tool) -> dict[str, JsonValue]:
    parameters: JsonValue = json.loads(tool.parameters)
    function: JsonValue = {"name": tool.name, "description": tool.description, "parameters": parameters}
    return {"type": "function", "function": function}
