"""Makes the most of a call: rung by rung, from reading the response as asked for to asking of half the passage.

The rungs, each tried when those before it brought nothing: the form that was asked for; its JSON mended; the whole
items of a list that breaks off; the question put again with what was wrong; the same of the passage's halves.
What none of them helps is rejected, with the first response. No rung adds, drops or changes a word, and none judges
what is said: that is the checks' work.

Costs: one call where all is well, at most four.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Generic

from pydantic import JsonValue

from textmill.contracts.datasets import Rung
from textmill.contracts.datasets import Strategy as StrategyName
from textmill.contracts.documents import Passage
from textmill_synth.checks import Finding
from textmill_synth.llm import CallFailed, Completion, Schema
from textmill_synth.prompts import Prompt, continued, load_prompt
from textmill_synth.responses import (
    Item,
    T,
    labelled_items,
    listed,
    one_item,
    repaired_json,
    strict_json,
    whole_items,
)
from textmill_synth.sentences import sentence_spans
from textmill_synth.strategies.base import Generator, Prompted, Rejection, rejected

_SHOWN_AGAIN_CHARACTERS = 2_000
"""Of a response that couldn't be used, when it is held against its writer."""

Items = Sequence[T | Finding]


@dataclass(frozen=True)
class Shape(Generic[T]):
    """What a response must hold: an item, or a list of up to ``many``. ``texts`` are of an answer's length each.

    ``read_text`` reads the plain text form; without it, that is lines ``<field>: <text>``. ``splits`` says whether
    half a passage can be asked the same.
    """

    item: type[T]
    many: int | None = None
    texts_each: int = 1
    read_text: Callable[[Completion], T | Finding] | None = None
    item_schema: Schema | None = None
    splits: bool = True

    @property
    def texts(self) -> int:
        return self.texts_each * (self.many or 1)

    @cached_property
    def schema(self) -> Schema:
        item = dict(self.item_schema or _schema(self.item))
        if self.many is None:
            return item
        items: JsonValue = {"type": "array", "items": item, "minItems": 1, "maxItems": self.many}
        return {"type": "object", "properties": {"items": items}, "required": ["items"], "additionalProperties": False}


@dataclass(frozen=True)
class Found(Generic[T]):
    """One item, or what is wrong with it, and the call it comes from."""

    item: T | Finding
    prompted: Prompted


@dataclass
class RungTally:
    """How often each rung was tried and brought something, in responses; ``surplus`` are items nobody asked for."""

    tried: Counter[tuple[StrategyName, Rung]] = field(default_factory=Counter)
    gained: Counter[tuple[StrategyName, Rung]] = field(default_factory=Counter)
    surplus: Counter[StrategyName] = field(default_factory=Counter)

    def figures(self) -> dict[str, int]:
        """Over all strategies, for a job's progress."""
        figures: Counter[str] = Counter()
        for what, counts in (("tried", self.tried), ("gained", self.gained)):
            for (_, rung), count in counts.items():
                figures[f"rung_{rung}_{what}"] += count
        return dict(figures)


@dataclass(frozen=True)
class Ladder:
    """Asks for items. Prompts that are to be split show the passage in the slot ``shown``; a list's has ``count``."""

    generator: Generator
    tally: RungTally

    async def ask(
        self,
        strategy: StrategyName,
        passage: Passage,
        prompt: Prompt,
        shape: Shape[T],
        sample: int = 0,
        **slots: object,
    ) -> Sequence[Found[T]] | Rejection:
        """One item, or at most ``shape.many``, of which at least one is in the form.

        Raises ``CallFailed`` when the first call got no answer. A further rung whose call fails has brought nothing.
        """
        climb = _Climb(self, strategy, passage, prompt, shape, slots, sample)
        prompted = await climb.call(prompt, shape, slots, sample)
        finding = Finding("format", "")
        for rung, items in climb.readings(shape, prompted.call.completion):
            self.tally.tried[strategy, rung] += 1
            if not isinstance(items, Finding):
                return climb.gain(rung, [Found(item, replace(prompted, rung=rung)) for item in items])
            finding = items if rung == "as_asked" else finding
        return await climb.ask_again(prompted, finding) or await climb.split() or rejected(finding, prompted)


