"""Asks an LLM whether a passage bears an answer out. For what no rule can see: meaning put in other words.

The judge must quote the words that decide it, and a quotation that isn't in the passage makes its judgement void: an
answer is accepted on a "supported" with a real quotation, and on nothing else.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

from textmill.contracts.documents import Language
from textmill_synth.checks import Finding
from textmill_synth.evidence import locate_evidence
from textmill_synth.ledger import Call
from textmill_synth.llm import ChatRequest
from textmill_synth.prompts import Prompt, load_prompt

MAX_VERDICT_TOKENS = 512


class Verdict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    verdict: Literal["supported", "not_supported", "contradicted"]
    quote: str


class Asks(Protocol):
    """What the judge needs of the ledger."""

    async def ask(self, request: ChatRequest, shard: str, prompt_version: str) -> Call: ...


@dataclass(frozen=True)
class Judge:
    """Asks ``model`` at temperature 0. ``structured``: the endpoint takes a JSON schema."""

    ledger: Asks
    model: str
    prompts: Mapping[Language, Prompt]
    structured: bool

    async def verdict(
        self, passage_text: str, question: str, answer: str, language: Language, shard: str
    ) -> Finding | None:
        """None when the passage bears the answer out. A judgement that can't be read or checked is ``judge_unclear``.

        Raises:
            CallFailed: The judge gave no answer: the record is a dead letter, neither accepted nor rejected.
        """
        prompt = self.prompts[language]
        messages = prompt.render(passage=passage_text, question=question, answer=answer)
        schema = Verdict.model_json_schema() if self.structured else None
        request = ChatRequest(self.model, messages, 0.0, MAX_VERDICT_TOKENS, schema)
        call = await self.ledger.ask(request, shard, prompt.version)
        return _finding(call.completion.text, passage_text)


def open_judge(ledger: Asks, model: str, structured: bool) -> Judge:
    """A judge with the package's own prompts, ``prompts/judge.<language>.j2``."""
    return Judge(ledger, model, {"en": load_prompt("judge.en"), "zh": load_prompt("judge.zh")}, structured)


def _finding(raw: str, passage_text: str) -> Finding | None:
    try:
        judged = Verdict.model_validate_json(raw)
    except ValidationError:
        return Finding("judge_unclear", f"the judge's reply has not the form asked for: {raw[:120]!r}")
    if judged.verdict == "not_supported":
        return Finding("judge_unsupported", "the judge: the passage does not say this")
    if locate_evidence(judged.quote, passage_text) is None:
        return Finding("judge_unclear", f"{judged.verdict}, on words not in the passage: {judged.quote[:80]!r}")
    if judged.verdict == "contradicted":
        return Finding("judge_unsupported", f"the judge: contradicted by {judged.quote[:80]!r}")
    return None
