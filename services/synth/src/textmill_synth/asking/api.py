"""The built-in ways of asking over HTTP, so that owners see what is there before they add their own."""

from collections.abc import Sequence
from typing import Annotated, Literal

from fastapi import APIRouter, Query

from textmill.contracts.base import Contract
from textmill.contracts.datasets import Axis
from textmill.contracts.documents import Language
from textmill_synth.asking.ways import built_in_ways
from textmill_synth.prompts import LANGUAGES

Use = Literal["ask", "held_out", "template", "opening"]


class BuiltInWay(Contract):
    """One way of asking. "ask" and "held_out" are about a passage's heading, for passages without question sets.

    A "template" puts any question into other words: to have it your way, write it into the recipe's
    ``synthesis.asking.templates``. An "opening" starts the conversation that a follow-up needs.
    """

    id: str
    use: Use
    axis: Axis
    language: Language
    text: str


class BuiltInWays(Contract):
    items: Sequence[BuiltInWay]


def ways_router() -> APIRouter:
    """``GET /v1/ways``: a few dozen entries, so there are no pages."""
    router = APIRouter()

    @router.get("/v1/ways", summary="The built-in ways of asking, by language and axis", tags=["datasets"])
    def list_ways(
        language: Annotated[Language | None, Query()] = None, axis: Annotated[Axis | None, Query()] = None
    ) -> BuiltInWays:
        languages = [language] if language else LANGUAGES
        found = [way for spoken in languages for way in _ways(spoken)]
        return BuiltInWays(items=[way for way in found if axis in (None, way.axis)])

    return router


def _ways(language: Language) -> list[BuiltInWay]:
    ways = built_in_ways(language)
    found: list[tuple[Use, str, Axis, str]] = [("ask", way.id, way.axis, way.ask) for way in ways.ask]
    found += [("held_out", way.id, way.axis, way.ask) for way in ways.held_out]
    found += [("template", template.id, template.axis, template.text) for template in ways.templates]
    found += [("opening", f"opening-{n}", "follow_up", text) for n, text in enumerate(ways.openings, 1)]
    return [BuiltInWay(id=name, use=use, axis=axis, language=language, text=text) for use, name, axis, text in found]