@dataclass(frozen=True)
class _Climb(Generic[T]):
    """One request on its way up."""

    ladder: Ladder
    strategy: StrategyName
    passage: Passage
    prompt: Prompt
    shape: Shape[T]
    slots: Mapping[str, object]
    sample: int

    async def call(self, prompt: Prompt, shape: Shape[T], slots: Mapping[str, object], sample: int) -> Prompted:
        counted = {"count": shape.many} if shape.many else {}
        return await self.ladder.generator.ask(
            self.passage, prompt, shape.schema, {**slots, **counted}, shape.texts, sample
        )

    def readings(self, shape: Shape[T], completion: Completion) -> Iterator[tuple[Rung, Items[T] | Finding]]:
        """All ways to read one response, the strictest first."""
        if self.ladder.generator.form == "text":
            yield "as_asked", _in_form(_read_text(shape, completion))
            return
        strictly = _in_form(_items(strict_json(completion.text), shape))
        cut_off = completion.finish_reason == "length"
        if cut_off and isinstance(strictly, Finding):
            strictly = Finding("truncated", f"the token limit was reached before the form was whole: {strictly.detail}")
        yield "as_asked", strictly
        if not cut_off:
            yield "json_repair", _in_form(_items(repaired_json(completion.text), shape, loose=True))
        if shape.many:
            whole = [one_item(value, shape.item) for value in whole_items(completion.text)]
            yield "partial", _in_form(whole or Finding("truncated", "not one item is whole"))

    async def ask_again(self, before: Prompted, finding: Finding) -> Sequence[Found[T]] | None:
        """Show the response and what is wrong with it, and ask once more."""
        again = continued(self.prompt, load_prompt(f"again.{self.passage.language}"))
        said = before.call.completion.text[:_SHOWN_AGAIN_CHARACTERS]
        slots = {**self.slots, "said": said or "-", "wrong": finding.detail, "cut_off": finding.reason == "truncated"}
        return await self._try("asked_again", [(again, self.shape, slots, self.sample + 1)])

    async def split(self) -> Sequence[Found[T]] | None:
        """Ask of the two halves of what was shown: a list from both, one item from the first that gives it."""
        halves = split_in_two(str(self.slots.get("shown", ""))) if self.shape.splits else None
        if halves is None:
            return None
        tries = []
        for number, half in enumerate(halves):
            many = None if self.shape.many is None else (self.shape.many + 1 - number) // 2
            if many != 0:
                tries.append((self.prompt, replace(self.shape, many=many), {**self.slots, "shown": half}, self.sample))
        return await self._try("split", tries)

    async def _try(
        self, rung: Rung, tries: Sequence[tuple[Prompt, Shape[T], Mapping[str, object], int]]
    ) -> Sequence[Found[T]] | None:
        self.ladder.tally.tried[self.strategy, rung] += 1
        found: list[Found[T]] = []
        for prompt, shape, slots, sample in tries:
            if found and self.shape.many is None:
                break
            try:
                prompted = await self.call(prompt, shape, slots, sample)
            except CallFailed:
                continue
            items = next(
                (i for _, i in self.readings(shape, prompted.call.completion) if not isinstance(i, Finding)), ()
            )
            found += [Found(item, replace(prompted, rung=rung)) for item in items]
        return self.gain(rung, found) if found else None

    def gain(self, rung: Rung, found: Sequence[Found[T]]) -> Sequence[Found[T]]:
        tally, wanted = self.ladder.tally, self.shape.many or 1
        tally.gained[self.strategy, rung] += 1
        tally.surplus[self.strategy] += max(0, len(found) - wanted)
        return found[:wanted]


@cache
def _schema(item: type[Item]) -> Schema:
    return item.model_json_schema()


def split_in_two(text: str) -> tuple[str, str] | None:
    """At the sentence end that is nearest to the middle; None for a single sentence."""
    starts = [start for start, _ in sentence_spans(text)][1:]
    if not starts:
        return None
    middle = min(starts, key=lambda start: abs(start - len(text) / 2))
    return text[:middle].rstrip(), text[middle:]


def _read_text(shape: Shape[T], completion: Completion) -> Items[T] | Finding:
    if shape.read_text:
        item = shape.read_text(completion)
        return item if isinstance(item, Finding) else [item]
    items = labelled_items(completion.text, shape.item)
    if completion.finish_reason == "length" and not isinstance(items, Finding):
        cut_off = Finding("truncated", "the token limit was reached in this item")
        return [*items[:-1], cut_off]
    return items


def _items(value: JsonValue | Finding, shape: Shape[T], loose: bool = False) -> Items[T] | Finding:
    """``loose``: a list may stand there without the object around it."""
    if shape.many is None:
        item = one_item(value, shape.item)
        return item if isinstance(item, Finding) else [item]
    values = value if loose and isinstance(value, list) else listed(value)
    return values if isinstance(values, Finding) else [one_item(v, shape.item) for v in values]


def _in_form(items: Items[T] | Finding) -> Items[T] | Finding:
    """A list in which not one item is in the form is as good as none."""
    if isinstance(items, Finding) or any(not isinstance(item, Finding) for item in items):
        return items
    return next((item for item in items if isinstance(item, Finding)), Finding("empty", "the list has no item"))
