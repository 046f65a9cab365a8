"""A conversation as the text that the base model's chat template makes of it: what a server will render, too.

Messages reach the template in the form in which vLLM hands them over (its ``renderers/chat_utils.py``): the content is
always a string, the arguments of a tool call are an object. Knows no tokens and no torch.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from jinja2.exceptions import TemplateError

from textmill.contracts.datasets import Message, Tool
from textmill.contracts.masking import RefusalReason

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Row = dict[str, Any]
"""A message, or a tool, as a chat template takes it."""
_OBSERVATION = "<|observation|>"
"""The token before a tool's reply in ChatGLM3 and its successors."""


class Dialogue(Protocol):
    """What is said, as a ``Record`` has it; a preference pair has it too, without passage and evidence."""

    @property
    def messages(self) -> Sequence[Message]: ...

    @property
    def tools(self) -> Sequence[Tool]: ...


class Refused(Exception):
    """A record can't be trained on as it stands. Raised here and in ``prepare``, which collects them."""

    def __init__(self, reason: RefusalReason, detail: str) -> None:
        super().__init__(detail)
        self.reason: RefusalReason = reason


class Chat:
    """A conversation under a tokenizer's template."""

    def __init__(self, dialogue: Dialogue, tokenizer: "PreTrainedTokenizerFast") -> None:
        self.messages = dialogue.messages
        self._tools: list[Row | Callable[..., Any]] | None = [_function(tool) for tool in dialogue.tools] or None
        self._tokenizer = tokenizer
        self._tool_role = _tool_role(tokenizer)

    @property
    def answers(self) -> list[int]:
        """Which messages are the assistant's."""
        return [index for index, message in enumerate(self.messages) if message.role == "assistant"]

    def text(self) -> str:
        return self._render(self.messages)

    def prompt(self, answer: int) -> str:
        """What the model is given to write this answer."""
        return self._render(self.messages[:answer], prompt=True)

    def through(self, answer: int) -> str:
        """The conversation as it stands when this answer was the last thing said."""
        return self._render(self.messages[: answer + 1])

    def going_on(self, answer: int) -> str:
        """The same with the next turn begun: the tool's replies where it called tools, else the user's."""
        calls = self.messages[answer].tool_calls
        replies = [Message(role="tool", content="?", tool_call_id=call.id) for call in calls]
        return self._render([*self.messages[: answer + 1], *(replies or [Message(role="user", content="?")])])

    def _render(self, messages: Sequence[Message], prompt: bool = False) -> str:
        """Raises ``Refused`` for whatever the template stumbles over."""
        conversation = [self._row(message) for message in messages]
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    conversation, tools=self._tools, tokenize=False, add_generation_prompt=prompt
                )
            )
        except (TemplateError, TypeError, KeyError, IndexError, ValueError) as exc:
            raise Refused("template_error", f"the chat template can't render it: {type(exc).__name__}: {exc}") from exc

    def _row(self, message: Message) -> Row:
        row: Row = {**message.openai(), "content": message.content}
        if message.role == "tool":
            row["role"] = self._tool_role
        if message.tool_calls:
            row["tool_calls"] = [
                {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": json.loads(c.arguments)}}
                for c in message.tool_calls
            ]
        return row


def control_tokens(tokenizer: "PreTrainedTokenizerFast", end_ids: frozenset[int]) -> Iterator[str]:
    """Special tokens that end a turn or that the template writes: in a message's own text they would forge a turn.

    Others, such as ``<filename>`` in some vocabularies, are ordinary words of ordinary manuals.
    """
    for token_id, token in tokenizer.added_tokens_decoder.items():
        if token_id in end_ids or (token.special and token.content in _template(tokenizer)):
            yield token.content


def _tool_role(tokenizer: "PreTrainedTokenizerFast") -> str:
    """ChatGLM3's own template writes the role's name as it comes, and its role for a tool's reply is another."""
    template = _template(tokenizer)
    named = "'tool'" in template or '"tool"' in template
    return "observation" if not named and _OBSERVATION in tokenizer.get_added_vocab() else "tool"


def _template(tokenizer: "PreTrainedTokenizerFast") -> str:
    return str(tokenizer.chat_template or "")


def _function(tool: Tool) -> Row:
    described = {"name": tool.name, "description": tool.description, "parameters": json.loads(tool.parameters)}
    return {"type": "function", "function": described}
