"""The parity gate: the engine that is about to serve a model does what the model did when it was published.

A model folder may hold a probe (``parity.json``): conversations, the token ids of their prompts, and the
log-probabilities of their answers. The engine has to make the same prompts of the same messages, token for token, and
to find the same tokens as likely. A wrong template, wrong or half-loaded weights, or a kernel gone wrong is refused
before anybody is answered with it. Knows HTTP only as ``EngineApi``.
"""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from textmill.contracts.gates import PARITY_FILE, ParityCheck, ParityConversation, ParityProbe, ParityToken
from textmill.errors import JobFailed
from textmill_inference.engine.metrics import ENGINE_PARITY_DIFFERENCE, ENGINE_PARITY_TOP1
from textmill_inference.engine.openai_api import EngineApi
from textmill_inference.engine.port import ModelFolder

log = logging.getLogger(__name__)
MIN_TOP1 = 0.995
TIE_NATS = 0.26
"""Two steps of a bf16 logit between 16 and 32. Between two engines the right model's gap from its likeliest token to
the next moves by no more at 99 % of tokens; all flips that were seen were exact ties on one side at least."""
MAX_MEAN_DIFFERENCE = 0.05
"""Measured on SmolLM2-135M, vLLM on a CPU against transformers, 510 tokens: 0.013 for the published model, 0.126 for
the adapter merged into the 16-bit base instead, 4.5 for the base itself (docs/trainer/gates.md)."""


class ParityGate:
    """Holds one engine to the probes of the models it gets. A folder that has passed isn't asked again."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._passed: dict[Path, ParityCheck | None] = {}

    def check_of(self, folder: ModelFolder | None) -> ParityCheck | None:
        """What was measured of this folder; None if it was not, or did not pass."""
        return self._passed.get(folder.path) if folder is not None else None

    def has_probe(self, folder: ModelFolder) -> bool:
        """Whether the engine still has to prove itself with this folder."""
        return folder.path not in self._passed and (folder.path / PARITY_FILE).is_file()

    def refusal(self, folder: ModelFolder, api: EngineApi) -> str:
        """Why the engine may not serve the folder that it has loaded; empty if it may.

        Raises:
            TextmillError: as ``compare``.
        """
        if not self.has_probe(folder):
            return ""
        try:
            check = compare(api, read_probe(folder.path))
        except JobFailed as exc:
            return str(exc)
        if check is not None:
            ENGINE_PARITY_TOP1.labels(self._name).set(check.top1_agreement)
            ENGINE_PARITY_DIFFERENCE.labels(self._name).set(check.mean_logprob_difference)
            log.info("parity measured", extra={"engine": self._name, **check.model_dump()})
            if reason := refusal(check):
                return reason
        self._passed[folder.path] = check
        return ""


@dataclass
class Tally:
    """What was compared so far."""

    conversations: int = 0
    prompts_compared: int = 0
    prompts_identical: int = 0
    exact: int = 0
    ties: int = 0
    differences: list[float] = field(default_factory=list)


def read_probe(folder: Path) -> ParityProbe:
    """Raises ``JobFailed`` if what lies there is no probe."""
    path = folder / PARITY_FILE
    try:
        return ParityProbe.model_validate_json(path.read_bytes())
    except ValidationError as exc:
        raise JobFailed(f"{path} is not a parity probe: {exc.error_count()} errors; publish the model again") from exc


def compare(api: EngineApi, probe: ParityProbe) -> ParityCheck | None:
    """Ask the engine what the probe asked the model. None if all its conversations are too long for this engine.

    Raises:
        TextmillError: the engine can't be asked; ``DependencyDown`` if nothing answers.
    """
    began, tally = time.monotonic(), Tally()
    longest = api.context_tokens() or math.inf
    for conversation in probe.conversations:
        # One token is generated, and has to fit, too.
        if len(conversation.prompt_ids) + len(conversation.continuation) < longest:
            _compare_prompt(api, conversation, tally)
            _compare_answer(api, conversation, tally)
    tokens = len(tally.differences)
    if tokens == 0:
        return None
    return ParityCheck(
        conversations=tally.conversations,
        prompts_identical=tally.prompts_identical,
        prompts_compared=tally.prompts_compared,
        tokens=tokens,
        top1_exact=tally.exact / tokens,
        top1_agreement=(tally.exact + tally.ties) / tokens,
        ties=tally.ties,
        tie_nats=TIE_NATS,
        mean_logprob_difference=sum(tally.differences) / tokens,
        max_logprob_difference=max(tally.differences),
        seconds=time.monotonic() - began,
    )


def refusal(check: ParityCheck) -> str:
    """Why the engine may not serve the model; empty if it may."""
    if check.prompts_identical < check.prompts_compared:
        different = check.prompts_compared - check.prompts_identical
        return (
            f"the engine makes other tokens of {different} of {check.prompts_compared} prompts than the model was "
            f"trained on: it uses another chat template or tokenizer. Look for --chat-template among its arguments"
        )
    if not check.mean_logprob_difference <= MAX_MEAN_DIFFERENCE:
        return (
            f"the engine's log-probabilities are {check.mean_logprob_difference:.3g} nats a token off the published "
            f"model's on {check.tokens} tokens, at most {MAX_MEAN_DIFFERENCE:g} is bf16's own noise: these are other "
            f"weights, or its kernels or quantization change them"
        )
    if check.top1_agreement < MIN_TOP1:
        return (
            f"the engine's likeliest token is the published model's at {check.top1_agreement:.2%} of {check.tokens} "
            f"tokens, ties counted; at least {MIN_TOP1:.1%} is needed"
        )
    return ""


def _compare_prompt(api: EngineApi, conversation: ParityConversation, tally: Tally) -> None:
    tally.conversations += 1
    if conversation.messages:
        tally.prompts_compared += 1
        rendered = api.render(conversation.messages, conversation.tools)
        tally.prompts_identical += rendered == list(conversation.prompt_ids)


def _compare_answer(api: EngineApi, conversation: ParityConversation, tally: Tally) -> None:
    """On the published model's own token ids, so that a wrong template doesn't look like wrong weights."""
    answer_ids = [token.token_id for token in conversation.continuation]
    top = max(len(token.top_ids) for token in conversation.continuation)
    seen = api.logprobs([*conversation.prompt_ids, *answer_ids], top)
    for token, logprobs in zip(conversation.continuation, seen[-len(answer_ids) :], strict=True):
        tally.differences.append(abs(logprobs[token.token_id] - token.logprob))
        ours, theirs = token.top_ids[0], _likeliest(logprobs, token.top_ids)
        tally.exact += ours == theirs
        tally.ties += ours != theirs and _tied(token, logprobs, theirs)


def _likeliest(logprobs: Mapping[int, float], preferred: Sequence[int]) -> int:
    """Of several that are exactly equally likely, which bf16 makes common, the one that the other side named first."""
    best = max(logprobs.values())
    equals = [token_id for token_id, logprob in logprobs.items() if logprob == best]
    return next((token_id for token_id in preferred if token_id in equals), equals[0])


def _tied(token: ParityToken, logprobs: Mapping[int, float], theirs: int) -> bool:
    """Whether both sides see our likeliest token and theirs less than ``TIE_NATS`` apart."""
    published = dict(zip(token.top_ids, token.top_logprobs, strict=True))
    ours = token.top_ids[0]
    if theirs not in published or ours not in logprobs:
        return False
    return published[ours] - published[theirs] < TIE_NATS and logprobs[theirs] - logprobs[ours] < TIE_NATS
