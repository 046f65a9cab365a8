"""A language model of a dozen lines: bytes for tokens, log-probabilities that follow from a seed and the text so far.

A model folder's ``template.txt`` and ``weights.txt`` are its template and its seed. Standard library only: the stand-in
engine is it, and tests write with it what a trainer would publish.
"""

import json
import math
import random
from pathlib import Path

VOCABULARY = 8


def render(folder: Path, messages: list[dict[str, str]]) -> list[int]:
    template = folder / "template.txt"
    line = template.read_text() if template.exists() else "<{role}>{content}"
    return list("".join(line.format(**message) for message in messages).encode() + b"<assistant>")


def logprobs(folder: Path, before: list[int]) -> dict[int, float]:
    """Of the likeliest eight tokens."""
    weights = folder / "weights.txt"
    dice = random.Random(f"{weights.read_text() if weights.exists() else 0}/{before}")
    logits = {dice.randrange(65, 91): dice.gauss(0, 3) for _ in range(VOCABULARY)}
    norm = math.log(sum(math.exp(logit) for logit in logits.values()))
    noise = float((folder / "noise.txt").read_text()) if (folder / "noise.txt").exists() else 0.0
    return {token: logit - norm + noise * dice.choice((-1, 1)) for token, logit in logits.items()}


def prompt_logprobs(folder: Path, ids: list[int], top: int) -> list[dict[int, dict[str, float]] | None]:
    """As vLLM answers: nothing for the first token, then the likeliest and the one that stands there."""
    places: list[dict[int, dict[str, float]] | None] = [None]
    for index in range(1, len(ids)):
        found = logprobs(folder, ids[:index])
        best = sorted(found, key=lambda token: -found[token])[:top]
        places.append({token: {"logprob": found.get(token, -30.0)} for token in {*best, ids[index]}})
    return places


def probe(folder: Path, questions: list[str], answer_tokens: int = 8) -> str:
    """``parity.json`` as a trainer writes it beside this model. Answers are greedy."""
    conversations = []
    for question in questions:
        messages = [{"role": "user", "content": question}]
        prompt = render(folder, messages)
        ids, continuation = list(prompt), []
        for _ in range(answer_tokens):
            found = logprobs(folder, ids)
            top = sorted(found, key=lambda token: -found[token])[:5]
            continuation.append(
                {"token_id": top[0], "logprob": found[top[0]], "top_ids": top, "top_logprobs": [found[t] for t in top]}
            )
            ids.append(top[0])
        conversations.append(
            {"record_id": question, "messages": messages, "prompt_ids": prompt, "continuation": continuation}
        )
    return json.dumps({"conversations": conversations, "dtype": "bfloat16"})
