"""Finds out how an endpoint is best asked for structure: by a JSON schema, for any JSON object, or in plain text."""

import logging
from dataclasses import dataclass

from textmill.contracts.datasets import AnswerForm
from textmill.errors import DependencyDown
from textmill_synth.ledger import Ledger
from textmill_synth.llm import CallFailed, ChatRequest, Schema
from textmill_synth.prompts import load_prompt
from textmill_synth.responses import Summarised, one_item, strict_json
from textmill_synth.settings import ResponseMode
from textmill_synth.strategies.base import ResponseForm

log = logging.getLogger(__name__)
_MAX_TOKENS = 96
_CAN_NOT = ("llm_bad_request", "llm_server_error", "budget_spent")
"""Faults that another form of asking may not have. Servers answer 400 or 500 to a form that they don't know."""


@dataclass(frozen=True)
class Capability:
    name: AnswerForm

    @property
    def form(self) -> ResponseForm:
        return "text" if self.name == "text" else "json"

    @property
    def enforced(self) -> bool:
        return self.name == "json_schema"


async def probe(ledger: Ledger, model: str, mode: ResponseMode) -> Capability:
    """Ask as ``mode`` says or, for ``auto``, find out with one call, at most two, which the ledger remembers.

    Small models keep to the schema and not to the task (title and summary both the whole text): they get text.

    Raises:
        DependencyDown: there was no answer for a reason that may pass. To go on in another form than the attempts
            before would pay for every call again.
    """
    if mode != "auto":
        return Capability("json_schema" if mode == "json" else "text")
    schemas: dict[AnswerForm, Schema] = {"json_schema": Summarised.model_json_schema(), "json_object": {}}
    for name, schema in schemas.items():
        try:
            if await _follows(ledger, model, schema):
                return Capability(name)
        except CallFailed as exc:
            if exc.kind not in _CAN_NOT:
                raise DependencyDown(f"the LLM endpoint didn't say whether it takes a {name}: {exc}") from exc
            log.info("no structured output", extra={"form": name, "fault": exc.kind})
            continue
        break  # an endpoint that knows a schema and a model that doesn't keep to it won't do better without
    return Capability("text")


async def _follows(ledger: Ledger, model: str, schema: Schema) -> bool:
    prompt = load_prompt("probe")
    call = await ledger.ask(ChatRequest(model, prompt.render(), 0.0, _MAX_TOKENS, schema), "probe", prompt.version)
    item = one_item(strict_json(call.completion.text), Summarised)
    return isinstance(item, Summarised) and len(item.content) < len(item.summary)
