"""Prompt templates: files in ``prompts/``, each one chat, versioned by the hash of its text.

A file holds turns under lines like ``### user``. The turns are taken apart before a passage is filled in, so that a
passage can't open a turn of its own.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import get_args

import jinja2

from textmill.contracts.datasets import Message, Role
from textmill.errors import TextmillError

_TURN = re.compile(rf"^### ({'|'.join(get_args(Role))})\s*$", re.MULTILINE)
_SLOT = re.compile(r"{[{%#].*?[}%#]}", re.DOTALL)


@dataclass(frozen=True)
class Prompt:
    """``version`` names the template's exact text: ``<name>@<12 hex of SHA-256>``."""

    name: str
    text: str

    @property
    def version(self) -> str:
        return f"{self.name}@{hashlib.sha256(self.text.encode()).hexdigest()[:12]}"

    @property
    def key(self) -> str:
        """Where the text of this version is kept in the store."""
        return f"prompts/{self.version}.j2"

    @property
    def instructions(self) -> str:
        """The fixed words of the template, that must never turn up in an answer."""
        return _SLOT.sub("\n", _TURN.sub("\n", self.text))

    def render(self, **slots: str) -> tuple[Message, ...]:
        """Raises ``jinja2.UndefinedError`` when a slot of the template is not given."""
        return tuple(Message(role=role, content=template.render(slots).strip()) for role, template in _turns(self.text))


def load_prompt(name: str) -> Prompt:
    """Read ``prompts/<name>.j2`` from the package, e.g. ``qa.en``."""
    return Prompt(name, files("textmill_synth").joinpath("prompts", f"{name}.j2").read_text(encoding="utf-8"))


@cache
def _turns(text: str) -> Sequence[tuple[Role, jinja2.Template]]:
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)
    _, *parts = _TURN.split(text)
    if not parts:
        raise TextmillError(
            f"a prompt template has no turn: it must hold lines like '### user', it starts {text[:40]!r}"
        )
    roles = {role: role for role in get_args(Role)}
    return [(roles[role], environment.from_string(body)) for role, body in zip(parts[::2], parts[1::2], strict=True)]
