"""Prompt templates: files in ``prompts/``, each one chat, versioned by the hash of its text.

A file holds turns under lines like ``### user``. The turns are taken apart before a passage is filled in, so that a
passage can't open a turn of its own.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib.resources import files
from typing import get_args

import jinja2

from textmill.contracts.datasets import Message, Role
from textmill.contracts.documents import Language
from textmill.errors import TextmillError

LANGUAGES: tuple[Language, ...] = ("en", "zh")
_TURN = re.compile(rf"^### ({'|'.join(get_args(Role))})\s*$", re.MULTILINE)
_SLOT = re.compile(r"{[{%#].*?[}%#]}", re.DOTALL)


@dataclass(frozen=True)
class Prompt:
    """``version`` names the template's exact text: ``<name>@<12 hex of SHA-256>``."""

    name: str
    text: str

    @cached_property
    def version(self) -> str:
        return f"{self.name}@{hashlib.sha256(self.text.encode()).hexdigest()[:12]}"

    @property
    def key(self) -> str:
        """Where the text of this version is kept in the store."""
        return f"prompts/{self.version}.j2"

    @cached_property
    def instructions(self) -> str:
        """The fixed words of the template, that must never turn up in an answer."""
        return _SLOT.sub("\n", _TURN.sub("\n", self.text))

    @cached_property
    def _turns(self) -> Sequence["_Turn"]:
        return _parse_turns(self.text)

    def render(self, **slots: object) -> tuple[Message, ...]:
        """Raises ``jinja2.UndefinedError`` when a slot of the template is not given."""
        return tuple(turn.fixed or turn.filled(slots) for turn in self._turns)


@dataclass(frozen=True)
class _Turn:
    """``fixed`` is the message of a turn without slots: most system turns, and examples."""

    role: Role
    template: jinja2.Template
    fixed: Message | None = None

    def filled(self, slots: Mapping[str, object]) -> Message:
        return Message(role=self.role, content=self.template.render(slots).strip())


@cache
def load_prompt(name: str) -> Prompt:
    """Read ``prompts/<name>.j2`` from the package, e.g. ``qa.en``."""
    return Prompt(name, files("textmill_synth").joinpath("prompts", f"{name}.j2").read_text(encoding="utf-8"))


def load_prompts(name: str) -> dict[Language, Prompt]:
    """One prompt for each language that is spoken, e.g. for ``qa``: ``qa.en`` and ``qa.zh``."""
    return {language: load_prompt(f"{name}.{language}") for language in LANGUAGES}


@cache
def continued(prompt: Prompt, further: Prompt) -> Prompt:
    """One chat of the turns of both, with a version of its own."""
    name, _, language = prompt.name.rpartition(".")
    return Prompt(f"{name}-{further.name.partition('.')[0]}.{language}", f"{prompt.text.rstrip()}\n{further.text}")


@cache
def _parse_turns(text: str) -> Sequence[_Turn]:
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)
    environment.globals.clear()  # no template calls one, and each rendering would copy them
    _, *parts = _TURN.split(text)
    if not parts:
        raise TextmillError(
            f"a prompt template has no turn: it must hold lines like '### user', it starts {text[:40]!r}"
        )
    roles = {role: role for role in get_args(Role)}
    turns = []
    for role, body in zip(parts[::2], parts[1::2], strict=True):
        turn = _Turn(roles[role], environment.from_string(body))
        turns.append(turn if _SLOT.search(body) else replace(turn, fixed=turn.filled({})))
    return turns
