"""Reads the built-in ways of asking (``ways/<language>.yaml``). Knows nothing of passages or answers."""

from collections.abc import Sequence
from functools import cache
from importlib.resources import files

import yaml
from pydantic import Field

from textmill.contracts.base import Contract
from textmill.contracts.datasets import Axis
from textmill.contracts.documents import Language


class Way(Contract):
    """A question about a title. ``{content}`` is the title."""

    id: str
    axis: Axis = "plain"
    ask: str = Field(pattern=r"\{content\}")


class WordingTemplate(Contract):
    """Puts any question into other words: ``{question}`` is the question whole, ``{embedded}`` its subordinate clause.

    A question that can't be turned into a clause ("I wonder which lines are solid") doesn't get the latter.
    """

    id: str
    axis: Axis
    text: str = Field(pattern=r"\{(question|embedded)\}")


class Ways(Contract):
    """``openings`` are first questions of a conversation; ``{subject}`` is what it is about."""

    ask: Sequence[Way]
    held_out: Sequence[Way]
    templates: Sequence[WordingTemplate]
    openings: Sequence[str]


@cache
def built_in_ways(language: Language) -> Ways:
    text = files("textmill_synth").joinpath("ways", f"{language}.yaml").read_text(encoding="utf-8")
    return Ways.model_validate(yaml.safe_load(text))
